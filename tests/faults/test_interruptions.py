"""Rows 37 to 40: kills and signals at any moment, resuming, and two processes on one folder."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
import torch

from landscape import load_findings
from sam_variants.training import load_checkpoint
from sam_variants.training.folder import locked
from sam_variants.training.trainer import _cached_task
from tests.faults.attack import (
    LOGISTIC,
    PROBE,
    TRAIN,
    arrays_file,
    assert_same_findings,
    bare,
    environment,
    module,
    one_line,
    probe,
    probed,
    refused,
    resumed,
    stopped_training,
    train,
)
from tests.sam_variants.training.small import assert_same, small_task, trained

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")


# -- kills -----------------------------------------------------------------------------------------

# Importing torch takes longer than a small run. So one process imports, and forks for each attempt
# a child that is the command from there on; the kills then fall into the work and not the imports.
NURSERY = """
import os, signal, sys, time
from importlib import import_module
module = import_module(sys.argv[1])
for name in sys.argv[2].split(","):
    import_module(name)
for line in sys.stdin:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):
            os.dup2(silence, stream)
        code = 99
        try:
            code = module.main(sys.argv[3:])
        finally:
            os._exit(code)
    if line.strip() != "let it end":
        time.sleep(float(line))
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, time.monotonic() - began, flush=True)
"""


@contextmanager
def nursery(command, words, *, imports):
    """A function that runs the command for so many seconds, or until it ends; (code, seconds)."""
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY, command, imports, *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip

    def attempt(seconds=None):
        process.stdin.write("let it end\n" if seconds is None else f"{seconds}\n")
        process.stdin.flush()
        code, took = process.stdout.readline().split()
        return int(code), float(took)

    try:
        yield attempt
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_37_a_training_killed_at_random_times_loses_nothing_that_was_saved(tmp_path, seed):
    generator = random.Random(seed)
    settings = {"variants": ("ae-sam",), "epochs": 400, "probe_every": "never"}
    out = tmp_path / "out"
    recipe, checkpoint = stopped_training(out, after=1, **settings)
    kills = reached = 0
    # torch imports _dynamo with the first optimizer
    imports = "sam_variants.training.trainer,sam_variants.training.workers,torch._dynamo"
    with nursery("landscape_cli.train", resumed(out), imports=imports) as attempt:
        while kills < 12:
            code, _ = attempt(generator.uniform(0.0, 0.25))
            assert code == -signal.SIGKILL  # it was not finished before
            kills += 1
            step = load_checkpoint(checkpoint)["progress"]["step"]
            assert step >= reached
            reached = step
        assert reached > 8  # the kills fell into the training, an epoch has 8 steps
        assert attempt()[0] == 0
    assert list(out.rglob("*.tmp")) == []
    assert not (out / ".lock").exists()
    document = load_checkpoint(checkpoint)
    assert_same(document, trained(recipe, tmp_path / "through" / recipe.runs[0].name))
    lines = (checkpoint.parent / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 401))


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [True, False])
def test_37_a_probe_killed_at_random_times_leaves_nothing_that_is_believed(tmp_path, saved, fresh):
    """In a folder of its own, and over an earlier result, which is whole at any time."""
    generator = random.Random(fresh)
    out = tmp_path / "out"
    words = [saved, *bare(*LOGISTIC, "--line", "5", "--range", "1"), "--overwrite", "--out", out]
    whole = probed(saved, tmp_path, *LOGISTIC, "--line", "5", "--range", "1", name="whole")
    imports = "landscape.probing,landscape.report,cli.parallel,cli.subjects"
    with nursery("landscape_cli.probe", words, imports=imports) as attempt:
        code, seconds = attempt()
        assert code == 0
        kills = 0
        while kills < 12:
            if fresh:
                for path in sorted(out.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
            code, _ = attempt(generator.uniform(0.0, seconds))
            assert code in (-signal.SIGKILL, 0)  # it may have been done before
            kills += code == -signal.SIGKILL
            if not fresh or (out / "result.json").exists():
                assert_same_findings(load_findings(out), whole)
        assert attempt()[0] == 0
    assert_same_findings(load_findings(out), whole)


def test_37_temporaries_of_a_killed_probe_are_removed_unless_one_is_being_written(
    tmp_path, saved, undrawn
):
    out = tmp_path / "out"
    out.mkdir()
    stale = [out / ".result.json.x1y2.tmp", out / ".arrays.nc.x1y2.tmp"]
    others = [out / ".result.json.live.tmp", out / ".thesis.tex.x1y2.tmp"]
    for path in [*stale, *others]:
        path.write_bytes(b"half")
    for path in [*stale, others[1]]:
        os.utime(path, (time.time() - 3600,) * 2)
    probed(saved, tmp_path, *LOGISTIC)
    assert [path.name for path in stale if path.exists()] == []
    assert all(path.exists() for path in others)


def test_37_a_kill_between_two_renames_of_a_probe_is_noticed(tmp_path, saved, capsys, undrawn):
    """The arrays have their name, the result not yet: the two do not belong together."""
    words = (*LOGISTIC, "--line", "5", "--range", "1")
    probed(saved, tmp_path, *words)
    probed(saved, tmp_path, *LOGISTIC, "--line", "7", "--range", "1", name="other")
    out = tmp_path / "out"
    os.replace(tmp_path / "other" / "arrays.nc", out / "arrays.nc")
    says = ["does not match the sha256", "--overwrite"]
    refused(probe, [saved, *bare(*words)], capsys, code=3, out=out, says=says, path=out)
    assert probe([*map(str, [saved, *bare(*words)]), "--overwrite", "--out", str(out)]) == 0


def test_37_temporaries_of_a_killed_training_are_removed(tmp_path):
    out = tmp_path / "out"
    _, checkpoint = stopped_training(out)
    for folder in (out, checkpoint.parent):
        (folder / ".checkpoint.pt.4711.tmp").write_bytes(b"half")
    assert train(resumed(out)) == 0
    assert list(out.rglob("*.tmp")) == []


# -- signals ---------------------------------------------------------------------------------------


@pytest.fixture
def signalled(monkeypatch):
    """Sends this process a signal at the n-th call of a function, which then goes on."""

    def prepare(owner, name, *, number, after):
        calls, called = count(1), getattr(owner, name)

        def signalling(*arguments, **options):
            if next(calls) == after:
                os.kill(os.getpid(), number)
            return called(*arguments, **options)

        monkeypatch.setattr(owner, name, signalling)

    return prepare


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("moment", ["mid-step", "mid-save"])
def test_38_a_signal_at_any_moment_of_a_training_saves(
    tmp_path, capsys, monkeypatch, signalled, name, moment
):
    from sam_variants.training.evaluation import EpochSums

    number = getattr(signal, name)
    out = tmp_path / "out"
    recipe, checkpoint = stopped_training(out, variants=("ae-sam",), epochs=4)
    with monkeypatch.context() as patched:
        if moment == "mid-step":
            signalled(EpochSums, "add", number=number, after=3)
        else:
            signalled(os, "fsync", number=number, after=5)
        assert train(resumed(out)) == 128 + number
        patched.undo()
    monkeypatch.undo()
    captured = capsys.readouterr()
    assert captured.out == ""
    one_line(captured.err, says=[f"ended by signal {number:d}", "--resume goes on"], path=out)
    assert list(out.rglob("*.tmp")) == []
    assert not load_checkpoint(checkpoint)["progress"]["complete"]
    assert train(resumed(out)) == 0
    through = trained(recipe, tmp_path / "through" / recipe.runs[0].name)
    assert_same(load_checkpoint(checkpoint), through)


@pytest.mark.parametrize("name", SIGNALS)
def test_38_a_signal_in_the_surface_loop_saves_and_the_grid_is_the_same(
    tmp_path, saved, monkeypatch, undrawn, name
):
    from cli import probe as command

    number = getattr(signal, name)
    words = (*LOGISTIC, "--surface", "7", "--range", "1", "--exact")
    whole = probed(saved, tmp_path, *words, name="whole")
    out, told = tmp_path / "out", count()

    def signalling(self, process, what, done, total):
        if what == "net: surface" and next(told) == 11:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr(command._Bars, "__call__", signalling)
        arguments = [str(saved), *bare(*words), "--out", str(out)]
        assert probe(arguments) == 128 + number
    partial = load_findings(out)
    assert not partial.document["complete"]
    assert 0 < partial.arrays["points_c0_evaluated"].sum() < 49
    assert probe([*arguments, "--resume"]) == 0
    again = load_findings(out)
    assert again.arrays.keys() == whole.arrays.keys()
    for array in whole.arrays:
        np.testing.assert_array_equal(again.arrays[array], whole.arrays[array])


def test_38_a_signal_while_a_result_is_saved_finds_it_whole(tmp_path, saved, signalled, undrawn):
    signalled(os, "fsync", number=signal.SIGTERM, after=1)
    out = tmp_path / "out"
    assert probe([str(saved), *bare(*LOGISTIC), "--out", str(out)]) == 128 + signal.SIGTERM
    assert load_findings(out).document["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [PROBE, TRAIN])
def test_38_a_second_interrupt_ends_at_once(tmp_path, saved, command):
    code = module(
        tmp_path,
        "import sys, time\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.add_module('1', nn.Linear(64, 10))\n\n"
        "    def forward(self, x):\n"
        "        if len(x) > 2:  # not in the dry run\n"
        "            print('stepping', flush=True)\n"
        "            for _ in range(6000):\n"
        "                time.sleep(0.01)\n"
        "        return self.get_submodule('1')(x.flatten(1))\n\n"
        "build = Net\n",
    )
    model = f"{code}:build"
    if command is PROBE:
        words = [saved, *bare("--model", model, "--data", "digits")]
    else:
        words = ["--task", "digits", "--model", model, "--variants", "erm", "--jobs", "1"]
    process = subprocess.Popen(
        [*command, *map(str, words), "--allow-code", "--out", tmp_path / "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stderr.readline() == "stepping\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err


# -- resuming what has changed ---------------------------------------------------------------------


def test_39_a_resume_with_another_config_is_refused_with_the_difference(tmp_path, capsys):
    out = tmp_path / "out"
    stopped_training(out)
    words = resumed(out, "--lr", "0.2", "--batch-size", "32")
    says = [r"lr: 0\.05 -> 0\.2", "batch_size: 64 -> 32", "--out"]
    refused(train, words, capsys, code=3, out=out, says=says, path=out)


def test_39_a_resume_on_other_data_is_refused_with_their_hashes(tmp_path, capsys):
    data = arrays_file(tmp_path / "data.npz")
    out = tmp_path / "out"
    task = f"npz:{data}"
    _, checkpoint = stopped_training(out, task=task, model="logistic", batch_size=8, after=7)
    arrays_file(data, y_train=1 - np.load(data)["y_train"])
    _cached_task.cache_clear()  # another process reads the file anew
    says = r"data: sha256 \w{12} -> \w{12}"
    refused(train, resumed(out), capsys, code=3, out=out, says=says, path=checkpoint)


def test_39_a_checkpoint_of_another_recipe_in_the_folder_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    _, checkpoint = stopped_training(out)
    stopped_training(tmp_path / "other", lr=0.2)
    os.replace(tmp_path / "other" / "sam-seed0" / "checkpoint.pt", checkpoint)
    says = [r"lr: 0\.2 -> 0\.05", "--out"]
    refused(train, resumed(out), capsys, code=3, out=out, says=says, path=checkpoint)


@pytest.mark.parametrize("name", ["torch", "python", "toolkit"])
def test_39_another_version_is_warned_of_and_goes_on(tmp_path, capsys, name):
    out = tmp_path / "out"
    _, checkpoint = stopped_training(out)
    document = load_checkpoint(checkpoint)
    document["versions"][name] = "0.0.1"
    torch.save(document, checkpoint)
    capsys.readouterr()
    assert train(resumed(out)) == 0
    err = capsys.readouterr().err
    assert "not bit-exact" in err
    assert f"{name} 0.0.1 -> " in err


def test_39_a_damaged_checkpoint_is_not_resumed_from(tmp_path, capsys):
    out = tmp_path / "out"
    _, checkpoint = stopped_training(out)
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    says = ["cannot read", "remove it to start that run again"]
    refused(train, resumed(out), capsys, code=3, out=out, says=says, path=checkpoint)


# -- two processes ---------------------------------------------------------------------------------


def test_40_a_second_process_on_a_folder_ends_2_and_names_the_first(tmp_path, capsys):
    out = tmp_path / "out"
    stopped_training(out)
    with locked(out):
        says = [f"in use by process {os.getpid()} on {socket.gethostname()}", "another --out"]
        for words in (resumed(out), [*resumed(out)[:2], "--overwrite", "--quiet"]):
            refused(train, words, capsys, code=2, out=out, says=says, path=out)


@pytest.mark.slow
def test_40_two_commands_on_one_folder(tmp_path):
    words = [*TRAIN, "--task", small_task(), "--model", "mlp:hidden=4:depth=1", "--variants",
             "erm", "--epochs", "100000", "--jobs", "1", "--probe-every", "never", "--quiet",
             "--out", str(tmp_path / "out")]  # fmt: skip
    first = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "erm-seed0" / "checkpoint.pt").exists():
        assert first.poll() is None
        time.sleep(0.05)
    second = subprocess.run(
        [*words, "--resume"], env=environment(), capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    one_line(second.stderr, says=f"in use by process {first.pid}", path=tmp_path / "out")
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM


def test_40_a_lock_left_by_a_dead_process_is_taken_over_with_a_note(tmp_path, capsys):
    out = tmp_path / "out"
    stopped_training(out)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    owner = {"pid": int(dead.stdout), "host": socket.gethostname()}
    (out / ".lock").write_text(json.dumps(owner))
    capsys.readouterr()
    assert train(resumed(out)) == 0
    assert f"was left by process {owner['pid']}" in capsys.readouterr().err
    assert not (out / ".lock").exists()


def test_40_a_lock_of_another_host_is_explained(tmp_path, capsys):
    out = tmp_path / "out"
    stopped_training(out)
    (out / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    says = ["process 1 on elsewhere", r"delete .*\.lock"]
    refused(train, resumed(out), capsys, code=2, out=out, says=says, path=out)


def test_40_the_lock_is_released_after_a_failure(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--task", small_task(), "--model", "logistic", "--variants", "erm", "--lr", "1e30",
             "--weight-decay", "0.1", "--epochs", "9", "--jobs", "1", "--quiet",
             "--out", str(out)]  # fmt: skip
    assert train(words) == 4
    one_line(capsys.readouterr().err, says=["the loss is (nan|inf)", "lower lr"])
    assert not (out / ".lock").exists()
    assert list(out.rglob("checkpoint.pt")) == []
