"""Rows 46 to 48: user code that misbehaves or was not allowed, and odd surroundings."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.attack import (
    LOGISTIC,
    PROBE,
    TRAIN,
    bare,
    environment,
    module,
    one_line,
    probe,
    refused,
    train,
)
from tests.sam_variants.training.small import small_task

pytestmark = pytest.mark.usefixtures("undrawn")


def words_for(command, saved, *, model=None, data=None):
    """A command's words with the user's model or data, everything else in order."""
    model, data = model or "logistic", data or "digits"
    if command is probe:
        return [saved, *bare("--model", model, "--data", data)]
    return ["--task", data, "--model", model, "--variants", "erm", "--epochs", "1",
            "--jobs", "1", "--probe-every", "never", "--quiet"]  # fmt: skip


both_commands = pytest.mark.parametrize("command", [probe, train])

# -- factories -------------------------------------------------------------------------------------

FACTORIES = {
    "raises": (
        "def build():\n    x = 1\n    raise KeyError('no such layer')\n",
        [r"failed at .*nets\.py:7: KeyError: 'no such layer'"],
    ),
    "leaves": ("def build():\n    raise SystemExit(0)\n", [r"nets\.py:6: SystemExit"]),
    "cannot be imported": ("1 / 0\ndef build(): pass\n", [r"nets\.py:5: ZeroDivisionError"]),
    "is no Python": ("def build(:\n", [r"nets\.py:5: SyntaxError"]),
    "needs an argument": (
        "def build(depth):\n    pass\n",
        [r"nets\.py:5 cannot be called", "depth"],
    ),
    "returns no module": ("def build():\n    return {}\n", [r"nets\.py:5 returned a dict"]),
    "returns nothing": ("def build():\n    pass\n", [r"nets\.py:5 returned a? ?None"]),
    "has no such function": ("def built():\n    pass\n", ["no function 'build'", "built"]),
    "several lines of message": (
        "def build():\n    raise ValueError('one\\ntwo\\nthree')\n",
        ["ValueError: one two three"],
    ),
}


@both_commands
@pytest.mark.parametrize("name", list(FACTORIES))
def test_46_a_factory_that_fails_is_told_with_the_users_own_line(
    tmp_path, saved, capsys, command, name
):
    text, says = FACTORIES[name]
    code = module(tmp_path, text)
    words = words_for(command, saved, model=f"{code}:build")
    words.append("--allow-code")
    refused(command, words, capsys, code=3, out=tmp_path / "out", says=says)


@both_commands
def test_46_data_of_the_users_that_fail_are_told_with_the_users_own_line(
    tmp_path, saved, capsys, command
):
    code = module(tmp_path, "def data():\n    raise OSError('the server sleeps')\n", "data.py")
    words = words_for(command, saved, data=f"{code}:data")
    words.append("--allow-code")
    says = [r"data\.py:6: OSError: the server sleeps"]
    refused(command, words, capsys, code=3, out=tmp_path / "out", says=says)


@both_commands
def test_46_what_user_code_prints_does_not_reach_the_json(tmp_path, saved, capsys, command):
    text = """
print("importing")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        print("building")
        self.add_module("1", nn.Linear(64, 10))

    def forward(self, x):
        print("forward")
        return self.get_submodule("1")(x.flatten(1))

build = Net
"""
    code = module(tmp_path, text)
    words = words_for(command, saved, model=f"{code}:build")
    words += ["--allow-code", "--json", "--out", tmp_path / "out"]
    assert command([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    assert isinstance(json.loads(captured.out), dict)
    for word in ("importing", "building", "forward"):
        assert word in captured.err


# -- code that was not allowed ---------------------------------------------------------------------


@both_commands
@pytest.mark.parametrize("kind", ["model", "data"])
def test_47_a_file_of_code_is_not_run_without_leave(tmp_path, saved, capsys, command, kind):
    canary = tmp_path / "canary"
    code = module(tmp_path, f"open({str(canary)!r}, 'w').close()\ndef build(): pass\n")
    words = words_for(command, saved, **{kind: f"{code}:build"})
    refused(command, words, capsys, code=2, out=tmp_path / "out", says="--allow-code", path=code)
    assert not canary.exists()


@both_commands
@pytest.mark.parametrize("word", ["hubconf:build", "nets:build"])
def test_47_the_current_folder_is_not_searched_for_modules(
    tmp_path, saved, capsys, command, word, monkeypatch
):
    canary = tmp_path / "canary"
    name = word.partition(":")[0]
    module(tmp_path, f"open({str(canary)!r}, 'w').close()\ndef build(): pass\n", f"{name}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    before = list(sys.path)
    words = words_for(command, saved, model=word)
    says = [f"Python finds no module '{name}'", "--allow-code"]
    refused(command, words, capsys, code=3, out=tmp_path / "out", says=says)
    assert sys.path == before
    assert not canary.exists()


@pytest.mark.slow
def test_47_the_installed_command_does_not_search_the_current_folder(tmp_path, saved):
    canary = tmp_path / "canary"
    module(tmp_path, f"open({str(canary)!r}, 'w').close()\ndef build(): pass\n", "nets.py")
    command = Path(sys.executable).parent / "landscape-probe"
    words = [command, saved, *bare("--model", "nets:build", "--data", "digits"), "--out", "out"]
    done = subprocess.run(
        list(map(str, words)), cwd=tmp_path, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3
    one_line(done.stderr, says="Python finds no module 'nets'")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


# -- surroundings ----------------------------------------------------------------------------------


def a_clock_that_jumps(monkeypatch):
    """The time of day goes back an hour at every look."""
    now = [2e9]

    def jumping():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", jumping)


def test_48_a_clock_that_jumps_changes_nothing(tmp_path, saved, capsys, monkeypatch):
    a_clock_that_jumps(monkeypatch)
    out = str(tmp_path / "out")
    assert probe([str(saved), *bare(*LOGISTIC), "--time-budget", "10m", "--out", out]) == 0
    words = ["--task", small_task(), "--model", "mlp:hidden=4:depth=1", "--variants", "erm",
             "--max-seconds", "0.05", "--jobs", "1", "--quiet", "--probe-every", "never",
             "--out", str(tmp_path / "trained"), "--json"]  # fmt: skip
    capsys.readouterr()
    assert train(words) == 0
    (entry,) = json.loads(capsys.readouterr().out)["variants"]
    assert 0.05 <= entry["seconds"]["mean"] < 60


def in_odd_surroundings(command, words, cwd):
    """The command without HOME or a terminal, in a folder whose name is not UTF-8."""
    here = os.fsencode(cwd) + b"/caf\xe9 dossier"
    os.mkdir(here)
    done = subprocess.run(
        [*command, *map(str, words)], cwd=here, capture_output=True, check=False, timeout=300,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE",
             "OMP_NUM_THREADS": "1", "COLUMNS": "0", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return done, here


@pytest.mark.slow
def test_48_a_training_in_odd_surroundings(tmp_path):
    words = ["--task", small_task(), "--model", "mlp:hidden=4:depth=1", "--variants", "erm,sam",
             "--epochs", "2", "--jobs", "1", "--probe-every", "never",
             "--out", "läuft ,5"]  # fmt: skip
    done, here = in_odd_surroundings(TRAIN, words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"\r" not in done.stderr  # no bar where there is no terminal
    table = done.stdout.decode("utf-8", "backslashreplace")
    assert not any(word[:1].isdigit() and "," in word for word in table.splitlines()[1].split())
    out = os.path.join(here, "läuft ,5".encode())
    with open(os.path.join(out, b"erm-seed0", b"metrics.jsonl"), "rb") as file:
        assert [json.loads(line)["epoch"] for line in file] == [1, 2]


@pytest.mark.slow
def test_48_a_probe_in_odd_surroundings(tmp_path, saved):
    words = [saved, *bare(*LOGISTIC, "--line", "3", "--range", "1"), "--out", "läuft"]
    done, here = in_odd_surroundings(PROBE, words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"\r" not in done.stderr
    assert b"Traceback" not in done.stderr
    out = os.path.join(here, "läuft".encode())
    with open(os.path.join(out, b"result.json"), encoding="utf-8") as file:
        (entry,) = json.load(file)["checkpoints"]
    assert f"{entry['loss']:.3f}" in done.stdout.decode()
    with open(os.path.join(out, b"report.html"), encoding="utf-8") as file:
        assert "</html>" in file.read()


def test_48_a_locale_with_decimal_commas_changes_no_number(tmp_path, saved, capsys, monkeypatch):
    import locale

    commas = {**locale.localeconv(), "decimal_point": ",", "thousands_sep": "."}
    monkeypatch.setattr(locale, "localeconv", lambda: commas)
    out = tmp_path / "out"
    assert probe([str(saved), *bare(*LOGISTIC), "--out", str(out)]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert "," not in row
    assert "." in row


class Terminal:
    """A stream that says it is a terminal, a dumb one of no width."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True

    def fileno(self):
        raise OSError("no terminal at all")


@both_commands
def test_48_bars_do_not_crash_on_a_dumb_terminal(tmp_path, saved, monkeypatch, command):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "stderr", terminal)
    words = [word for word in words_for(command, saved) if word != "--quiet"]
    assert command([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    assert "Traceback" not in terminal.text
