"""The demo through the installed commands in a fresh folder: its pattern, its files, its repeat."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120  # on two idle cores; a test machine that is busy gets three times as many


def run(*words, folder):
    module = {"landscape-train": "landscape_cli.train", "landscape-probe": "landscape_cli.probe"}
    command = [sys.executable, "-m", module[words[0]], *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def by_variant(folder):
    comparison = json.loads((folder / "runs/demo/comparison.json").read_text())
    return {entry["variant"].partition("-rho")[0]: entry for entry in comparison["variants"]}


def lambda_max(folder):
    document = json.loads((folder / "runs/demo/probe/result.json").read_text())
    methods = document["comparison"]["methods"]
    return {
        entry["method"].partition("-rho")[0]: entry["values"]["lambda-max"]["mean"]
        for entry in methods
    }


def assert_pattern(folder):
    """What tasks and models promise: accuracy sam > ae-sam > erm, lambda_max the reverse."""
    trained, curvature = by_variant(folder), lambda_max(folder)
    accuracy = {name: entry["test_accuracy"]["mean"] for name, entry in trained.items()}
    assert accuracy["sam"] > accuracy["ae-sam"] > accuracy["erm"]
    assert curvature["sam"] < curvature["ae-sam"] < curvature["erm"]
    assert 0.38 <= trained["ae-sam"]["perturbed_share"]["mean"] <= 0.52
    assert trained["sam"]["perturbed_share"]["mean"] == 1
    for entry in trained.values():
        assert entry["test_accuracy"]["interval"] is not None
    assert trained["ae-sam"]["gradients"]["mean"] < 1.52 * trained["erm"]["gradients"]["mean"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "examples").mkdir()
    shutil.copy(ROOT / "examples/demo.toml", folder / "examples")
    lines = [
        line.split(")/", 1)[1]
        for line in (ROOT / "Makefile").read_text().split("demo:")[1].splitlines()[1:3]
    ]
    begin = time.monotonic()
    printed = [run(*line.split(), folder=folder) for line in lines]
    return folder, lines, printed, time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_shows_the_pattern_with_intervals_and_prints_the_reports_path(demo):
    folder, _, printed, seconds = demo
    assert_pattern(folder)
    assert "report: runs/demo/probe/report.html" in printed[1]
    assert (folder / "runs/demo/probe/report.html").is_file()
    assert seconds < 3 * SECONDS
    for method in ("erm", "sam-rho=0.1", "ae-sam-rho=0.1"):
        assert re.search(rf"^{method} +3 .*\+-", printed[0], re.MULTILINE)
        assert re.search(rf"^{method} +3 .*±", printed[1], re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_demo_prints_the_same_at_once_and_writes_nothing(demo):
    folder, lines, printed, first = demo
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    begin = time.monotonic()
    again = [run(*line.split(), folder=folder) for line in lines]
    assert again == printed
    assert time.monotonic() - begin < max(5, first / 5)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pattern_repeats_on_other_seeds(tmp_path):
    config = str(ROOT / "examples/demo.toml")
    run("landscape-train", "--config", config, "--seed", "10", "--seeds", "5", folder=tmp_path)
    run(
        "landscape-probe", "--quick", "runs/demo", "--surface", "0", "--line", "0",
        "--density-runs", "0", "--trace-probes", "0", "--metrics", "lambda-max", folder=tmp_path,
    )  # fmt: skip
    assert_pattern(tmp_path)
