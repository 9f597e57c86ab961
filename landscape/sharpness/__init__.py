"""Sharpness measures: one definition a file, one interface, each number with its error and cost.

`METRICS` lists them in words and is read without torch; `measure` runs one by name.
"""

from __future__ import annotations

from importlib import import_module
from math import inf
from typing import Any

from landscape.table import Choice, Entry, Option, Range

_RHO = Range(0, inf, 0.05)
_RELATIVE_RHO = Range(0, inf, 0.5)  # of radii in units of each parameter's size
_ETA = Range(0, inf, 0.0)
_TOLERANCE = Range(0, 1, None, open_low=True, open_high=True, optional=True)
_NORM = Choice(("l2", "linf"), "l2")
_LOGITS = Choice(("raw", "normalised"), "raw")
_SEARCH: dict[str, Option] = {
    "num_steps": Range(0, inf, 20, integer=True),
    "num_restarts": Range(0, inf, 2, integer=True),
}
_CLIMB: dict[str, Option] = {"rho": _RHO, "norm": _NORM, **_SEARCH}
_NOISE: dict[str, Option] = {
    "noise": Choice(("isotropic", "magnitude"), "isotropic"),
    "eps": Range(0, inf, 1e-3),
    "num_draws": Range(2, inf, 16, integer=True),
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
        {"tolerance": _TOLERANCE},
    ),
    "lambda-min": Entry(
        "landscape.sharpness.lambda_min:lambda_min",
        "smallest eigenvalue of the Hessian, kinks not seen: negative where the loss curves down",
        {"tolerance": _TOLERANCE},
    ),
    "spectral-norm": Entry(
        "landscape.sharpness.spectral_norm:spectral_norm",
        "largest eigenvalue of the Hessian in magnitude, kinks not seen",
        {"tolerance": _TOLERANCE},
    ),
    "negative-mass": Entry(
        "landscape.sharpness.negative_mass:negative_mass",
        "share of the Hessian's eigenvalues below -1e-4 lambda_max, from quadrature weights",
        {
            "num_runs": Range(2, inf, None, integer=True, optional=True),
            "num_lanczos_steps": Range(1, inf, None, integer=True, optional=True),
        },
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
    "bilateral": Entry(
        "landscape.sharpness.bilateral:bilateral",
        "worst-case and min-sharpness together: largest rise plus largest fall (a lower bound)",
        _CLIMB,
    ),
    "adaptive-worst-case": Entry(
        "landscape.sharpness.adaptive_worst_case:adaptive_worst_case",
        "worst-case in units of each parameter's own size, zeros fixed (a lower bound)",
        {"rho": _RELATIVE_RHO, "norm": _NORM, "eta": _ETA, **_SEARCH, "logits": _LOGITS},
    ),
    "average-case": Entry(
        "landscape.sharpness.average_case:average_case",
        "mean rise of the loss under Gaussian noise of root mean square length rho",
        {"rho": _RHO, "num_draws": Range(2, inf, 64, integer=True)},
    ),
    "adaptive-average-case": Entry(
        "landscape.sharpness.adaptive_average_case:adaptive_average_case",
        "average-case with noise in units of each parameter's own size",
        {
            "rho": _RELATIVE_RHO,
            "eta": _ETA,
            "num_draws": Range(2, inf, 64, integer=True),
            "logits": _LOGITS,
        },
    ),
    "m-sharpness": Entry(
        "landscape.sharpness.m_sharpness:m_sharpness",
        "mean over groups of m samples of the worst case on the group (a lower bound)",
        {
            "m": Range(1, inf, 128, integer=True),
            "num_groups": Range(1, inf, None, integer=True, optional=True),
            **_CLIMB,
        },
    ),
    "epsilon-sharpness": Entry(
        "landscape.sharpness.epsilon_sharpness:epsilon_sharpness",
        "largest rise in per cent of 1 + L in a box epsilon (|theta| + 1) wide (a lower bound)",
        {
            "epsilon": Range(0, inf, 1e-3),
            "num_iterations": Range(1, inf, 20, integer=True),
            "num_restarts": Range(0, inf, 2, integer=True),
        },
    ),
    "fisher-rao": Entry(
        "landscape.sharpness.fisher_rao:fisher_rao",
        "squared length of the weights in the Fisher metric, from each loss term's own slope",
        {"fisher": Choice(("empirical", "model"), "empirical")},
    ),
    "pac-bayes": Entry(
        "landscape.sharpness.pac_bayes:pac_bayes",
        "1/sigma^2 of the largest Gaussian noise that raises the error by no more than a tenth",
        {"rise": Range(0, 1, 0.1, open_low=True), **_NOISE},
    ),
    "pac-bayes-loss": Entry(
        "landscape.sharpness.pac_bayes:pac_bayes_loss",
        "1/sigma^2 of the largest Gaussian noise that raises the loss by no more than 0.1",
        {"rise": Range(0, inf, 0.1, open_low=True), **_NOISE},
    ),
    "relative-flatness": Entry(
        "landscape.sharpness.relative_flatness:relative_flatness",
        "curvature of the last linear layer in its own weights, free of the layer's scale",
    ),
    "sam-worst-predicted": Entry(
        "landscape.sharpness.second_order:sam_worst_predicted",
        "second-order prediction of the worst case from gradient and lambda-max, beside it",
        {key: option for key, option in _CLIMB.items() if key != "norm"},
    ),
    "sam-ascent-predicted": Entry(
        "landscape.sharpness.second_order:sam_ascent_predicted",
        "second-order prediction of sam from gradient and the curvature along it, beside it",
        {"rho": _RHO},
    ),
    "sam-average-predicted": Entry(
        "landscape.sharpness.second_order:sam_average_predicted",
        "second-order prediction of the average case from the trace, beside it",
        {
            "rho": _RHO,
            "num_probes": Range(2, inf, None, integer=True, optional=True),
            "num_draws": Range(2, inf, 64, integer=True),
        },
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
