"""Sharpness measures: one definition a file, one interface, each number with its error and cost.

`METRICS` lists them in words and is read without torch; `measure` runs one by name.
"""

from __future__ import annotations

from importlib import import_module
from math import inf
from typing import Any

from landscape.table import Choice, Entry, Option, Range

_RHO = Range(0, inf, 0.05)
_CLIMB: dict[str, Option] = {
    "rho": _RHO,
    "norm": Choice(("l2", "linf"), "l2"),
    "num_steps": Range(0, inf, 20, integer=True),
    "num_restarts": Range(0, inf, 2, integer=True),
}

METRICS: dict[str, Entry] = {
    "gradient-norm": Entry(
        "landscape.sharpness.gradient_norm:gradient_norm",
        "length of the gradient; flagged where the point is no minimum at radius rho",
        {"rho": _RHO},
    ),
    "lambda-max": Entry(
        "landscape.sharpness.lambda_max:lambda_max",
        "largest eigenvalue of the Hessian, which does not see the kinks of ReLU and max-pooling",
        {"tolerance": Range(0, 1, None, open_low=True, optional=True)},
    ),
    "trace": Entry(
        "landscape.sharpness.trace:trace",
        "sum of the Hessian's eigenvalues, kinks not seen, with its standard error",
        {"num_probes": Range(2, inf, None, integer=True, optional=True)},
    ),
    "sam": Entry(
        "landscape.sharpness.sam:sam",
        "rise of the loss after one step of length rho along the gradient",
        {"rho": _RHO},
    ),
    "worst-case": Entry(
        "landscape.sharpness.worst_case:worst_case",
        "largest rise of the loss found within radius rho (a lower bound)",
        _CLIMB,
    ),
    "min-sharpness": Entry(
        "landscape.sharpness.min_sharpness:min_sharpness",
        "largest fall of the loss found within radius rho (a lower bound)",
        _CLIMB,
    ),
    "average-case": Entry(
        "landscape.sharpness.average_case:average_case",
        "mean rise of the loss under Gaussian noise of root mean square length rho",
        {"rho": _RHO, "num_draws": Range(2, inf, 64, integer=True)},
    ),
}

_EXPORTS = {
    "MetricSpec": "landscape.sharpness.measuring",
    "measure": "landscape.sharpness.measuring",
    "parse": "landscape.sharpness.measuring",
    "Spectrum": "landscape.sharpness.spectrum",
}

__all__ = ["METRICS", "MetricSpec", "Spectrum", "measure", "parse"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
