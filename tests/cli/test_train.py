"""landscape-train as it is typed: what it answers, where, with which code."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cli.train import listed, main, recipe_arguments
from sam_variants import VARIANTS
from sam_variants.training.recipe import recipe_options
from tests.sam_variants.training.small import small_task

COMMAND = Path(sys.executable).parent / "landscape-train"
TINY = ("--model", "mlp:hidden=4:depth=1", "--epochs", "1", "--variants", "erm,sam", "--jobs", "1")


def tiny(*argv: str) -> list[str]:
    return ["--task", small_task(), *TINY, *argv]


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- without torch ---------------------------------------------------------------------------------

QUICK = [
    (["--help"], 0),
    (["--version"], 0),
    (["--list", "variants"], 0),
    (["--list", "tasks"], 0),
    (["--list", "models"], 0),
    (["--list", "metrics"], 0),
    (["--print-config", "--when", "every-5"], 0),
    (["--lrr", "1"], 2),
    (["--lr", "nan"], 2),
    (["--variants", "smm"], 2),
    (["--task", "mnist2d"], 2),
    (["--model", "nets.py:build"], 2),
    (["--when", "ae", "--switch-signal", "trase"], 2),
    (["--epochs", "2", "--max-steps", "3"], 2),
    (["--resume", "--overwrite"], 2),
    (["--config", "nowhere.toml"], 2),
    (["--print-config", "--variants", "all", "--when", "ae"], 0),
    (["--variants", "sam:rho=-1"], 2),
    (["--variants", "tsam:rho=nan"], 2),
    (["--variants", "ssam-f:sparsity=1.2"], 2),
    (["--variants", "msam:shards=200"], 2),
    (["--variants", "msam:shard=2"], 2),
    (["--variants", "ssam-d:pattern=4:2"], 2),
    (["--variants", "esam:beta=0"], 2),
    (["--variants", "bsam:match_norms=maybe"], 2),
    (["--variants", "momentum-sam", "--momentum", "0"], 2),
    (["--variants", "previous-sam:when=ae"], 2),
    (["--variants", "adasam", "--adam-lr", "0"], 2),
    (["--probe-every", "often"], 2),
]


def test_help_lists_version_and_usage_errors_answer_without_torch() -> None:
    # one process for all: what is asked is what they import, not how fast this machine is now
    code = (
        "import sys, json; from landscape_cli.train import main\n"
        f"codes = [main(argv) for argv in {[argv for argv, _ in QUICK]!r}]\n"
        "slow = {'torch', 'scipy', 'numpy', 'sklearn', 'plotly', 'multiprocessing'}\n"
        "print(json.dumps([codes, sorted(slow & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    codes, imported = json.loads(done.stdout.splitlines()[-1])
    assert codes == [code for _, code in QUICK]
    assert imported == []
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("landscape-train: error: ")]
    assert len(errors) == sum(code != 0 for _, code in QUICK)
    (note,) = [line for line in lines if line not in errors]
    assert note.startswith("landscape-train: note: when = ae does not reach tsam, ")


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("sam:rho=-1", "rho must be a number >= 0, got -1"),
        ("tsam:rho=nan", "rho must be a number >= 0, got nan"),
        ("ssam-f:sparsity=1.2", "sparsity must be a number in [0, 1], got 1.2"),
        ("msam:shards=200", "shards must be a whole number in [1, 128], the batch size, got 200"),
        ("msam:shard=2", "unknown option of msam 'shard'; did you mean 'shards'?"),
        ("momentun-sam", "unknown variant 'momentun-sam'; did you mean 'momentum-sam'?"),
        ("ssam-d:pattern=4:2", "pattern must be N:M with whole numbers 1 <= N <= M"),
        ("sam:when=every-0", "K in every-K must be a whole number >= 1, got 0"),
    ],
)
def test_a_bad_option_is_named_with_its_range_or_the_nearest(variant: str, message: str, capsys):
    assert main(["--variants", variant]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_what_all_leaves_out_and_when_passes_over_are_told_in_a_line_each(capsys) -> None:
    settings = ["--batch-size", "2", "--momentum", "0", "--when", "ae", "--print-config"]
    assert main(["--variants", "all", *settings]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "landscape-train: note: all leaves out msam (shards must be a whole number in [1, 2], the "
        "batch size, got 4); momentum-sam (momentum must be a number in (0, 1), along which it "
        "perturbs, got 0)",
        "landscape-train: note: when = ae does not reach tsam, aace, previous-sam, which have no "
        "clean gradient for it to watch: they perturb every step",
    ]
    written = tomllib.loads(captured.out)["variants"]
    assert set(VARIANTS) - set(written) == {"msam", "momentum-sam"}
    assert main(["--variants", "all", "--quiet", *settings]) == 0
    assert capsys.readouterr().err == ""
    assert main(["--variants", "sam,gnp", *settings]) == 0
    assert capsys.readouterr().err == ""
    assert main(["--variants", "all,msam", *settings]) == 2
    assert capsys.readouterr().err == (
        "landscape-train: error: msam: shards must be a whole number in [1, 2], the batch size, "
        "got 4\n"
    )


def test_a_finished_study_answers_without_torch(tmp_path: Path) -> None:
    assert main(tiny("--out", "x")) == 0
    code = (
        "import sys; from landscape_cli.train import main\n"
        f"assert main({tiny('--out', 'x')!r}) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_the_installed_command_answers_its_help() -> None:
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    for argument in recipe_arguments():
        assert argument.flag in done.stdout
    assert done.stderr == ""


# -- configuration ---------------------------------------------------------------------------------


def test_print_config_round_trips(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--variants", "sam:rho=0.1,erm", "--max-steps", "9", "--clip", "2", "--out", "x/y",
             "--optimizer", "adamw", "--seeds", "3", "--threads", "2", "--jobs", "2"]  # fmt: skip
    assert main([*flags, "--print-config"]) == 0
    first = capsys.readouterr().out
    Path("c.toml").write_text(first)
    assert main(["--config", "c.toml", "--print-config"]) == 0
    assert capsys.readouterr().out == first
    values = tomllib.loads(first)
    assert values["variants"] == ["sam:rho=0.1", "erm"]
    assert (values["lr"], values["out"], values["jobs"]) == (1e-3, "x/y", 2)
    assert "epochs" not in values


def test_a_flag_wins_over_the_file_and_replaces_its_budget(capsys) -> None:
    Path("c.toml").write_text("epochs = 5\nlr = 0.3\nmomentum = 0.5\n")
    assert main(["--config", "c.toml", "--lr", "0.2", "--max-steps", "7", "--print-config"]) == 0
    values = tomllib.loads(capsys.readouterr().out)
    assert (values["lr"], values["momentum"], values["max_steps"]) == (0.2, 0.5, 7)
    assert "epochs" not in values


def test_every_field_of_the_recipe_is_a_flag_with_the_same_range() -> None:
    flags = {argument.key: argument for argument in recipe_arguments()}
    for key, (option, _, help_, _) in recipe_options().items():
        assert flags[key].help == help_
        if option is not None:
            assert flags[key].kind is option


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr = 0.1", "c.toml: unknown key 'lrr'; did you mean 'lr'?"),
        ("lr = '1e-3'", "c.toml: lr must be a number > 0, got '1e-3'"),
        ("lr = -1", "c.toml: lr must be a number > 0, got -1"),
        ("momentum = nan", "c.toml: momentum must be a number in [0, 1), got nan"),
        ("lr = 1\nlr = 2", "c.toml: not valid TOML"),
        ("variants = ['sam:rho=-1']", "c.toml: sam: rho must be a number >= 0, got -1"),
        ("allow_code = true", "c.toml: unknown key 'allow_code'"),
    ],
)
def test_45_a_bad_config_is_a_usage_error(text: str, message: str, capsys) -> None:
    Path("c.toml").write_text(text)
    assert main(["--config", "c.toml"]) == 2
    assert message in capsys.readouterr().err


def test_lists_hold_every_entry_with_its_defaults() -> None:
    text = listed("variants")
    for name, entry in VARIANTS.items():
        assert any(line.split()[0] == name for line in text.splitlines())
        assert entry.summary in text
    assert "rho=0.05" in text


# -- training --------------------------------------------------------------------------------------


def test_the_table_goes_to_stdout_and_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(tiny("--out", "x", "--seeds", "2")) == 0
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[:2] == ["variant", "seeds"]
    assert [line.split()[0] for line in lines[2:4]] == ["erm", "sam"]
    assert "report: x/report.html" in captured.out
    assert captured.err == ""


def test_json_is_one_object_that_is_the_comparison(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(tiny("--out", "x", "--json")) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer.pop("out") == "x"
    assert answer.pop("report") == "x/report.html"
    assert answer == json.loads(Path("x/comparison.json").read_text())


def test_a_second_call_prints_the_same_and_trains_nothing(capfd) -> None:
    assert main(tiny()) == 0
    first = capfd.readouterr().out
    (folder,) = Path("runs").iterdir()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(tiny()) == 0
    assert capfd.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_the_stored_config_repeats_the_run(capfd) -> None:
    assert main(tiny("--out", "x", "--json")) == 0
    first = json.loads(capfd.readouterr().out)
    assert main(["--config", "x/config.toml", "--out", "again", "--jobs", "1", "--json"]) == 0
    second = json.loads(capfd.readouterr().out)
    for a, b in zip(first["variants"], second["variants"], strict=True):
        assert a["test_loss"] == b["test_loss"]
    assert Path("x/config.toml").read_bytes() == Path("again/config.toml").read_bytes()


def test_resume_by_the_stored_config_goes_on_in_its_folder(capfd) -> None:
    assert main(tiny("--out", "x")) == 0
    first = capfd.readouterr().out
    Path("x/comparison.json").unlink()
    Path("x").rename("moved")
    assert main(["--config", "moved/config.toml", "--resume", "--jobs", "1"]) == 0
    assert capfd.readouterr().out == first.replace("x/", "moved/")


def test_an_unfinished_or_another_training_is_not_overwritten(capfd) -> None:
    assert main(tiny("--out", "x")) == 0
    assert main(tiny("--out", "x", "--lr", "0.2")) == 2
    assert "lr: 0.1 -> 0.2): give another --out, or --overwrite" in capfd.readouterr().err
    assert main(tiny("--out", "x", "--lr", "0.2", "--resume")) == 3
    Path("x/comparison.json").unlink()
    assert main(tiny("--out", "x")) == 2
    assert "unfinished: --resume or --overwrite" in capfd.readouterr().err
    assert main(tiny("--out", "x", "--lr", "0.2", "--overwrite")) == 0


def test_resume_where_nothing_is_begins() -> None:
    assert main(tiny("--out", "x", "--resume")) == 0


def test_dry_run_prints_the_plan_and_writes_nothing(capfd) -> None:
    assert main(tiny("--out", "x", "--dry-run", "--batch-size", "64", "--seeds", "2")) == 0
    captured = capfd.readouterr()
    assert "erm: 2 x 8 steps, 8 gradients a run" in captured.out
    assert "sam: 2 x 8 steps, 16 gradients a run" in captured.out
    assert "base: SGD (momentum 0.9), lr 0.1" in captured.out
    assert captured.err == ""
    assert main(tiny("--out", "x", "--dry-run", "--batch-size", "64", "--json")) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [entry["gradients"] for entry in answer["variants"]] == [8, 16]
    probes = [entry["probe_seconds"] for entry in answer["variants"]]
    assert answer["probe_seconds"] == pytest.approx(sum(probes))
    assert all(entry["seconds"] > entry["probe_seconds"] > 0 for entry in answer["variants"])
    assert answer["seconds"] == pytest.approx(sum(e["seconds"] for e in answer["variants"]))
    assert list(Path().iterdir()) == []


def test_dry_run_says_how_much_of_the_time_measures_the_curvature(capfd) -> None:
    assert main(tiny("--dry-run")) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    words = r"about \d+ s in one process, \d+ s of it for lambda_max and sharpness; evaluations.*"
    assert re.fullmatch(words, last)
    assert main(tiny("--dry-run", "--probe-every", "never")) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"about \d+ s in one process; evaluations come on top", last)


def test_dry_run_plans_each_seed_of_a_policy_that_draws(capfd) -> None:
    settings = ("--dry-run", "--batch-size", "16", "--seeds", "3", "--probe-every", "never")
    assert main(tiny(*settings, "--variants", "sam:when=bernoulli-0.5")) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "3 x" in line]
    low, high = map(int, re.search(r"(\d+) to (\d+) gradients a run", line).groups())
    assert 29 < low < high < 58


def test_a_device_that_is_not_there_is_one_line_and_leaves_nothing(capfd) -> None:
    argv = tiny("--out", "x", "--device", "cuda:9")
    argv[argv.index("--jobs") + 1] = "2"  # two workers would each say it
    assert main(argv) == 2
    captured = capfd.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "device 'cuda:9' cannot be used here" in captured.err
    assert list(Path().iterdir()) == []


def test_a_probe_of_what_was_trained_cites_the_papers_too() -> None:
    from cli.subjects import training_section
    from landscape.checkpoints import read_checkpoint

    assert main(tiny("--out", "x", "--variants", "erm,sam:rho=0.1")) == 0
    paths = sorted(Path("x").glob("*/checkpoint.pt"))
    section = training_section([read_checkpoint(path) for path in paths])
    assert section is not None
    assert section["papers"] == {"sam-rho=0.1": "Foret et al. 2020, arXiv 2010.01412"}


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--device", "cuda:9"], 2, "device 'cuda:9' cannot be used here"),
        (["--task", "npz:nowhere.npz"], 3, "nowhere.npz"),
        (["--task", "cifar10", "--data-dir", "nowhere"], 3, "nowhere"),
        (["--label-noise", "0.2", "--validation", "0.001"], 3, "validation"),
        (["--lr", "1e30", "--schedule", "constant", "--epochs", "30"], 4, "the loss is"),
    ],
)
def test_failures_have_their_codes_and_one_line(argv, code: int, message: str, capfd) -> None:
    assert main(tiny("--out", "x", "--variants", "erm", *argv)) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_40_a_second_command_on_a_folder_in_use_ends_2(capfd) -> None:
    from sam_variants.training.folder import locked

    with locked(Path("x")):
        code = subprocess.run(
            [COMMAND, *tiny("--out", "x")], capture_output=True, text=True, check=False
        )
    assert code.returncode == 2
    assert "x is in use by process" in code.stderr


@pytest.mark.slow
def test_48_an_odd_environment_changes_nothing(tmp_path: Path) -> None:
    odd = "caf\udce9 dossier"  # not UTF-8
    done = subprocess.run(
        [COMMAND, *tiny("--out", odd, "--json")],
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert json.loads(done.stdout)["out"] == odd
    assert (Path(odd) / "report.html").exists()
