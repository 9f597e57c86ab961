"""The loss around a checkpoint: slices along lines, contours and surfaces over planes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.findings import Findings
from landscape.report import theme, topology, trajectory
from landscape.report.available import with_lines, with_surfaces
from landscape.report.drawing import (
    LOSS,
    Array,
    ColorAxis,
    Figure,
    axis_name,
    axis_titles,
    color_axis,
    figure_of,
    log_axis,
    rounded,
    rounded_number,
    rounded_rows,
    scale_of,
    trace,
)
from landscape.report.text import in_plotly

Spans = tuple[tuple[float, float], tuple[float, float]]


def slices(findings: Findings) -> Figure:
    """Loss along each direction, all checkpoints overlaid, one panel a direction."""
    styles = theme.styles_of(findings)
    lined = with_lines(findings)
    directions: list[str] = []
    for checkpoint in lined:
        directions += [d for d in directions_of(findings, checkpoint) if d not in directions]
    traces: list[Any] = []
    shown: set[str] = set()
    for checkpoint in lined:
        identifier = str(checkpoint["id"])
        style = styles[identifier]
        t, losses = (findings.arrays[f"line_{identifier}_{part}"] for part in ("t", "loss"))
        for direction, loss in zip(directions_of(findings, checkpoint), losses, strict=True):
            panel = directions.index(direction) + 1
            traces.append(
                trace(
                    "scatter",
                    x=rounded(t),
                    y=rounded(loss),
                    xaxis=axis_name("x", panel),
                    yaxis=axis_name("y", panel),
                    mode="lines",
                    line={"color": style.color, "dash": style.dash, "width": style.width},
                    opacity=style.opacity,
                    name=in_plotly(style.method),
                    legendgroup=in_plotly(style.method),
                    showlegend=style.method not in shown,
                    text=[in_plotly(checkpoint.get("label") or identifier)] * len(t),
                    hovertemplate="%{text}: L(%{x:.3~g}) = %{y:.4~g}<extra></extra>",
                )
            )
            shown.add(style.method)
    scaled = {"type": "linear"}
    if line_scale(findings) == "log":
        scaled = log_axis([loss for item in traces for loss in item["y"]])
    figure = figure_of(traces, height=360)
    gap = 0.05
    width = (1 - gap * (len(directions) - 1)) / len(directions)
    unit = next((c["line"]["unit"] for c in lined if (c.get("line") or {}).get("unit")), None)
    for i, direction in enumerate(directions):
        left = i * (width + gap)
        figure["layout"].update(
            {
                f"xaxis{i + 1 if i else ''}": {
                    "domain": [left, left + width],
                    "anchor": axis_name("y", i + 1),
                    "title": {
                        "text": in_plotly(direction, 24) + (f" ({in_plotly(unit)})" if unit else "")
                    },
                },
                f"yaxis{i + 1 if i else ''}": {
                    **scaled,
                    "anchor": axis_name("x", i + 1),
                    "title": {"text": LOSS if i == 0 else ""},
                    **({"matches": "y", "showticklabels": False} if i else {}),
                },
            }
        )
    return figure


def line_scale(findings: Findings) -> str:
    """ "log" where the slices span more than a factor of 50 and stay above zero."""
    return scale_of([findings.arrays[f"line_{c['id']}_loss"] for c in with_lines(findings)])


def directions_of(findings: Findings, checkpoint: Mapping[str, Any]) -> list[str]:
    """The names of a checkpoint's slices, one for each row of its losses."""
    names = [str(name) for name in (checkpoint.get("line") or {}).get("directions") or []]
    rows = len(findings.arrays[f"line_{checkpoint['id']}_loss"])
    return [*names, *(f"direction {i + 1}" for i in range(len(names), rows))][:rows]


def contour(
    findings: Findings, identifier: str, *, scale: str | None = None, shared: bool = True
) -> Figure:
    """Loss on the plane around one checkpoint: filled contours, the centre marked.

    On it what belongs to the plane: the path of the training, the other checkpoints that the plane
    goes through, and the minima where there are several.

    Args:
        scale: "linear" or "log"; by default whatever shows this comparison's range.
        shared: one colour scale for all checkpoints of the findings.
    """
    checkpoint = _by_id(findings)[identifier]
    traces = [
        _filled(findings, identifier, scale=scale, shared=shared),
        _cross(),
        *trajectory.path(findings, checkpoint, named=False),
        *topology.marks(checkpoint),
        *_landmarks(checkpoint),
    ]
    figure = figure_of(traces, height=310)
    (x_low, x_high), (y_low, y_high) = ranges_of(findings, identifier)
    x_title, y_title = axis_titles(checkpoint)
    figure["layout"].update(
        margin={"l": 8, "r": 4, "t": 8, "b": 36},
        hovermode="closest",
        xaxis={"range": [x_low, x_high], "title": {"text": x_title}, "showgrid": False},
        yaxis={"range": [y_low, y_high], "title": {"text": y_title}, "showgrid": False},
    )
    return figure


def trajectory_contour(findings: Findings, identifier: str) -> Figure:
    """The path of one training with its names, over the loss where that was measured.

    Both axes have one scale, as the directions are orthonormal: distances are as they look.
    """
    checkpoint = _by_id(findings)[identifier]
    points = findings.arrays[f"trajectory_{identifier}_coordinates"]
    has_loss = identifier in with_surfaces(findings)
    traces = [
        *([_filled(findings, identifier, scale="linear", shared=True)] if has_loss else []),
        *trajectory.path(findings, checkpoint, named=True),
    ]
    spans = [
        _holding(
            points[:, column], findings.arrays[f"surface_{identifier}_{axis}"] if has_loss else None
        )
        for column, axis in enumerate("xy")
    ]
    across, up = (high - low for low, high in spans)
    # As high as the window is at the width of half a page, within reason.
    figure = figure_of(traces, height=int(min(400.0, max(210.0, 90 + 330 * up / across))))
    x_title, y_title = axis_titles(checkpoint)
    figure["layout"].update(
        margin={"l": 8, "r": 4, "t": 8, "b": 36},
        hovermode="closest",
        xaxis={
            "range": spans[0],
            "title": {"text": x_title},
            "showgrid": False,
            "zeroline": False,
            "constrain": "domain",
        },
        yaxis={
            "range": spans[1],
            "title": {"text": y_title},
            "showgrid": False,
            "zeroline": False,
            "scaleanchor": "x",
            "constrain": "domain",
        },
    )
    return figure


def _holding(values: Array, window: Array | None) -> list[float]:
    """The window, widened on the sides where the values leave it; without one all, with room."""
    low, high = float(values.min()), float(values.max())
    room = 0.08 * (high - low or 1.0)
    left, right = low - room, high + room
    if window is not None:
        left = left if low < window.min() else float(window.min())
        right = right if high > window.max() else float(window.max())
    return [rounded_number(left), rounded_number(right)]


def _by_id(findings: Findings) -> dict[str, dict[str, Any]]:
    return {str(c["id"]): c for c in findings.checkpoints}


def _filled(
    findings: Findings, identifier: str, *, scale: str | None, shared: bool
) -> dict[str, Any]:
    view = color_view(findings, identifier, scale=scale, shared=shared)
    x, y, z = (findings.arrays[f"surface_{identifier}_{part}"] for part in ("x", "y", "loss"))
    return trace(
        "contour",
        x=rounded(x),
        y=rounded(y),
        z=rounded_rows(view.heights(z)),
        customdata=rounded_rows(z),
        colorscale=theme.MAGNITUDES,
        zmin=view.low,
        zmax=view.high,
        zauto=False,
        autocontour=False,
        contours={
            "coloring": "heatmap",
            "start": view.low,
            "end": view.high,
            "size": (view.high - view.low) / 16,
        },
        line={"width": 0.7, "color": "rgba(255,255,255,0.55)"},
        colorbar={
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": view.ticks,
            "ticktext": view.labels,
            "len": 1.0,
            "title": {"text": "L", "side": "top"},
        },
        connectgaps=False,
        hoverongaps=False,
        name="",
        hovertemplate="(%{x:.3~g}, %{y:.3~g}): L = %{customdata:.4~g}<extra></extra>",
    )


def _cross() -> dict[str, Any]:
    return trace(
        "scatter",
        x=[0.0],
        y=[0.0],
        mode="markers",
        marker={
            "symbol": "cross-thin",
            "size": 11,
            "line": {"width": 2, "color": "#ffffff"},
        },
        hoverinfo="skip",
        showlegend=False,
    )


def landmarks_of(checkpoint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The checkpoints that a plane goes through, with their place on it; none for other planes."""
    return list((checkpoint.get("surface") or {}).get("points") or [])


def _landmarks(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    points = landmarks_of(checkpoint)
    if not points:
        return []
    return [
        trace(
            "scatter",
            x=rounded([point["x"] for point in points]),
            y=rounded([point["y"] for point in points]),
            mode="markers+text",
            marker={
                "symbol": "diamond",
                "size": 9,
                "color": "#ffffff",
                "line": {"width": 1.2, "color": "#111111"},
            },
            text=[in_plotly(point["label"], 18) for point in points],
            textposition=["top right" if point["x"] <= 0 else "top left" for point in points],
            textfont={"size": 10, "color": "#ffffff", "shadow": trajectory.SHADOW},
            name="checkpoints",
            showlegend=False,
            hovertemplate="%{text}: (%{x:.3~g}, %{y:.3~g})<extra></extra>",
        )
    ]


def color_view(
    findings: Findings, identifier: str, *, scale: str | None, shared: bool
) -> ColorAxis:
    """The colour axis of a contour or a surface. Non-finite points take no part."""
    identifiers = with_surfaces(findings) if shared else [identifier]
    values = np.concatenate([findings.arrays[f"surface_{i}_loss"].ravel() for i in identifiers])
    is_log = (scale or default_scale(findings)) == "log"
    return color_axis(values, log=is_log)


def default_scale(findings: Findings) -> str:
    """ "log" where the surfaces span more than a factor of 50 and stay above zero."""
    return scale_of([findings.arrays[f"surface_{i}_loss"] for i in with_surfaces(findings)])


def shares_axes(findings: Findings) -> bool:
    """Whether all planes have the same window; planes of several trajectories have their own."""
    spans = [_span(findings, [i]) for i in with_surfaces(findings)]
    return all(span == spans[0] for span in spans)  # true of none


def ranges_of(findings: Findings, identifier: str) -> Spans:
    """The x and y range of one panel: that of all where they share it, else its own."""
    return shared_ranges(findings) if shares_axes(findings) else _span(findings, [identifier])


def shared_ranges(findings: Findings) -> Spans:
    """The smallest x and y ranges that hold all surfaces."""
    return _span(findings, with_surfaces(findings))


def _span(findings: Findings, identifiers: list[str]) -> Spans:
    def span(part: str) -> tuple[float, float]:
        axes = [findings.arrays[f"surface_{i}_{part}"] for i in identifiers]
        return (
            rounded_number(min(float(a.min()) for a in axes)),
            rounded_number(max(float(a.max()) for a in axes)),
        )

    return span("x"), span("y")


def clip_level(findings: Findings) -> float:
    """Where the clipped view ends: the median loss over all surfaces' finite points."""
    values = np.concatenate(
        [findings.arrays[f"surface_{i}_loss"].ravel() for i in with_surfaces(findings)]
    )
    return rounded_number(float(np.median(values[np.isfinite(values)])), 3)


def surface(
    findings: Findings, identifier: str, *, scale: str | None = None, shared: bool = True
) -> Figure:
    """The loss over the plane in three dimensions (WebGL)."""
    view = color_view(findings, identifier, scale=scale, shared=shared)
    x, y, z = (findings.arrays[f"surface_{identifier}_{part}"] for part in ("x", "y", "loss"))
    drawn = trace(
        "surface",
        x=rounded(x),
        y=rounded(y),
        z=rounded_rows(view.heights(z)),
        customdata=rounded_rows(z),
        colorscale=theme.MAGNITUDES,
        cmin=view.low,
        cmax=view.high,
        cauto=False,
        showscale=False,
        lighting={"ambient": 0.72, "diffuse": 0.55, "specular": 0.08, "roughness": 0.9},
        contours={"z": {"show": True, "width": 1, "color": "rgba(255,255,255,0.4)"}},
        hovertemplate="(%{x:.3~g}, %{y:.3~g}): L = %{customdata:.4~g}<extra></extra>",
    )
    figure = figure_of([drawn], height=300)
    (x_low, x_high), (y_low, y_high) = ranges_of(findings, identifier)
    figure["layout"].update(
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "xaxis": {"title": {"text": "dir. 1"}, "range": [x_low, x_high], "nticks": 4},
            "yaxis": {"title": {"text": "dir. 2"}, "range": [y_low, y_high], "nticks": 4},
            "zaxis": {
                "title": {"text": "L"},
                "range": [view.low, view.high],
                "tickvals": view.ticks,
                "ticktext": view.labels,
            },
            "aspectmode": "manual",
            "aspectratio": {"x": 1, "y": 1, "z": 0.72},
            "camera": {
                "eye": {"x": 1.5, "y": -1.5, "z": 0.9},
                "center": {"x": -0.05, "y": -0.05, "z": -0.12},
            },
        },
    )
    return figure


def heights(findings: Findings, identifier: str) -> dict[str, Any]:
    """A surface's axes and losses, rounded for drawing: z[y][x], None where not finite."""
    x, y, z = (findings.arrays[f"surface_{identifier}_{part}"] for part in ("x", "y", "loss"))
    return {"x": rounded(x), "y": rounded(y), "z": rounded_rows(z)}


def cross_slices(findings: Findings, axis: str) -> Figure:
    """The row ("x") or the column ("y") of every surface through its centre."""
    styles = theme.styles_of(findings)
    traces = []
    by_id = {str(c["id"]): c for c in findings.checkpoints}
    for identifier in with_surfaces(findings):
        style = styles[identifier]
        x, y, z = (findings.arrays[f"surface_{identifier}_{part}"] for part in ("x", "y", "loss"))
        along, loss = (x, z[np.abs(y).argmin()]) if axis == "x" else (y, z[:, np.abs(x).argmin()])
        traces.append(
            trace(
                "scatter",
                x=rounded(along),
                y=rounded(loss),
                mode="lines",
                line={"color": style.color, "dash": style.dash, "width": style.width},
                opacity=style.opacity,
                name=in_plotly(by_id[identifier].get("label") or identifier),
                hovertemplate="L(%{x:.3~g}) = %{y:.4~g}",
            )
        )
    figure = figure_of(traces, height=280)
    figure["layout"].update(
        xaxis={"title": {"text": "direction 1" if axis == "x" else "direction 2"}},
        yaxis={"title": {"text": LOSS}},
    )
    return figure
