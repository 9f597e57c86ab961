"""compare_checkpoints: methods over seeds from measured checkpoints, and what flatness predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .statistics import cell_tau, paired, summary, tau_within_cells

FEWEST_CHECKPOINTS = 4  # for a tau


def compare_checkpoints(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The comparison of several checkpoints of a findings document; None for a single one.

    Checkpoints of one method are its seeds. The first method is the reference of the paired
    differences, taken over the seeds that both have; what has no seed, or shares it with another
    checkpoint of its method, is paired with nothing.

    Kendall's tau of each flatness measure with the generalisation gap runs over all checkpoints,
    and within methods over the pairs of one method alone. Methods (a rule with its options) are the
    cells that its interval resamples: see `statistics.cell_tau`. All checkpoints are taken to be of
    one task.

    A measure that a checkpoint lacks (not measured, or not finite) is compared over the others;
    `num_missing` and, for means and differences, a sentence in `warnings` say so.
    """
    if len(checkpoints) < 2:
        return None
    methods: dict[str, dict[Any, Mapping[str, float]]] = {}
    for checkpoint in checkpoints:
        seeds = methods.setdefault(str(checkpoint["method"]), {})
        seed = checkpoint["seed"]
        key = f"no seed, {len(seeds)}" if seed is None or seed in seeds else seed
        seeds[key] = scalars(checkpoint)
    measures = list(
        dict.fromkeys(n for seeds in methods.values() for v in seeds.values() for n in v)
    )
    reference = next(iter(methods))
    return {
        "measures": measures,
        "reference": reference,
        "methods": [
            {
                "method": method,
                "num_seeds": len(seeds),
                "values": _values(seeds, measures),
                "paired": None
                if method == reference
                else _paired(seeds, methods[reference], measures),
            }
            for method, seeds in methods.items()
        ],
        "correlation": _correlations(checkpoints),
        "warnings": _warnings(methods, measures),
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


Seeds = Mapping[Any, Mapping[str, float]]  # the scalars of one method's checkpoints by seed


def _values(seeds: Seeds, measures: Sequence[str]) -> dict[str, Any]:
    found = {}
    for name in measures:
        values = [table[name] for table in seeds.values() if name in table]
        if values:
            found[name] = {**summary(values), "num_missing": len(seeds) - len(values)}
    return found


def _paired(seeds: Seeds, reference: Seeds, measures: Sequence[str]) -> dict[str, Any]:
    common = [seed for seed in seeds if isinstance(seed, int) and seed in reference]
    found = {}
    for name in measures:
        both = [seed for seed in common if name in seeds[seed] and name in reference[seed]]
        if both:
            difference = paired(
                [seeds[seed][name] for seed in both], [reference[seed][name] for seed in both]
            )
            found[name] = {**difference, "num_missing": len(common) - len(both)}
    return found


def _warnings(methods: Mapping[str, Seeds], measures: Sequence[str]) -> list[str]:
    """What a table of the methods does not show: means over fewer seeds than it says."""
    found = []
    for method, seeds in methods.items():
        for name in measures:
            num_missing = sum(name not in table for table in seeds.values())
            if 0 < num_missing < len(seeds):
                found.append(
                    f"{name} is missing or not finite in {num_missing} of {len(seeds)} "
                    f"checkpoints of {method}: its mean and differences are over the others"
                )
    return found


def _correlations(checkpoints: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Kendall's tau of each flatness measure that some checkpoint has; None without any gap."""
    methods = [str(checkpoint["method"]) for checkpoint in checkpoints]
    gaps = [generalisation_gap(checkpoint) for checkpoint in checkpoints]
    if len(checkpoints) < FEWEST_CHECKPOINTS or all(gap is None for gap in gaps):
        return None
    tables = [scalars(checkpoint) for checkpoint in checkpoints]
    names = ["lambda-max", "trace"]
    names += [name for checkpoint in checkpoints for name in checkpoint.get("sharpness") or {}]
    found = []
    for name in dict.fromkeys(names):
        rows = [
            (table[name], table["gap"], method)
            for table, method in zip(tables, methods, strict=True)
            if name in table and "gap" in table
        ]
        if name != "gradient-norm" and any(name in table for table in tables):
            found.append(
                {
                    "measure": name,
                    "num_checkpoints": len(rows),
                    "num_missing": len(checkpoints) - len(rows),
                    **_taus(rows),
                }
            )
    return found or None


def _taus(rows: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    """tau over all pairs and within methods, each with its interval or why there is none."""
    values, gaps = [row[0] for row in rows], [row[1] for row in rows]
    methods = [row[2] for row in rows]
    if len(rows) < FEWEST_CHECKPOINTS:
        reason = (
            f"it and a gap are known of {len(rows)} checkpoint(s): a tau needs {FEWEST_CHECKPOINTS}"
        )
        return {
            "num_cells": len(set(methods)),
            "tau": None,
            "interval": None,
            "interval_skipped": reason,
            "within": None,
            "within_interval": None,
            "within_interval_skipped": reason,
        }
    whole, within = (tau(values, gaps, methods) for tau in (cell_tau, tau_within_cells))
    return {
        "num_cells": whole.num_cells,
        "tau": whole.tau,
        "interval": whole.interval,
        "interval_skipped": whole.skipped,
        "within": within.tau,
        "within_interval": within.interval,
        "within_interval_skipped": within.skipped,
    }
