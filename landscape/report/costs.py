"""Costs: what each stage of a probe spent, in passes over the data and in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits
from landscape.report.cells import Cell, cell_html, framed, head, row_head
from landscape.report.text import shown

_COUNTS = ("products", "gradients", "forwards", "seconds")


def costs_of(findings: Findings) -> dict[str, dict[str, float]]:
    """The sum over checkpoints of each stage's counts, in the order in which stages first ran."""
    totals: dict[str, dict[str, float]] = {}
    for checkpoint in findings.checkpoints:
        for stage, cost in (checkpoint.get("costs") or {}).items():
            _add(totals, str(stage), cost or {})
    paths = (findings.document.get("connection") or {}).get("cost")
    if paths:
        _add(totals, "paths", paths)
    return totals


def _add(totals: dict[str, dict[str, float]], stage: str, cost: Mapping[str, Any]) -> None:
    sums = totals.setdefault(stage, dict.fromkeys(_COUNTS, 0.0))
    for count in _COUNTS:
        sums[count] += cost.get(count) or 0.0


def table(findings: Findings) -> str:
    """One row a stage, with the sum below; "" where no stage says what it cost."""
    totals = costs_of(findings)
    if not totals:
        return ""
    rows = [_row(shown(stage.replace("-", " "), 40), sums) for stage, sums in totals.items()]
    whole = {count: sum(sums[count] for sums in totals.values()) for count in _COUNTS}
    rows.append(_row("<b>all stages</b>", whole))
    heads = map(head, ("stage", "matrix products", "gradients", "forward passes", "time"))
    note = (
        "Sums over all checkpoints. A product, a gradient and a forward pass are each one over the "
        "whole probe data; time is of the wall clock."
    )
    return framed("Costs", "table-costs", list(heads), rows, note, kind="costs")


def _row(name: str, sums: Mapping[str, float]) -> str:
    cells: Iterable[Cell] = (
        Cell(
            digits.seconds(sums[count]) if count == "seconds" else _passes(sums[count]),
            sums[count],
        )
        for count in _COUNTS
    )
    return f"<tr>{row_head(name)}{''.join(map(cell_html, cells))}</tr>"


def _passes(count: float) -> str:
    if not count:
        return "0"
    return digits.count(count) if count >= 10 else digits.number(float(f"{count:.3g}"), 3)
