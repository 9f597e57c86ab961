"""Comparison of variants over seeds: means, intervals and paired differences. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landscape.statistics import CONFIDENCE, paired, summary

# What is compared, in this order: the key of comparison.json and the key of a run's last line.
MEASURES = {
    "test_accuracy": "test_accuracy",
    "test_loss": "test_loss",
    "train_accuracy": "final_train_accuracy",
    "train_loss": "final_train_loss",
    "best_test_accuracy": "best_test_accuracy",
    "best_test_loss": "best_test_loss",
    "lambda_max": "lambda_max",
    "perturbed_share": "perturbed_share",
    "gradients": "gradients",
    "seconds": "seconds",
}
PAIRED = tuple(measure for measure in MEASURES if measure not in ("perturbed_share",))


@dataclass(frozen=True)
class RunResult:
    """How one run ended: `final` is the last line of its metrics.jsonl."""

    label: str
    seed: int
    final: Mapping[str, Any]


def compare(results: Sequence[RunResult]) -> dict[str, Any]:
    """The content of comparison.json: one entry a variant, in the order they come.

    The first variant is the reference of every paired difference. A measure that some run of a
    variant lacks is left out for that variant. Non-finite numbers become null.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("there is no finished run to compare")
    by_label: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        by_label.setdefault(result.label, {})[result.seed] = result.final
    reference = next(iter(by_label))
    return {
        "reference": reference,
        "confidence": CONFIDENCE,
        "num_test": results[0].final.get("num_test"),
        "num_train": results[0].final.get("num_train"),
        "variants": [
            _variant(label, runs, None if label == reference else by_label[reference])
            for label, runs in by_label.items()
        ],
    }


def _variant(
    label: str,
    runs: Mapping[int, Mapping[str, Any]],
    reference: Mapping[int, Mapping[str, Any]] | None,
) -> dict[str, Any]:
    entry: dict[str, Any] = {"variant": label, "seeds": sorted(runs)}
    for measure, key in MEASURES.items():
        values = _values(runs, sorted(runs), key)
        if values is not None:
            entry[measure] = summary(values)
    differences: dict[str, Any] = {}
    common = sorted(set(runs) & set(reference or {}))
    for measure in PAIRED if reference is not None and common else ():
        mine = _values(runs, common, MEASURES[measure])
        theirs = _values(reference, common, MEASURES[measure]) if reference else None
        if mine is not None and theirs is not None:
            differences[measure] = paired(mine, theirs)
    entry["paired"] = differences if reference is not None else None
    return entry


def _values(
    runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], key: str
) -> list[float] | None:
    values = [runs[seed].get(key) for seed in seeds]
    return None if any(v is None for v in values) else [float(v) for v in values if v is not None]


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison as a short text table, one row a variant."""
    head = ["variant", "seeds", "test accuracy %", "difference", "test loss", "train loss"]
    optional = {"lambda_max": "lambda_max", "best_test_accuracy": "best.pt accuracy %"}
    shown = [m for m in optional if any(m in v for v in comparison["variants"])]
    head += [optional[m] for m in shown] + ["perturbed %", "gradients", "seconds"]
    rows = [head]
    for entry in comparison["variants"]:
        difference = (entry["paired"] or {}).get("test_accuracy")
        row = [
            entry["variant"],
            str(len(entry["seeds"])),
            _with_half(entry.get("test_accuracy"), 100, 2),
            _difference(difference),
            _with_half(entry.get("test_loss"), 1, 4),
            _with_half(entry.get("train_loss"), 1, 4),
        ]
        for measure in shown:
            scale, digits = (100, 2) if measure.endswith("accuracy") else (1, 3)
            row.append(_with_half(entry.get(measure), scale, digits))
        row += [
            _plain(entry.get("perturbed_share"), 100, 1),
            _plain(entry.get("gradients"), 1, 0),
            _plain(entry.get("seconds"), 1, 1),
        ]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def caption(comparison: Mapping[str, Any]) -> str:
    """What the table's numbers are."""
    on = f"{comparison['num_test']:,} test samples" if comparison.get("num_test") else "test data"
    several = any(len(entry["seeds"]) > 1 for entry in comparison["variants"])
    spread = "mean +- half of the 95 % Student-t interval over seeds" if several else "one seed"
    return (
        f"{spread}; last weights on {on}; difference: paired with {comparison['reference']}, "
        "in points of accuracy; gradients: of one batch"
    )


def _with_half(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    text = f"{scale * entry['mean']:.{digits}f}"
    if entry["interval"] is None:
        return text
    low, high = entry["interval"]
    return f"{text} +- {scale * (high - low) / 2:.{digits}f}"


def _difference(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["difference"] is None:
        return "-"
    text = f"{100 * entry['difference']:+.2f}"
    if entry["interval"] is None:
        return text
    low, high = entry["interval"]
    if low == high:  # the seeds differ by one and the same number: that is no certainty
        return text
    return f"{text} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _plain(entry: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if entry is None or entry["mean"] is None:
        return "-"
    return f"{scale * entry['mean']:,.{digits}f}"
