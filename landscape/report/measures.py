"""Measure: what a number of a checkpoint is called, which way is better, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from landscape.comparing import generalisation_gap
from landscape.findings import Findings


@dataclass(frozen=True)
class Measure:
    """One column of the comparison.

    Attributes:
        name: the key in the findings, as "lambda-max" or "worst-case:rho=0.1".
        title: plain text for headings and axes.
        better: "lower", "higher", or None where neither is better.
        percent: a share of one, shown in per cent.
        curvature: says how flat a minimum is, so its best value is called the flattest.
        bound: "lower" or "upper" where its values are but bounds of what is asked for, else "".
    """

    name: str
    title: str
    better: str | None = None
    percent: bool = False
    curvature: bool = False
    bound: str = ""

    @property
    def best(self) -> str:
        """The word beside the best value of a column."""
        return "flattest" if self.curvature else "best"


_KNOWN = {
    measure.name: measure
    for measure in (
        Measure("loss", "training loss", "lower"),
        # The last weights on all training data; the curve of a training is another number.
        Measure("train-loss", "training loss, last weights", "lower"),
        Measure("accuracy", "training accuracy", "higher", percent=True),
        Measure("train-accuracy", "training accuracy", "higher", percent=True),
        Measure("test-loss", "test loss", "lower"),
        Measure("test-accuracy", "test accuracy", "higher", percent=True),
        Measure("validation-accuracy", "validation accuracy", "higher", percent=True),
        Measure("validation-loss", "validation loss", "lower"),
        Measure("best-test-accuracy", "best.pt test accuracy", "higher", percent=True),
        Measure("best-test-loss", "best.pt test loss", "lower"),
        Measure("gradient-norm", "‖g‖"),
        Measure("parameter-norm", "‖θ‖"),
        Measure("lambda-max", "λmax", "lower", curvature=True),
        Measure("lambda-min", "λmin"),
        Measure("trace", "tr H", "lower", curvature=True),
        Measure("spectral-norm", "‖H‖", "lower", curvature=True),
        Measure("negative-mass", "mass below zero", None, percent=True),
        Measure("perturbed-share", "perturbed steps", None, percent=True),
        Measure("probe-loss", "probe loss", "lower"),
        Measure("gradients", "gradients spent"),
        Measure("refresh-gradients", "of them refreshes"),
        Measure("forwards", "forward passes spent"),
        Measure("seconds", "seconds"),
    )
}

_SHARPNESS = {
    "sam": "SAM sharpness",
    "worst-case": "worst case",
    "min-sharpness": "min-sharpness",
    "average-case": "average case",
    "adaptive-worst-case": "adaptive worst case",
    "adaptive-average-case": "adaptive average case",
    "m-sharpness": "m-sharpness",
    "epsilon-sharpness": "ε-sharpness",
    "fisher-rao": "Fisher–Rao norm",
    "pac-bayes": "PAC-Bayes 1/σ²",
    "pac-bayes-loss": "PAC-Bayes 1/σ² of the loss",
    "relative-flatness": "relative flatness",
    "bilateral": "bilateral sharpness",
    "sam-worst-predicted": "worst case, predicted",
    "sam-ascent-predicted": "SAM sharpness, predicted",
    "sam-average-predicted": "average case, predicted",
}


def measure_of(name: str, *, rho: float | None = None) -> Measure:
    """The measure of that name; an unknown one is a sharpness called as it is written."""
    base, *options = name.split(":")
    words = [re.sub(r"\brho=", "ρ = ", option) for option in options]
    known = _KNOWN.get(base.replace("_", "-"))
    if known:
        title = ", ".join([known.title, *words])
        return Measure(name, title, known.better, known.percent, known.curvature)
    if rho is not None and not any(word.startswith("ρ") for word in words):
        words.insert(0, f"ρ = {rho:g}")
    title = ", ".join([_SHARPNESS.get(base, base), *words])
    return Measure(name, title, "lower", curvature=True)


# What a search finds is reached somewhere, and something higher may be reached elsewhere.
_SEARCHED = frozenset(
    {
        *("worst-case", "min-sharpness", "bilateral"),
        *("adaptive-worst-case", "m-sharpness", "epsilon-sharpness"),
    }
)
_BOUNDS = {"lower bound": "lower", "upper bound": "upper"}


def bound_of(entry: Mapping[str, Any]) -> str:
    """ "lower" or "upper" where a measured entry says that it is but a bound, else ""."""
    return _BOUNDS.get(str(entry.get("kind")), "")


def bound_of_pair(pair: Mapping[str, Any]) -> str:
    """What bound an eigenvalue is that is not converged, or whose completeness is not confirmed.

    The i-th Ritz value from the top is at most the i-th eigenvalue from the top, and from the
    bottom at least (Cauchy interlacing): where one was skipped, it lies farther out.
    """
    if pair.get("confirmed", True) and pair.get("converged", True):
        return ""
    return "lower" if pair.get("end", "top") == "top" else "upper"


def common_bound(checkpoints: Iterable[Mapping[str, Any]], name: str) -> str:
    """What bound a mean over checkpoints is: that of those values that are but bounds.

    Where nothing says its kind (a training's comparison), a search gives a lower bound. A mean of
    lower and of upper bounds is neither.
    """
    known = [bound for c in checkpoints if (bound := bound_at(c, name)) is not None]
    if not known:
        return "lower" if name.split(":")[0] in _SEARCHED else ""
    bounds = set(known) - {""}
    return bounds.pop() if len(bounds) == 1 else ""


def bound_at(checkpoint: Mapping[str, Any], name: str) -> str | None:
    """What bound a checkpoint's value of a measure is, "" for none; None where nothing says it."""
    ends = {"lambda-max": ("top", 0), "lambda-min": ("bottom", -1)}
    if name in ends:
        end, place = ends[name]
        if pairs := _pairs_at(checkpoint, end):
            return bound_of_pair(pairs[place])
    entry = (checkpoint.get("sharpness") or {}).get(name) or {}
    return bound_of(entry) if entry.get("kind") else None


def gap_measure(findings: Findings) -> Measure:
    """The generalisation gap as it was taken: of accuracies, of losses where there are none."""
    words = ("accuracy", "test_accuracy")
    if all(c.get(word) is not None for c in findings.checkpoints for word in words):
        return Measure("gap", "accuracy gap", "lower", percent=True)
    return Measure("gap", "loss gap", "lower")


def named(findings: Findings, name: str) -> Measure:
    """The measure of that name as these findings took it.

    That is the gap's kind, a sharpness's radius, the matrix of the trace, and whether its values
    are but bounds.
    """
    if name == "gap":
        return gap_measure(findings)
    if name == "trace":
        return replace(measure_of(name), title=f"tr {matrix_letter(findings)}")
    entries = ((c.get("sharpness") or {}).get(name) or {} for c in findings.checkpoints)
    rho = next((entry["rho"] for entry in entries if entry.get("rho") is not None), None)
    return replace(measure_of(name, rho=rho), bound=common_bound(findings.checkpoints, name))


def matrix_letter(findings: Findings) -> str:
    """H, or the letter of the other matrix whose spectrum and trace were measured."""
    matrix = str((findings.document.get("settings") or {}).get("matrix"))
    return {"ggn": "G", "remainder": "R", "fisher": "F", "mc-fisher": "F"}.get(matrix, "H")


def sharpness_names(findings: Findings) -> list[str]:
    """The sharpness measures that stand in no column of their own already."""
    own = {"gradient-norm"}
    for name, end in (("lambda-max", "top"), ("lambda-min", "bottom")):
        if any(_pairs_at(checkpoint, end) for checkpoint in findings.checkpoints):
            own.add(name)
    if any(checkpoint.get("trace") for checkpoint in findings.checkpoints):
        own.add("trace")
    names = (name for c in findings.checkpoints for name in c.get("sharpness") or {})
    return [name for name in dict.fromkeys(names) if name not in own]


def value_of(checkpoint: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """A checkpoint's value of a measure and its standard error; None for what it does not have."""
    word = name.replace("_", "-")
    if word == "gap":
        return generalisation_gap(checkpoint), None
    if word in {"lambda-max", "lambda-min"}:
        return end_of_spectrum(checkpoint, "top" if word == "lambda-max" else "bottom"), None
    measured = (checkpoint.get("sharpness") or {}).get(name)
    if word == "trace":
        measured = checkpoint.get("trace") or measured
    if isinstance(measured, Mapping):
        return measured.get("value"), measured.get("standard_error")
    return checkpoint.get(word.replace("-", "_")), None


def end_of_spectrum(checkpoint: Mapping[str, Any], end: str) -> float | None:
    """lambda_max ("top") or lambda_min ("bottom"), where that end was sought."""
    pairs = _pairs_at(checkpoint, end)
    if pairs:
        value: float | None = pairs[0 if end == "top" else -1].get("value")
        return value
    name = "lambda-max" if end == "top" else "lambda-min"
    return ((checkpoint.get("sharpness") or {}).get(name) or {}).get("value")


def _pairs_at(checkpoint: Mapping[str, Any], end: str) -> list[Mapping[str, Any]]:
    return [p for p in checkpoint.get("eigenvalues") or [] if p.get("end", "top") == end]


def flatness_measures(findings: Findings) -> list[Measure]:
    """What flatness is judged by here: lambda_max, trace and each sharpness that was measured."""
    names = [
        name
        for name in ("lambda-max", "trace")
        if any(value_of(checkpoint, name)[0] is not None for checkpoint in findings.checkpoints)
    ]
    others = [name for name in sharpness_names(findings) if name not in names]
    found = [named(findings, name) for name in (*names, *others)]
    return [measure for measure in found if measure.curvature]
