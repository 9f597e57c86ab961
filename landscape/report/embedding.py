"""What the page carries for its script: figures, colours and the findings, as inert elements."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from landscape.findings import ARRAYS, RESULT, Findings, arrays_bytes, result_bytes
from landscape.report import available, captions, planes, tables, theme
from landscape.report.drawing import Figure

CONFIG = {
    # The page's own buttons save a figure from the keyboard too; plotly's bar hides axes on phones.
    "displayModeBar": False,
    "displaylogo": False,
    "responsive": True,
    # plotly.js 4 has a button that uploads the chart unless it is told not to.
    "showSendToCloud": False,
}


MOST_NUMBERS = 40_000  # one a parameter, of all checkpoints together: 0.4 MB of page


def embedded_arrays(findings: Findings) -> dict[str, Any]:
    """The arrays that the page carries: all, without those of one number a parameter if many."""
    per_parameter = {n: a for n, a in findings.arrays.items() if n.startswith("diagonal_")}
    if sum(a.size for a in per_parameter.values()) <= MOST_NUMBERS:
        return dict(findings.arrays)
    return {n: a for n, a in findings.arrays.items() if n not in per_parameter}


def embedded(findings: Findings, drawn: Mapping[str, Figure]) -> str:
    """The drawn figures, colour views, themes and the findings themselves, as script elements.

    Heights of surfaces are carried once: they are taken out of the figures, which the script fills.
    """
    arrays = arrays_bytes(embedded_arrays(findings))
    identifiers = available.with_surfaces(findings)
    views = {
        i: {
            f"{scale} {whose}": dataclasses.asdict(
                planes.color_view(findings, i, scale=scale, shared=whose == "shared")
            )
            for scale in ("linear", "log")
            for whose in ("shared", "own")
        }
        for i in identifiers
    }
    for name, figure in drawn.items():
        if name.startswith(("contour-", "surface-", "trajectory-")):
            # The script fills in what the chosen view shows from one copy of the heights.
            for trace in figure["data"]:
                for key in ("customdata", "x", "y", "z") if "z" in trace else ():
                    trace.pop(key)
    drawing = {
        "config": CONFIG,
        "figures": drawn,
        "templates": {name: theme.template(name) for name in theme.THEMES},
        "surfaces": {i: planes.heights(findings, i) for i in identifiers},
        "captions": {
            str(c["id"]): captions.surface(c)
            for c in findings.checkpoints
            if str(c["id"]) in identifiers
        },
        "views": views,
        "ranges": {i: planes.ranges_of(findings, i) for i in identifiers},
        "sharedAxes": planes.shares_axes(findings),
        "clip": planes.clip_level(findings) if identifiers else None,
        "names": {"json": RESULT, "arrays": ARRAYS, "csv": "checkpoints.csv"},
    }
    return "".join(
        (
            _script("drawing", "application/json", _json(drawing)),
            _script(
                "findings", "application/json", result_bytes(findings.document, arrays).decode()
            ),
            _script("arrays", "text/plain", base64.b64encode(arrays).decode()),
            _script("csv", "application/json", _json(tables.comparison_csv(findings))),
        )
    )


def _script(name: str, kind: str, text: str) -> str:
    # Inside a script element only "</script" and "<!--" mean something; in JSON "<" can be \u003c.
    inert = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f'<script type="{kind}" id="{name}">{inert}</script>\n'


def _json(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
