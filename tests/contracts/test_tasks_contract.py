"""What every entry of TASKS keeps, the user's own files and factories included."""

import numpy as np
import pytest
import torch

from sam_variants.tasks import TASKS, build_task

FACTORY = """
import numpy as np
def data():
    x = np.random.default_rng(0).standard_normal((60, 5))
    return (x[:40], np.arange(40) % 4), (x[40:], np.arange(20) % 4)
"""


def write_cifar(folder, num_classes):
    generator = np.random.default_rng(num_classes)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    width = 3073 if num_classes == 10 else 3074
    for name in names if num_classes == 10 else ["train", "test"]:
        records = generator.integers(0, 256, size=(40, width), dtype=np.uint8)
        records[:, : width - 3072] = (np.arange(40) % 10)[:, None]
        (folder / f"{name}.bin").write_bytes(records.tobytes())


@pytest.fixture
def word_of(tmp_path, monkeypatch):
    """The word and the settings with which an entry of the table can be built here."""

    def word(key):
        if key.startswith("cifar"):
            write_cifar(tmp_path, int(key[5:]))
            return key, {"data_dir": tmp_path}
        if key == "text:FILE":
            (tmp_path / "text.txt").write_text("to be or not to be. " * 300, encoding="utf-8")
            return f"text:{tmp_path}/text.txt", {}
        if key == "npz:FILE":
            x, y = np.random.default_rng(0).standard_normal((60, 5)), np.arange(60) % 4
            np.savez(
                tmp_path / "a.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:]
            )
            return f"npz:{tmp_path}/a.npz", {}
        if key.endswith(":factory"):
            (tmp_path / "contract_user_data.py").write_text(FACTORY, encoding="utf-8")
            if key.startswith("FILE"):
                return f"{tmp_path}/contract_user_data.py:data", {"allow_code": True}
            monkeypatch.syspath_prepend(tmp_path)
            return "contract_user_data:data", {}
        return key, {}

    return word


@pytest.mark.parametrize("key", TASKS)
def test_a_task_describes_its_own_arrays(key, word_of):
    word, settings = word_of(key)
    task = build_task(word, **settings)
    assert task.name == word
    assert len(task.sha256) == 64
    assert task.description
    assert "\n" not in task.description
    for split in (task.train, task.test):
        assert tuple(split.inputs.shape[1:]) == task.input_shape
        assert split.targets.dtype == torch.int64
        assert int(split.targets.min()) >= 0
        assert int(split.targets.max()) < task.num_classes
        assert split.inputs.device.type == split.targets.device.type == "cpu"
        if task.kind == "language":
            assert split.inputs.dtype == torch.int64
            assert split.targets.shape == split.inputs.shape
        else:
            assert split.inputs.dtype == torch.float32
            assert split.targets.shape == (len(split),)
            assert bool(torch.isfinite(split.inputs).all())
    if task.augment is not None:
        augmented = task.augment(task.train.inputs[:4], torch.Generator().manual_seed(0))
        assert augmented.shape == task.train.inputs[:4].shape


@pytest.mark.parametrize("key", TASKS)
def test_a_task_is_a_function_of_its_settings_and_leaves_the_random_numbers(key, word_of):
    word, settings = word_of(key)
    state = torch.get_rng_state()
    first = build_task(word, **settings, data_seed=2, validation=0.25, test_size=3)
    torch.rand(1)
    second = build_task(word, **settings, data_seed=2, validation=0.25, test_size=3)
    torch.set_rng_state(state)
    assert first.sha256 == second.sha256
    assert torch.equal(first.validation.inputs, second.validation.inputs)
    assert len(first.test) == 3
    assert first.sha256 != build_task(word, **settings, data_seed=2, validation=0.25).sha256


@pytest.mark.parametrize("key", TASKS)
def test_noise_reaches_training_and_validation_labels_alone(key, word_of):
    word, settings = word_of(key)
    clean = build_task(word, **settings)
    if clean.kind == "language":
        with pytest.raises(ValueError, match="label_noise needs class labels"):
            build_task(word, **settings, label_noise=0.9)
        return
    noisy = build_task(word, **settings, label_noise=0.9)
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert torch.equal(noisy.train.inputs, clean.train.inputs)
    assert not torch.equal(noisy.train.targets, clean.train.targets)
    held = build_task(word, **settings, label_noise=0.9, validation=0.25)
    labels = torch.cat([held.train.targets, held.validation.targets])
    assert torch.equal(
        labels.bincount(minlength=clean.num_classes),
        noisy.train.targets.bincount(minlength=clean.num_classes),
    )


@pytest.mark.parametrize("key", TASKS)
def test_a_uniform_guess_costs_the_logarithm_of_the_classes(key, word_of):
    word, settings = word_of(key)
    task = build_task(word, **settings)
    targets = task.train.targets[:3]
    logits = torch.zeros(*targets.shape, task.num_classes, dtype=torch.float64)
    assert float(task.loss(logits, targets)) == pytest.approx(np.log(task.num_classes), rel=1e-12)
    assert float(task.loss(logits, targets, label_smoothing=0.3)) == pytest.approx(
        np.log(task.num_classes), rel=1e-12
    )
