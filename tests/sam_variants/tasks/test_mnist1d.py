import hashlib

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from sam_variants.tasks import build_task
from sam_variants.tasks.mnist1d import TEMPLATES, make_signals, resample


def pinned_hash(task):
    """Of the values rounded to 1e-5, so that a last bit of another machine does not matter."""
    digest = hashlib.sha256()
    for split in (task.train, task.test):
        digest.update(np.rint(split.inputs.double().numpy() * 1e5).astype("<i4").tobytes())
        digest.update(split.targets.numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def test_the_values_are_the_pinned_ones():
    assert pinned_hash(build_task("mnist1d")) == (
        "5c8e02a48a59ff532438fa6a98b512078f8edd07c5683c6c9ef1dcde98e9a77f"
    )


def test_the_data_have_the_published_sizes_and_are_balanced():
    task = build_task("mnist1d")
    assert task.train.inputs.shape == (4000, 1, 40)
    assert task.test.inputs.shape == (1000, 1, 40)
    assert task.train.inputs.dtype == torch.float32
    labels = torch.cat([task.train.targets, task.test.targets])
    assert labels.bincount().tolist() == [500] * 10
    values = torch.cat([task.train.inputs, task.test.inputs]).double()
    assert abs(float(values.mean())) < 1e-6
    assert abs(float(values.std(correction=0)) - 1) < 1e-6


def signal_by_the_recipe(digit, padding, scale_u, roll, smooth, iid, shear_u):
    """One signal written down from the recipe's sentence, step by step."""
    template = np.array(TEMPLATES[digit], dtype=float)
    x = (template - template.mean()) / template.std()
    x = (x - x[0]) / 6
    x = np.concatenate([x + 1e-8, np.zeros(padding)])
    x = np.interp(np.linspace(0, 1, 72), np.linspace(0, 1, len(x)), x)
    x = x * (1 + 0.4 * (scale_u - 0.5))
    x = np.concatenate([x[72 - roll :], x[: 72 - roll]])
    smoothed = gaussian_filter(0.25 * smooth, 2)
    x = np.where(abs(x) < 1e-12, smoothed, x)
    x = x + 0.02 * iid
    x = x - 0.75 * (shear_u - 0.5) * np.linspace(-0.5, 0.5, 72)
    return np.interp(np.linspace(0, 1, 40), np.linspace(0, 1, 72), x)


def test_every_signal_follows_the_recipe_written_out_in_a_loop():
    signals, labels = make_signals(30, np.random.default_rng(5))
    generator = np.random.default_rng(5)
    num = 300
    padding = generator.integers(36, 61, size=num)
    scale = generator.random(num)
    roll = generator.integers(0, 48, size=num)
    smooth = generator.standard_normal((num, 72))
    iid = generator.standard_normal((num, 72))
    shear = generator.random(num)
    order = generator.permutation(num)
    digits = [i // 30 for i in range(num)]
    assert labels.tolist() == [digits[i] for i in order]
    assert set(padding) == set(range(36, 61))  # both ends of the range occur
    for row, i in enumerate(order):
        expected = signal_by_the_recipe(
            digits[i], padding[i], scale[i], roll[i], smooth[i], iid[i], shear[i]
        )
        np.testing.assert_allclose(signals[row], expected, atol=1e-9)


def test_resampling_leaves_exact_zeros_where_the_padding_was():
    signals = np.zeros((25, 72))
    signals[:, :12] = 1.0
    lengths = np.arange(48, 73)
    resampled = resample(signals, lengths, 72)
    for row, length in zip(resampled, lengths, strict=True):
        last = 11 * 71 / (length - 1)  # where the template's last value lands
        first_zero = int(np.ceil(12 * 71 / (length - 1) - 1e-9))
        assert (row[: int(last) + 1] == 1.0).all()
        assert (row[first_zero:] == 0.0).all()
        assert (row[int(last + 1 - 1e-9) : first_zero] > 1e-3).all()


def test_more_test_signals_leave_the_first_five_thousand_as_they_were():
    small = build_task("mnist1d")
    middle = build_task("mnist1d", test_size=2500)
    large = build_task("mnist1d", test_size=20000)
    few = build_task("mnist1d", test_size=300)
    assert large.test.inputs.shape == (20000, 1, 40)
    for other in (middle, large, few):
        assert torch.equal(other.train.inputs, small.train.inputs)
        assert torch.equal(other.train.targets, small.train.targets)
    assert torch.equal(large.test.inputs[:1000], small.test.inputs)
    assert torch.equal(large.test.inputs[:2500], middle.test.inputs)
    assert torch.equal(small.test.inputs[:300], few.test.inputs)
    assert len(large.test.inputs.unique(dim=0)) == 20000
    assert large.test.targets[1000:].bincount().tolist() == [1900] * 10


def test_further_signals_come_from_the_same_distribution():
    task = build_task("mnist1d", test_size=20000)
    fresh = task.test.inputs[1000:].double()
    assert abs(float(fresh.mean())) < 0.01
    assert abs(float(fresh.std()) - 1) < 0.01


def test_another_data_seed_makes_other_signals():
    first, second = build_task("mnist1d"), build_task("mnist1d", data_seed=1)
    assert not torch.equal(first.train.inputs, second.train.inputs)
    assert first.sha256 != second.sha256
