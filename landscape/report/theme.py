"""Colours, dashes and markers: who looks like what, in both themes, on the page and on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landscape.findings import Findings

# Okabe and Ito's palette without its yellow (pale on white) and its black (lost on black).
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star")
MAGNITUDES = "Viridis"

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

THEMES: dict[str, dict[str, str]] = {
    "light": {
        "page": "#f7f7f5",
        "card": "#ffffff",
        "sunken": "#f1f1ee",
        "line": "#dfdfda",
        "grid": "#ebebe7",
        "ink": "#1a1d21",
        "muted": "#5b626b",
        "accent": "#00629b",
        "good": "#00694d",
        "good-back": "#e3f3ec",
        "warn": "#8a4b00",
        "warn-back": "#fff4e0",
        "warn-line": "#e8b45c",
    },
    "dark": {
        "page": "#101317",
        "card": "#171b20",
        "sunken": "#1e2329",
        "line": "#2e353d",
        "grid": "#262c33",
        "ink": "#e7e9ec",
        "muted": "#9da6b0",
        "accent": "#6bbcf0",
        "good": "#63d2ab",
        "good-back": "#12332a",
        "warn": "#f4c06a",
        "warn-back": "#2f2513",
        "warn-line": "#7a5a1e",
    },
}


@dataclass(frozen=True)
class Style:
    """How one checkpoint or run is drawn: colour, dash and marker say the method.

    Attributes:
        method: the method's name as it was given.
        order: the method's place among the methods, from 0.
        lead: the first seed of its method, drawn strong; the others are drawn thin and pale.
    """

    method: str
    order: int
    lead: bool

    @property
    def color(self) -> str:
        return OKABE_ITO[self.order % len(OKABE_ITO)]

    @property
    def dash(self) -> str:
        # A palette that has come round meets another dash, so no two methods look the same.
        return DASHES[(self.order + self.order // len(OKABE_ITO)) % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[(self.order + self.order // len(OKABE_ITO)) % len(MARKERS)]

    @property
    def width(self) -> float:
        return 2.2 if self.lead else 1.1

    @property
    def opacity(self) -> float:
        return 1.0 if self.lead else 0.5


def method_of(entry: Mapping[str, Any]) -> str:
    """The group that a checkpoint or run belongs to: its method, variant, or its own label."""
    for key in ("method", "variant", "label", "name", "id"):
        if entry.get(key):
            return str(entry[key])
    return ""


def methods_of(findings: Findings) -> list[str]:
    """The methods in the order of their first checkpoint or run: the order of colours."""
    entries = [*findings.checkpoints, *findings.runs]
    return list(dict.fromkeys(method_of(entry) for entry in entries))


def styles_of(findings: Findings) -> dict[str, Style]:
    """The style of each checkpoint and each run, by id."""
    order = {method: i for i, method in enumerate(methods_of(findings))}
    styles = {}
    for group in (findings.checkpoints, findings.runs):
        seen: set[str] = set()
        for entry in group:
            method = method_of(entry)
            styles[str(entry["id"])] = Style(method, order[method], lead=method not in seen)
            seen.add(method)
    return styles


def translucent(color: str, alpha: float) -> str:
    """The hexadecimal colour as `rgba(...)`."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def css_variables() -> str:
    """The themes as CSS custom properties: light, dark by preference, and either by choice."""

    def block(name: str) -> str:
        scheme = f"color-scheme:{name};"
        return scheme + "".join(f"--{key}:{value};" for key, value in THEMES[name].items())

    light, dark = block("light"), block("dark")
    return (
        f":root{{{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f":root[data-theme=light]{{{light}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
        f"@media print{{:root,:root[data-theme]{{{light}}}}}\n"
    )


def template(name: str) -> dict[str, Any]:
    """The plotly template of a theme: everything that a redraw in the other theme must change."""
    theme = THEMES[name]
    axis = {
        "gridcolor": theme["grid"],
        "linecolor": theme["line"],
        "zerolinecolor": theme["line"],
        "zerolinewidth": 1,
        "tickcolor": theme["line"],
        "tickfont": {"size": 11, "color": theme["muted"]},
        "title": {"font": {"size": 12, "color": theme["muted"]}, "standoff": 8},
        "automargin": True,
        "ticks": "outside",
        "ticklen": 4,
        "exponentformat": "power",
        "showline": True,
    }
    space = {
        "backgroundcolor": theme["card"],
        "gridcolor": theme["line"],
        "showbackground": False,
        "tickfont": {"size": 10, "color": theme["muted"]},
        "title": {"font": {"size": 11, "color": theme["muted"]}},
        "zerolinecolor": theme["line"],
        "linecolor": theme["line"],
    }
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(OKABE_ITO),
            "font": {"family": SANS, "size": 12, "color": theme["ink"]},
            "hoverlabel": {
                "bgcolor": theme["card"],
                "bordercolor": theme["line"],
                "font": {"family": SANS, "size": 12, "color": theme["ink"]},
                "align": "left",
            },
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "xanchor": "left",
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
                "font": {"size": 12, "color": theme["ink"]},
            },
            "modebar": {
                "bgcolor": "rgba(0,0,0,0)",
                "color": theme["muted"],
                "activecolor": theme["accent"],
            },
            "xaxis": axis,
            "yaxis": axis,
            "scene": {"xaxis": space, "yaxis": space, "zaxis": space},
        },
    }
