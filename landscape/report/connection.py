"""Paths between minima: the loss along each, the barrier between each two, and what was done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.cells import (
    MARKS,
    Cell,
    cell_html,
    framed,
    head,
    number_cell,
    row_head,
    swatch,
)
from landscape.report.drawing import LOSS, Array, Figure, figure_of, rounded, trace
from landscape.report.references import Method, spread
from landscape.report.text import cut, escaped, in_plotly, shown

FEW = 6  # paths that a legend holds; of more the highest and the lowest barrier are in colour
_GREY = "#8a8f98"
_SETTLED = 0.9  # of the height, found on every second point: then more points find little more


def connection(findings: Findings) -> Mapping[str, Any]:
    """The findings' entry of paths; empty where none was measured."""
    return findings.document.get("connection") or {}


def drawn_pairs(findings: Findings) -> list[dict[str, Any]]:
    """The pairs whose path has a finite loss somewhere."""
    return [
        pair
        for pair in connection(findings).get("pairs") or []
        if np.isfinite(findings.arrays.get(f"path_{pair['id']}_loss", np.array(np.nan))).any()
    ]


def has_accuracy(findings: Findings) -> bool:
    return any(f"path_{pair['id']}_accuracy" in findings.arrays for pair in drawn_pairs(findings))


def name_of(findings: Findings, pair: Mapping[str, Any], length: int = 22) -> str:
    """ "sam seed 0 – sam seed 1", each end cut to `length`."""
    labels = {str(c["id"]): c.get("label") or c["id"] for c in findings.checkpoints}
    ends = (labels.get(str(pair[end]), pair[end]) for end in ("first", "second"))
    return " – ".join(cut(end, length) for end in ends)


def in_colour(findings: Findings) -> dict[str, theme.Style]:
    """How the paths look, by id of the pair: all of a few, the highest and the lowest of many."""
    pairs = drawn_pairs(findings)
    if len(pairs) > FEW:
        ranked = sorted(pairs, key=lambda pair: -(pair.get("height") or 0.0))
        pairs = [ranked[0], ranked[-1]]
    return {str(pair["id"]): theme.Style("", i, lead=True) for i, pair in enumerate(pairs)}


def figure(findings: Findings, part: str = "loss") -> Figure:
    """The loss (or the accuracy, in per cent) along each path, with its barrier marked.

    A trained curve is solid and the straight line between its ends dashed; of straight lines each
    has its dash. A marker stands where the path is highest above the chord, the dotted line between
    the losses of its ends. The axis is linear: a barrier is a difference.
    """
    looks = in_colour(findings)
    is_curved = connection(findings).get("kind") == "bezier"
    factor = 100.0 if part == "accuracy" else 1.0
    pairs = drawn_pairs(findings)
    traces: list[Any] = []
    # What is in colour comes last, on top.
    for pair in sorted(pairs, key=lambda pair: str(pair["id"]) in looks):
        identifier = str(pair["id"])
        t, values = (findings.arrays.get(f"path_{identifier}_{key}") for key in ("t", part))
        if t is None or values is None:
            continue
        name, style = in_plotly(name_of(findings, pair), 50), looks.get(identifier)
        crowd = {"color": _GREY, "width": 1, "dash": "solid"}
        dash = "solid" if is_curved else style.dash if style else "solid"
        traces.append(
            trace(
                "scatter",
                x=rounded(t),
                y=rounded(factor * values),
                mode="lines",
                line={"color": style.color, "width": 2.2, "dash": dash} if style else crowd,
                opacity=1.0 if style else 0.45,
                name=name,
                legendgroup=identifier,
                # The marked top stands for the path in the legend, where there is one.
                showlegend=style is not None and not (part == "loss" and pair.get("height")),
                text=[name] * len(t),
                hovertemplate="%{text}: %{y:.4~g} at t = %{x:.3~g}<extra></extra>",
            )
        )
        line = findings.arrays.get(f"path_{identifier}_line_{part}")
        if is_curved and line is not None and style:
            traces.append(
                trace(
                    "scatter",
                    x=rounded(t),
                    y=rounded(factor * line),
                    mode="lines",
                    line={"color": style.color, "width": 1.4, "dash": "dash"},
                    name=f"{name}, straight",
                    legendgroup=identifier,
                    showlegend=False,
                    text=[name] * len(t),
                    hovertemplate="%{text}, straight line: %{y:.4~g}<extra></extra>",
                )
            )
        if part == "loss" and style:
            traces.append(_chord(values, style))
            if pair.get("height"):
                traces.append(_highest(findings, pair, name, style, dash))
    figure = figure_of(traces, height=360 if part == "loss" else 300)
    figure = figure_of(traces, height=380 if part == "loss" else 300)
    figure["layout"].update(
        hovermode="closest",
        xaxis={"title": {"text": "t, from the first minimum (0) to the second (1)"}},
        yaxis={"title": {"text": LOSS if part == "loss" else "accuracy (%)"}},
    )
    return figure


def _chord(losses: Array, style: theme.Style) -> Any:
    """The line between the losses of a path's ends, from which its barrier is counted."""
    return trace(
        "scatter",
        x=[0.0, 1.0],
        y=rounded([float(losses[0]), float(losses[-1])]),
        mode="lines",
        line={"color": style.color, "width": 1, "dash": "dot"},
        showlegend=False,
        hoverinfo="skip",
    )


def _highest(
    findings: Findings, pair: Mapping[str, Any], name: str, style: theme.Style, dash: str
) -> Any:
    """The top of a path's barrier, and the path's entry in the legend."""
    t, loss = (findings.arrays[f"path_{pair['id']}_{part}"] for part in ("t", "loss"))
    where, height = pair.get("where") or 0.0, pair.get("height") or 0.0
    at = int(np.abs(t - where).argmin())
    return trace(
        "scatter",
        x=rounded([float(t[at])]),
        y=rounded([float(loss[at])]),
        mode="lines+markers",
        line={"color": style.color, "width": 2.2, "dash": dash},
        marker={"symbol": style.marker, "size": 9, "color": style.color},
        name=name,
        legendgroup=str(pair["id"]),
        text=[
            f"{name}: barrier at least {digits.number(height)}, at t = {digits.number(where, 2)}"
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def caption(findings: Findings) -> str:
    """What the paths are, on how many points, and what a barrier is."""
    entry, pairs = connection(findings), drawn_pairs(findings)
    total = len(entry.get("pairs") or [])
    points = digits.count(entry.get("num_points"))
    if entry.get("kind") == "bezier":
        words = f"{_paths(total, 'trained curve')}, {points} points each"
        if entry.get("training_steps"):
            words += f", {digits.count(entry['training_steps'])} steps of training a curve"
        if any(f"path_{pair['id']}_line_loss" in findings.arrays for pair in pairs):
            words += "; dashed: the straight line between the same ends"
    else:
        words = f"{_paths(total, 'straight line')}, {points} points each"
    words += (
        ". A marker is where a path is highest above the dotted line between its ends’ losses: "
        "that rise is its barrier."
    )
    if len(pairs) > FEW:
        words += " In colour: the highest and the lowest barrier; grey: the others."
    if len(pairs) < total:
        words += f" {total - len(pairs)} without a finite loss are not drawn."
    return words


def _paths(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def alignment(findings: Findings) -> str:
    """Whether the units were brought into one order, and what a barrier says without that."""
    entry = connection(findings)
    if not entry.get("aligned"):
        return (
            "Units were not aligned: between nets of different seeds a barrier also measures that "
            "their hidden units come in another order."
        )
    moved = spread(digits.count, (pair.get("num_moved") for pair in entry.get("pairs") or []))
    words = "The second net’s units were permuted to the first one’s order before each path"
    return f"{words} ({moved} units moved)." if moved != digits.MISSING else f"{words}."


def verdict(findings: Findings) -> str:
    """The highest and the lowest barrier, in words."""
    pairs = [p for p in connection(findings).get("pairs") or [] if p.get("height") is not None]
    if not pairs:
        return ""

    def words(pair: Mapping[str, Any]) -> str:
        height = f"{MARKS['lower']}{digits.number(pair['height'], 3)}"
        return f"{shown(name_of(findings, pair), 60)}, {height}"

    ranked = sorted(pairs, key=lambda pair: -pair["height"])
    if not ranked[0]["height"]:
        return "No path rises above the line between its ends’ losses on the points measured."
    if len(ranked) == 1:
        return f"Barrier: {words(ranked[0])}."
    return f"Highest barrier: {words(ranked[0])}; lowest: {words(ranked[-1])}."


def table(findings: Findings) -> str:
    """The barrier of each two minima, rows and columns alike, with t counted from the row's."""
    pairs = connection(findings).get("pairs") or []
    between = {(str(p["first"]), str(p["second"])): p for p in pairs}
    known = {end for ends in between for end in ends}
    ends = [c for c in findings.checkpoints if str(c["id"]) in known]
    styles = theme.styles_of(findings)
    labels = {
        str(c["id"]): swatch(styles[str(c["id"])]) + shown(c.get("label") or c["id"], 28)
        for c in ends
    }
    rows = []
    for row in labels:
        cells = []
        for column in labels:
            forward, backward = between.get((row, column)), between.get((column, row))
            pair = forward or backward
            cells.append(cell_html(_barrier(pair, turned=forward is None) if pair else _NONE))
        rows.append(f"<tr>{row_head(labels[row])}{''.join(cells)}</tr>")
    note = (
        "Height of the barrier in units of the loss. <b>≥</b>: the maximum over the points of the "
        "path, a lower bound of the maximum over the whole path. t counts from the row’s minimum; "
        "“distance” is ‖θ<sub>i</sub> − θ<sub>j</sub>‖ in parameter norm"
        f"{', after alignment' if connection(findings).get('aligned') else ''}."
    )
    if "half of the points" in "".join(rows):
        note += " A height that half of the points miss would grow with more points."
    heads = [head("barrier"), *(head(label) for label in labels.values())]
    return framed("Barriers", "table-barriers", heads, rows, note, kind="barriers")


_NONE = Cell(digits.MISSING)


def _barrier(pair: Mapping[str, Any], *, turned: bool) -> Cell:
    height, where, half = (pair.get(key) for key in ("height", "where", "half_grid_height"))
    notes = []
    if where is not None and height:
        notes.append(f"t = {digits.number(1 - where if turned else where, 2)}")
    if pair.get("distance") is not None:
        notes.append(f"distance {digits.number(pair['distance'], 3)}")
    if pair.get("line_height") is not None:
        notes.append(f"straight line {MARKS['lower']}{digits.number(pair['line_height'], 3)}")
    if height and half is not None and half < _SETTLED * height:
        notes.append(f"half of the points: {digits.number(half, 3)}")
    if pair.get("num_nonfinite"):
        notes.append(f"{digits.count(pair['num_nonfinite'])} points not finite")
    title = ""
    if pair.get("length") is not None:
        title = f"length of the path: {digits.number(pair['length'])}"
    return number_cell(height, *notes, bound="lower", title=title)


def method(findings: Findings) -> Method:
    entry = connection(findings)
    pairs = entry.get("pairs") or []
    points = digits.count(entry.get("num_points"))
    formula = "max<sub>0 ≤ t ≤ 1</sub> L(φ(t)) − (1 − t) L(φ(0)) − t L(φ(1)), " + (
        "φ(t) = (1 − t)² θ<sub>i</sub> + 2t(1 − t) c + t² θ<sub>j</sub>"
        if entry.get("kind") == "bezier"
        else "φ(t) = (1 − t) θ<sub>i</sub> + t θ<sub>j</sub>"
    )
    text = (
        f"{_paths(len(pairs), 'path')} of {points} points; the maximum is over these points, so "
        "the height is a lower bound of the barrier. "
    )
    sources = ["frankle2020", "entezari2022"]
    if entry.get("kind") == "bezier":
        steps = digits.count(entry.get("training_steps"))
        text += (
            f"The control point c was trained for {steps} steps to lower the mean loss over t, "
            "from the straight line: how low some path is, never that no lower one exists. "
        )
        sources.append("garipov2018")
    if entry.get("aligned"):
        text += (
            "Hidden units of the second net were permuted to match the first one’s weights, which "
            "changes no output. "
        )
        sources.append("ainsworth2023")
    settings = findings.document.get("settings") or {}
    if settings.get("seed") is not None and (entry.get("aligned") or "garipov2018" in sources):
        text += f"Seed {escaped(settings['seed'])}."
    return Method("Barrier", formula, text.strip(), tuple(sources))
