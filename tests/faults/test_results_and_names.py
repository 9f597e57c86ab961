"""Rows 43 to 45: results that were changed, names that attack, configurations that are wrong."""

import json
import os
import re
import shutil
import sys
import types

import pytest
import torch

from cli.probe import ARGUMENTS as PROBE_ARGUMENTS
from cli.train import recipe_arguments
from landscape import load_findings
from tests.faults.attack import (
    LOGISTIC,
    bare,
    entry_of,
    fingerprints,
    logistic_state,
    module,
    one_line,
    probe,
    probe_refused,
    probed,
    refused,
    resumed,
    train,
)
from tests.sam_variants.training.small import small_task


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """The report takes longer than the measurement: the tests that look at it draw it."""
    if not {"drawn", "hostile"} & set(request.fixturenames):
        monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


# -- results ---------------------------------------------------------------------------------------

PLANE = ("--line", "5", "--range", "1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a checkpoint and its result."""
    folder = tmp_path_factory.mktemp("measured")
    torch.save(logistic_state(), folder / "net.pt")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cli.probe._draw", lambda findings, out: None)
        probed(folder / "net.pt", folder, *LOGISTIC, *PLANE)
    return folder


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap_a_number(path):
    document = json.loads(path.read_text())
    document["checkpoints"][0]["loss"] /= 2
    path.write_text(json.dumps(document, indent=1))


CHANGES = {
    "a number edited": ("result.json", swap_a_number),
    "a word edited": ("result.json", lambda p: edit(p, '"label": "net"', '"label": "best"')),
    "half written": ("result.json", lambda p: os.truncate(p, p.stat().st_size // 2)),
    "empty": ("result.json", lambda p: p.write_bytes(b"")),
    "no object": ("result.json", lambda p: p.write_text("[1, 2]\n")),
    "nested without end": ("result.json", lambda p: p.write_text("[" * 100_000)),
    "no JSON number": ("result.json", lambda p: edit(p, '"quick": false', '"quick": NaN')),
    "another schema": ("result.json", lambda p: edit(p, '"schema": 1', '"schema": 99')),
    "arrays cut": ("arrays.nc", lambda p: os.truncate(p, p.stat().st_size - 8)),
    "arrays missing": ("arrays.nc", lambda p: p.unlink()),
    "arrays with a bit flipped": (
        "arrays.nc",
        lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_43_a_changed_result_is_never_drawn_nor_answered_with(measured, tmp_path, capsys, name):
    shutil.copytree(measured, tmp_path / "copy")
    out = tmp_path / "copy" / "out"
    file, change = CHANGES[name]
    change(out / file)
    before = fingerprints(out)
    capsys.readouterr()
    assert probe(["--report-only", str(out)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    one_line(captured.err, path=out / file)
    words = [measured / "net.pt", *bare(*LOGISTIC, *PLANE)]
    refused(probe, words, capsys, code=3, out=out, says="--overwrite", path=out / file)
    assert fingerprints(out) == before
    assert probe([*map(str, words), "--overwrite", "--out", str(out)]) == 0
    assert load_findings(out).document["complete"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished training of two variants."""
    out = tmp_path_factory.mktemp("study") / "out"
    words = ["--task", small_task(), "--model", "mlp:hidden=4:depth=1", "--variants", "erm,sam",
             "--epochs", "1", "--jobs", "1", "--probe-every", "never", "--quiet"]  # fmt: skip
    assert train([*words, "--out", str(out)]) == 0
    return out


def prettier(path):
    document = json.loads(path.read_text())
    document["variants"][0]["test_accuracy"]["mean"] = 0.999
    path.write_text(json.dumps(document, indent=1) + "\n")


STUDY_CHANGES = {
    "edited": prettier,
    "half written": lambda p: os.truncate(p, p.stat().st_size // 2),
    "empty": lambda p: p.write_bytes(b""),
    "no object": lambda p: p.write_text("[1]\n"),
}


@pytest.mark.parametrize("with_report", [True, False])
@pytest.mark.parametrize("name", list(STUDY_CHANGES))
def test_43_a_changed_comparison_is_never_drawn_nor_answered_with(
    study, tmp_path, capsys, name, with_report
):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    path = out / "comparison.json"
    STUDY_CHANGES[name](path)
    if not with_report:
        (out / "report.html").unlink()
    refused(train, resumed(out), capsys, code=3, out=out, says="--resume", path=path)
    path.unlink()  # as the line advises
    assert train(resumed(out)) == 0
    assert path.read_bytes() == (study / "comparison.json").read_bytes()


def test_43_an_edited_history_is_written_again_from_the_checkpoint(study, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    metrics = out / "erm-seed0" / "metrics.jsonl"
    line = json.loads(metrics.read_text())
    metrics.write_text(json.dumps({**line, "test_accuracy": 1.0}) + "\n")
    (out / "comparison.json").unlink()
    assert train(resumed(out)) == 0
    assert metrics.read_bytes() == (study / "erm-seed0" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("content", ['{"epoch": 1, "st', "", "[1]\n"])
def test_43_a_torn_history_is_told_and_resuming_mends_it(study, tmp_path, capsys, content):
    out = tmp_path / "out"
    shutil.copytree(study, out)
    metrics = out / "erm-seed0" / "metrics.jsonl"
    metrics.write_text(content)
    words = [word for word in resumed(out) if word != "--resume"]
    says = "--resume writes it again"
    refused(train, words, capsys, code=3, out=out, says=says, path=metrics)
    assert train(resumed(out)) == 0
    assert metrics.read_bytes() == (study / "erm-seed0" / "metrics.jsonl").read_bytes()


# -- names -----------------------------------------------------------------------------------------

MARKUP = "</script><img src=x onerror=\"alert('owned')\"><b>bold</b>"  # a layer's name has no dot
ATTACK = (
    f"{MARKUP}\u202edesrever\u202c\nlandscape-probe: error: \x1b[2Jno line of ours\r" + "x" * 10_000
)
LAYER = MARKUP + "\u202e\n" + "y" * 10_000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The folder of a probe whose run and layer are named so, drawn; and what it printed."""
    folder = tmp_path_factory.mktemp("hostile")
    text = (
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        f"        self.add_module({LAYER!r}, nn.Linear(64, 10))\n\n"
        "    def forward(self, x):\n"
        "        return next(self.children())(x.flatten(1))\n\n"
        "build = Net\n"
    )
    code = module(folder, text)
    state = {f"{LAYER}.{name[2:]}": w for name, w in logistic_state().items()}
    run = {"label": ATTACK, "seed": 0, "name": ATTACK, "variant": ATTACK}
    recipe = {"model": "logistic", "task": "digits"}
    content = {"format": "loss-landscape-toolkit/1", "recipe": recipe, "run": run, "history": [],
               "model": state}  # fmt: skip
    torch.save(content, folder / "checkpoint.pt")
    words = [folder / "checkpoint.pt", *bare("--model", f"{code}:build", "--per-layer",
             "--eigenvalues", "1", "--line", "3", "--range", "1"), "--allow-code"]  # fmt: skip
    assert probe([*map(str, words), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_44_a_hostile_run_or_layer_is_kept_as_it_is_in_the_result(hostile):
    entry = entry_of(load_findings(hostile))
    assert entry["label"] == f"{ATTACK} seed 0"
    assert [layer["name"] for layer in entry["layers"]] == [LAYER]


def test_44_a_hostile_run_or_layer_is_text_in_the_report(hostile):
    page = (hostile / "report.html").read_text()
    assert "</script><img" not in page
    assert "\u202e" not in page
    assert "<img" not in page
    assert "&lt;/script&gt;&lt;img src=x" in page


@pytest.mark.browser
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")) and not os.environ.get("CI"),
    reason="needs chromium and chromedriver",
)
def test_44_a_hostile_run_or_layer_makes_no_element_in_a_browser(hostile, tmp_path):
    from tests.landscape.report.test_browser import launch, show

    driver = launch(tmp_path / "profile")
    try:
        show(driver, hostile / "report.html")
        count = "return document.querySelectorAll('[onerror], img[src=x], .plot b').length"
        assert driver.execute_script(count) == 0
        assert "</script><img src=x" in driver.execute_script("return document.body.innerText")
        severe = [e for e in driver.get_log("browser") if e["level"] == "SEVERE"]
        assert severe == []
    finally:
        driver.quit()


def printable(text):
    return all(c.isprintable() or c == "\n" for c in text)


def test_44_a_hostile_run_is_cut_and_moves_nothing_on_the_terminal(hostile, capsys):
    folder = hostile.parent
    words = [folder / "checkpoint.pt", *bare("--model", f"{folder / 'nets.py'}:build",
             "--per-layer", "--eigenvalues", "1", "--line", "3", "--range", "1"),
             "--allow-code"]  # fmt: skip
    assert probe([*map(str, words), "--out", str(hostile)]) == 0  # answered from the result
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert printable(text)
        assert not any(line.startswith("landscape-probe: error") for line in text.splitlines())
        assert max(map(len, text.splitlines()), default=0) < 1000


def test_44_a_hostile_class_in_a_pickle_is_one_short_line(tmp_path, capsys, monkeypatch):
    name = "Config" + ATTACK.replace(".", "")
    home = types.ModuleType("home")
    setattr(home, name, type(name, (), {"__module__": "home", "__qualname__": name}))
    monkeypatch.setitem(sys.modules, "home", home)
    content = {"model": logistic_state(), "config": getattr(home, name)()}
    torch.save(content, tmp_path / "net.pt", pickle_protocol=4)
    monkeypatch.delitem(sys.modules, "home")
    line = probe_refused(tmp_path / "net.pt", tmp_path, capsys, code=3, says="--trust-pickle")
    assert printable(line)
    assert len(line) < 2000


def test_44_a_hostile_key_of_a_state_dict_is_one_short_line(tmp_path, capsys):
    torch.save({**logistic_state(), ATTACK: torch.zeros(2)}, tmp_path / "net.pt")
    says = "1 unexpected"
    line = probe_refused(tmp_path / "net.pt", tmp_path, capsys, *LOGISTIC, code=3, says=says)
    assert printable(line)
    assert len(line) < 2000


def test_44_a_hostile_error_of_user_code_is_one_line(tmp_path, capsys):
    torch.save(logistic_state(), tmp_path / "net.pt")
    code = module(tmp_path, f"def build():\n    raise ValueError({ATTACK!r})\n")
    words = [tmp_path / "net.pt", *bare("--model", f"{code}:build", "--data", "digits"),
             "--allow-code"]  # fmt: skip
    line = refused(probe, words, capsys, code=3, out=tmp_path / "out", says=r"nets\.py:6")
    assert printable(line)


def test_44_a_file_with_a_hostile_name_is_one_line(tmp_path, capsys):
    path = tmp_path / "net\u202e\nlandscape-probe: error: \x1b[2J.pt"
    path.write_bytes(b"")
    assert probe([str(path), "--out", str(tmp_path / "out")]) == 3
    captured = capsys.readouterr()
    one_line(captured.err, says="file is empty")
    assert printable(captured.err)


# -- configurations --------------------------------------------------------------------------------

BAD_CONFIGS = {
    "an unknown key": ("epochz = 3\n", "unknown key 'epochz'; did you mean 'epochs'"),
    "a text for a number": ('lr = "1e-3"\n', r"lr must be a number > 0, got '1e-3'"),
    "a number for a text": ("task = 3\n", "task must be a text, got 3"),
    "a switch for a number": ("epochs = true\n", "epochs must be a number > 0, got True"),
    "a fraction for a count": (
        "batch_size = 1.5\n",
        "batch_size must be a whole number >= 1, got 1.5",
    ),
    "a value below its range": ("lr = -1.0\n", r"lr must be a number > 0, got -1"),
    "a value that is none": ("lr = nan\n", r"lr must be a number > 0, got nan"),
    "a value that is infinite": ("lr = inf\n", r"lr must be .*got inf"),
    "a key twice": ("lr = 0.1\nlr = 0.2\n", "not valid TOML"),
    "a key in two spellings": (
        "batch-size = 8\nbatch_size = 9\n",
        "batch_size is given twice",
    ),
    "a table": ("[lr]\nvalue = 3\n", "lr must be a number"),
    "no TOML": ("lr 0.1\n", "not valid TOML"),
    "two budgets": ("epochs = 1\nmax_steps = 2\n", "exclude each other"),
    "a radius below 0 of a variant": (
        'variants = ["sam:rho=-1"]\n',
        r"rho must be a number >= 0, got -1",
    ),
    "a radius that is none": ('variants = ["sam:rho=nan"]\n', r"rho must be a number >= 0"),
    "an unknown variant": ('variants = ["smm"]\n', "unknown variant 'smm'; did you mean"),
    "an unknown word": ('schedule = "cosin"\n', r"schedule must be one of .*cosine"),
}


@pytest.mark.parametrize("name", list(BAD_CONFIGS))
def test_45_a_bad_configuration_of_a_training_is_told_by_file_and_key(tmp_path, capsys, name):
    text, says = BAD_CONFIGS[name]
    path = tmp_path / "config.toml"
    path.write_text(text)
    words = ["--config", path]
    refused(train, words, capsys, code=2, out=tmp_path / "out", says=says, path=path)


BAD_PROBE_CONFIGS = {
    "an unknown key": ("egenvalues = 3\n", "unknown key 'egenvalues'; did you mean 'eigenvalues'"),
    "a text for a number": ('rho = "1e-3"\n', r"rho must be a number.*got '1e-3'"),
    "a value below its range": ("rho = -1.0\n", r"rho must be a number >= 0.*got -1"),
    "a value that is none": ("rho = nan\n", r"rho must be a number >= 0.*got nan"),
    "a key in two spellings": ("max-samples = 8\nmax_samples = 9\n", "max_samples is given twice"),
    "a measure with a bad radius": (
        'metrics = ["worst-case:rho=-1"]\n',
        r"rho must be a number >.*got -1",
    ),
    "a number for a switch": ("quick = 1\n", "quick must be true or false"),
    "two presets": ("quick = true\nthorough = true\n", "exclude each other"),
    "a flag that no file may hold": ("overwrite = true\n", "unknown key 'overwrite'"),
}


@pytest.mark.parametrize("name", list(BAD_PROBE_CONFIGS))
def test_45_a_bad_configuration_of_a_probe_is_told_by_file_and_key(tmp_path, capsys, name):
    text, says = BAD_PROBE_CONFIGS[name]
    path = tmp_path / "probe.toml"
    path.write_text(text)
    torch.save(logistic_state(), tmp_path / "net.pt")
    words = [tmp_path / "net.pt", "--config", path]
    refused(probe, words, capsys, code=2, out=tmp_path / "out", says=says)


@pytest.mark.parametrize("command", [probe, train])
def test_45_no_option_takes_a_number_that_is_none(tmp_path, capsys, command):
    """Every option with a range, by its own name: nan is in no range."""
    from landscape.table import Range

    arguments = PROBE_ARGUMENTS if command is probe else recipe_arguments()
    ranged = [argument for argument in arguments if isinstance(argument.kind, Range)]
    assert len(ranged) > 8
    for argument in ranged:
        for value in ("nan", "1e-3x", ""):
            words = [argument.flag, value]
            says = re.escape(argument.name)
            refused(command, words, capsys, code=2, out=tmp_path / "out", says=says)
