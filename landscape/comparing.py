"""compare_checkpoints: methods over seeds from measured checkpoints, and what flatness predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import kendall_tau, paired, summary


def compare_checkpoints(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The comparison of several checkpoints of a findings document; None for a single one.

    Checkpoints of one method are its seeds. The first method is the reference of the paired
    differences, taken over the seeds that both have; what has no seed, or shares it with another
    checkpoint of its method, is paired with nothing. Kendall's tau of each flatness measure with
    the generalisation gap runs over all checkpoints; it has no interval here, because checkpoints
    of one method are no independent draws.
    """
    if len(checkpoints) < 2:
        return None
    methods: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for checkpoint in checkpoints:
        seeds = methods.setdefault(str(checkpoint["method"]), {})
        seed = checkpoint["seed"]
        seeds[f"no seed, {len(seeds)}" if seed is None or seed in seeds else seed] = checkpoint
    values = [scalars(checkpoint) for checkpoint in checkpoints]
    measures = list(dict.fromkeys(n for v in values for n in v))
    reference = next(iter(methods))
    return {
        "measures": measures,
        "reference": reference,
        "methods": [
            {
                "method": method,
                "num_seeds": len(seeds),
                "values": {
                    name: summary(found)
                    for name in measures
                    if (found := _values(seeds, list(seeds), name)) is not None
                },
                "paired": None
                if method == reference
                else _paired(seeds, methods[reference], measures),
            }
            for method, seeds in methods.items()
        ],
        "correlation": _correlations(checkpoints),
    }


def scalars(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a checkpoint that can be compared, by name."""
    found: dict[str, float | None] = {
        name: checkpoint.get(name)
        for name in ("loss", "accuracy", "test_loss", "test_accuracy", "gradient_norm")
    }
    found["gap"] = generalisation_gap(checkpoint)
    pairs = checkpoint.get("eigenvalues") or []
    tops = [pair["value"] for pair in pairs if pair["end"] == "top"]
    bottoms = [pair["value"] for pair in pairs if pair["end"] == "bottom"]
    if len(pairs) == checkpoint.get("num_parameters"):
        bottoms = bottoms or tops  # the whole spectrum was found from the top
    found["lambda-max"] = tops[0] if tops else None
    found["lambda-min"] = bottoms[-1] if bottoms else None
    if checkpoint.get("trace"):
        found["trace"] = checkpoint["trace"]["value"]
    for name, measured in (checkpoint.get("sharpness") or {}).items():
        if found.get(name) is None and name != "gradient-norm":
            found[name] = measured["value"]
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def generalisation_gap(checkpoint: Mapping[str, Any]) -> float | None:
    """Accuracy on the probed data minus test accuracy; without accuracies test loss minus loss."""
    accuracy, test_accuracy = checkpoint.get("accuracy"), checkpoint.get("test_accuracy")
    if accuracy is not None and test_accuracy is not None:
        return float(accuracy) - float(test_accuracy)
    loss, test_loss = checkpoint.get("loss"), checkpoint.get("test_loss")
    return None if loss is None or test_loss is None else float(test_loss) - float(loss)


def _paired(
    seeds: Mapping[Any, Mapping[str, Any]],
    reference: Mapping[Any, Mapping[str, Any]],
    measures: Sequence[str],
) -> dict[str, Any]:
    common = [seed for seed in seeds if isinstance(seed, int) and seed in reference]
    differences: dict[str, Any] = {}
    for name in measures if common else ():
        mine, theirs = _values(seeds, common, name), _values(reference, common, name)
        if mine is not None and theirs is not None:
            differences[name] = paired(mine, theirs)
    return differences


def _values(
    seeds: Mapping[Any, Mapping[str, Any]], chosen: Sequence[Any], name: str
) -> list[float] | None:
    found = [scalars(seeds[seed]).get(name) for seed in chosen]
    return None if any(v is None for v in found) else [v for v in found if v is not None]


def _correlations(checkpoints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    gaps = [generalisation_gap(checkpoint) for checkpoint in checkpoints]
    if len(checkpoints) < 4 or any(gap is None for gap in gaps):
        return None
    tables = [scalars(checkpoint) for checkpoint in checkpoints]
    found = []
    names = ["lambda-max", "trace", *(checkpoints[0].get("sharpness") or {})]
    for name in dict.fromkeys(names):
        values = [table.get(name) for table in tables]
        if name == "gradient-norm" or any(value is None for value in values):
            continue
        tau = kendall_tau([v for v in values if v is not None], [g for g in gaps if g is not None])
        found.append(
            {"measure": name, "tau": tau, "interval": None, "num_checkpoints": len(checkpoints)}
        )
    return found or None
