"""The README's own commands and code, run as they stand on small budgets."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.readme import rules_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

SHORT_PROBE = (
    "--max-samples 100 --surface 3 --line 3 --density-runs 0 --trace-probes 4 --eigenvalues 1 "
    "--ends top --metrics gradient-norm,lambda-max,sam --no-sampling-error --quiet"
)
SHORT_TRAIN = "--max-steps 2 --quiet"

NETS = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
"""
DATA = """
import numpy as np

def arrays():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 4)).astype("float32"), generator.integers(0, 3, 60)
    return (x[:40], y[:40]), (x[40:], y[40:])

def batches():
    (x, y), _ = arrays()
    return iter([{"x": x[i : i + 20], "y": y[i : i + 20]} for i in (0, 20)])

def loss(model, batch):
    import torch
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"]), len(batch["y"])
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = [
        line.split("#")[0].strip() for block in blocks("console") for line in block.split("\n")
    ]
    return [line for line in lines if line]


def run(command, folder):
    words = shlex.split(command)
    module = {"landscape-train": "landscape_cli.train", "landscape-probe": "landscape_cli.probe"}
    done = subprocess.run(
        [sys.executable, "-m", module[words[0]], *words[1:]],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_code_runs_as_one_script(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("python"))
    torch.manual_seed(0)
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["findings"].checkpoints[0]["eigenvalues"]
    assert namespace["optimizer"].counts.steps == 3
    assert namespace["rule"].counts.steps == 4
    assert (tmp_path / "run.pt").exists()
    assert "trace" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_runs_in_a_fresh_folder(tmp_path):
    run(f"landscape-train --variants sam:rho=0.1 --out runs/demo {SHORT_TRAIN}", tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "data.py").write_text(DATA)
    namespace = {}
    exec(NETS, namespace)
    seen = set()
    for command in commands():
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()
            continue
        if "--model mlp" in command:
            from sam_variants.tasks import build_model, build_task

            mlp = build_model("mlp", build_task("digits"), seed=0)
            torch.save(mlp.state_dict(), tmp_path / "net.pt")
        elif "nets.py" in command:
            torch.save(namespace["build"]().state_dict(), tmp_path / "net.pt")
        elif "foreign.safetensors" in command:
            save_file(torch.nn.Linear(64, 10).state_dict(), tmp_path / "foreign.safetensors")
        short = SHORT_PROBE if command.startswith("landscape-probe") else SHORT_TRAIN
        if "--list" in command:
            short = ""
        if "--epochs" in command:
            command = re.sub(r"--epochs \d+", "", command)
        if command == "landscape-probe runs/x --quick":
            command += " --out quick"  # the folder holds the answer of the command before
        run(f"{command} {short}", tmp_path)
        seen.add(command.split()[0])
    assert seen == {"landscape-train", "landscape-probe"}
    assert (tmp_path / "runs/demo/sam-rho=0.1-seed0/probe/report.html").exists()
    for name in ("mine", "foreign", "own"):
        assert (tmp_path / name / "report.html").exists()
    assert (tmp_path / "runs/x/probe/report.html").exists()


def test_the_numbers_stand_between_markers_and_come_from_a_run():
    begin, end = "<!-- demo:begin -->", "<!-- demo:end -->"
    assert README.count(begin) == README.count(end) == 1
    tables = README.partition(begin)[2].partition(end)[0]
    for word in ("erm", "sam-rho=0.1", "ae-sam-rho=0.1", "lambda_max", "±"):
        assert word in tables, word


def test_the_table_of_rules_is_that_of_the_package():
    table = README.partition("<!-- rules:begin -->\n")[2].partition("\n<!-- rules:end -->")[0]
    assert table == rules_table()
