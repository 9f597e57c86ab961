"""The topology of a surface: its minima on the contour, how many and how deep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.cells import (
    Cell,
    cell_html,
    framed,
    label_of,
    number_cell,
    row_head,
    sort_head,
)
from landscape.report.drawing import rounded, trace
from landscape.report.references import Method, spread
from landscape.report.text import shown

MARKED = 9  # minima with a number on the contour; the table lists the others too


def topology_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The topology of a checkpoint's surface; empty where there is none."""
    return (checkpoint.get("surface") or {}).get("topology") or {}


def with_topology(findings: Findings) -> list[dict[str, Any]]:
    return [c for c in findings.checkpoints if topology_of(c)]


def marked(checkpoint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The minima that the contour numbers, deepest persistence first; none where there is one.

    A surface with one basin has its minimum where the colours say; its number would hide the cross.
    """
    minima = topology_of(checkpoint).get("minima") or []
    return list(minima[:MARKED]) if len(minima) > 1 else []


def marks(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The marked minima as numbered discs."""
    drawn = marked(checkpoint)
    if not drawn:
        return []
    return [
        trace(
            "scatter",
            x=rounded([point["x"] for point in drawn]),
            y=rounded([point["y"] for point in drawn]),
            mode="markers+text",
            marker={
                "symbol": "circle",
                "size": 15,
                "color": "#ffffff",
                "line": {"width": 1.4, "color": "#111111"},
            },
            text=[str(i + 1) for i in range(len(drawn))],
            textfont={"size": 10, "color": "#111111"},
            textposition="middle center",
            customdata=[_words(point) for point in drawn],
            name="minima",
            showlegend=False,
            cliponaxis=False,
            hovertemplate="minimum %{text}: %{customdata}<extra></extra>",
        )
    ]


def _words(point: Mapping[str, Any]) -> str:
    depth = point.get("persistence")
    return (
        f"L = {digits.number(point['loss'])}, "
        + ("the deepest" if depth is None else f"persistence {digits.number(depth, 3)}")
        + (", on the border" if point.get("on_border") else "")
    )


def sentence(checkpoint: Mapping[str, Any]) -> str:
    """How many critical points, and how deep their basins, for the caption of a contour."""
    found = topology_of(checkpoint)
    if not found:
        return ""
    parts = [
        f"{_counted(found.get('num_minima'), 'minimum', 'minima')}, "
        f"{_counted(found.get('num_saddles'), 'saddle', 'saddles')}, "
        f"{_counted(found.get('num_maxima'), 'maximum', 'maxima')}"
    ]
    threshold = found.get("threshold")
    if threshold:
        parts[0] += f" deeper than {digits.number(threshold, 2)}, twice the error of a point"
    relative = found.get("relative_persistence")
    if relative is None:
        parts.append("the loss is the same everywhere, to rounding")
    else:
        parts.append(f"total persistence {digits.share(relative, 2)} of the range")
    return f"{'; '.join(parts)}."


def _counted(count: int | None, one: str, several: str) -> str:
    return f"{digits.count(count)} {one if count == 1 else several}"


def table(findings: Findings) -> str:
    """One row a surface: critical points, persistence, and what was too shallow to count."""
    styles = theme.styles_of(findings)
    rows = []
    for checkpoint in with_topology(findings):
        found = topology_of(checkpoint)
        total = number_cell(found.get("total_persistence"))
        relative = found.get("relative_persistence")
        cells = [
            *(number_cell(found.get(f"num_{kind}")) for kind in ("minima", "saddles", "maxima")),
            total,
            Cell(digits.share(relative), relative),
            number_cell(found.get("threshold")),
            number_cell(found.get("num_dropped")),
            number_cell(found.get("num_masked")),
        ]
        label = label_of(checkpoint, styles)
        rows.append(f"<tr>{row_head(label)}{''.join(map(cell_html, cells))}</tr>")
    words = (
        *("surface of", "minima", "saddles", "maxima", "total persistence", "over the range"),
        *("dropped up to", "dropped pairs", "points left out"),
    )
    note = (
        "The persistence of a minimum is how far one must climb to leave its basin for a deeper "
        "one; its total is summed over all minima but the lowest, “over the range” divided by the "
        "largest minus the smallest loss; a dash where that is within rounding. Pairs up to the "
        "bound in “dropped up to”, twice the error of a point (the working maximum of the "
        "interpolation error, and rounding), could be made by that error and are dropped. A "
        "minimum on the border may go on outside."
    )
    heads = [sort_head(word) for word in words]
    return framed("Topology", "table-topology", heads, rows, note, kind="sortable dense")


def minima_table(findings: Findings) -> str:
    """Every listed minimum of the surfaces that have more than one, deepest persistence first."""
    rows = []
    for checkpoint in with_topology(findings):
        minima = topology_of(checkpoint).get("minima") or []
        if len(minima) < 2:
            continue
        label = shown(checkpoint.get("label") or checkpoint["id"], 32)
        for number, point in enumerate(minima, start=1):
            depth = point.get("persistence")
            cells = [
                number_cell(point["x"]),
                number_cell(point["y"]),
                number_cell(point["loss"]),
                Cell("the deepest") if depth is None else number_cell(depth),
                Cell("yes" if point.get("on_border") else "no"),
            ]
            head = f'{number}<span class="note">{label}</span>'
            rows.append(f"<tr>{row_head(head)}{''.join(map(cell_html, cells))}</tr>")
    if not rows:
        return ""
    words = ("minimum", "direction 1", "direction 2", "loss", "persistence", "border")
    inner = framed("Minima", "table-minima", [sort_head(w) for w in words], rows, "")
    return f"<details><summary>Each minimum ({len(rows)})</summary>{inner}</details>"


def method(findings: Findings) -> Method:
    entries = [topology_of(c) for c in with_topology(findings)]
    threshold = spread(lambda v: digits.number(v, 2), (e.get("threshold") for e in entries))
    dropped = spread(digits.count, (e.get("num_dropped") for e in entries))
    shallow = (
        f"Pairs of persistence up to {threshold} are dropped ({dropped} a surface)."
        if any(entry.get("threshold") for entry in entries)
        else "Every point was evaluated, so that every pair counts."
    )
    text = (
        "Grid points enter in the order of their loss, neighbours along eight directions join, and "
        "where two basins meet the shallower one ends (union-find, the elder rule); maxima are the "
        f"same of −L with four neighbours. {shallow} What is narrower than a grid step is not "
        "seen."
    )
    return Method(
        "Topology of a surface",
        "persistence = L(saddle) − L(minimum); relative: Σ persistence / (max L − min L)",
        text,
        ("edelsbrunner2010", "cohensteiner2007"),
    )
