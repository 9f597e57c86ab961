"""Signals to the installed command: the step is finished, the state saved, and nothing is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_variants.training import load_checkpoint
from tests.sam_variants.training.small import assert_same, small_task

COMMAND = Path(sys.executable).parent / "landscape-train"
RUNS = ("ae-sam-seed0", "erm-seed0")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


def arguments(out: Path, *, epochs: int, jobs: int) -> list[str]:
    return [
        str(COMMAND), "--task", small_task(), "--model", "mlp:hidden=8:depth=1", "--lr", "0.01",
        "--variants", "ae-sam,erm", "--batch-size", "64", "--epochs", str(epochs),
        "--jobs", str(jobs), "--out", str(out),
    ]  # fmt: skip


def begin(out: Path, *, epochs: int = 100_000, jobs: int = 1, resume: bool = False):
    """A training in its own process group, as a terminal or a batch system would start it."""
    return subprocess.Popen(
        [*arguments(out, epochs=epochs, jobs=jobs), *(["--resume"] if resume else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(out: Path, runs: tuple[str, ...], *, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        paths = [out / run / "metrics.jsonl" for run in runs]
        if all(path.exists() and path.stat().st_size for path in paths):
            return
        time.sleep(0.02)
    raise AssertionError(f"no epoch was finished in {timeout} s")


def finish(out: Path, *, epochs: int, jobs: int = 1) -> None:
    done = subprocess.run(
        [*arguments(out, epochs=epochs, jobs=jobs), "--resume"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
@pytest.mark.slow
def test_38_a_signal_saves_and_ends_with_its_number(name: str, tmp_path: Path) -> None:
    number = getattr(signal, name)
    process = begin(tmp_path / "x")
    wait_for_lines(tmp_path / "x", ("ae-sam-seed0",))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert out == ""
    assert err == (
        f"landscape-train: error: ended by signal {number:d}; saved in {tmp_path / 'x'}: "
        "--resume goes on\n"
    )
    document = load_checkpoint(tmp_path / "x" / "ae-sam-seed0" / "checkpoint.pt")
    lines = (tmp_path / "x" / "ae-sam-seed0" / "metrics.jsonl").read_text().splitlines()
    assert document["progress"]["step"] >= 8 * len(lines)
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    assert not (tmp_path / "x" / ".lock").exists()
    assert list((tmp_path / "x").rglob("*.tmp")) == []


@pytest.mark.slow
def test_38_signals_to_the_whole_group_and_a_resume_give_the_same_bits(tmp_path: Path) -> None:
    epochs = 150
    finish(tmp_path / "through", epochs=epochs, jobs=2)
    process = begin(tmp_path / "x", epochs=epochs, jobs=2)
    wait_for_lines(tmp_path / "x", RUNS)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    finish(tmp_path / "x", epochs=epochs, jobs=2)
    for run in RUNS:
        assert_same(
            load_checkpoint(tmp_path / "x" / run / "checkpoint.pt"),
            load_checkpoint(tmp_path / "through" / run / "checkpoint.pt"),
        )


@pytest.mark.slow
def test_a_signal_to_the_parent_alone_stops_every_worker(tmp_path: Path) -> None:
    process = begin(tmp_path / "x", jobs=2)
    wait_for_lines(tmp_path / "x", RUNS)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert len(err.splitlines()) == 1
    for run in RUNS:
        assert not load_checkpoint(tmp_path / "x" / run / "checkpoint.pt")["progress"]["complete"]


def test_an_early_signal_is_no_traceback(tmp_path: Path) -> None:
    process = begin(tmp_path / "x", jobs=2)
    while not (tmp_path / "x" / "config.toml").exists():
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # while the workers import torch
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "import time\nfrom torch import nn\n"
        "class Slow(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            print('stepping', flush=True)\n"
        "            for _ in range(6000):\n"
        "                time.sleep(0.01)\n"
        "        return super().forward(x)\n"
        "def build():\n    return Slow(30, 2)\n"
    )
    process = subprocess.Popen(
        [COMMAND, "--task", small_task(), "--model", f"{tmp_path}/nets.py:build", "--allow-code",
         "--variants", "erm", "--epochs", "1", "--out", tmp_path / "x"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "stepping\n"  # stdout is kept for the answer
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # the step is not finished yet
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert not (tmp_path / "x" / ".lock").exists()


@pytest.mark.slow
def test_37_kills_at_random_times_lose_at_most_an_epoch(tmp_path: Path) -> None:
    epochs = 400
    finish(tmp_path / "through", epochs=epochs)
    generator = random.Random(0)
    checkpoint = tmp_path / "x" / "ae-sam-seed0" / "checkpoint.pt"
    reached = 0
    for _ in range(4):
        process = begin(tmp_path / "x", epochs=epochs, resume=True)
        wait_for_lines(tmp_path / "x", ("ae-sam-seed0",))
        time.sleep(generator.uniform(0.0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if checkpoint.exists():
            step = load_checkpoint(checkpoint)["progress"]["step"]
            assert step >= reached
            reached = step
    finish(tmp_path / "x", epochs=epochs)
    assert list((tmp_path / "x").rglob("*.tmp")) == []
    for run in RUNS:
        assert_same(
            load_checkpoint(tmp_path / "x" / run / "checkpoint.pt"),
            load_checkpoint(tmp_path / "through" / run / "checkpoint.pt"),
        )


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    process = begin(tmp_path / "x", jobs=2)
    wait_for_lines(tmp_path / "x", RUNS)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("a worker outlived its parent")
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()
