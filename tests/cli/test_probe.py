"""landscape-probe by main(argv) and as a command: answers, exit codes, what stays untouched."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.probe import main
from cli.train import main as train
from sam_variants.tasks import build_model, build_task

FAST = ["--surface", "5", "--line", "5", "--density-steps", "4", "--trace-probes", "4", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods, two seeds of a logistic model, one epoch."""
    out = tmp_path_factory.mktemp("runs") / "study"
    code = train(
        ["--variants", "erm,sam", "--task", "digits", "--model", "logistic", "--epochs", "1",
         "--seeds", "2", "--jobs", "1", "--out", str(out), "--quiet"]
    )  # fmt: skip
    assert code == 0
    return out


@pytest.fixture(scope="module")
def probed(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe") / "result"
    assert main([str(runs), "--quick", *FAST, "--out", str(out)]) == 0
    return out


def fingerprints(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_folder_of_runs_gives_result_report_and_figures(runs, probed):
    document = json.loads((probed / "result.json").read_text())
    assert [c["label"] for c in document["checkpoints"]] == [
        "erm seed 0", "erm seed 1", "sam seed 0", "sam seed 1",
    ]  # fmt: skip
    assert document["comparison"]["reference"] == "erm"
    assert document["quick"]
    assert document["data"]["num_samples"] == 1000
    assert document["training"]["runs"][0]["history"]
    assert (probed / "report.html").stat().st_size > 1_000_000
    assert list((probed / "figures").glob("*.pdf"))
    assert list((probed / "figures").glob("*.png"))


def test_the_table_has_a_row_a_method_with_intervals(runs, probed, capsys):
    assert main([str(runs), "--quick", *FAST, "--out", str(probed)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["method", "seeds", "test"]
    assert lines[1].startswith("erm")
    assert "±" in lines[2]
    assert lines[-1] == f"report: {probed / 'report.html'}"


def test_a_finished_probe_is_not_measured_again(runs, probed):
    before = fingerprints(probed)
    assert main([str(runs), "--quick", *FAST, "--out", str(probed)]) == 0
    assert fingerprints(probed) == before


def test_another_question_is_not_answered_over_an_old_result(runs, probed, capsys):
    before = fingerprints(probed)
    assert main([str(runs), "--quick", *FAST, "--seed", "7", "--out", str(probed)]) == 2
    assert "holds another result" in capsys.readouterr().err
    assert fingerprints(probed) == before


def test_json_is_one_object_on_stdout_and_nothing_else(runs, probed, capsys):
    assert main([str(runs), "--quick", *FAST, "--out", str(probed), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "probe"


def test_the_default_folder_lies_in_the_run(runs, capsys):
    checkpoint = runs / "sam-seed1" / "checkpoint.pt"
    arguments = [str(checkpoint), "--quick", "--surface", "0", "--line", "0", "--metrics", "sam"]
    assert main([*arguments, "--density-runs", "0", "--trace-probes", "0", "--quiet"]) == 0
    assert (runs / "sam-seed1" / "probe" / "result.json").exists()


def test_a_plain_state_dict_is_probed_with_the_model_and_data_named(tmp_path, capsys):
    task = build_task("digits")
    path = tmp_path / "net.pt"
    torch.save(build_model("logistic", task, seed=3).state_dict(), path)
    arguments = [
        str(path),
        "--quick",
        *FAST,
        "--out",
        str(tmp_path / "out"),
        "--max-samples",
        "200",
    ]
    assert main(arguments) == 2
    assert "is a plain state dict" in capsys.readouterr().err
    assert main([*arguments, "--model", "logistic", "--data", "digits"]) == 0
    document = json.loads((tmp_path / "out" / "result.json").read_text())
    assert document["checkpoints"][0]["label"] == "net"
    assert document["data"]["num_samples"] == 200


@pytest.mark.slow
def test_report_only_redraws_and_computes_nothing(probed, capsys):
    before = fingerprints(probed)
    (probed / "report.html").unlink()
    assert main(["--report-only", str(probed)]) == 0
    assert capsys.readouterr().out.strip() == str(probed / "report.html")
    assert fingerprints(probed) == before


def test_a_result_is_verified_without_torch(runs, probed, tmp_path, capsys):
    import shutil

    assert main(["--verify", str(probed)]) == 0
    assert capsys.readouterr() == (f"{probed}: complete, 4 checkpoints, hashes hold\n", "")
    copy = tmp_path / "copy"
    shutil.copytree(probed, copy)
    with (copy / "arrays.nc").open("ab") as file:
        file.write(b"\0")
    assert main(["--verify", str(copy)]) == 3
    assert "arrays.nc" in capsys.readouterr().err


@pytest.mark.slow
def test_verification_tells_checkpoints_that_changed_and_results_that_are_partial(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)
    task = build_task("digits")
    for name in "ab":
        model = build_model("logistic", task, seed=ord(name))
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    words = [*(str(tmp_path / f"{name}.pt") for name in "ab"), "--model", "logistic"]
    words += ["--data", "digits", "--quick", *FAST, "--max-samples", "60", "--jobs", "1"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out)]) == 0
    (tmp_path / "a.pt").unlink()
    (tmp_path / "b.pt").write_bytes(b"other")
    capsys.readouterr()
    assert main(["--verify", str(out)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'a.pt'}: no longer there",
        f"{tmp_path / 'b.pt'}: changed since",
    ]


def test_a_result_edited_by_hand_is_never_drawn(runs, probed, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(probed, copy)
    text = (copy / "result.json").read_text()
    (copy / "result.json").write_text(text.replace('"erm seed 0"', '"the best"', 1))
    assert main(["--report-only", str(copy)]) == 3
    assert "result.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_spent_time_budget_saves_what_there_is_and_exits_5(runs, tmp_path, capsys):
    out = tmp_path / "partial"
    arguments = [str(runs), "--out", str(out), "--time-budget", "0.5s", "--quiet"]
    assert main(arguments) == 5
    document = json.loads((out / "result.json").read_text())
    assert not document["complete"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert "a partial result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 3, "no such file or folder"),
        (b"", 3, "the file is empty"),
        (b"<html>", 3, "HTML page"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_exit_3(tmp_path, capsys, content, code, message):
    path = tmp_path / "net.pt"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path), "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert str(path) in captured.err
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_exit_4(tmp_path, capsys):
    task = build_task("digits")
    model = build_model("logistic", task, seed=3)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    path = tmp_path / "net.pt"
    torch.save(model.state_dict(), path)
    arguments = [str(path), "--model", "logistic", "--data", "digits", "--out", str(tmp_path / "o")]
    assert main(arguments) == 4
    assert "nan or inf" in capsys.readouterr().err


def test_a_model_that_does_not_fit_exits_3_and_names_the_keys(tmp_path, capsys):
    task = build_task("digits")
    path = tmp_path / "net.pt"
    torch.save(build_model("mlp", task, seed=3).state_dict(), path)
    arguments = [str(path), "--model", "logistic", "--data", "digits", "--out", str(tmp_path / "o")]
    assert main(arguments) == 3
    assert "does not fit the model" in capsys.readouterr().err


def test_checkpoints_of_different_data_are_not_compared(runs, tmp_path, capsys):
    other = tmp_path / "other"
    train(["--variants", "erm", "--task", "breast-cancer", "--model", "logistic", "--epochs", "1",
           "--jobs", "1", "--out", str(other), "--quiet"])  # fmt: skip
    capsys.readouterr()
    code = main([str(runs / "erm-seed0"), str(other / "erm-seed0"), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "were trained on different data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a checkpoint"),
        (["x", "--egenvalues", "3"], "did you mean '--eigenvalues'"),
        (["x", "--eigenvalues", "-1"], "eigenvalues must be"),
        (["x", "--metrics", "sharpnes"], "unknown metric 'sharpnes'"),
        (["x", "--directions", "up"], "directions must be one of"),
        (["x", "--quick", "--thorough"], "exclude each other"),
        (["x", "--time-budget", "soon"], "must be as 90s, 10m or 1h"),
        (["x", "--model-arg", "depth"], "must be name=value"),
        (["x", "--rho", "nan"], "rho must be"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err


def test_the_configuration_round_trips(tmp_path, capsys):
    arguments = ["--quick", "--eigenvalues", "7", "--metrics", "sam,worst-case:rho=0.1"]
    assert main([*arguments, "--print-config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "probe.toml").write_text(first)
    assert main(["--config", str(tmp_path / "probe.toml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first
    assert "metrics = [" in first


@pytest.mark.slow
def test_a_dry_run_measures_nothing_and_says_what_it_would_cost(runs, tmp_path, capsys):
    out = tmp_path / "o"
    assert main([str(runs), "--quick", "--dry-run", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "would probe 4 checkpoints" in told
    assert "density: 10 runs of 15 steps" in told
    assert "all checkpoints: about" in told
    assert main([str(runs), "--quick", "--dry-run", "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    stages = {row["stage"]: row for row in document["checkpoints"][0]["stages"]}
    assert stages["trace"]["typical"]["products"] == 16
    assert document["total"]["typical"]["seconds"] > 0
    assert not out.exists()


def test_a_dry_run_opens_what_the_probe_would_open(tmp_path, capsys):
    (tmp_path / "net.pt").write_bytes(b"")
    assert main([str(tmp_path / "net.pt"), "--dry-run", "--out", str(tmp_path / "o")]) == 3
    assert "the file is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["--list", "metrics"], ["--rho", "-1"], ["nowhere"]]
)
def test_help_lists_and_usage_errors_do_not_import_torch(arguments):
    code = (
        "import sys; from cli.probe import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 2, 3), done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.slow
def test_the_number_of_processes_changes_no_number(runs, tmp_path):
    documents = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        arguments = [str(runs), "--quick", *FAST, "--max-samples", "200", "--metrics", "sam"]
        assert main([*arguments, "--jobs", jobs, "--out", str(out)]) == 0
        document = json.loads((out / "result.json").read_text())
        for checkpoint in document["checkpoints"]:
            del checkpoint["provenance"], checkpoint["costs"]
            for measured in checkpoint["sharpness"].values():
                del measured["cost"]
        documents.append(document)
    assert documents[0]["checkpoints"] == documents[1]["checkpoints"]
    assert documents[0]["comparison"] == documents[1]["comparison"]


def test_a_signal_saves_what_there_is_and_exits_128_plus_its_number(runs, tmp_path, monkeypatch):
    import os
    import signal

    from cli import probe

    def signalling(self, process, what, done, total):
        if what == "erm seed 1: trace":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(probe._Bars, "__call__", signalling)
    out = tmp_path / "stopped"
    arguments = [str(runs), "--quick", *FAST, "--jobs", "1", "--out", str(out)]
    assert main(arguments) == 128 + signal.SIGTERM
    document = json.loads((out / "result.json").read_text())
    assert not document["complete"]
    assert [c["label"] for c in document["checkpoints"]] == ["erm seed 0", "erm seed 1"]
    assert document["checkpoints"][0]["trace"] is not None
    assert document["checkpoints"][1]["trace"] is None
    assert (out / "report.html").exists()


def test_work_is_shared_out_with_the_dear_checkpoints_first():
    from cli.parallel import shares

    assert shares(9, frozenset({0, 3, 6}), 2) == [[0, 5, 6, 8], [1, 2, 3, 4, 7]]
    assert shares(2, frozenset({0, 1}), 4) == [[0], [1]]


def test_a_zero_survives_the_configuration(tmp_path, capsys):
    zeros = ["--surface", "0", "--line", "0", "--trace-probes", "0", "--eigenvalues", "0"]
    assert main([*zeros, "--density-runs", "0", "--rho", "0", "--print-config"]) == 0
    printed = capsys.readouterr().out
    for key in ("surface", "line", "trace_probes", "eigenvalues", "density_runs"):
        assert f"{key} = 0\n" in printed
    assert "rho = 0.0\n" in printed


@pytest.mark.parametrize("device", ["foo", "cuda"])
def test_35_a_device_that_is_not_there_is_a_usage_error(runs, tmp_path, capsys, device):
    if device == "cuda" and torch.cuda.is_available():
        device = "xpu"
    assert main([str(runs), "--device", device, "--out", str(tmp_path / "o")]) == 2
    assert f"device '{device}' cannot be used here" in capsys.readouterr().err


def test_one_point_is_no_plane_and_refused_before_any_work(capsys):
    for option in ("--surface", "--line", "--trace-probes", "--density-runs"):
        assert main(["somewhere", option, "1"]) == 2
        assert "must be 0 or at least 2" in capsys.readouterr().err


def test_the_same_checkpoint_twice_is_no_second_seed(runs, tmp_path, capsys):
    path = str(runs / "erm-seed0")
    assert main([path, path, "--out", str(tmp_path / "o")]) == 2
    assert "hold the same bytes" in capsys.readouterr().err


def test_runs_of_two_studies_and_other_files_of_a_run_are_methods_of_their_own(tmp_path):
    from cli.subjects import methods_of
    from landscape.checkpoints import Checkpoint

    def checkpoint(path, label="sam"):
        run = None if label is None else {"label": label, "seed": 0}
        return Checkpoint(path, "", {}, path, run=run)

    one = [checkpoint("a/sam-seed0/checkpoint.pt"), checkpoint("a/sam-seed1/checkpoint.pt")]
    assert methods_of(one) == ["sam", "sam"]
    both = [*one, checkpoint("b/sam-seed0/checkpoint.pt")]
    assert methods_of(both) == ["a/sam", "a/sam", "b/sam"]
    files = [checkpoint("a/s/checkpoint.pt"), checkpoint("a/s/best.pt")]
    files.append(checkpoint("a/s/trajectory/5.pt"))
    assert methods_of(files) == ["sam", "sam best", "sam epoch 5"]
    plain = [checkpoint("x/net.pt", None), checkpoint("y/net.pt", None)]
    assert methods_of(plain) == ["x/net", "y/net"]


def test_checkpoints_trained_on_different_losses_are_not_compared(runs, tmp_path, capsys):
    other = tmp_path / "other"
    train(["--variants", "erm", "--task", "digits", "--model", "logistic", "--epochs", "1",
           "--label-smoothing", "0.3", "--jobs", "1", "--out", str(other), "--quiet"])  # fmt: skip
    capsys.readouterr()
    code = main([str(runs / "erm-seed0"), str(other / "erm-seed0"), "--out", str(tmp_path / "o")])
    assert code == 2
    assert "different data or losses" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_too(runs, tmp_path):
    import os
    import signal
    import time

    out = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.probe", str(runs), "--thorough", "--jobs", "2",
         "--trace-probes", "200000", "--out", str(out), "--quiet"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    time.sleep(25)  # both processes are busy with a trace that takes minutes
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    document = json.loads((out / "result.json").read_text())
    assert not document["complete"]
    assert len(document["checkpoints"]) >= 2
