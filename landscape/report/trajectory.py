"""The trajectory: the path of a training on its plane, and how much of it the plane holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
from landscape.report.drawing import Array, rounded, trace
from landscape.report.references import Method, spread
from landscape.report.text import cut, escaped, in_plotly, shown

SHADOW = ", ".join(f"{x}px {y}px 2px #111" for x in (-1, 1) for y in (-1, 1))  # round white names


def with_trajectory(findings: Findings) -> list[dict[str, Any]]:
    """The checkpoints whose path can be drawn."""
    return [
        c
        for c in findings.checkpoints
        if c.get("trajectory") and _coordinates(findings, c) is not None
    ]


def _coordinates(findings: Findings, checkpoint: Mapping[str, Any]) -> Array | None:
    found = findings.arrays.get(f"trajectory_{checkpoint['id']}_coordinates")
    return found if found is not None and found.ndim == 2 and found.shape[1] >= 2 else None


def names_of(findings: Findings, checkpoint: Mapping[str, Any]) -> list[str]:
    """One name a point of the path, in its order; its number where a name is missing.

    The last point is the checkpoint itself, whose name stands above: it is called "last".
    """
    names = [str(name) for name in (checkpoint.get("trajectory") or {}).get("names") or []]
    if names and names[-1] == str(checkpoint.get("label")):
        names[-1] = "last"
    points = _coordinates(findings, checkpoint)
    size = 0 if points is None else len(points)
    return [*names, *(str(i + 1) for i in range(len(names), size))][:size]


def path(findings: Findings, checkpoint: Mapping[str, Any], *, named: bool) -> list[dict[str, Any]]:
    """The path over a contour: a dark line under a white one, so that it shows on every colour.

    Args:
        named: with the names of some points beside them; else the first and the last stand out
            alone.
    """
    points = _coordinates(findings, checkpoint)
    if points is None:
        return []
    names = names_of(findings, checkpoint)
    x, y = rounded(points[:, 0]), rounded(points[:, 1])
    distances = findings.arrays.get(f"trajectory_{checkpoint['id']}_distances")
    away = [
        f", {digits.number(float(d), 3)} from the plane" for d in distances
    ] if distances is not None and len(distances) == len(names) else [""] * len(names)  # fmt: skip
    shown_names = thinned(names, points) if named else [""] * len(names)
    last = len(names) - 1
    return [
        trace(
            "scatter",
            x=x,
            y=y,
            mode="lines",
            line={"width": 4, "color": "rgba(17,17,17,0.75)"},
            hoverinfo="skip",
            showlegend=False,
        ),
        trace(
            "scatter",
            x=x,
            y=y,
            mode="lines+markers+text" if named else "lines+markers",
            line={"width": 1.8, "color": "#ffffff"},
            marker={
                "symbol": ["star" if i == last else "circle" for i in range(len(names))],
                "size": [(13 if i == last else 8) if named else 5 for i in range(len(names))],
                "color": "#ffffff",
                "line": {"width": 1.2, "color": "#111111"},
            },
            text=[in_plotly(name, 16) for name in shown_names],
            textposition=places(points),
            # Names may stand beside the window, on the card: the shadow keeps them readable there.
            textfont={"size": 11, "color": "#ffffff", "shadow": SHADOW},
            customdata=[
                f"{in_plotly(name)}{where}" for name, where in zip(names, away, strict=True)
            ],
            name="path",
            showlegend=False,
            cliponaxis=not named,  # a name may stand out over the edge
            hovertemplate="%{customdata}<extra></extra>",
        ),
    ]


_APART = 0.14  # of the path's extent: closer names would overlap


def thinned(names: list[str], points: Array) -> list[str]:
    """The names of the last, the first and those between that have room; the others empty."""
    extent = float(np.ptp(points[:, :2], axis=0).max()) or 1.0
    kept: list[int] = []
    for i in (len(names) - 1, *range(len(names) - 1)):
        gaps = [float(np.linalg.norm(points[i, :2] - points[j, :2])) for j in kept]
        if all(gap >= _APART * extent for gap in gaps):
            kept.append(i)
    return [name if i in kept else "" for i, name in enumerate(names)]


def places(points: Array) -> list[str]:
    """Each name on the side of its point that the path leaves free."""
    path = points[:, :2]
    before, after = path[[0, *range(len(path) - 1)]], path[[*range(1, len(path)), len(path) - 1]]
    away = 2 * path - before - after
    # On a straight stretch both sides are free: then away from the middle of the window.
    away = np.where(np.abs(away) > 1e-9, away, path - (path.min(axis=0) + path.max(axis=0)) / 2)
    sides = away >= 0
    return [("top" if y else "bottom") + (" right" if x else " left") for x, y in sides.tolist()]


def sentence(checkpoint: Mapping[str, Any]) -> str:
    """The captured share with the caution that belongs to it, in words."""
    entry = checkpoint.get("trajectory") or {}
    label = shown(checkpoint.get("label") or checkpoint["id"], 32)
    if entry.get("caution"):
        return f"<b>{label}:</b> {shown(entry['caution'], 400)}."
    total = digits.share(entry.get("total_captured"))
    return f"<b>{label}:</b> the plane captures {total} of the path."


def cautions(findings: Findings) -> str:
    """One sentence a trajectory: never a captured share without that of a random walk."""
    items = "".join(f"<li>{sentence(c)}</li>" for c in with_trajectory(findings))
    return f'<ul class="verdict">{items}</ul>'


def share_table(findings: Findings) -> str:
    """What the plane captures of each path, beside what it captures of random walks."""
    styles = theme.styles_of(findings)
    rows = []
    for checkpoint in with_trajectory(findings):
        entry = checkpoint["trajectory"]
        walk = entry.get("random_walk") or {}
        captured = entry.get("captured") or []
        first, second = (captured[i] if i < len(captured) else None for i in (0, 1))
        shares = (first, second, entry.get("total_captured"), walk.get("total"))
        low, high = digits.share(walk.get("low")), digits.share(walk.get("high"))
        cells = [
            *(Cell(digits.share(share), share) for share in shares),
            Cell(f"{low} to {high}", walk.get("high")),
            Cell("yes" if entry.get("exceeds_random_walk") else "<b>no</b>"),
        ]
        label = label_of(checkpoint, styles)
        rows.append(f"<tr>{row_head(label)}{''.join(map(cell_html, cells))}</tr>")
    words = (
        *("path of", "component 1", "component 2", "both capture", "of a random walk"),
        *("95 % of walks", "more than a walk"),
    )
    return framed("Captured shares", "table-captured", [sort_head(w) for w in words], rows, "")


def distance_table(findings: Findings) -> str:
    """Where each checkpoint of each path lies: on the plane, away from it, and from the last."""
    rows = []
    for checkpoint in with_trajectory(findings):
        identifier = str(checkpoint["id"])
        points = _coordinates(findings, checkpoint)
        distances, radii = (
            findings.arrays.get(f"trajectory_{identifier}_{part}")
            for part in ("distances", "radii")
        )
        if points is None:
            continue
        label = shown(checkpoint.get("label") or identifier, 32)
        for i, name in enumerate(names_of(findings, checkpoint)):
            away, radius = (
                None if values is None or i >= len(values) else float(values[i])
                for values in (distances, radii)
            )
            share = None if away is None or not radius else away / radius
            cells = [
                number_cell(float(points[i, 0])),
                number_cell(float(points[i, 1])),
                number_cell(away, f"{digits.share(share, 2)} of its radius" if share else ""),
                number_cell(radius),
            ]
            head = f'{shown(name, 32)}<span class="note">{label}</span>'
            rows.append(f"<tr>{row_head(head)}{''.join(map(cell_html, cells))}</tr>")
    words = (
        "checkpoint",
        "direction 1",
        "direction 2",
        "from the plane",
        "from the last",
    )
    note = (
        "In parameter norm. A checkpoint far from the plane is drawn at its foot on it, where the "
        "loss drawn is that of the foot, not its own."
    )
    return framed("Distances", "table-distances", [sort_head(w) for w in words], rows, note)


def outside(findings: Findings, checkpoint: Mapping[str, Any]) -> int:
    """How many points of the path lie outside the surface's window."""
    points = _coordinates(findings, checkpoint)
    axes = [findings.arrays.get(f"surface_{checkpoint['id']}_{axis}") for axis in ("x", "y")]
    if points is None or any(axis is None for axis in axes):
        return 0
    inside = np.ones(len(points), dtype=bool)
    for column, axis in enumerate(axes):
        if axis is not None:
            inside &= (points[:, column] >= axis.min()) & (points[:, column] <= axis.max())
    return int((~inside).sum())


def caption(findings: Findings, checkpoint: Mapping[str, Any]) -> str:
    """Whose path, how many points, and which of them leave the window."""
    names = names_of(findings, checkpoint)
    first, last = shown(names[0], 24), shown(names[-1], 24)
    words = f"{len(names)} checkpoints, from {first} to {last} (star, at the origin)."
    left_out = outside(findings, checkpoint)
    if left_out:
        words += f" {left_out} lie outside the measured window."
    if f"surface_{checkpoint['id']}_loss" not in findings.arrays:
        words += " The loss on this plane was not measured."
    return words


def method(findings: Findings) -> Method:
    entries = [c["trajectory"] for c in with_trajectory(findings)]
    counts = spread(digits.count, (len(e.get("names") or []) for e in entries))
    walks = spread(digits.count, ((e.get("random_walk") or {}).get("num_walks") for e in entries))
    seed = (findings.document.get("settings") or {}).get("seed")
    text = (
        f"The two principal components of {counts} checkpoints of a run, seen from the last one, "
        "as orthonormal directions. The share captured is of squared distance from the last "
        f"checkpoint. Most of a random walk is captured too, so it stands beside that of {walks} "
        "walks with the same step lengths in as many dimensions."
    )
    if seed is not None:
        text += f" Seed {escaped(cut(seed, 24))}."
    return Method(
        "Trajectory",
        "d<sub>i</sub> = θ<sub>i</sub> − θ<sub>n</sub>, captured = Σ<sub>i</sub> ‖Q d<sub>i</sub>"
        "‖² / Σ<sub>i</sub> ‖d<sub>i</sub>‖², Q onto the plane",
        text,
        ("li2018", "antognini2018"),
    )
