"""landscape-probe: whose checkpoint it opens, and what a checkpoint may not do."""

import json

import pytest
import torch
from safetensors.torch import save_file

from cli.probe import main
from sam_variants.tasks import build_model, build_task

BARE = ["--eigenvalues", "1", "--ends", "top", "--trace-probes", "0", "--density-runs", "0",
        "--surface", "0", "--line", "0", "--metrics", "sam", "--max-samples", "60",
        "--model", "logistic", "--data", "digits", "--jobs", "1", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return build_model("logistic", build_task("digits"), seed=3).state_dict()


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr("cli.probe._draw", lambda findings, out: None)


def probed(path, tmp_path, *more):
    out = tmp_path / "out"
    assert main([str(path), *BARE, *more, "--out", str(out)]) == 0
    (entry,) = json.loads((out / "result.json").read_text())["checkpoints"]
    return entry


def refused(path, tmp_path, capsys, *more, code):
    assert main([str(path), *BARE, *more, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
    (line,) = captured.err.splitlines()
    return line


def test_safetensors_are_probed_in_one_line(weights, tmp_path):
    save_file(weights, tmp_path / "net.safetensors")
    entry = probed(tmp_path / "net.safetensors", tmp_path)
    assert entry["load_report"]["format"] == "safetensors"
    assert entry["load_report"]["matched"] == 2


def test_a_hugging_face_folder_is_one_checkpoint_and_is_measured_once(weights, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(weights, folder / "model.safetensors")
    first = probed(folder, tmp_path)
    before = (tmp_path / "out" / "result.json").stat().st_mtime_ns
    assert probed(folder, tmp_path) == first
    assert (tmp_path / "out" / "result.json").stat().st_mtime_ns == before


def test_prefixes_and_wrappers_are_told_in_the_result(weights, tmp_path):
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": w for name, w in weights.items()}}
    torch.save(wrapped, tmp_path / "net.pt")
    report = probed(tmp_path / "net.pt", tmp_path)["load_report"]
    assert report["state_key"] == "state_dict"
    assert report["prefixes_removed"] == ["module."]
    assert "epoch" in report["skipped"]


def test_16_two_state_dicts_are_listed_and_one_is_chosen(weights, tmp_path, capsys):
    doubled = {name: 2 * tensor for name, tensor in weights.items()}
    torch.save({"model": weights, "ema": doubled}, tmp_path / "net.pt")
    line = refused(tmp_path / "net.pt", tmp_path, capsys, code=2)
    assert "--state-key" in line
    assert "ema" in line
    entry = probed(tmp_path / "net.pt", tmp_path, "--state-key", "ema")
    assert entry["load_report"]["state_key"] == "ema"
    length = torch.cat([w.reshape(-1) for w in doubled.values()]).norm()
    assert entry["parameter_norm"] == pytest.approx(float(length), rel=1e-5)


def test_missing_names_are_allowed_by_glob_alone_and_warned_of(weights, tmp_path, capsys):
    torch.save({n: w for n, w in weights.items() if "bias" not in n}, tmp_path / "net.pt")
    assert "1.bias" in refused(tmp_path / "net.pt", tmp_path, capsys, code=3)
    entry = probed(tmp_path / "net.pt", tmp_path, "--allow-missing", "*.bias")
    assert entry["load_report"]["missing"] == ["1.bias"]
    assert any("1.bias" in warning for warning in entry["load_report"]["warnings"])


def test_a_file_larger_than_allowed_is_refused(weights, tmp_path, capsys):
    torch.save(weights, tmp_path / "net.pt")
    line = refused(tmp_path / "net.pt", tmp_path, capsys, "--max-checkpoint-gb", "1e-6", code=3)
    assert "--max-checkpoint-gb" in line


def test_a_pickled_module_needs_to_be_trusted(tmp_path, capsys):
    torch.save(build_model("logistic", build_task("digits"), seed=3), tmp_path / "net.pt")
    line = refused(tmp_path / "net.pt", tmp_path, capsys, code=3)
    assert "Sequential" in line
    assert "--trust-pickle" in line


@pytest.mark.parametrize("key", ["model", "task"])
def test_a_checkpoint_does_not_choose_the_code_that_is_run(tmp_path, capsys, key):
    """Our own format says which model and data it belongs to, and anyone can write it."""
    canary = tmp_path / "ran"
    code = tmp_path / "evil.py"
    code.write_text(f"def build(*a, **k):\n    open({str(canary)!r}, 'w').close()\n")
    for word in ("os:getcwd", f"{code}:build"):
        recipe = {"model": "logistic", "task": "digits", key: word}
        torch.save(
            {"format": "loss-landscape-toolkit/1", "recipe": recipe, "history": [],
             "run": {"label": "x", "seed": 0}, "model": {"w": torch.zeros(1)}},
            tmp_path / "net.pt",
        )  # fmt: skip
        assert main([str(tmp_path / "net.pt"), "--out", str(tmp_path / "out")]) == 3
        line = capsys.readouterr().err
        assert f"asks for the code {word}" in line
        assert "--allow-code" in line
        assert not canary.exists()


def test_data_that_were_replaced_are_another_question(tmp_path, capsys):
    """The recipe names the file, not the user: its bytes are part of the question all the same."""
    import numpy as np

    from cli.train import main as train

    def write(seed):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=(90, 5)).astype("float32"), generator.integers(0, 3, 90)
        np.savez(tmp_path / "d.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])

    write(0)
    study = ["--variants", "erm", "--task", f"npz:{tmp_path / 'd.npz'}", "--model", "logistic"]
    more = ["--epochs", "1", "--jobs", "1", "--probe-every", "never", "--quiet"]
    assert train([*study, *more, "--out", str(tmp_path / "study")]) == 0
    without = [word for word in BARE if word not in ("--model", "logistic", "--data", "digits")]
    words = [str(tmp_path / "study"), *without, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(words) == 0
    write(1)
    capsys.readouterr()
    assert main(words) == 2
    assert "another result" in capsys.readouterr().err


def test_a_seed_more_is_another_question(weights, tmp_path, capsys):
    for name in "ab":
        torch.save({n: w + ord(name) / 1e3 for n, w in weights.items()}, tmp_path / f"{name}.pt")
    words = [*BARE, "--out", str(tmp_path / "out")]
    assert main([str(tmp_path / "a.pt"), *words]) == 0
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), *words]) == 2
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), *words, "--resume"]) == 2
    assert "another result" in capsys.readouterr().err


def test_resume_and_overwrite_exclude_each_other(tmp_path, capsys):
    assert main([str(tmp_path), "--resume", "--overwrite"]) == 2
    assert "give one of them" in capsys.readouterr().err
