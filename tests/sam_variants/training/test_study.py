"""A study: its folder, its processes, and what one failure does to the others."""

import json
from pathlib import Path

import pytest

from sam_variants.training import load_checkpoint
from sam_variants.training.failures import (
    BadInputError,
    DeviceError,
    DivergedError,
    FolderError,
    WorkerError,
)
from sam_variants.training.study import (
    default_folder,
    finished_comparison,
    train_study,
    training_document,
)
from sam_variants.training.workers import Order, run_parallel
from tests.sam_variants.training.small import assert_same, small

PRINTING = """
import os, sys
from torch import nn

def build():
    print("a word on stdout")
    os.write(1, b"another one, past Python")
    return nn.Linear(30, 2)
"""


@pytest.mark.slow
def test_parallel_runs_are_the_serial_ones_bit_for_bit(tmp_path: Path) -> None:
    recipe = small(variants=("erm", "sam", "ae-sam"), seeds=2, epochs=2)
    seen: dict[int, list[float]] = {}
    serial = train_study(recipe, tmp_path / "serial", jobs=1)
    parallel = train_study(
        recipe,
        tmp_path / "parallel",
        jobs=2,
        report=lambda index, share, line: seen.setdefault(index, []).append(share),
    )
    for run in recipe.runs:
        assert_same(
            load_checkpoint(tmp_path / "parallel" / run.name / "checkpoint.pt"),
            load_checkpoint(tmp_path / "serial" / run.name / "checkpoint.pt"),
        )
    for a, b in zip(serial["variants"], parallel["variants"], strict=True):
        assert a["test_accuracy"] == b["test_accuracy"]
    assert sorted(seen) == [0, 1, 2, 3, 4, 5]
    assert all(shares[-1] == 1 for shares in seen.values())


def test_the_folder_holds_what_the_interface_says(tmp_path: Path) -> None:
    recipe = small(variants=("erm", "sam:rho=0.1"), seeds=2, epochs=2, validation=0.2, save_every=1)
    comparison = train_study(recipe, tmp_path / "x", jobs=1, command="landscape-train ...")
    names = sorted(str(p.relative_to(tmp_path / "x")) for p in (tmp_path / "x").rglob("*"))
    runs = ["erm-seed0", "erm-seed1", "sam-rho=0.1-seed0", "sam-rho=0.1-seed1"]
    expected = ["comparison.json", "config.toml", "report.html"]
    for run in runs:
        expected += [run] + [
            f"{run}/{name}"
            for name in ("best.pt", "checkpoint.pt", "metrics.jsonl", "trajectory",
                         "trajectory/0001.pt", "trajectory/0002.pt")
        ]  # fmt: skip
    assert names == sorted(expected)
    assert json.loads((tmp_path / "x" / "comparison.json").read_text()) == comparison
    assert [entry["variant"] for entry in comparison["variants"]] == ["erm", "sam-rho=0.1"]
    assert comparison["variants"][1]["seeds"] == [0, 1]
    assert comparison["variants"][1]["paired"]["test_accuracy"]["num_pairs"] == 2
    assert comparison["num_test"] == 114
    page = (tmp_path / "x" / "report.html").read_text()
    assert "sam-rho=0.1" in page


def test_the_comparison_says_which_optimizer_stepped_and_how_flat_the_ends_are(tmp_path) -> None:
    recipe = small(variants=("erm", "adasam", "sam-sps"), epochs=1)
    comparison = train_study(recipe, tmp_path, jobs=1)
    assert [entry["base"] for entry in comparison["variants"]] == [
        "SGD (momentum 0.9), lr 0.05", "Adam (amsgrad), lr 0.001", "SGD (no momentum), lr 0.05",
    ]  # fmt: skip
    assert (comparison["num_probe"], comparison["sharpness_rho"]) == (455, 0.05)
    for entry in comparison["variants"]:
        assert {"lambda_max", "probe_loss", "sharpness", "refresh_gradients"} <= entry.keys()
    report = (tmp_path / "report.html").read_text()
    assert "Adam (amsgrad), lr 0.001" in report
    assert "worst case, ρ = 0.05" in report


def test_a_finished_study_is_read_and_not_trained(tmp_path: Path) -> None:
    recipe = small(epochs=1)
    first = train_study(recipe, tmp_path, jobs=1)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert train_study(recipe, tmp_path, jobs=1) == first
    assert finished_comparison(recipe, tmp_path) == first
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    (tmp_path / "report.html").unlink()
    train_study(recipe, tmp_path, jobs=1)
    assert (tmp_path / "report.html").exists()


def test_a_study_without_a_checkpoint_is_not_finished(tmp_path: Path) -> None:
    recipe = small(epochs=1)
    train_study(recipe, tmp_path, jobs=1)
    (tmp_path / "sam-seed0" / "checkpoint.pt").unlink()
    assert finished_comparison(recipe, tmp_path) is None
    with pytest.raises(FolderError, match="unfinished: --resume or --overwrite"):
        train_study(recipe, tmp_path, jobs=1)
    train_study(recipe, tmp_path, jobs=1, resume=True)


def test_another_recipe_in_the_folder_is_refused_with_a_diff(tmp_path: Path) -> None:
    train_study(small(epochs=1), tmp_path, jobs=1)
    other = small(epochs=1, lr=0.2)
    with pytest.raises(FolderError, match=r"another training \(lr: 0.05 -> 0.2\)"):
        train_study(other, tmp_path, jobs=1)
    with pytest.raises(BadInputError, match="other settings"):
        train_study(other, tmp_path, jobs=1, resume=True)


def test_overwrite_removes_what_a_training_wrote_and_nothing_else(tmp_path: Path) -> None:
    train_study(small(epochs=1, save_every=1), tmp_path, jobs=1)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "sam-seed0" / "notes.txt").write_text("mine too")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "best.pt").write_text("not a run's")
    train_study(small(epochs=1, variants=("erm",)), tmp_path, jobs=1, overwrite=True)
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {
        "notes.txt", "sam-seed0/notes.txt", "photos/best.pt", "comparison.json", "config.toml",
        "report.html", "erm-seed0/checkpoint.pt", "erm-seed0/metrics.jsonl",
    }  # fmt: skip


def test_overwrite_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    train_study(small(epochs=1), elsewhere, jobs=1)
    out = tmp_path / "out"
    train_study(small(epochs=1, variants=("erm",)), out, jobs=1)
    (out / "linked").symlink_to(elsewhere / "sam-seed0")
    train_study(small(epochs=1, variants=("erm",)), out, jobs=1, overwrite=True)
    assert (elsewhere / "sam-seed0" / "checkpoint.pt").exists()


def test_a_link_as_folder_or_run_is_refused(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    with pytest.raises(FolderError, match="is a symbolic link"):
        train_study(small(epochs=1), tmp_path / "link", jobs=1)
    assert list(real.iterdir()) == []
    out = tmp_path / "out"
    train_study(small(epochs=1), out, jobs=1)
    for path in (out / "sam-seed0").iterdir():
        path.rename(real / path.name)
    (out / "sam-seed0").rmdir()
    (out / "sam-seed0").symlink_to(real)
    (out / "comparison.json").unlink()
    with pytest.raises(FolderError, match=r"sam-seed0 is a symbolic link"):
        train_study(small(epochs=1), out, jobs=1, resume=True)


def test_a_folder_with_foreign_files_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match=r"files that no training wrote \(thesis.tex\)"):
            train_study(small(epochs=1), tmp_path, jobs=1, overwrite=overwrite)
    with pytest.raises(FolderError, match="is a file"):
        train_study(small(epochs=1), tmp_path / "thesis.tex", jobs=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # a parent that is a file: not even root can write there
    with pytest.raises(FolderError, match=r"file/out"):
        train_study(small(epochs=1), tmp_path / "file" / "out", jobs=1)


@pytest.mark.slow
def test_a_diverging_run_fails_alone_and_the_others_are_kept(tmp_path: Path) -> None:
    recipe = small(variants=("erm", "sam:rho=1e30", "looksam"), epochs=2)
    with pytest.raises(DivergedError, match=r"sam-rho=1e\+30-seed0: the loss is"):
        train_study(recipe, tmp_path, jobs=2)
    for name in ("erm-seed0", "looksam-seed0"):
        assert load_checkpoint(tmp_path / name / "checkpoint.pt")["progress"]["complete"]
    assert not (tmp_path / "comparison.json").exists()


def test_bad_data_is_told_once_and_begins_no_further_run(tmp_path: Path) -> None:
    warned: list[str] = []
    recipe = small(task="npz:nowhere.npz", variants=("erm", "sam"), seeds=3)
    with pytest.raises(BadInputError, match=r"nowhere\.npz"):
        train_study(recipe, tmp_path, jobs=1, warn=warned.append)
    assert warned == []


@pytest.mark.slow
def test_a_fault_that_two_workers_meet_is_told_once(tmp_path: Path) -> None:
    warned: list[str] = []
    recipe = small(task="npz:nowhere.npz", variants=("erm", "sam"))
    with pytest.raises(BadInputError, match=r"nowhere\.npz"):
        train_study(recipe, tmp_path / "x", jobs=2, warn=warned.append)
    assert warned == []


def test_a_device_that_is_not_there_leaves_nothing_and_removes_nothing(tmp_path: Path) -> None:
    gone = small(device="cuda:9", epochs=1)
    with pytest.raises(DeviceError, match="device 'cuda:9' cannot be used here"):
        train_study(gone, tmp_path / "new" / "x", jobs=2)
    assert list(tmp_path.iterdir()) == []
    train_study(small(epochs=1), tmp_path / "x", jobs=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(DeviceError, match="cannot be used here"):
        train_study(gone, tmp_path / "x", jobs=2, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_document_cites_the_paper_of_each_variant(tmp_path: Path) -> None:
    recipe = small(variants=("erm", "sam:rho=0.1", "aace"), epochs=1)
    comparison = train_study(recipe, tmp_path, jobs=1)
    assert training_document(recipe, tmp_path, comparison)["training"]["papers"] == {
        "sam-rho=0.1": "Foret et al. 2020, arXiv 2010.01412",
        "aace": "arXiv 2406.14329",
    }


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text(
        "import os, signal\n"
        "from torch import nn\n"
        "def build():\n"
        f"    if not os.path.exists({str(tmp_path / 'died')!r}):\n"
        f"        open({str(tmp_path / 'died')!r}, 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return nn.Linear(30, 2)\n"
    )
    recipe = small(model=f"{path}:build", seeds=2, epochs=1)
    out = tmp_path / "out"
    with pytest.raises(WorkerError, match=r"sam-seed\d: its process ended by signal 9"):
        train_study(recipe, out, jobs=2, allow_code=True)
    done = [(out / run.name / "checkpoint.pt").exists() for run in recipe.runs]
    assert sorted(done) == [False, True]
    assert train_study(recipe, out, jobs=2, allow_code=True, resume=True)["variants"]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.slow
def test_what_user_code_prints_stays_off_stdout(
    jobs: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets.py").write_text(PRINTING)
    recipe = small(model=f"{tmp_path}/nets.py:build", seeds=2, epochs=1)
    train_study(recipe, tmp_path / "out", jobs=jobs, allow_code=True)
    captured = capfd.readouterr()
    assert "a word on stdout" not in captured.out
    assert "a word on stdout" in captured.err
    if jobs == 2:
        assert "past Python" not in captured.out


def test_user_code_that_fails_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text("def build():\n    return 1 / 0\n")
    with pytest.raises(BadInputError, match=r"nets\.py:2: ZeroDivisionError"):
        train_study(small(model=f"{path}:build", epochs=1), tmp_path / "x", jobs=1, allow_code=True)


def test_the_default_folder_is_named_after_task_model_and_hash() -> None:
    recipe = small(task="npz:../data/mine.npz")
    folder = default_folder(recipe)
    assert folder.parent == Path("runs")
    assert folder.name.endswith(recipe.hash)
    assert "/" not in folder.name
    assert ".." in folder.name  # inside a longer name, where it leads nowhere
    assert folder.name.startswith("npz-")


def test_a_torn_metrics_file_is_named(tmp_path: Path) -> None:
    recipe = small(epochs=1)
    train_study(recipe, tmp_path, jobs=1)
    (tmp_path / "report.html").unlink()
    (tmp_path / "sam-seed0" / "metrics.jsonl").write_text('{"epoch": 1, "st')
    with pytest.raises(BadInputError, match=r"cannot read .*metrics\.jsonl"):
        train_study(recipe, tmp_path, jobs=1)


@pytest.mark.slow
def test_more_runs_than_processes_are_all_trained(tmp_path: Path) -> None:
    from sam_variants.training.interruption import Interruption

    recipe = small(variants=("erm",), seeds=5, epochs=1)
    order = Order(recipe, tmp_path, False, 1)
    endings = run_parallel(
        order, range(5), jobs=2, interruption=Interruption(), report=lambda *_: None
    )
    assert sorted(endings) == [0, 1, 2, 3, 4]
    assert all(ending.failure is None for ending in endings.values())
