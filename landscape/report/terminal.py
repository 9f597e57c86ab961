"""terminal_table: the findings as a short text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from landscape.comparing import scalars
from landscape.findings import Findings

from . import theme
from .digits import number, with_error
from .measures import bound_at, common_bound

_MOST_NAME = 28
_ACCURACIES = ("test_accuracy", "accuracy")
_MARKS = {"lower": "≥ ", "upper": "≤ "}


def terminal_table(findings: Findings) -> str:
    """One row a method with mean ± half of its 95 % interval; without seeds one a checkpoint.

    A single checkpoint's numbers carry their own errors: the residual of an eigenvalue, the
    standard error of an estimate. A number that is but a bound has its mark before it.
    """
    comparison = findings.document.get("comparison") or {}
    methods = comparison.get("methods") or []
    if any(entry["num_seeds"] > 1 for entry in methods):
        rows, note = _method_rows(findings, comparison), "± half of the 95 % interval over seeds"
    else:
        rows, note = _checkpoint_rows(findings), "± residual or standard error"
    told = "".join(cell for row in rows for cell in row)
    bounds = [f"{mark}{word} bound" for word, mark in _MARKS.items() if mark in told]
    return "\n".join([*aligned(rows), f"({'; '.join([note, *bounds, 'lower is flatter'])})"])


def _method_rows(findings: Findings, comparison: Mapping[str, Any]) -> list[list[str]]:
    names = _order(comparison["measures"])
    rows = [["method", "seeds", *map(_heading, names)]]
    for entry in comparison["methods"]:
        cells = []
        own = [c for c in findings.checkpoints if theme.method_of(c) == str(entry["method"])]
        for name in names:
            value = entry["values"].get(name)
            if value is None:
                cells.append("-")
                continue
            interval = value["interval"]
            half = None if interval is None else (interval[1] - interval[0]) / 2
            scale = 100.0 if name in (*_ACCURACIES, "gap") else 1.0
            mark = _MARKS.get(common_bound(own, name), "")
            cells.append(
                mark + with_error(value["mean"] * scale, None if half is None else half * scale, 3)
            )
        rows.append([_cut(entry["method"]), str(entry["num_seeds"]), *cells])
    return rows


def _checkpoint_rows(findings: Findings) -> list[list[str]]:
    tables = [scalars(checkpoint) for checkpoint in findings.checkpoints]
    names = _order(list(dict.fromkeys(name for table in tables for name in table)))
    rows = [["checkpoint", *map(_heading, names)]]
    for checkpoint, table in zip(findings.checkpoints, tables, strict=True):
        cells = []
        for name in names:
            scale = 100.0 if name in (*_ACCURACIES, "gap") else 1.0
            value, error = table.get(name), _own_error(checkpoint, name)
            mark = _MARKS.get(bound_at(checkpoint, name) or "", "")
            cells.append(
                "-"
                if value is None
                else mark + with_error(value * scale, error, 3)
                if error
                else mark + number(value * scale, 4)
            )
        rows.append([_cut(checkpoint["label"]), *cells])
    return rows


def _own_error(checkpoint: Mapping[str, Any], name: str) -> float | None:
    pairs = checkpoint.get("eigenvalues") or []
    if name == "lambda-max":
        return next((p["residual"] for p in pairs if p["end"] == "top"), None)
    if name == "lambda-min":
        return next((p["residual"] for p in reversed(pairs) if p["end"] == "bottom"), None)
    if name == "trace" and checkpoint.get("trace"):
        error: float | None = checkpoint["trace"]["standard_error"]
        return error
    measured = (checkpoint.get("sharpness") or {}).get(name) or {}
    return measured.get("standard_error")


def _order(names: Sequence[str]) -> list[str]:
    """Test accuracy, loss, then curvature: what fits on a line says the most."""
    first = ["test_accuracy", "loss", "lambda-max", "lambda-min", "trace"]
    skipped = {"accuracy", "test_loss", "gap", "gradient_norm"}
    chosen = [name for name in first if name in names]
    return chosen + [name for name in names if name not in first and name not in skipped]


def _heading(name: str) -> str:
    words = {"test_accuracy": "test %", "lambda-max": "lambda_max", "lambda-min": "lambda_min"}
    return words.get(name, name)


def _cut(text: object) -> str:
    plain = "".join(c for c in str(text) if c.isprintable())
    return plain if len(plain) <= _MOST_NAME else plain[: _MOST_NAME - 1] + "…"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
