"""What the README says about installing is what the package, the Makefile and its files hold."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text().partition("## Installing")[2].partition("\n## ")[0]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_every_extra_is_named_once_and_no_other():
    listed = SECTION.partition("Extras:")[2].partition(".\n")[0]
    assert sorted(re.findall(r"`([\w-]+)`", listed)) == sorted(EXTRAS)


def test_the_way_to_add_an_extra_in_a_clone_names_what_is_there():
    text = " ".join(SECTION.split())
    command = re.search(r"`\.venv/bin/pip install -c (\S+) -e '\.\[(\w+)\]'`", text)
    assert command is not None
    constraints, extra = command.groups()
    assert (ROOT / constraints).is_file()
    assert extra in EXTRAS
    target = re.search(r"`make (\w+)`", text)[1]
    makefile = (ROOT / "Makefile").read_text()
    assert f"\n{target}: .venv/" in makefile
    assert f"--constraint {constraints} --editable" in makefile
