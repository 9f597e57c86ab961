"""What is shipped: the wheel's top-level names, typed, with both commands."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_and_nothing_else(tmp_path):
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        scripts = archive.read(entry).decode()
    assert tops == {"landscape", "sam_variants", "landscape_cli"}
    for package in tops:
        assert f"{package}/py.typed" in names
    assert "landscape-train = landscape_cli.train:main" in scripts
    assert "landscape-probe = landscape_cli.probe:main" in scripts
    for module in ("landscape/linalg/lanczos.py", "sam_variants/tasks/mnist1d.py"):
        assert module in names


def test_every_package_folder_is_listed_for_the_wheel():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("landscape", "sam_variants", "cli")
        for path in (ROOT / top).rglob("*.py")
    }
    renamed = {"landscape_cli" if name == "cli" else name for name in folders}
    assert renamed == set(settings["packages"])
