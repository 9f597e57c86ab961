"""What the attacks share: small victims, and what a refusal has to look like."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch

from cli.probe import main as probe
from cli.train import main as train
from landscape import load_findings
from sam_variants.tasks import build_model, build_task
from tests.sam_variants.training.small import small, trained

LOGISTIC = ("--model", "logistic", "--data", "digits")
NOTHING = (
    "--eigenvalues", "0", "--ends", "top", "--trace-probes", "0", "--density-runs", "0",
    "--surface", "0", "--line", "0", "--metrics", "sam", "--max-samples", "60", "--jobs", "1",
    "--quiet",
)  # fmt: skip
PROBE = (sys.executable, "-m", "landscape_cli.probe")
TRAIN = (sys.executable, "-m", "landscape_cli.train")


def without(words, *flags):
    """The words without these flags and their values."""
    left = list(words)
    for flag in flags:
        place = left.index(flag)
        del left[place : place + 2]
    return left


def bare(*wanted):
    """The cheapest probe, with these words in place of its own."""
    flags = [word for word in wanted if word in NOTHING and word.startswith("--")]
    return [*without(NOTHING, *flags), *wanted]


def logistic_state(seed=3):
    return build_model("logistic", build_task("digits"), seed=seed).state_dict()


def fingerprints(folder):
    """The hash of every file below, by name; None where there is no folder."""
    folder = Path(folder)
    if not folder.exists():
        return None
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_line(text, *, says=(), path=None):
    """The only line of stderr, which says all this and names the path."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    (line,) = lines
    assert ": error: " in line
    if path is not None:
        assert str(path) in line, line
    for pattern in [says] if isinstance(says, str) else says:
        assert re.search(pattern, line), f"{pattern!r} is not in: {line}"
    return line


def refused(command, words, capsys, *, code, out, says=(), path=None):
    """The line with which a command refuses: its exit code, an empty stdout, nothing changed."""
    before = fingerprints(out)
    capsys.readouterr()
    got = command([*map(str, words), "--out", str(out)])
    captured = capsys.readouterr()
    assert got == code, captured.err
    assert captured.out == ""
    assert fingerprints(out) == before
    return one_line(captured.err, says=says, path=path)


def probe_refused(path, tmp_path, capsys, *words, code, says=()):
    """`refused` of the cheapest probe of a file, which the line has to name."""
    arguments = [path, *bare(*words)]
    out = tmp_path / "out"
    return refused(probe, arguments, capsys, code=code, out=out, says=says, path=path)


def probed(path, tmp_path, *words, name="out"):
    """The findings of a probe that has to succeed."""
    out = tmp_path / name
    assert probe([str(path), *map(str, bare(*words)), "--out", str(out)]) == 0
    return load_findings(out)


def entry_of(findings):
    (entry,) = findings.checkpoints
    return entry


def module(tmp_path, text, name="nets.py"):
    """A file of the user's, with `torch`, `nn` and `F` at hand."""
    path = tmp_path / name
    head = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n"
    path.write_text(head + text)
    return path


def user_net(tmp_path, text, name="nets.py", *, seed=0):
    """A model of the user's, its saved weights, and the words that probe it on the digits."""
    code = module(tmp_path, text, name)
    names = {}
    exec(compile(code.read_text(), str(code), "exec"), names)
    torch.manual_seed(seed)
    torch.save(names["build"]().state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt", ("--model", f"{code}:build", "--data", "digits", "--allow-code")


def arrays_file(path, **changes):
    """An .npz of 40 + 20 points of 4 numbers in two classes, with these arrays in their place."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", 40), ("test", 20)):
        arrays[f"x_{split}"] = generator.normal(size=(size, 4)).astype(np.float32)
        arrays[f"y_{split}"] = generator.integers(0, 2, size)
    np.savez(path, **{**arrays, **changes})
    return path


def stopped_training(folder, *, after=12, **changes):
    """A study with one run that was stopped after so many steps, as `landscape-train` leaves it."""
    recipe = small(**changes)
    folder.mkdir()
    (folder / "config.toml").write_text(recipe.to_toml())
    trained(recipe, folder / recipe.runs[0].name, stop_after=after)
    return recipe, folder / recipe.runs[0].name / "checkpoint.pt"


def resumed(folder, *words):
    """The words that go on with `stopped_training`."""
    return ["--config", str(folder / "config.toml"), "--resume", "--jobs", "1", "--quiet", *words]


def without_clocks(document):
    """A document without what a clock or the command line says in it."""
    if isinstance(document, dict):
        clocks = ("seconds", "command")
        return {k: without_clocks(v) for k, v in document.items() if k not in clocks}
    return [without_clocks(item) for item in document] if isinstance(document, list) else document


def assert_same_findings(first, second):
    """The same numbers and arrays, whatever the clock said."""
    assert without_clocks(first.document) == without_clocks(second.document)
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


def environment(**changes):
    """This process's environment with these changes, one thread a process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def document_of(out):
    return json.loads((Path(out) / "result.json").read_text())


__all__ = ["probe", "train"]
