"""landscape-probe: what it can measure beside the usual, by the flags that ask for it."""

import json
import os
import signal
from itertools import count

import numpy as np
import pytest

from cli import probe
from cli.probe import main
from cli.train import main as train
from landscape import load_findings

BARE = ["--eigenvalues", "2", "--ends", "top", "--trace-probes", "0", "--density-runs", "0",
        "--surface", "0", "--line", "0", "--metrics", "sam", "--max-samples", "100",
        "--jobs", "1", "--quiet"]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a small net, three epochs, each of them kept."""
    out = tmp_path_factory.mktemp("runs") / "study"
    code = train(
        ["--variants", "erm", "--task", "digits", "--model", "mlp", "--epochs", "3", "--seeds", "2",
         "--save-every", "1", "--probe-every", "never", "--jobs", "1", "--out", str(out),
         "--quiet"]
    )  # fmt: skip
    assert code == 0
    return out


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """The report takes longer than the measurement: one test draws it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(probe, "_draw", lambda findings, out: None)


@pytest.fixture
def drawn():
    """Asked for by the test that looks at the report."""


def document_of(out):
    return json.loads((out / "result.json").read_text())


def measured(arguments, out, *, code=0):
    assert main([*map(str, arguments), "--out", str(out)]) == code
    return load_findings(out)


def test_the_further_measurements_stand_in_the_result(runs, tmp_path, drawn):
    one = runs / "erm-seed0" / "checkpoint.pt"
    wanted = ["--per-layer", "--dynamics", "--noise-batch-size", "50", "--diagonal-probes", "4"]
    findings = measured([one, *BARE, *wanted], tmp_path / "o")
    entry = findings.checkpoints[0]
    assert len(entry["layers"]) >= 2
    assert sum(layer["num_parameters"] for layer in entry["layers"]) == entry["num_parameters"]
    assert entry["dynamics"]["batch_lambda_max"]["batch_size"] == 50
    assert entry["dynamics"]["skipped"] == {}
    assert len(findings.arrays["diagonal_c0_values"]) == entry["num_parameters"]
    assert entry["self_check"]["passed"]
    assert entry["sampling"]["population"] == findings.document["data"]["num_samples_total"]
    assert entry["eigenvalues"][0]["sampling_error"] > 0
    report = (tmp_path / "o" / "report.html").read_text()
    assert "self-check" in report


@pytest.mark.parametrize("matrix", ["ggn", "remainder", "fisher", "mc-fisher"])
def test_every_matrix_has_its_name_in_the_settings_and_no_negative_square(runs, tmp_path, matrix):
    one = runs / "erm-seed0" / "checkpoint.pt"
    findings = measured([one, *BARE, "--matrix", matrix], tmp_path / "o")
    assert findings.document["settings"]["matrix"] == matrix
    values = [pair["value"] for pair in findings.checkpoints[0]["eigenvalues"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0


def test_trace_methods_are_told_apart(runs, tmp_path):
    one = runs / "erm-seed0" / "checkpoint.pt"
    arguments = [one, *BARE, "--trace-probes", "12", "--trace-method", "xtrace"]
    assert measured(arguments, tmp_path / "o").checkpoints[0]["trace"]["method"] == "xtrace"


def test_the_barrier_between_two_seeds(runs, tmp_path):
    findings = measured([runs, *BARE, "--connect", "line"], tmp_path / "line")
    (pair,) = findings.document["connection"]["pairs"]
    assert pair["first"] == "c0"
    assert pair["second"] == "c1"
    assert pair["height"] > 0
    path = findings.arrays["path_p0_loss"]
    assert path[0] == pytest.approx(findings.checkpoints[0]["loss"], rel=1e-4)
    aligned = measured([runs, *BARE, "--connect", "line", "--align"], tmp_path / "aligned")
    (moved,) = aligned.document["connection"]["pairs"]
    assert moved["num_moved"] > 0
    assert moved["distance"] < pair["distance"]
    assert moved["height"] < pair["height"]


def test_one_checkpoint_has_no_path_and_that_is_said(runs, tmp_path, capsys):
    one = runs / "erm-seed0" / "checkpoint.pt"
    assert main([str(one), *BARE, "--connect", "line", "--out", str(tmp_path / "o")]) == 2
    assert "two or more checkpoints" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_plane_of_a_runs_own_trajectory(runs, tmp_path):
    one = runs / "erm-seed0" / "checkpoint.pt"
    plane = ["--surface", "5", "--line", "5", "--directions", "pca"]
    findings = measured([one, *BARE, *plane], tmp_path / "o")
    entry = findings.checkpoints[0]["trajectory"]
    assert entry["names"] == ["1", "2", "erm seed 0"]  # epoch 3 is the checkpoint itself
    assert findings.arrays["trajectory_c0_coordinates"].shape == (3, 2)
    assert findings.checkpoints[0]["surface"]["unit"] == "parameter norm"


def test_a_run_without_a_trajectory_says_how_to_get_one(runs, tmp_path, capsys):
    import shutil

    alone = tmp_path / "study" / "erm-seed0"
    alone.mkdir(parents=True)
    shutil.copy(runs / "erm-seed0" / "checkpoint.pt", alone)
    arguments = [str(alone), *BARE, "--directions", "pca", "--surface", "5"]
    assert main([*arguments, "--out", str(tmp_path / "o")]) == 2
    assert "--save-every" in capsys.readouterr().err


def test_a_plane_through_the_checkpoints_themselves(runs, tmp_path):
    plane = ["--surface", "5", "--directions", "checkpoints"]
    findings = measured([runs, *BARE, *plane], tmp_path / "o")
    surfaces = [c["surface"] for c in findings.checkpoints]
    assert surfaces[1] is None
    assert [p["label"] for p in surfaces[0]["points"]] == ["erm seed 0", "erm seed 1"]


@pytest.fixture
def stopped(monkeypatch):
    """Runs a probe that is ended by SIGTERM at the n-th report of a stage."""

    def run(arguments, out, *, at, after):
        told = count()

        def signalling(self, process, what, done, total):
            if what == at and next(told) == after:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patched:
            patched.setattr(probe._Bars, "__call__", signalling)
            return measured(arguments, out, code=128 + signal.SIGTERM)

    return run


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_stopped_probe_goes_on_with_resume(runs, tmp_path, stopped, capsys, jobs):
    plane = ["--surface", "21", "--exact", "--line", "5", "--trace-probes", "4", "--jobs", jobs]
    arguments = [runs, *BARE, *plane]
    whole = measured(arguments, tmp_path / "whole")
    partial = stopped(arguments, tmp_path / "o", at="erm seed 1: surface", after=100)
    assert any(name.startswith("points_") for name in partial.arrays)
    capsys.readouterr()
    assert main([*map(str, arguments), "--out", str(tmp_path / "o")]) == 2
    assert "--resume" in capsys.readouterr().err
    again = measured([*arguments, "--resume"], tmp_path / "o")
    assert again.document["complete"]
    assert again.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name], err_msg=name)
    assert again.document["comparison"] == whole.document["comparison"]


def test_resume_starts_from_nothing_and_ends_with_what_is_there(runs, tmp_path):
    one = runs / "erm-seed0" / "checkpoint.pt"
    first = measured([one, *BARE, "--resume"], tmp_path / "o")
    before = (tmp_path / "o" / "result.json").stat().st_mtime_ns
    assert measured([one, *BARE, "--resume"], tmp_path / "o").checkpoints == first.checkpoints
    assert (tmp_path / "o" / "result.json").stat().st_mtime_ns == before


def test_a_partial_result_of_another_question_is_not_gone_on_from(runs, tmp_path, stopped, capsys):
    one = runs / "erm-seed0" / "checkpoint.pt"
    arguments = [one, *BARE, "--surface", "31"]
    stopped(arguments, tmp_path / "o", at="erm seed 0: surface", after=5)
    before = document_of(tmp_path / "o")
    arguments = [str(one), *BARE, "--surface", "33", "--resume", "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "another, partial result" in capsys.readouterr().err
    assert document_of(tmp_path / "o") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--align"], "align belongs to connect"),
        (
            ["--approximate", "--matrix", "ggn"],
            "central differences give products of the Hessian alone",
        ),
        (["--across-kinks"], "set approximate too"),
        (["--trace-method", "hutch"], "hutchinson"),
        (["--connect", "curve"], "line"),
        (["--eigenvalue-map", "1"], "0 or at least 2"),
        (["--trace-method", "xtrace", "--trace-probes", "3"], "at least 4 trace_probes"),
    ],
)
def test_words_that_do_not_fit_are_a_usage_error(arguments, message, capsys):
    assert main(["net.pt", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_bottom_of_a_semidefinite_matrix_is_looked_at_only_if_asked():
    from cli.arguments import read_arguments
    from cli.probe import ARGUMENTS, plan_of

    def ends(*words):
        return plan_of(read_arguments(ARGUMENTS, list(words), prog="p", description="")).ends

    assert ends("net.pt") == ends("net.pt", "--matrix", "remainder") == "both"
    assert ends("net.pt", "--matrix", "ggn") == ends("net.pt", "--matrix", "fisher") == "top"
    assert ends("net.pt", "--matrix", "ggn", "--ends", "both") == "both"
