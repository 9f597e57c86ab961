"""Rank correlation of each flatness measure with the generalisation gap, in words and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits, measures
from landscape.report.cells import (
    Cell,
    cell_html,
    framed,
    number_cell,
    row_head,
    sort_head,
    symbol,
)
from landscape.report.text import shown


def entries(findings: Findings) -> list[Mapping[str, Any]]:
    """The correlations that are known, measure by measure."""
    comparison = findings.document.get("comparison") or {}
    return [e for e in comparison.get("correlation") or [] if e.get("tau") is not None]


def sentence(findings: Findings, name: str) -> str:
    """Kendall's tau of a measure with the gap, with its interval where there is one."""
    for entry in entries(findings):
        if entry.get("measure") == name:
            tau = digits.with_interval(entry["tau"], entry.get("interval"), 2)
            without = "" if entry.get("interval") else ", no interval"
            within = ""
            if entry.get("within") is not None:
                taken = digits.with_interval(entry["within"], entry.get("within_interval"), 2)
                within = f" Within methods τ = {taken}."
            count = digits.count(entry.get("num_checkpoints"))
            return f"Kendall’s τ = {tau} over {count} checkpoints{without}.{within}"
    return "Too few checkpoints for a rank correlation."


def table(findings: Findings) -> str:
    """One row a measure: tau over all checkpoints and within methods; "" where there is none."""
    comparison = findings.document.get("comparison") or {}
    rows = []
    for entry in comparison.get("correlation") or []:
        measure = measures.named(findings, str(entry["measure"]))
        missing = entry.get("num_missing")
        cells = [
            _tau(entry, "tau", "interval"),
            _tau(entry, "within", "within_interval"),
            number_cell(
                entry.get("num_checkpoints"),
                f"{digits.count(missing)} without it" if missing else "",
            ),
            number_cell(entry.get("num_cells")),
        ]
        rows.append(f"<tr>{row_head(symbol(measure.title))}{''.join(map(cell_html, cells))}</tr>")
    if not rows:
        return ""
    words = ("measure", "τ with the gap", "τ within methods", "checkpoints", "cells")
    note = (
        "Kendall’s τ: 1 where flatter always generalises better, −1 where it never does, 0 for no "
        "order. In brackets 95 % intervals from resampling whole cells (a method with its "
        "options), as checkpoints of one are no independent draws. “Within methods” counts only "
        "pairs of one cell. Where an interval holds 0, no relation is shown."
    )
    reasons = dict.fromkeys(
        str(entry[key])
        for entry in comparison.get("correlation") or []
        for key in ("interval_skipped", "within_interval_skipped")
        if entry.get(key)
    )
    if reasons:
        note += f" No interval where: {'; '.join(shown(reason, 160) for reason in reasons)}."
    heads = [sort_head(word) for word in words]
    return framed("Rank correlations", "table-correlations", heads, rows, note)


def _tau(entry: Mapping[str, Any], key: str, interval: str) -> Cell:
    tau, reason = entry.get(key), entry.get(f"{interval}_skipped")
    title = "" if reason is None else str(reason)
    if tau is None:
        return Cell(digits.MISSING, title=title)
    notes = () if entry.get(interval) else ("no interval",)
    return Cell(digits.with_interval(tau, entry.get(interval), 2), tau, notes, title)
