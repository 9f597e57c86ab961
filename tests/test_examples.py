"""Every example runs as its first lines say, on tiny settings, and is short enough to read."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.py"))


def run(name, *arguments, folder):
    script = next(path for path in EXAMPLES if path.name == name)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_has_at_most_eighty_lines(path):
    assert len(path.read_text().splitlines()) <= 80


@pytest.mark.slow
def test_probe_your_model_leaves_a_report_that_agrees_with_pyhessian(tmp_path):
    from landscape import load_findings

    out = run("probe_your_model.py", "--steps", "60", folder=tmp_path)
    assert "digits net" in out
    assert (tmp_path / "my-probe/report.html").is_file()
    checkpoint = load_findings(tmp_path / "my-probe").checkpoints[0]
    assert checkpoint["second_opinion"]["agrees"] is True
    assert {pair["end"] for pair in checkpoint["eigenvalues"]} == {"top", "bottom"}


@pytest.mark.slow
def test_train_your_model_trains_and_perturbs_some_of_the_steps(tmp_path):
    out = run("train_your_model.py", "--steps", "120", folder=tmp_path)
    accuracy, share = (float(word.strip(",").rstrip("%")) for word in out.split() if "%" in word)
    assert accuracy > 85
    assert 10 < share < 90
