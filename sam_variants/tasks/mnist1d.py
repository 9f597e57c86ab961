"""mnist1d: digits as noisy one-dimensional signals, generated (Greydanus and Kobak 2020)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from .task import Request, Split, Task

Signals = NDArray[np.float64]

TEMPLATES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
"""(10, 12): the shape of each digit."""

NUM_BASE = 5000
NUM_TRAIN = 4000
_BLOCK = 1000  # further test signals come in blocks, so that fewer are a prefix of more
_MIN_PADDING, _MAX_PADDING = 36, 60
_NUM_POINTS = 72  # 12 of the template and the longest padding
_MAX_ROLL = 48
_LENGTH = 40


def mnist1d(request: Request) -> Task:
    """MNIST-1D: 4,000 training and 1,000 test signals (1, 40), ten classes.

    500 signals a digit are made in float64 from one Generator, shuffled, standardised by the mean
    and deviation of all 5,000 values, and returned as float32. A `test_size` over 1,000 draws
    further signals, 100 a digit in each 1,000, from the same Generator and standardises them by
    the same two numbers: the first 5,000 stay what they were, and a smaller test set is always the
    beginning of a larger one.

    Source: S. Greydanus and D. Kobak, "Scaling Down Deep Learning with MNIST-1D" (2020). Test
    accuracies there: logistic 32 %, MLP 68 %, CNN 94 %.
    """
    generator = np.random.default_rng(request.data_seed)
    signals, labels = make_signals(NUM_BASE // 10, generator)
    mean, deviation = signals.mean(), signals.std()
    test_size = NUM_BASE - NUM_TRAIN if request.test_size is None else request.test_size
    parts, part_labels, num_drawn = [signals], [labels], NUM_BASE
    while num_drawn < NUM_TRAIN + test_size:
        signals, labels = make_signals(_BLOCK // 10, generator)
        parts.append(signals)
        part_labels.append(labels)
        num_drawn += _BLOCK
    num_wanted = NUM_TRAIN + test_size
    standardised = (np.concatenate(parts)[:num_wanted] - mean) / deviation
    inputs = torch.from_numpy(standardised.astype(np.float32)).unsqueeze(1)
    targets = torch.from_numpy(np.concatenate(part_labels)[:num_wanted])
    return Task(
        name=request.name,
        kind="classification",
        train=Split(inputs[:NUM_TRAIN], targets[:NUM_TRAIN]),
        test=Split(inputs[NUM_TRAIN:], targets[NUM_TRAIN:]),
        num_classes=10,
        input_shape=(1, _LENGTH),
        description=(
            f"MNIST-1D signals of length {_LENGTH}, 10 classes, data seed {request.data_seed}"
        ),
    )


def make_signals(
    num_per_digit: int, generator: np.random.Generator
) -> tuple[Signals, NDArray[np.int64]]:
    """Shuffled signals (10 num_per_digit, 40), not standardised, and their digits.

    One signal: the template, standardised, started at 0 and divided by 6, plus 1e-8; 36 to 60
    zeros appended; resampled to 72 points; times 1 + 0.4 (u - 1/2); rolled by 0 to 47 points;
    zeros replaced by Gaussian noise 0.25 smoothed with sigma 2; plus noise 0.02; minus c times a
    line from -1/2 to 1/2, c = 0.75 (u - 1/2); resampled to 40 points. Each u is uniform in [0, 1).
    """
    digits = np.repeat(np.arange(10), num_per_digit)
    num = len(digits)
    padding = generator.integers(_MIN_PADDING, _MAX_PADDING + 1, size=num)
    scale = 1 + 0.4 * (generator.random(num) - 0.5)
    roll = generator.integers(0, _MAX_ROLL, size=num)
    smooth_noise = 0.25 * generator.standard_normal((num, _NUM_POINTS))
    iid_noise = 0.02 * generator.standard_normal((num, _NUM_POINTS))
    shear = 0.75 * (generator.random(num) - 0.5)

    shapes = (TEMPLATES - TEMPLATES.mean(1, keepdims=True)) / TEMPLATES.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    signals = np.zeros((num, _NUM_POINTS))
    signals[:, : shapes.shape[1]] = shapes[digits] + 1e-8  # so that only padding is zero
    signals = resample(signals, shapes.shape[1] + padding, _NUM_POINTS)
    signals *= scale[:, None]
    rolled = (np.arange(_NUM_POINTS) - roll[:, None]) % _NUM_POINTS
    signals = np.take_along_axis(signals, rolled, axis=1)
    smooth_noise = gaussian_filter1d(smooth_noise, sigma=2, axis=1)
    signals = np.where(signals == 0, smooth_noise, signals) + iid_noise
    signals -= shear[:, None] * np.linspace(-0.5, 0.5, _NUM_POINTS)
    signals = resample(signals, np.full(num, _NUM_POINTS), _LENGTH)

    order = generator.permutation(num)
    return signals[order], digits[order].astype(np.int64)


def resample(signals: Signals, lengths: NDArray[np.int64], num_points: int) -> Signals:
    """Each row's first `lengths` values, interpolated linearly at `num_points` even positions.

    Point k lies at k (length - 1) / (num_points - 1). Whole and fractional part are taken in
    integers: a rounded position next to a zero of the padding would leave 1e-17 there, which is no
    zero any more.
    """
    steps = num_points - 1
    numerators = np.arange(num_points) * (lengths[:, None] - 1)
    left = numerators // steps
    share = (numerators % steps) / steps
    right = np.minimum(left + 1, lengths[:, None] - 1)
    return (1 - share) * np.take_along_axis(signals, left, axis=1) + share * np.take_along_axis(
        signals, right, axis=1
    )
