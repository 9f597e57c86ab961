"""Rows 35, 36 and 41: devices that are not there, memory and disks that are full, odd folders."""

import errno
import os
import re
import subprocess
import sys

import pytest
import torch

from sam_variants.training import load_checkpoint
from tests.faults.attack import (
    LOGISTIC,
    bare,
    entry_of,
    environment,
    fingerprints,
    one_line,
    probe,
    probed,
    refused,
    resumed,
    stopped_training,
    train,
    user_net,
)
from tests.sam_variants.training.small import assert_same, small_task, trained

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="Windows has no such limits"),
    pytest.mark.usefixtures("undrawn"),
]


def training(*words):
    return ["--task", small_task(), "--model", "mlp:hidden=4:depth=1", "--epochs", "1",
            "--variants", "erm", "--jobs", "1", "--probe-every", "never", "--quiet",
            *words]  # fmt: skip


# -- devices and memory ----------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
@pytest.mark.parametrize("command", [probe, train])
def test_35_a_device_that_is_not_there_is_a_usage_error(tmp_path, saved, capsys, command):
    words = [saved, *bare(*LOGISTIC)] if command is probe else training()
    says = "device 'cuda' cannot be used here"
    words = [*words, "--device", "cuda"]
    refused(command, words, capsys, code=2, out=tmp_path / "out", says=says)


GREEDY = """
class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)

    def forward(self, x):
        if len(x) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x.flatten(1))

build = Net
"""


def test_35_out_of_memory_halves_the_micro_batch_and_goes_on(tmp_path):
    path, words = user_net(tmp_path, GREEDY.replace("MOST", "4"))
    entry = entry_of(probed(path, tmp_path, *words))  # 60, 30, 15, 8, 4 rows
    plain, same = user_net(tmp_path, GREEDY.replace("MOST", "1000"), "plain.py")
    other = entry_of(probed(plain, tmp_path, *same, name="other"))
    assert entry["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_35_out_of_memory_at_every_size_ends_4_with_advice(tmp_path, capsys):
    path, words = user_net(tmp_path, GREEDY.replace("MOST", "2"))
    says = ["out of memory", "--micro-batch"]
    words = [path, *bare(*words)]
    refused(probe, words, capsys, code=4, out=tmp_path / "out", says=says)


# -- full disks ------------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys
from importlib import import_module
module = import_module(sys.argv[2])
import torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing ends short with an error, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(module.main(sys.argv[3:]))
"""


def on_a_full_disk(module, words, *, num_bytes):
    """The command in a process that can write no file of more than so many bytes."""
    return subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(num_bytes), module, *map(str, words)],
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip


@pytest.mark.slow
def test_36_a_full_disk_keeps_the_last_checkpoint_of_a_training(tmp_path):
    out = tmp_path / "out"
    recipe, checkpoint = stopped_training(out)
    before = checkpoint.read_bytes()
    done = on_a_full_disk("landscape_cli.train", resumed(out), num_bytes=3000)
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    one_line(done.stderr, path=checkpoint, says=["what was there is kept", "free", "--resume"])
    assert checkpoint.read_bytes() == before
    assert list(out.rglob("*.tmp")) == []
    assert train(resumed(out)) == 0
    through = trained(recipe, tmp_path / "through" / recipe.runs[0].name)
    assert_same(load_checkpoint(checkpoint), through)


@pytest.mark.slow
def test_36_a_full_disk_keeps_the_last_result_of_a_probe(tmp_path, saved):
    out = tmp_path / "out"
    probed(saved, tmp_path, *LOGISTIC)
    before = fingerprints(out)
    words = [saved, *bare(*LOGISTIC, "--line", "5", "--range", "1"), "--overwrite", "--out", out]
    done = on_a_full_disk("landscape_cli.probe", words, num_bytes=1000)
    assert done.returncode == 5, done.stderr
    assert done.stdout == ""
    one_line(done.stderr, path=out, says=["free some space"])
    assert fingerprints(out) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("command", [probe, train])
def test_36_a_disk_that_refuses_when_synced_leaves_nothing(
    tmp_path, saved, capsys, monkeypatch, command, number
):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    out = tmp_path / "out"
    words = [saved, *bare(*LOGISTIC)] if command is probe else training()
    assert command([*map(str, words), "--out", str(out)]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    one_line(captured.err, says=[re.escape(os.strerror(number)), "free some space"], path=out)
    assert [path for path in out.rglob("*") if path.is_file()] == []


# -- odd folders -----------------------------------------------------------------------------------


def odd_folder(tmp_path, kind):
    """An output folder where nothing may be written; and what lies where it leads to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("years of work")
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("a file")
    elif kind == "below a file":  # root may write in read-only folders, and CI is root
        (tmp_path / "file").write_text("a file")
        out = tmp_path / "file" / "out"
    elif kind == "a link":
        out.symlink_to(elsewhere)
    elif kind == "a broken link":
        out.symlink_to(tmp_path / "nowhere")
    return out, elsewhere


@pytest.mark.parametrize("command", [probe, train])
@pytest.mark.parametrize("kind", ["a file", "below a file", "a link", "a broken link"])
def test_41_nothing_is_written_where_an_odd_folder_leads(tmp_path, saved, capsys, command, kind):
    out, elsewhere = odd_folder(tmp_path, kind)
    before = fingerprints(tmp_path)
    words = [saved, *bare(*LOGISTIC)] if command is probe else training()
    assert command([*map(str, words), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    one_line(captured.err, path=out)
    assert fingerprints(tmp_path) == before
    assert sorted(path.name for path in elsewhere.iterdir()) == ["thesis.tex"]
    assert not (tmp_path / "nowhere").exists()


def test_41_an_odd_folder_is_refused_before_hours_of_measuring(tmp_path, saved, monkeypatch):
    measured = []
    monkeypatch.setattr("cli.parallel.measure_here", lambda *_, **__: measured.append(1))
    out, _ = odd_folder(tmp_path, "a link")
    assert probe([str(saved), *bare(*LOGISTIC), "--out", str(out)]) == 2
    assert measured == []


def test_41_a_folder_of_something_else_is_not_trained_in(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for words in ((), ("--resume",), ("--overwrite",)):
        says = r"holds files that no training wrote \(thesis\.tex\); give another --out"
        refused(train, training(*words), capsys, code=2, out=out, says=says, path=out)


def test_41_a_run_folder_that_is_a_link_is_not_written_through(tmp_path, capsys):
    out = tmp_path / "out"
    recipe, checkpoint = stopped_training(out)
    checkpoint.parent.rename(tmp_path / "moved")
    (out / recipe.runs[0].name).symlink_to(tmp_path / "moved")
    before = fingerprints(tmp_path / "moved")
    words = resumed(out)
    refused(train, words, capsys, code=2, out=out, says="symbolic link", path=checkpoint.parent)
    assert fingerprints(tmp_path / "moved") == before


def test_41_an_old_result_is_not_overwritten_unasked(tmp_path, saved, capsys):
    probed(saved, tmp_path, *LOGISTIC)
    words = [saved, *bare(*LOGISTIC), "--seed", "7"]
    says = ["holds another result", "--out", "--overwrite"]
    out = tmp_path / "out"
    refused(probe, words, capsys, code=2, out=out, says=says, path=out)
