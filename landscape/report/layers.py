"""Layers: curvature and sharpness of each layer alone, the others held fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from landscape.findings import Findings
from landscape.report import digits, theme
from landscape.report.available import with_layers
from landscape.report.cells import (
    Cell,
    bounds_note,
    cell_html,
    framed,
    number_cell,
    plus_minus,
    row_head,
    sort_head,
)
from landscape.report.drawing import Figure, figure_of, rounded, rows_axis, trace, value_axis
from landscape.report.measures import bound_of, bound_of_pair, matrix_letter
from landscape.report.references import Method, spread
from landscape.report.text import escaped, in_plotly, shown

PARTS = ("lambda_max", "trace", "sharpness")
_ERRORS = {"lambda_max": "lambda_max_residual", "trace": "trace_standard_error"}


def drawn_parts(findings: Findings) -> list[str]:
    """Those of `PARTS` that some layer has."""
    return [
        part
        for part in PARTS
        if any(e.get(part) is not None for c in with_layers(findings) for e in c["layers"])
    ]


def title_of(findings: Findings, part: str) -> str:
    """The heading of one quantity, as plain text."""
    if part == "trace":
        return f"tr {matrix_letter(findings)}"
    if part == "lambda_max":
        return "λmax"
    radii = {e.get("sharpness_rho") for c in with_layers(findings) for e in c["layers"]} - {None}
    rho = f", ρ\u00a0=\u00a0{radii.pop():g}" if len(radii) == 1 else ""
    return f"worst case{rho}"


def bound(entry: Mapping[str, Any], part: str) -> str:
    """ "lower" where a layer's number is but a lower bound, "" where it is more."""
    if part == "sharpness":
        return bound_of({"kind": entry.get("sharpness_kind")})
    if part == "lambda_max":
        return bound_of_pair({"confirmed": entry.get("lambda_max_confirmed", True)})
    return ""


def figure(findings: Findings, part: str = "lambda_max") -> Figure:
    """One quantity of each layer, one marker a checkpoint, with its error."""
    styles = theme.styles_of(findings)
    having = with_layers(findings)
    names = list(dict.fromkeys(str(e["name"]) for c in having for e in c["layers"]))
    rows = {name: i for i, name in enumerate(names)}
    methods = list(dict.fromkeys(styles[str(c["id"])].method for c in having))
    traces, shown_methods, values = [], set(), []
    for checkpoint in having:
        style = styles[str(checkpoint["id"])]
        entries = [e for e in checkpoint["layers"] if e.get(part) is not None]
        values += [e[part] for e in entries]
        aside = methods.index(style.method) - (len(methods) - 1) / 2
        label = in_plotly(checkpoint.get("label") or checkpoint["id"])
        traces.append(
            trace(
                "scatter",
                x=rounded([e[part] for e in entries]),
                y=[rows[str(e["name"])] + 0.6 * aside / len(methods) for e in entries],
                mode="markers",
                opacity=style.opacity,
                marker={
                    "symbol": [
                        f"{style.marker}-open"
                        if part == "lambda_max" and bound(e, part)
                        else style.marker
                        for e in entries
                    ],
                    "size": 9 if style.lead else 6,
                    "color": style.color,
                },
                error_x={
                    "type": "data",
                    "array": rounded([e.get(_ERRORS.get(part, "")) or 0.0 for e in entries]),
                    "visible": part in _ERRORS,
                    "color": style.color,
                    "thickness": 1,
                    # Without caps a residual that is smaller than its marker is not seen in it.
                    "width": 3 if part == "trace" else 0,
                },
                name=in_plotly(style.method),
                legendgroup=in_plotly(style.method),
                showlegend=style.method not in shown_methods,
                text=[label] * len(entries),
                hovertemplate="%{text}: %{x:.4~g}<extra></extra>",
            )
        )
        shown_methods.add(style.method)
    figure = figure_of(traces, height=110 + 34 * len(names))
    title = title_of(findings, part).replace("λmax", "λ<sub>max</sub>")
    figure["layout"].update(
        hovermode="closest",
        xaxis={**value_axis(values), "title": {"text": f"{title} of the layer’s block"}},
        yaxis=rows_axis(names, length=22),
    )
    if part == "sharpness":
        figure["layout"]["xaxis"]["title"]["text"] = f"{title}, the layer alone moved"
    return figure


def caption(findings: Findings, part: str) -> str:
    """What one figure shows, and what its error is."""
    if part == "lambda_max":
        words = "A block’s largest eigenvalue is at most that of the whole matrix. Bars: residual."
        entries = [e for c in with_layers(findings) for e in c["layers"]]
        open_too = any(bound(entry, part) for entry in entries)
        return f"{words} Open: not confirmed, a lower bound." if open_too else words
    if part == "trace":
        return "The blocks’ traces add up to the whole’s. Bars: one standard error over the probes."
    kinds = {str(e.get("sharpness_kind")) for c in with_layers(findings) for e in c["layers"]}
    words = "The layer’s parameters alone move, in a ball of that radius."
    return f"{words} Each is a lower bound." if "lower bound" in kinds else words


def table(findings: Findings) -> str:
    """One row a layer; each quantity of each checkpoint's block with its error or its bound."""
    having = with_layers(findings)
    layers: dict[str, Mapping[str, Any]] = {}
    for checkpoint in having:
        for entry in checkpoint["layers"]:
            layers.setdefault(str(entry["name"]), entry)
    parts = drawn_parts(findings)
    heads = [sort_head("layer"), sort_head("parameters"), sort_head("norm")]
    for part in parts:
        word = escaped(title_of(findings, part)).replace("λmax", "λ<sub>max</sub>")
        heads += [sort_head(word, note=shown(c.get("label") or c["id"], 20)) for c in having]
    rows = []
    for name, first in layers.items():
        size, norm = first.get("num_parameters"), first.get("norm")
        cells = [Cell(digits.count(size), size), Cell(digits.number(norm, 3), norm)]
        for part in parts:
            for checkpoint in having:
                same = [e for e in checkpoint["layers"] if str(e["name"]) == name]
                cells.append(_cell(same[0] if same else {}, part))
        rows.append(f"<tr>{row_head(shown(name, 40))}{''.join(map(cell_html, cells))}</tr>")
    note = (
        "Norms are the first checkpoint’s. Small type: the residual of an eigenvalue, the standard "
        f"error of a trace.{bounds_note(''.join(rows))}"
    )
    return framed("Layers", "table-layers", heads, rows, note)


def _cell(entry: Mapping[str, Any], part: str) -> Cell:
    unconfirmed = part == "lambda_max" and not entry.get("lambda_max_confirmed", True)
    return number_cell(
        entry.get(part),
        plus_minus(entry.get(_ERRORS.get(part, ""))),
        "not confirmed" if unconfirmed else "",
        bound=bound(entry, part),
    )


def method(findings: Findings) -> Method:
    entries = [e for c in with_layers(findings) for e in c["layers"]]
    count = spread(digits.count, (len(c["layers"]) for c in with_layers(findings)))
    letter = matrix_letter(findings)
    text = (
        f"{count} layers, each the parameters of one module. The block of {letter} that they span "
        "gives λ<sub>max</sub> by Lanczos and the trace by random probes, to the budgets of the "
        "whole"
    )
    if any(e.get("sharpness") is not None for e in entries):
        kinds = sorted({str(e["sharpness_kind"]) for e in entries if e.get("sharpness_kind")})
        text += "; the worst case moves these parameters alone"
        if kinds:
            text += f" ({escaped(', '.join(kinds))})"
    seed = (findings.document.get("settings") or {}).get("seed")
    text += "." if seed is None else f". Seed {escaped(seed)}."
    return Method("Layers", f"{letter}<sub>ll</sub>, the diagonal block of layer l", text)
