"""The eigenvalue map: lambda_max and |lambda_min| / lambda_max over the plane, as heat maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.cells import cell_html, framed, label_of, number_cell, row_head, sort_head
from landscape.report.drawing import (
    Array,
    Figure,
    axis_titles,
    color_axis,
    figure_of,
    rounded,
    rounded_rows,
    scale_of,
    trace,
)
from landscape.report.references import Method, spread

PARTS = {"ratio": "|λmin| / λmax", "lambda_max": "λmax"}


def with_maps(findings: Findings) -> list[dict[str, Any]]:
    """The checkpoints whose map has a finite point."""
    return [
        c
        for c in findings.checkpoints
        if all(
            np.isfinite(findings.arrays.get(f"map_{c['id']}_{part}", np.array(np.nan))).any()
            for part in PARTS
        )
    ]


def figure(findings: Findings, identifier: str, part: str) -> Figure:
    """One heat map, its colours shared with the other checkpoints' of the same quantity.

    Cells and no contours: the grid is coarse, and between its points nothing was measured. Points
    without a finite value stay empty; the cross is theta.
    """
    x, y, z = (findings.arrays[f"map_{identifier}_{key}"] for key in ("x", "y", part))
    view = color_axis(values(findings, part), log=scale(findings, part) == "log")
    name = PARTS[part].replace("λmin", "λ<sub>min</sub>").replace("λmax", "λ<sub>max</sub>")
    traces = [
        trace(
            "heatmap",
            x=rounded(x),
            y=rounded(y),
            z=rounded_rows(view.heights(z)),
            customdata=rounded_rows(z),
            colorscale=theme.MAGNITUDES,
            zmin=view.low,
            zmax=view.high,
            zauto=False,
            xgap=1,
            ygap=1,
            colorbar={
                "thickness": 10,
                "outlinewidth": 0,
                "tickvals": view.ticks,
                "ticktext": view.labels,
                "len": 1.0,
            },
            hoverongaps=False,
            name="",
            hovertemplate=f"(%{{x:.3~g}}, %{{y:.3~g}}): {name} = %{{customdata:.4~g}}"
            "<extra></extra>",
        ),
        trace(
            "scatter",
            x=[0.0],
            y=[0.0],
            mode="markers",
            marker={"symbol": "cross-thin", "size": 11, "line": {"width": 2, "color": "#ffffff"}},
            hoverinfo="skip",
            showlegend=False,
        ),
    ]
    x_title, y_title = axis_titles(next(c for c in with_maps(findings) if c["id"] == identifier))
    drawn = figure_of(traces, height=310)
    drawn["layout"].update(
        margin={"l": 8, "r": 4, "t": 8, "b": 36},
        hovermode="closest",
        xaxis={"title": {"text": x_title}, "showgrid": False, "zeroline": False},
        yaxis={"title": {"text": y_title}, "showgrid": False, "zeroline": False},
    )
    return drawn


def values(findings: Findings, part: str) -> Array:
    """All finite values of one quantity over all maps."""
    found = np.concatenate(
        [findings.arrays[f"map_{c['id']}_{part}"].ravel() for c in with_maps(findings)]
    )
    finite: Array = found[np.isfinite(found)]
    return finite


def scale(findings: Findings, part: str) -> str:
    """ "log" where a quantity spans more than a factor of 50 and stays above zero."""
    return scale_of([values(findings, part)])


def caption(findings: Findings) -> str:
    """What the maps show and on how many points."""
    entries = [c.get("eigenvalue_map") or {} for c in with_maps(findings)]
    points = spread(digits.count, (entry.get("num_points") for entry in entries))
    tolerance = spread(lambda v: digits.number(v, 2), (e.get("tolerance") for e in entries))
    words = (
        f"Largest and smallest eigenvalue at {points} points of the plane, by Lanczos to a "
        f"relative tolerance of {tolerance}. A ratio near 0 means that the loss is nearly convex "
        "there; one near 1 that it curves down as strongly as up, so that a look along a plane "
        "would hide what the other directions do. Colours are shared by the checkpoints; the cross "
        "is θ."
    )
    lacking = len(findings.checkpoints) - len(entries)
    if lacking:
        words += f" Mapped for {len(entries)} of {len(findings.checkpoints)} checkpoints."
    return words


def table(findings: Findings) -> str:
    """One row a map: both quantities at theta, their extremes, and what did not converge.

    Without the columns of theta where no map has a point there.
    """
    styles = theme.styles_of(findings)
    having = with_maps(findings)
    centres = {
        part: [
            _at_theta(findings, str(c["id"]), findings.arrays[f"map_{c['id']}_{part}"])
            for c in having
        ]
        for part in PARTS
    }
    has_centre = any(value is not None for value in centres["ratio"])
    rows = []
    for number, checkpoint in enumerate(having):
        identifier, entry = str(checkpoint["id"]), checkpoint.get("eigenvalue_map") or {}
        ratio, top = (findings.arrays[f"map_{identifier}_{part}"] for part in PARTS)
        largest, where = _extreme(findings, identifier, ratio)
        finite = top[np.isfinite(top)]
        cells = [
            *([number_cell(centres[part][number]) for part in PARTS] if has_centre else []),
            number_cell(largest, where),
            number_cell(float(finite.min())),
            number_cell(float(finite.max())),
            number_cell(int(np.isfinite(ratio).sum()), f"of {ratio.size}"),
            number_cell(entry.get("num_unconverged")),
        ]
        label = label_of(checkpoint, styles)
        rows.append(f"<tr>{row_head(label)}{''.join(map(cell_html, cells))}</tr>")
    ratio_head, top_head = "|λ<sub>min</sub>| / λ<sub>max</sub>", "λ<sub>max</sub>"
    words = [
        *([f"{ratio_head} at θ", f"{top_head} at θ"] if has_centre else []),
        *(f"largest {ratio_head}", f"least {top_head}", f"largest {top_head}"),
        *("finite points", "not converged"),
    ]
    heads = [sort_head("map of"), *(sort_head(word) for word in words)]
    return framed("Eigenvalue maps", "table-maps", heads, rows, "")


def _at_theta(findings: Findings, identifier: str, grid: Array) -> float | None:
    """The value at the origin of the plane, where the grid has that point."""
    x, y = (findings.arrays[f"map_{identifier}_{axis}"] for axis in ("x", "y"))
    column, row = int(np.abs(x).argmin()), int(np.abs(y).argmin())
    spacing = max(float(np.ptp(x)), float(np.ptp(y))) or 1.0
    is_there = max(abs(float(x[column])), abs(float(y[row]))) < 1e-9 * spacing
    return float(grid[row, column]) if is_there else None


def _extreme(findings: Findings, identifier: str, grid: Array) -> tuple[float, str]:
    """The largest finite value and where it lies, in words."""
    finite = np.where(np.isfinite(grid), grid, -np.inf)
    row, column = np.unravel_index(int(finite.argmax()), grid.shape)
    x, y = (findings.arrays[f"map_{identifier}_{axis}"] for axis in ("x", "y"))
    where = f"at ({digits.number(float(x[column]), 2)}, {digits.number(float(y[row]), 2)})"
    return float(grid[row, column]), where


def method(findings: Findings) -> Method:
    entries = [c.get("eigenvalue_map") or {} for c in with_maps(findings)]
    points = spread(digits.count, (entry.get("num_points") for entry in entries))
    unsettled = sum(entry.get("num_unconverged") or 0 for entry in entries)
    text = (
        f"Lanczos at {points} points of each plane, both ends from one run. The Hessian is that of "
        "all parameters, not of the plane. "
    )
    text += (
        f"At {digits.count(unsettled)} points an end was not converged."
        if unsettled
        else "Every point converged."
    )
    return Method(
        "Eigenvalue map",
        "|λ<sub>min</sub>(θ′)| / λ<sub>max</sub>(θ′), θ′ = θ + a d₁ + b d₂",
        text,
        ("li2018",),
    )
