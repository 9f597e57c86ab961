"""Curves over training: losses, accuracies, curvature with its edges, the switching signal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.findings import Findings
from landscape.report import theme
from landscape.report.available import has_history
from landscape.report.drawing import Figure, figure_of, log_axis, rounded, rounded_number, trace
from landscape.report.text import in_plotly

TRAINING: dict[str, dict[str, Any]] = {
    # The mean over the epoch's batches, each at the weights of its step: no pass over the data.
    "loss": {
        "key": "train_loss",
        "x": "epoch",
        "title": "running training loss",
        "log": True,
    },
    "test-loss": {"key": "test_loss", "x": "epoch", "title": "test loss", "log": True},
    "accuracy": {
        "key": "test_accuracy",
        "x": "epoch",
        "title": "test accuracy (%)",
        "percent": True,
    },
    "curvature": {"key": "lambda_max", "x": "epoch", "title": "λ<sub>max</sub>"},
    "share": {
        "key": "perturbed_share",
        "x": "epoch",
        "title": "perturbed steps so far (%)",
        "percent": True,
    },
    "gradients": {"key": "gradients", "x": "epoch", "title": "gradients spent"},
    "by-gradients": {
        "key": "test_accuracy",
        "x": "gradients",
        "title": "test accuracy (%)",
        "percent": True,
    },
    "by-seconds": {
        "key": "test_accuracy",
        "x": "seconds",
        "title": "test accuracy (%)",
        "percent": True,
    },
}

FEW = 8  # variants that a legend can hold; more of them are chosen by the reader, the rest grey
BEST = 5  # of many variants that are in colour at first, beside the reference

_X_TITLES = {"epoch": "epoch", "gradients": "gradients spent", "seconds": "wall time (s)"}


def drawable(findings: Findings) -> list[str]:
    """The names of `TRAINING` for which the runs have data."""
    return [
        name
        for name, plan in TRAINING.items()
        if has_history(findings, plan["key"])
        and has_history(findings, plan["x"])
        # measured once, at the end, it is in the table and no curve
        and (name != "curvature" or _is_curve(findings, plan["key"]))
    ]


def _is_curve(findings: Findings, key: str) -> bool:
    return any(sum(v is not None for v in _column(run, key)) > 1 for run in findings.runs)


def is_crowded(findings: Findings) -> bool:
    """Whether there are too many variants for a legend and for colours at once."""
    return len(_by_variant(findings)) > FEW


def in_colour(findings: Findings) -> list[str]:
    """Of many variants those in colour at first: the reference and the best by test accuracy."""
    ends = {
        variant: [v for run in runs for v in _column(run, "test_accuracy")[-1:] if v is not None]
        for variant, runs in _by_variant(findings).items()
    }
    ranked = sorted(ends, key=lambda v: -float(np.mean(ends[v])) if ends[v] else float("inf"))
    return list(dict.fromkeys([next(iter(ends)), *ranked[:BEST]]))


def training(findings: Findings, name: str) -> Figure:
    """One quantity over training: each seed thin, each variant's mean over seeds strong."""
    plan = TRAINING[name]
    traces = _curves(findings, plan)
    if name == "curvature":
        traces += _edges(findings)
    figure = figure_of(traces, height=300)
    if is_crowded(findings):
        margin = {**figure["layout"]["margin"], "t": 10}
        figure["layout"].update(showlegend=False, hovermode="closest", margin=margin)
    yaxis: dict[str, Any] = {"title": {"text": plan["title"]}}
    if plan.get("log"):
        yaxis.update(log_axis([value for curve in traces for value in curve["y"]]))
    if name == "share":
        yaxis["range"] = [-4, 104]
    if name == "curvature":
        top = [v for run in findings.runs for v in _column(run, "lambda_max") if v is not None]
        # The edge 2/lr goes to infinity as the rate decays; the axis stays with what was measured.
        yaxis["range"] = [0, rounded_number(2.2 * max(top), 3)]
    xaxis = epoch_axis(findings) if plan["x"] == "epoch" else {}
    title = {"title": {"text": _X_TITLES[plan["x"]]}}
    figure["layout"].update(xaxis={**xaxis, **title}, yaxis=yaxis)
    return figure


def epoch_axis(findings: Findings) -> dict[str, Any]:
    """An axis whose ticks are whole epochs, however few there are."""
    epochs = [e for run in findings.runs for e in _column(run, "epoch") if e is not None]
    low, high = min(epochs, default=0), max(epochs, default=1)
    if high - low > 8:
        return {}
    return {"tick0": low, "dtick": 1, **({"range": [low - 1, low + 1]} if low == high else {})}


def _curves(findings: Findings, plan: Mapping[str, Any]) -> list[Any]:
    styles = theme.styles_of(findings)
    factor = 100.0 if plan.get("percent") else 1.0
    traces: list[Any] = []
    for variant, runs in _by_variant(findings).items():
        columns = []
        name = in_plotly(variant)
        style = styles[str(runs[0]["id"])]
        for run in runs:
            pairs = zip(_column(run, plan["x"]), _column(run, plan["key"]), strict=True)
            points = [(x, factor * y) for x, y in pairs if x is not None and y is not None]
            if points:
                columns.append((run, points))
        # Runs that ended at different times have no common mean: then the first seed leads.
        averaged = len(columns) > 1 and len({len(points) for _, points in columns}) == 1
        for i, (run, points) in enumerate(columns):
            thin = averaged or i > 0
            traces.append(
                trace(
                    "scatter",
                    x=rounded([x for x, _ in points]),
                    y=rounded([y for _, y in points]),
                    mode=_mode(points),
                    line={
                        "color": theme.translucent(style.color, 0.35) if thin else style.color,
                        "width": 1 if thin else 2.2,
                        "dash": style.dash,
                    },
                    name=in_plotly(run.get("name") or run["id"]) if thin else name,
                    legendgroup=in_plotly(variant),
                    meta={"curve": style.order, "lead": not thin},
                    showlegend=not thin,
                    hoverinfo="skip" if thin else None,
                )
            )
        if averaged:
            mean = np.mean([points for _, points in columns], axis=0)
            traces.append(
                trace(
                    "scatter",
                    x=rounded(mean[:, 0]),
                    y=rounded(mean[:, 1]),
                    mode=_mode(mean),
                    line={"color": style.color, "width": 2.4, "dash": style.dash},
                    name=name,
                    legendgroup=in_plotly(variant),
                    meta={"curve": style.order, "lead": True},
                    hovertemplate="%{y:.4~g}",
                )
            )
    return traces


def _mode(points: Any) -> str:
    return "lines" if len(points) > 1 else "markers"  # a line through one point is nothing


def _edges(findings: Findings) -> list[Any]:
    """The edge of stability 2/lr, once where all runs share it, and each variant's SAM edge."""
    styles = theme.styles_of(findings)
    traces: list[Any] = []
    seen: set[tuple[Any, ...]] = set()
    for variant, runs in _by_variant(findings).items():
        style = styles[str(runs[0]["id"])]
        for key, name, dash, color in (
            ("edge", "2/lr edge", "dash", "#8a8f98"),
            ("sam_edge", f"SAM edge, {in_plotly(variant)}", "dot", style.color),
        ):
            x, y = _column(runs[0], "epoch"), _column(runs[0], key)
            line = tuple(y)
            if all(value is None for value in y) or (key == "edge" and line in seen):
                continue
            seen.add(line)
            heuristic = key == "sam_edge" and any(_column(runs[0], "sam_edge_heuristic"))
            traces.append(
                trace(
                    "scatter",
                    x=x,
                    y=[None if value is None else rounded_number(value) for value in y],
                    mode="lines",
                    line={"color": color, "dash": dash, "width": 1.3},
                    name=name + (" (heuristic)" if heuristic else ""),
                    meta={"curve": style.order, "lead": False} if key == "sam_edge" else None,
                    hovertemplate="%{y:.4~g}",
                )
            )
    return traces


def switching_signal(findings: Findings, variant: str) -> Figure:
    """The signal of an adaptive policy with its running mean and threshold, over its share.

    The strong curve is the first seed; mean and threshold belong to it.
    """
    runs = [run for run in findings.runs if theme.method_of(run) == variant]
    style = theme.styles_of(findings)[str(runs[0]["id"])]
    traces: list[Any] = []
    for i, run in enumerate(runs):
        epochs = _column(run, "epoch")
        pale = theme.translucent(style.color, 0.3)
        traces.append(
            trace(
                "scatter",
                x=epochs,
                y=rounded(_column(run, "signal")),
                mode="lines",
                line={"color": pale if i else style.color, "width": 1 if i else 2},
                name="signal",
                showlegend=i == 0,
                hovertemplate="signal %{y:.4~g}<extra></extra>",
            )
        )
        if i == 0:
            for key, name, dash in (
                ("signal_mean", "running mean", "dash"),
                ("threshold", "threshold", "dot"),
            ):
                column = _column(run, key)
                if any(value is not None for value in column):
                    traces.append(
                        trace(
                            "scatter",
                            x=epochs,
                            y=rounded(column),
                            mode="lines",
                            line={"color": "#8a8f98", "width": 1.6, "dash": dash},
                            name=name,
                            hovertemplate=name + " %{y:.4~g}<extra></extra>",
                        )
                    )
        traces.append(
            trace(
                "scatter",
                x=epochs,
                y=rounded(
                    [None if v is None else 100 * v for v in _column(run, "perturbed_share")]
                ),
                yaxis="y2",
                mode="lines",
                line={"color": pale if i else style.color, "width": 1 if i else 2},
                name="perturbed share",
                showlegend=False,
                hovertemplate="%{y:.3~g} % of steps perturbed<extra></extra>",
            )
        )
    figure = figure_of(traces, height=340)
    figure["layout"].update(
        xaxis={**epoch_axis(findings), "title": {"text": "epoch"}, "anchor": "y2"},
        yaxis={"domain": [0.42, 1], "title": {"text": "signal"}, "anchor": "x"},
        yaxis2={
            "domain": [0, 0.34],
            "title": {"text": "perturbed (%)"},
            "anchor": "x",
            "range": [0, 104],
        },
    )
    return figure


def _by_variant(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in findings.runs:
        groups.setdefault(theme.method_of(run), []).append(run)
    return groups


def _column(run: Mapping[str, Any], key: str) -> list[Any]:
    return [line.get(key) for line in run["history"]]
