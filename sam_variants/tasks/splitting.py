"""Seeded choices among labelled samples: a stratified part, and labels made noisy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

# One stream of random numbers a purpose: changing one choice leaves the others as they were.
_SPLIT, _NOISE = 1, 2


def stratified_split(labels: Indices, num_second: int, *, seed: int) -> tuple[Indices, Indices]:
    """Indices of two shuffled parts; the second has `num_second` samples, each class its share.

    A class of n of N samples gives n num_second / N of them, rounded by largest remainders (ties
    to the smaller class index).

    Raises:
        ValueError: one of the parts would be empty.
    """
    num = len(labels)
    if not 0 < num_second < num:
        raise ValueError(f"cannot split {num} samples into {num - num_second} and {num_second}")
    generator = np.random.default_rng([seed, _SPLIT])
    classes, counts = np.unique(labels, return_counts=True)
    # In whole numbers: n num_second = quota N + remainder.
    quotas, remainders = np.divmod(counts * num_second, num)
    missing = num_second - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    first, second = [], []
    for label, quota in zip(classes, quotas, strict=True):
        members = generator.permutation(np.flatnonzero(labels == label))
        second.append(members[:quota])
        first.append(members[quota:])
    return (
        generator.permutation(np.concatenate(first)).astype(np.int64),
        generator.permutation(np.concatenate(second)).astype(np.int64),
    )


def noisy_labels(labels: Indices, share: float, num_classes: int, *, seed: int) -> Indices:
    """A copy of the labels in which a random share is drawn anew, uniformly over all classes.

    The true class may be drawn again: of ten classes, a share of 0.2 corrupts 18 %. Exactly
    round(share n) labels are drawn, as in the SAM papers.
    """
    generator = np.random.default_rng([seed, _NOISE])
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = generator.integers(0, num_classes, size=len(chosen))
    return noisy
