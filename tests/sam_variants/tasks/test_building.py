import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam_variants.tasks import Split, Task, Word, build_model, build_task, parse_model, parse_task
from sam_variants.tasks.task import hash_arrays


def rows(split):
    return {
        row.numpy().tobytes(): int(t) for row, t in zip(split.inputs, split.targets, strict=True)
    }


def test_the_words_of_the_tables_are_read_without_torch():
    script = (
        "import sys; from sam_variants.tasks import TASKS, MODELS, parse_task, parse_model; "
        "parse_task('cifar10:cutout=16'); parse_model('mlp:hidden=8'); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_words_are_taken_apart():
    assert parse_task("mnist1d") == Word("mnist1d")
    assert parse_task("cifar10:cutout=16") == Word("cifar10", "", {"cutout": 16})
    assert parse_task("text:a:b.txt:context=8") == Word("text:FILE", "a:b.txt", {"context": 8})
    assert parse_task("npz:x=1/y.npz") == Word("npz:FILE", "x=1/y.npz")
    assert parse_task("./a b.py:data") == Word("FILE.py:factory", "./a b.py:data")
    assert parse_task("pkg.mod:data") == Word("package.module:factory", "pkg.mod:data")
    assert parse_model("timm:resnet18") == Word("timm:NAME", "resnet18")
    options = {"hidden": 8, "activation": "tanh"}
    assert parse_model("mlp:hidden=8:activation=tanh") == Word("mlp", "", options)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mnist", "unknown task 'mnist'; did you mean 'mnist1d'"),
        ("", "unknown task ''"),
        ("digit", "did you mean 'digits'"),
        ("npz:", "lacks what follows the colon: npz:FILE"),
        ("mnist1d:size=3", "unknown option of task mnist1d 'size'"),
        ("cifar10:cutout=40", r"cutout must be a whole number in \[0, 32\]"),
        ("cifar10:cutout=x", "cutout must be"),
        ("cifar10:cutout=1:cutout=2", "gives cutout twice"),
        ("a b:c", "unknown task"),
        ("text:FILE.py", "does not exist"),
    ],
)
def test_an_unknown_task_word_is_told_with_the_nearest(word, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_task(word)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": -0.1}, r"label_noise must be a number in \[0, 1\], got -0.1"),
        ({"label_noise": float("nan")}, "label_noise must be"),
        ({"validation": 1.0}, r"validation must be a number in \[0, 1\)"),
        ({"validation": 1e-9}, "leaves 1437 for training and 0 for validation"),
        ({"test_size": 0}, "test_size must be"),
        ({"test_size": 361}, "more than the 360 test samples of digits; only mnist1d draws more"),
        ({"data_seed": -1}, "data_seed must be"),
        ({"data_seed": 0.5}, "data_seed must be"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_task("digits", **settings)


def test_label_noise_touches_training_labels_alone():
    clean = build_task("mnist1d")
    noisy = build_task("mnist1d", label_noise=0.2)
    assert torch.equal(clean.train.inputs, noisy.train.inputs)
    assert torch.equal(clean.test.targets, noisy.test.targets)
    share = float((clean.train.targets != noisy.train.targets).float().mean())
    # 800 labels drawn, one in ten of them true again: 0.18 +- 0.2 sqrt(0.09 / 800).
    assert abs(share - 0.18) < 4 * 0.2 * np.sqrt(0.09 / 800)
    assert clean.sha256 != noisy.sha256
    assert "label noise 0.2" in noisy.description


def test_validation_is_stratified_comes_from_training_and_carries_the_noise():
    whole = build_task("mnist1d", label_noise=0.3)
    held = build_task("mnist1d", label_noise=0.3, validation=0.1)
    assert (len(held.train), len(held.validation)) == (3600, 400)
    assert rows(held.train) | rows(held.validation) == rows(whole.train)
    assert not set(rows(held.train)) & set(rows(held.validation))
    expected = whole.train.targets.bincount() * 0.1
    assert float((held.validation.targets.bincount() - expected).abs().max()) <= 1
    clean = rows(build_task("mnist1d").train)
    wrong = np.mean([clean[row] != label for row, label in rows(held.validation).items()])
    assert 0.2 < wrong < 0.34
    assert torch.equal(held.test.inputs, whole.test.inputs)


def test_the_same_settings_make_the_same_task_and_leave_the_random_numbers():
    settings = {"label_noise": 0.1, "validation": 0.2, "data_seed": 3}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = build_task("digits", **settings), build_task("digits", **settings)
    assert first.sha256 == second.sha256
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_the_hash_covers_every_array():
    base = build_task("digits", validation=0.2)
    other_test = build_task("digits", validation=0.2, test_size=359)
    other_noise = build_task("digits", validation=0.2, label_noise=0.01)
    assert len({base.sha256, other_test.sha256, other_noise.sha256}) == 3


def test_the_hash_covers_dtype_shape_and_each_split():
    split = build_task("digits").test
    bare = Task("t", "classification", split, split, 10, (1, 8, 8), "")
    wider = Split(split.inputs.double(), split.targets)
    reshaped = Split(split.inputs.flatten(1), split.targets)
    first, second = split.first(200), Split(split.inputs[200:], split.targets[200:])
    variants = [
        bare,
        replace(bare, validation=first),
        replace(bare, validation=second),
        replace(bare, test=first),
        replace(bare, train=wider),
        replace(bare, train=reshaped),
        replace(bare, vocabulary="ab"),
    ]
    assert len({hash_arrays(task) for task in variants}) == len(variants)


def test_batches_hold_every_sample_once_in_order():
    split = build_task("digits").test
    batches = split.batches(100)
    assert [len(targets) for _, targets in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), split.inputs)
    assert torch.equal(torch.cat([targets for _, targets in batches]), split.targets)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        split.batches(0)


@pytest.mark.parametrize(
    ("word", "arguments", "message"),
    [
        ("resnet9", {}, "unknown model 'resnet9'; did you mean 'resnet"),
        ("mlp:hiden=3", {}, "did you mean 'hidden'"),
        ("mlp", {"hidden": 0}, r"hidden must be a whole number in \[1, 65536\], got 0"),
        ("mlp", {"hidden": "many"}, "hidden must be"),
        ("mlp:hidden=3", {"hidden": 4}, "both give hidden"),
        ("vit-tiny", {"dim": 100}, "dim 100 is not a multiple of heads 3"),
        ("vit-tiny", {"patch": 3}, r"patch 3 does not divide samples of shape \(1, 8, 8\)"),
        ("cnn1d", {}, r"cnn1d takes signals \(channels, length\), task digits gives samples"),
        ("gpt-mini", {}, "gpt-mini takes tokens of a text"),
    ],
)
def test_a_model_that_cannot_be_is_refused(word, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(word, build_task("digits"), seed=0, **arguments)


@pytest.mark.parametrize("seed", [-1, 1.5, 2**63])
def test_a_model_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be"):
        build_model("mlp", build_task("digits"), seed=seed)


def test_model_arguments_may_be_words_of_a_command_line():
    model = build_model("mlp", build_task("digits"), seed=0, hidden="7", activation="tanh")
    assert next(model.parameters()).shape == (7, 64)


def test_the_random_numbers_return_home_when_a_builder_fails():
    task, state = build_task("digits"), torch.get_rng_state()
    with pytest.raises(ValueError):
        build_model("vit-tiny", task, seed=5, patch=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_made_on_the_cpu_whatever_the_default_device():
    task = build_task("digits")
    with torch.device("meta"):
        model = build_model("mlp", task, seed=0)
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_the_noise_has_a_seed_of_its_own():
    first, second = (build_task("mnist1d", label_noise=0.2, noise_seed=seed) for seed in (1, 2))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert torch.equal(first.test.targets, second.test.targets)
    changed = float((first.train.targets != second.train.targets).double().mean())
    # Each draw changes 18 % of the labels: two draws differ in about 1 - 0.82^2 of them.
    assert 0.28 < changed < 0.37
    default = build_task("mnist1d", label_noise=0.2, data_seed=0)
    same = build_task("mnist1d", label_noise=0.2, noise_seed=0)
    assert default.sha256 == same.sha256
