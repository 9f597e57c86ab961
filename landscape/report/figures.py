"""The report's plotly figures: pure functions of Findings, one a figure.

Each returns what plotly.js draws, `{"data": [...], "layout": {...}}` in plain types, without a
title (the page says what is drawn) and without a theme (the page swaps templates). Building
`plotly.graph_objects` here would cost a fifth of a second a figure; `all_figures` does it for
notebooks. Colour, dash and marker stand for the method; the first seed of a method is drawn strong
and the others thin.

Planes are drawn in `planes.py`, training in `curves.py`; paths, maps, dynamics and layers have
files of their own, each with its table and its words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.comparing import generalisation_gap
from landscape.findings import Findings
from landscape.report import (
    connection,
    digits,
    dynamics,
    eigenvalue_map,
    layers,
    measures,
    theme,
    trajectory,
)
from landscape.report.available import (
    compared_measures,
    has_scatter,
    has_spectrum,
    with_densities,
    with_lines,
    with_signal,
    with_surfaces,
)
from landscape.report.curves import drawable, switching_signal, training
from landscape.report.drawing import (
    Figure,
    figure_of,
    log_axis,
    rounded,
    rows_axis,
    trace,
    value_axis,
    with_unit,
)
from landscape.report.planes import contour, slices, surface, trajectory_contour
from landscape.report.text import in_plotly
from landscape.report.theme import Style

EIGENVALUE = "eigenvalue λ  (loss / parameter²)"


def all_figures(findings: Findings) -> dict[str, Any]:
    """Every figure for which there are data, by name, in the report's order, for a notebook.

    Returns:
        `plotly.graph_objects.Figure` by name, in the light theme.
    """
    import plotly.graph_objects as go

    light = theme.template("light")
    return {
        name: go.Figure({"data": f["data"], "layout": {**f["layout"], "template": light}})
        for name, f in specifications(findings).items()
    }


def specifications(findings: Findings) -> dict[str, Figure]:
    """Every figure for which there are data, by name, in the report's order."""
    figures: dict[str, Figure] = {}
    for measure in compared_measures(findings):
        figures[f"comparison {measure.name}"] = comparison(findings, measure.name)
    if has_spectrum(findings):
        figures["spectrum"] = spectrum(findings)
    if with_lines(findings):
        figures["slices"] = slices(findings)
    if dynamics.with_dynamics(findings):
        figures["dynamics"] = dynamics.figure(findings)
    for identifier in with_surfaces(findings):
        figures[f"contour {identifier}"] = contour(findings, identifier)
        figures[f"surface {identifier}"] = surface(findings, identifier)
    for checkpoint in trajectory.with_trajectory(findings):
        name = str(checkpoint["id"])
        figures[f"trajectory {name}"] = trajectory_contour(findings, name)
    for checkpoint in eigenvalue_map.with_maps(findings):
        for part in eigenvalue_map.PARTS:
            name = str(checkpoint["id"])
            figures[f"map {part} {name}"] = eigenvalue_map.figure(findings, name, part)
    if connection.drawn_pairs(findings):
        figures["paths"] = connection.figure(findings)
    if connection.has_accuracy(findings):
        figures["paths accuracy"] = connection.figure(findings, "accuracy")
    for name in drawable(findings):
        figures[f"training {name}"] = training(findings, name)
    for variant in with_signal(findings):
        figures[f"signal {variant}"] = switching_signal(findings, variant)
    for measure in measures.flatness_measures(findings):
        if has_scatter(findings, measure.name):
            figures[f"generalisation {measure.name}"] = generalisation(findings, measure.name)
    for part in layers.drawn_parts(findings):
        figures[f"layers {part}"] = layers.figure(findings, part)
    return figures


def comparison(findings: Findings, measure: str) -> Figure:
    """One measure: a point for each seed, and each method's mean with its 95 % interval."""
    what = measures.named(findings, measure)
    factor = 100.0 if what.percent else 1.0
    styles = theme.styles_of(findings)
    methods = list(dict.fromkeys(theme.method_of(c) for c in findings.checkpoints))
    summaries = {
        str(entry["method"]): (entry.get("values") or {}).get(measure) or {}
        for entry in (findings.document.get("comparison") or {}).get("methods") or []
    }
    traces: list[Any] = []
    for row, method in enumerate(methods):
        group = [c for c in findings.checkpoints if theme.method_of(c) == method]
        values = [(c, measures.value_of(c, measure)[0]) for c in group]
        points = [(c, factor * value) for c, value in values if value is not None]
        style = styles[str(group[0]["id"])]
        name = in_plotly(method)
        traces.append(
            trace(
                "scatter",
                x=rounded([value for _, value in points]),
                y=[row + 0.2] * len(points),
                mode="markers",
                name=name,
                marker={
                    "symbol": style.marker,
                    "size": 7,
                    "color": theme.translucent(style.color, 0.45),
                    "line": {"width": 1, "color": style.color},
                },
                text=[in_plotly(c.get("label") or c["id"]) for c, _ in points],
                hovertemplate="%{text}: %{x:.4~g}<extra></extra>",
            )
        )
        summary = summaries.get(method, {})
        if summary.get("mean") is not None:
            mean, interval = factor * summary["mean"], summary.get("interval")
            low, high = (factor * end for end in interval) if interval else (mean, mean)
            traces.append(
                trace(
                    "scatter",
                    x=rounded([mean]),
                    y=[row - 0.12],
                    mode="markers",
                    name=f"{name} mean",
                    marker={"symbol": style.marker, "size": 11, "color": style.color},
                    error_x={
                        "type": "data",
                        "symmetric": False,
                        "array": rounded([high - mean]),
                        "arrayminus": rounded([mean - low]),
                        "color": style.color,
                        "thickness": 2.2,
                        "width": 5,
                    },
                    hovertemplate=f"mean {digits.with_interval(mean, [low, high])}<extra></extra>",
                )
            )
    figure = figure_of(traces, height=74 + 44 * len(methods))
    figure["layout"].update(
        showlegend=False,
        margin={"l": 8, "r": 12, "t": 8, "b": 34},
        xaxis={"title": {"text": with_unit(what)}},
        yaxis=rows_axis(methods),
    )
    return figure


def spectrum(findings: Findings) -> Figure:
    """Spectral density with its band over rows of Ritz values and eigenvalues, all checkpoints.

    The density's axis ends a decade below what one single eigenvalue adds at its peak,
    1 / (P sigma sqrt(2 pi)): what lies under it is the Gaussian kernel's tail, not the spectrum.
    """
    styles = theme.styles_of(findings)
    dense = with_densities(findings)
    methods = list(
        dict.fromkeys(
            theme.method_of(c) for c in findings.checkpoints if c.get("eigenvalues") or c in dense
        )
    )
    rug = 0.06 * len(methods) + 0.06 if dense else 1.0
    traces: list[Any] = []
    floor, ceiling = density_range(findings)
    for checkpoint in dense:
        traces += _density_traces(findings, checkpoint, styles[str(checkpoint["id"])], floor)
    drawn: set[str] = set()
    for checkpoint in findings.checkpoints:
        style, identifier = styles[str(checkpoint["id"])], str(checkpoint["id"])
        if style.method not in methods:
            continue
        row = methods.index(style.method)
        nodes = findings.arrays.get(f"density_{identifier}_nodes")
        if nodes is not None:
            traces.append(
                trace(
                    "scatter",
                    x=rounded(np.sort(nodes, axis=None)),
                    y=[row] * nodes.size,
                    yaxis="y2",
                    mode="markers",
                    name=f"{in_plotly(style.method)} Ritz values",
                    legendgroup=in_plotly(style.method),
                    showlegend=False,
                    marker={
                        "symbol": "line-ns",
                        "size": 11,
                        "line": {"width": 1, "color": theme.translucent(style.color, 0.4)},
                    },
                    hovertemplate="Ritz value %{x:.4~g}<extra></extra>",
                )
            )
        pairs = checkpoint.get("eigenvalues") or []
        if pairs and style.lead:
            traces += _bars_over_data(pairs, style, row)
        if pairs:
            label = in_plotly(checkpoint.get("label") or identifier)
            traces.append(
                trace(
                    "scatter",
                    x=rounded([pair["value"] for pair in pairs]),
                    y=[row] * len(pairs),
                    yaxis="y2",
                    mode="markers",
                    name=in_plotly(style.method),
                    legendgroup=in_plotly(style.method),
                    showlegend=not dense and style.method not in drawn,
                    opacity=1.0 if style.lead else 0.65,
                    marker={
                        "symbol": [
                            style.marker if pair.get("confirmed") else f"{style.marker}-open"
                            for pair in pairs
                        ],
                        "size": 9 if style.lead else 6,
                        "color": style.color,
                    },
                    error_x={
                        "type": "data",
                        "array": rounded([pair.get("residual") or 0.0 for pair in pairs]),
                        "color": style.color,
                        "thickness": 1,
                        "width": 0,
                    },
                    text=[
                        f"{label}: λ = {digits.number(pair['value'])}, residual "
                        f"{digits.number(pair.get('residual'), 2)}"
                        + _over_data(pair)
                        + ("" if pair.get("confirmed") else ", completeness not confirmed")
                        for pair in pairs
                    ],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
            drawn.add(style.method)
    figure = figure_of(traces, height=430 if dense else 90 + 44 * len(methods))
    figure["layout"].update(
        xaxis={"title": {"text": EIGENVALUE}, "anchor": "y2"},
        yaxis2={**rows_axis(methods), "domain": [0, rug], "anchor": "x"},
    )
    if dense:
        figure["layout"].update(
            yaxis={
                **log_axis([floor, ceiling]),
                "domain": [rug + 0.03, 1],
                "title": {"text": "density φ(λ)"},
                "range": [math.log10(floor), math.log10(ceiling)],
            }
        )
    return figure


def _over_data(pair: Mapping[str, Any]) -> str:
    error = pair.get("sampling_error")
    return "" if error is None else f", over the data ± {digits.number(error, 2)}"


def _bars_over_data(pairs: Sequence[Mapping[str, Any]], style: Style, row: int) -> list[Any]:
    """A pale bar for each eigenvalue's 95 % interval over the data, by turns above and below.

    Intervals of neighbours overlap; on one line they would look like one.
    """
    intervals = [pair["sampling_interval"] for pair in pairs if pair.get("sampling_interval")]
    if not intervals:
        return []
    return [
        trace(
            "scatter",
            x=rounded([end for low, high in intervals for end in (low, high, None)]),
            y=[
                y
                for i in range(len(intervals))
                for y in (*[row + (0.2 if i % 2 else -0.2)] * 2, None)
            ],
            yaxis="y2",
            mode="lines",
            connectgaps=False,
            line={"color": theme.translucent(style.color, 0.35), "width": 4},
            name=f"{in_plotly(style.method)} over the data",
            legendgroup=in_plotly(style.method),
            showlegend=False,
            hoverinfo="skip",
        )
    ]


def density_range(findings: Findings) -> tuple[float, float]:
    """The foot and the head of the density's axis (see `spectrum`)."""
    dense = with_densities(findings)
    single = [
        1 / ((c.get("num_parameters") or 1) * width * math.sqrt(2 * math.pi))
        for c in dense
        if (width := (c.get("density") or {}).get("kernel_width"))
    ]
    heads = [float(np.nanmax(findings.arrays[f"density_{c['id']}_value"])) for c in dense]
    return 0.1 * min(single, default=1e-8), 3 * max(heads, default=1.0)


def _density_traces(
    findings: Findings, checkpoint: Mapping[str, Any], style: Style, floor: float
) -> list[Any]:
    identifier = checkpoint["id"]
    grid = findings.arrays[f"density_{identifier}_grid"]
    value = findings.arrays[f"density_{identifier}_value"]
    name, method = in_plotly(checkpoint.get("label") or identifier), in_plotly(style.method)
    line = {"color": style.color, "dash": style.dash, "width": style.width}
    # A logarithmic axis has no place for zero: the curve and its band end at the axis's foot.
    above = np.maximum(value, 0.5 * floor)
    traces: list[Any] = []
    lower = findings.arrays.get(f"density_{identifier}_lower")
    upper = findings.arrays.get(f"density_{identifier}_upper")
    if lower is not None and upper is not None:
        band = np.concatenate(
            [np.maximum(upper, 0.5 * floor), np.maximum(lower, 0.5 * floor)[::-1]]
        )
        traces.append(
            trace(
                "scatter",
                x=rounded(np.concatenate([grid, grid[::-1]])),
                y=rounded(band),
                fill="toself",
                fillcolor=theme.translucent(style.color, 0.18),
                line={"width": 0, "color": style.color},
                mode="lines",
                name=f"{name} 95 % band",
                legendgroup=method,
                showlegend=False,
                hoverinfo="skip",
            )
        )
    traces.append(
        trace(
            "scatter",
            x=rounded(grid),
            y=rounded(above),
            mode="lines",
            line=line,
            opacity=style.opacity,
            name=name,
            legendgroup=method,
            hovertemplate="λ = %{x:.4~g}, φ = %{y:.3~g}",
        )
    )
    return traces


def generalisation(findings: Findings, measure: str) -> Figure:
    """The generalisation gap against one flatness measure: one point a checkpoint."""
    what, gaps = measures.named(findings, measure), measures.gap_measure(findings)
    factor = 100.0 if gaps.percent else 1.0
    styles = theme.styles_of(findings)
    traces, shown, values = [], set(), []
    for checkpoint in findings.checkpoints:
        gap = generalisation_gap(checkpoint)
        value, error = measures.value_of(checkpoint, measure)
        if gap is None or value is None:
            continue
        values.append(value)
        style = styles[str(checkpoint["id"])]
        traces.append(
            trace(
                "scatter",
                x=rounded([value]),
                y=rounded([factor * gap]),
                mode="markers",
                marker={"symbol": style.marker, "size": 10, "color": style.color},
                error_x={
                    "type": "data",
                    "array": rounded([error or 0.0]),
                    "visible": bool(error),
                    "color": style.color,
                    "thickness": 1,
                    "width": 3,
                },
                name=in_plotly(style.method),
                legendgroup=in_plotly(style.method),
                showlegend=style.method not in shown,
                text=[in_plotly(checkpoint.get("label") or checkpoint["id"])],
                hovertemplate="%{text}: (%{x:.4~g}, %{y:.4~g})<extra></extra>",
            )
        )
        shown.add(style.method)
    figure = figure_of(traces, height=280)
    figure["layout"].update(
        hovermode="closest",
        xaxis={**value_axis(values), "title": {"text": with_unit(what)}},
        yaxis={"title": {"text": with_unit(gaps)}},
    )
    return figure
