"""write_figures: the report's figures for papers, PDF and PNG, by matplotlib.

Every figure comes at 3.3 inches (one column) and 6.8 inches (two). Fonts are embedded as TrueType
(so that text stays text), dates are fixed, and equal findings give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.comparing import generalisation_gap
from landscape.findings import Findings, write_file
from landscape.report import (
    available,
    connection,
    curves,
    eigenvalue_map,
    figures,
    measures,
    theme,
    trajectory,
)
from landscape.report.drawing import LOSS
from landscape.report.static_drawing import (
    DASHES,
    MARKERS,
    figure_bytes,
    log_scale,
    panel_grid,
    paper_style,
    symbol,
)
from landscape.report.static_planes import (
    contours,
    eigenvalue_maps,
    slices,
    surfaces,
    trajectories,
)
from landscape.report.text import in_matplotlib

WIDTHS = (3.3, 6.8)  # inches: one and two columns of a paper

Draw = Callable[[Findings, float], Figure]


def write_figures(findings: Findings, folder: str | Path) -> list[Path]:
    """Writes every figure that the findings have data for, and returns the files' paths.

    Names are NAME-WIDTHin.pdf and .png (300 dots an inch), as "spectrum-3.3in.pdf". Quick findings,
    which nobody prints, get the wide ones alone: drawing takes half a second a file.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    written = []
    widths = WIDTHS[-1:] if findings.document.get("quick") else WIDTHS
    for name, draw in static_figures(findings).items():
        for width in widths:
            with paper_style():
                figure = draw(findings, width)
                # Laid out once: each of the two files would otherwise do it again.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
                for kind in ("pdf", "png"):
                    path = folder / f"{name}-{width:g}in.{kind}"
                    written.append(write_file(path, figure_bytes(figure, kind, dots=300)))
    return written


def static_figures(findings: Findings) -> dict[str, Draw]:
    """The drawing functions by name, for which the findings have data."""
    draws: dict[str, Draw] = {}
    if available.compared_measures(findings):
        draws["comparison"] = comparison
    if available.has_spectrum(findings):
        draws["spectrum"] = spectrum
    if available.with_lines(findings):
        draws["slices"] = slices
    if available.with_surfaces(findings):
        draws["contours"] = contours
        draws["surfaces"] = surfaces
    if trajectory.with_trajectory(findings):
        draws["trajectories"] = trajectories
    if eigenvalue_map.with_maps(findings):
        draws["eigenvalue-maps"] = eigenvalue_maps
    if connection.drawn_pairs(findings):
        draws["paths"] = paths
    if findings.runs:
        draws["training"] = training
    if any(available.has_scatter(findings, m.name) for m in measures.flatness_measures(findings)):
        draws["generalisation"] = generalisation
    return draws


def comparison(findings: Findings, width: float) -> Figure:
    """Each measure: seeds as small markers, the mean with its 95 % interval."""
    panels = available.compared_measures(findings)
    styles = theme.styles_of(findings)
    methods = list(dict.fromkeys(theme.method_of(c) for c in findings.checkpoints))
    figure, all_axes = panel_grid(width, len(panels), height=0.75 + 0.2 * len(methods))
    entries = {
        str(entry["method"]): entry.get("values") or {}
        for entry in (findings.document.get("comparison") or {}).get("methods") or []
    }
    for axes, measure in zip(all_axes, panels, strict=True):
        factor = 100.0 if measure.percent else 1.0
        for row, method in enumerate(methods):
            group = [c for c in findings.checkpoints if theme.method_of(c) == method]
            style = styles[str(group[0]["id"])]
            values = [measures.value_of(c, measure.name)[0] for c in group]
            known = [factor * value for value in values if value is not None]
            look: dict[str, Any] = {
                "marker": MARKERS[style.marker],
                "color": style.color,
                "linestyle": "",
            }
            axes.plot(known, [row + 0.2] * len(known), markersize=2.5, alpha=0.5, **look)
            summary = entries.get(method, {}).get(measure.name) or {}
            if summary.get("mean") is not None:
                mean = factor * summary["mean"]
                low, high = (factor * e for e in summary.get("interval") or (summary["mean"],) * 2)
                axes.errorbar(
                    [mean],
                    [row - 0.12],
                    xerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]],
                    markersize=4,
                    capsize=2,
                    elinewidth=1,
                    **look,
                )
        axes.set_yticks(range(len(methods)), [in_matplotlib(m, 16) for m in methods])
        axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel(_title(measure))
    return figure


def _title(measure: measures.Measure) -> str:
    """The title of an axis: its unit, and the mark of a bound where values are no more."""
    bound = {"lower": " (≥)", "upper": " (≤)"}.get(measure.bound, "")
    return symbol(measure.title) + (" (%)" if measure.percent else "") + bound


def spectrum(findings: Findings, width: float) -> Figure:
    """Density with its band on a log axis over rows of Ritz values and eigenvalues."""
    styles = theme.styles_of(findings)
    dense = available.with_densities(findings)
    methods = list(dict.fromkeys(styles[str(c["id"])].method for c in findings.checkpoints))
    rug_height = 0.25 + 0.14 * len(methods)
    figure = Figure(
        figsize=(width, rug_height + 0.4 + (0.42 * width if dense else 0)), layout="constrained"
    )
    if dense:
        rows = figure.subplots(2, 1, sharex=True, height_ratios=[0.42 * width, rug_height])
        axes, rug = rows[0], rows[1]
        floor, ceiling = figures.density_range(findings)
        for checkpoint in dense:
            style, name = styles[str(checkpoint["id"])], f"density_{checkpoint['id']}"
            grid, value = findings.arrays[f"{name}_grid"], findings.arrays[f"{name}_value"]
            axes.plot(
                grid,
                np.maximum(value, floor / 2),
                color=style.color,
                linestyle=DASHES[style.dash],
                label=in_matplotlib(checkpoint.get("label") or checkpoint["id"], 24),
            )
            if f"{name}_lower" in findings.arrays:
                lower, upper = findings.arrays[f"{name}_lower"], findings.arrays[f"{name}_upper"]
                axes.fill_between(
                    grid,
                    np.maximum(lower, floor / 2),
                    np.maximum(upper, floor / 2),
                    color=style.color,
                    alpha=0.18,
                    linewidth=0,
                )
        log_scale(axes, [floor, ceiling])
        axes.set_ylim(floor, ceiling)
        axes.set_ylabel("density φ(λ)")
        axes.legend()
    else:
        rug = figure.add_subplot()
    for checkpoint in findings.checkpoints:
        style = styles[str(checkpoint["id"])]
        row = methods.index(style.method)
        nodes = findings.arrays.get(f"density_{checkpoint['id']}_nodes")
        if nodes is not None:
            rug.plot(
                nodes.ravel(), [row] * nodes.size, "|", color=style.color, alpha=0.3, markersize=5
            )
        for i, pair in enumerate((checkpoint.get("eigenvalues") or []) if style.lead else ()):
            if pair.get("sampling_interval"):
                rug.plot(
                    pair["sampling_interval"],
                    [row + (0.2 if i % 2 else -0.2)] * 2,
                    color=style.color,
                    linewidth=1.8,
                    alpha=0.4,
                    solid_capstyle="butt",
                )
        values = [pair["value"] for pair in checkpoint.get("eigenvalues") or []]
        rug.plot(
            values,
            [row] * len(values),
            linestyle="",
            marker=MARKERS[style.marker],
            color=style.color,
            markersize=4 if style.lead else 2.5,
            alpha=style.opacity,
        )
    rug.set_yticks(range(len(methods)), [in_matplotlib(m, 16) for m in methods])
    rug.set_ylim(len(methods) - 0.5, -0.5)
    rug.set_xlabel("eigenvalue λ (loss / parameter²)")
    return figure


def training(findings: Findings, width: float) -> Figure:
    """The training curves: seeds thin, means strong."""
    names = curves.drawable(findings)
    figure, all_axes = panel_grid(width, len(names), height=1.75)
    styles = theme.styles_of(findings)
    variants = list(dict.fromkeys(theme.method_of(run) for run in findings.runs))
    for axes, name in zip(all_axes, names, strict=True):
        plan = curves.TRAINING[name]
        for variant in variants:
            runs = [run for run in findings.runs if theme.method_of(run) == variant]
            style = styles[str(runs[0]["id"])]
            _training_lines(axes, runs, style, plan)
        if plan.get("log"):
            log_scale(axes)
        if name == "curvature":
            top = axes.get_ylim()[1]
            epochs, edge = (
                [line.get(key) for line in findings.runs[0]["history"]] for key in ("epoch", "edge")
            )
            if any(value is not None for value in edge):
                edge_line = axes.plot(
                    epochs, edge, color="#8a8f98", linestyle="--", linewidth=0.8, label="2/lr"
                )
                axes.legend(handles=edge_line)
            axes.set_ylim(0, 2 * top)
        axes.set_xlabel({"seconds": "wall time (s)"}.get(plan["x"], plan["x"]))
        axes.set_ylabel(plan["title"].replace("λ<sub>max</sub>", "λₘₐₓ"))
    if curves.is_crowded(findings):
        figure.set_figheight(figure.get_figheight() + 0.14 * math.ceil(len(variants) / 4))
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    elif all_axes:
        all_axes[0].legend()
    return figure


def _training_lines(
    axes: Axes,
    runs: Sequence[dict[str, Any]],
    style: theme.Style,
    plan: dict[str, Any],
) -> None:
    key = plan["key"]
    factor = 100.0 if plan.get("percent") else 1.0
    columns = []
    for run in runs:
        points = [
            (line[plan["x"]], factor * line[key])
            for line in run["history"]
            if line.get(key) is not None and line.get(plan["x"]) is not None
        ]
        if points:
            columns.append(np.array(points, dtype=float))
    averaged = len({len(column) for column in columns}) == 1
    for column in columns if len(columns) > 1 else ():
        axes.plot(column[:, 0], column[:, 1], color=style.color, alpha=0.3, linewidth=0.5)
    if columns:
        lead = np.mean(columns, axis=0) if averaged else columns[0]
        look = {"color": style.color, "linestyle": DASHES[style.dash]}
        if len(lead) == 1:
            look["marker"] = "."
        axes.plot(lead[:, 0], lead[:, 1], label=in_matplotlib(style.method, 20), **look)


def paths(findings: Findings, width: float) -> Figure:
    """The loss along each path with its barrier marked; many paths in grey but for two."""
    looks, pairs = connection.in_colour(findings), connection.drawn_pairs(findings)
    is_curved = connection.connection(findings).get("kind") == "bezier"
    figure = Figure(figsize=(width, 0.4 * width + 0.7 + 0.14 * len(looks)), layout="constrained")
    axes = figure.add_subplot()
    for pair in sorted(pairs, key=lambda pair: str(pair["id"]) in looks):
        t, loss = (findings.arrays[f"path_{pair['id']}_{part}"] for part in ("t", "loss"))
        style = looks.get(str(pair["id"]))
        if style is None:
            axes.plot(t, loss, color="#8a8f98", linewidth=0.5, alpha=0.5)
            continue
        where = pair.get("where") or 0.0
        axes.plot(t[[0, -1]], loss[[0, -1]], color=style.color, linestyle=":", linewidth=0.6)
        straight = findings.arrays.get(f"path_{pair['id']}_line_loss")
        if is_curved and straight is not None:
            axes.plot(t, straight, color=style.color, linestyle="--", linewidth=0.7)
        axes.plot(
            t,
            loss,
            color=style.color,
            linestyle="-" if is_curved else DASHES[style.dash],
            marker=MARKERS[style.marker],
            markevery=[int(np.abs(t - where).argmin())],
            markersize=4,
            label=in_matplotlib(connection.name_of(findings, pair, 16), 40),
        )
    axes.set_xlabel("t")
    axes.set_ylabel(LOSS)
    figure.legend(loc="outside upper left", ncols=1 if width < 5 else 3)
    return figure


def generalisation(findings: Findings, width: float) -> Figure:
    """The generalisation gap against each flatness measure."""
    panels = [
        m for m in measures.flatness_measures(findings) if available.has_scatter(findings, m.name)
    ]
    gaps, styles = measures.gap_measure(findings), theme.styles_of(findings)
    factor = 100.0 if gaps.percent else 1.0
    figure, all_axes = panel_grid(width, len(panels), height=1.8)
    for axes, measure in zip(all_axes, panels, strict=True):
        labelled: set[str] = set()
        for checkpoint in findings.checkpoints:
            gap, (value, _) = (
                generalisation_gap(checkpoint),
                measures.value_of(checkpoint, measure.name),
            )
            if gap is None or value is None:
                continue
            style = styles[str(checkpoint["id"])]
            axes.plot(
                [value],
                [factor * gap],
                linestyle="",
                marker=MARKERS[style.marker],
                color=style.color,
                markersize=4,
                label=None if style.method in labelled else in_matplotlib(style.method, 20),
            )
            labelled.add(style.method)
        axes.set_xlabel(_title(measure))
        axes.set_ylabel("gap (%)" if gaps.percent else "gap")
    all_axes[0].legend()
    return figure
