"""Interleaved timing: A B A B ..., so that a drifting machine slows both sides alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One promise: what we take, what the other side takes, the ratio and the target."""

    promise: str
    ours: float
    other: float
    unit: str
    beside: str
    target: str

    @property
    def ratio(self) -> float:
        return self.ours / self.other


def interleaved(
    ours: Callable[[], object], other: Callable[[], object], *, rounds: int = 7, repeat: int = 1
) -> tuple[float, float]:
    """The median seconds of each side over the rounds, after one round that is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for counted in (False, *[True] * rounds):
        for side, call in zip(seconds, (ours, other), strict=True):
            begin = time.perf_counter()
            for _ in range(repeat):
                call()
            if counted:
                side.append((time.perf_counter() - begin) / repeat)
    return statistics.median(seconds[0]), statistics.median(seconds[1])
