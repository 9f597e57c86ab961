"""The script of docs/distributed.md as it stands: two processes over gloo, stopped and gone on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/distributed.md").read_text()

pytestmark = pytest.mark.slow


def run(folder, *arguments, processes):
    """torchrun in the words of the page, with another number of processes."""
    command = re.search(r"`torchrun (.*) train\.py`", PAGE)[1].split()
    command[command.index("--nproc-per-node") + 1] = str(processes)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, "train.py", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
             "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_torchrun_script_takes_the_steps_of_one_process_and_goes_on_where_it_was_stopped(
    tmp_path,
):
    script = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    folders = [tmp_path / name for name in ("two", "one")]
    for folder in folders:
        folder.mkdir()
        (folder / "train.py").write_text(script)
    two, one = folders
    words = ("--epochs", "2", "--variant", "vasso:rho=0.1")
    lines = run(two, *words, "--batch-size", "500", "--stop", "1", processes=2)
    lines += run(two, *words, "--batch-size", "500", processes=2)
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2"]
    assert lines[1].endswith(" 8 steps")
    assert run(one, *words, "--batch-size", "1000", processes=1) == lines
    saved, expected = (torch.load(f / "run.pt", weights_only=True) for f in folders)
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(saved["model"][name], tensor, rtol=1e-4, atol=1e-5)
    assert saved["optimizer"]["rule"]["counts"] == expected["optimizer"]["rule"]["counts"]
    assert saved["schedule"]["_last_lr"] == expected["schedule"]["_last_lr"]
