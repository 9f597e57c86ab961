"""Means over seeds and paired differences, each with its Student-t interval. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def mean(values: Sequence[float]) -> float:
    """The mean, summed without rounding on the way."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation s, with n - 1; nan for one value."""
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    return math.sqrt(math.fsum((x - centre) ** 2 for x in values) / (len(values) - 1))


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % Student-t interval of the mean; None for fewer than two values.

    t_{0.975, n-1} s / sqrt(n),     s^2 = (1/(n-1)) sum_i (x_i - mean)^2
    """
    if len(values) < 2:
        return None
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * deviation(values) / math.sqrt(len(values))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval; the last two None for one value."""
    return {
        "mean": _finite(mean(values)),
        "standard_deviation": _finite(deviation(values)),
        "interval": _interval(values),
    }


def paired(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """The mean difference to the reference over the same seeds, with its 95 % interval.

    Both runs of a pair share what the seed decides (weights at the start, batch order), so what the
    seed adds to both drops out. The interval is None for one pair.
    """
    differences = [a - b for a, b in zip(values, reference, strict=True)]
    return {
        "difference": _finite(mean(differences)),
        "interval": _interval(differences),
        "num_pairs": len(differences),
    }


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two measurements of the same things; None where it is not defined.

    tau_b = (concordant - discordant) / sqrt((n0 - ties_1)(n0 - ties_2)),   n0 = n(n-1)/2
    """
    from scipy.stats import kendalltau

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return _finite(float(kendalltau(first, second).statistic))


def _interval(values: Sequence[float]) -> list[float] | None:
    half = half_width(values)
    if half is None:
        return None
    centre = mean(values)
    low, high = centre - half, centre + half
    return [low, high] if math.isfinite(low) and math.isfinite(high) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
