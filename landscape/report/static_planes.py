"""Planes for papers: slices, contours, surfaces, eigenvalue maps and trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from landscape.findings import Findings
from landscape.report import available, eigenvalue_map, planes, theme, topology, trajectory
from landscape.report.drawing import ColorAxis, color_axis
from landscape.report.static_drawing import (
    DASHES,
    figure_bytes,
    log_scale,
    panel_grid,
    paper_style,
    symbol,
)
from landscape.report.text import in_matplotlib


def surface_png(findings: Findings, identifier: str) -> bytes:
    """The static picture of one surface in three dimensions, for print and without WebGL."""
    with paper_style():
        figure = Figure(figsize=(3.3, 2.7))
        axes = figure.add_subplot(projection="3d")
        _surface(axes, findings, identifier)
        figure.subplots_adjust(left=0, right=0.95, bottom=0.03, top=1.0)
        return figure_bytes(figure, "png", dots=150)


def slices(findings: Findings, width: float) -> Figure:
    """Loss along each direction, checkpoints overlaid."""
    styles = theme.styles_of(findings)
    lined = available.with_lines(findings)
    directions: list[str] = []
    for checkpoint in lined:
        directions += [d for d in planes.directions_of(findings, checkpoint) if d not in directions]
    figure, all_axes = panel_grid(width, len(directions), height=2.0)
    for axes, direction in zip(all_axes, directions, strict=True):
        labelled: set[str] = set()
        for checkpoint in lined:
            style, identifier = styles[str(checkpoint["id"])], str(checkpoint["id"])
            names = planes.directions_of(findings, checkpoint)
            if direction not in names:
                continue
            axes.plot(
                findings.arrays[f"line_{identifier}_t"],
                findings.arrays[f"line_{identifier}_loss"][names.index(direction)],
                color=style.color,
                linestyle=DASHES[style.dash],
                linewidth=0.6 * style.width,
                alpha=style.opacity,
                label=None if style.method in labelled else in_matplotlib(style.method, 20),
            )
            labelled.add(style.method)
        axes.set_xlabel(in_matplotlib(direction, 28))
        axes.set_ylabel("loss")
        if planes.line_scale(findings) == "log":
            log_scale(axes)
    all_axes[0].legend()
    return figure


def contours(findings: Findings, width: float) -> Figure:
    """Every plane on one colour scale, on shared axes where the planes share them.

    The path of the training, the checkpoints that a plane goes through and several minima are
    marked as on the page.
    """
    identifiers = available.with_surfaces(findings)
    by_id = {str(c["id"]): c for c in findings.checkpoints}
    figure, all_axes = panel_grid(
        width, len(identifiers), height=2.1 if len(identifiers) > 1 else 2.6
    )
    view = _view(findings)
    drawn: Any = None
    for axes, identifier in zip(all_axes, identifiers, strict=True):
        checkpoint = by_id[identifier]
        drawn = _filled(axes, findings, identifier, view)
        axes.plot([0], [0], "+", color="white", markersize=5)
        _path(axes, findings, checkpoint, named=False)
        for number, point in enumerate(topology.marked(checkpoint), start=1):
            _disc(axes, point["x"], point["y"], str(number))
        for point in planes.landmarks_of(checkpoint):
            axes.plot([point["x"]], [point["y"]], "D", color="white", mec="#111111", markersize=3)
            _name(axes, point["x"], point["y"], str(point["label"]))
        axes.set_title(in_matplotlib(checkpoint.get("label") or identifier, 28))
        (x_low, x_high), (y_low, y_high) = planes.ranges_of(findings, identifier)
        axes.set_xlim(x_low, x_high)
        axes.set_ylim(y_low, y_high)
        axes.set_xlabel("direction 1")
        axes.set_ylabel("direction 2")
    _colorbar(figure, drawn, all_axes, view, "loss")
    return figure


def trajectories(findings: Findings, width: float) -> Figure:
    """Each path on its plane, over the loss where that was measured, on one scale both ways."""
    having = trajectory.with_trajectory(findings)
    figure, all_axes = panel_grid(width, len(having), height=2.2 if len(having) > 1 else 2.9)
    measured = available.with_surfaces(findings)
    drawn: Any = None
    for axes, checkpoint in zip(all_axes, having, strict=True):
        identifier = str(checkpoint["id"])
        if identifier in measured:
            drawn = _filled(axes, findings, identifier, _view(findings))
        else:
            axes.set_facecolor("#5b626b")
        _path(axes, findings, checkpoint, named=True)
        axes.set_title(in_matplotlib(checkpoint.get("label") or identifier, 28))
        axes.set_aspect("equal", adjustable="datalim" if identifier not in measured else "box")
        axes.set_xlabel("direction 1")
        axes.set_ylabel("direction 2")
    if drawn is not None:
        _colorbar(figure, drawn, all_axes, _view(findings), "loss")
    return figure


def eigenvalue_maps(findings: Findings, width: float) -> Figure:
    """Both maps of each checkpoint: a row of panels a quantity, on one colour scale each."""
    having = eigenvalue_map.with_maps(findings)
    rows, columns = len(eigenvalue_map.PARTS), len(having)
    figure = Figure(
        figsize=(width, 2 * min(2.1, 0.8 * width / columns + 0.5)), layout="constrained"
    )
    for row, (part, title) in enumerate(eigenvalue_map.PARTS.items()):
        values = eigenvalue_map.values(findings, part)
        view = color_axis(values, log=eigenvalue_map.scale(findings, part) == "log")
        in_row, drawn = [], None
        for column, checkpoint in enumerate(having):
            axes = figure.add_subplot(rows, columns, row * columns + column + 1)
            identifier = str(checkpoint["id"])
            x, y, z = (findings.arrays[f"map_{identifier}_{key}"] for key in ("x", "y", part))
            drawn = axes.pcolormesh(
                x,
                y,
                np.ma.masked_invalid(view.heights(z)),
                norm=Normalize(view.low, view.high),
                cmap="viridis",
                shading="nearest",
            )
            drawn.set_rasterized(True)
            axes.plot([0], [0], "+", color="white", markersize=5)
            axes.locator_params(nbins=4)
            if row == 0:
                axes.set_title(in_matplotlib(checkpoint.get("label") or identifier, 20))
            if row == rows - 1:
                axes.set_xlabel("direction 1")
            if column == 0:
                axes.set_ylabel("direction 2")
            in_row.append(axes)
        _colorbar(figure, drawn, in_row, view, symbol(title))
    return figure


def _filled(axes: Axes, findings: Findings, identifier: str, view: ColorAxis) -> Any:
    """The loss on a plane in colours with its level lines."""
    x, y, z = (findings.arrays[f"surface_{identifier}_{p}"] for p in ("x", "y", "loss"))
    height = np.ma.masked_invalid(view.heights(z))
    drawn = axes.pcolormesh(
        x,
        y,
        height,
        norm=Normalize(view.low, view.high),
        cmap="viridis",
        # Interpolated colours would spread a point that is not finite over its neighbours.
        shading="gouraud" if np.isfinite(z).all() else "nearest",
    )
    drawn.set_rasterized(True)
    levels = np.linspace(view.low, view.high, 16)[1:-1]
    axes.contour(x, y, height, levels=levels, colors="white", linewidths=0.4, linestyles="solid")
    return drawn


def _path(axes: Axes, findings: Findings, checkpoint: dict[str, Any], *, named: bool) -> None:
    """A training's path in white on dark; its last point, at the origin, a star."""
    points = findings.arrays.get(f"trajectory_{checkpoint['id']}_coordinates")
    if points is None or not checkpoint.get("trajectory"):
        return
    x, y = points[:, 0], points[:, 1]
    axes.plot(x, y, color="#111111", linewidth=1.8)
    size = 3.2 if named else 1.8
    look: dict[str, Any] = {"color": "white", "markeredgecolor": "#111111", "markeredgewidth": 0.5}
    axes.plot(x, y, linewidth=0.9, marker="o", markersize=size, **look)
    axes.plot(x[-1:], y[-1:], marker="*", markersize=2 * size, linestyle="", **look)
    names = trajectory.names_of(findings, checkpoint)
    for name, place, at_x, at_y in zip(
        trajectory.thinned(names, points), trajectory.places(points), x, y, strict=True
    ):
        if named and name:
            _name(axes, float(at_x), float(at_y), name, place=place)


def _name(axes: Axes, x: float, y: float, name: str, *, place: str = "top right") -> None:
    vertical, horizontal = place.split()
    text = axes.annotate(
        in_matplotlib(name, 16),
        (x, y),
        xytext=(3 if horizontal == "right" else -3, 3 if vertical == "top" else -3),
        textcoords="offset points",
        ha="left" if horizontal == "right" else "right",
        va="bottom" if vertical == "top" else "top",
        fontsize=5.5,
        color="white",
    )
    text.set_path_effects([Stroke(linewidth=1.2, foreground="#111111"), Normal()])


def _disc(axes: Axes, x: float, y: float, number: str) -> None:
    axes.plot([x], [y], "o", color="white", mec="#111111", mew=0.6, markersize=6)
    axes.annotate(number, (x, y), ha="center", va="center", fontsize=4.5, color="#111111")


def _view(findings: Findings) -> ColorAxis:
    identifier = available.with_surfaces(findings)[0]
    return planes.color_view(findings, identifier, scale=None, shared=True)


def _colorbar(
    figure: Figure, drawn: Any, all_axes: Sequence[Axes], view: ColorAxis, label: str
) -> None:
    bar = figure.colorbar(drawn, ax=all_axes, label=label, shrink=0.9, aspect=30)
    bar.set_ticks(view.ticks, labels=view.labels)  # type: ignore[arg-type]
    bar.minorticks_off()


def surfaces(findings: Findings, width: float) -> Figure:
    """Every plane in three dimensions, on one scale."""
    identifiers = available.with_surfaces(findings)
    by_id = {str(c["id"]): c for c in findings.checkpoints}
    columns = min(len(identifiers), 3 if width > 5 else 1)
    rows = math.ceil(len(identifiers) / columns)
    figure = Figure(figsize=(width, 0.85 * width / columns * rows))
    for i, identifier in enumerate(identifiers):
        axes = figure.add_subplot(rows, columns, i + 1, projection="3d")
        _surface(axes, findings, identifier)
        axes.set_title(in_matplotlib(by_id[identifier].get("label") or identifier, 28), y=0.98)
    figure.subplots_adjust(left=0.01, right=0.93, bottom=0.06, top=0.94, wspace=0.18, hspace=0.2)
    return figure


def _surface(axes: Any, findings: Findings, identifier: str) -> None:
    x, y, z = (findings.arrays[f"surface_{identifier}_{p}"] for p in ("x", "y", "loss"))
    view = _view(findings)
    height = view.heights(z)
    low, high = view.low, view.high
    across, along = np.meshgrid(x, y)
    axes.plot_surface(
        across,
        along,
        np.ma.masked_invalid(height),
        cmap="viridis",
        norm=Normalize(low, high),
        rcount=60,
        ccount=60,
        linewidth=0,
        antialiased=False,
    )
    axes.set_zlim(low, high)
    axes.view_init(elev=28, azim=-58)
    axes.set_xlabel("direction 1", labelpad=-8)
    axes.set_ylabel("direction 2", labelpad=-8)
    axes.set_zlabel("L", labelpad=-8)
    axes.tick_params(pad=-3, labelsize=5)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)
    axes.set_zticks(view.ticks[:: -(-len(view.ticks) // 5)])
    axes.set_zticklabels(view.labels[:: -(-len(view.ticks) // 5)])
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.fill = False
