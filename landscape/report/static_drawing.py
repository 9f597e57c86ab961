"""What the figures for papers share: fonts and lines, layouts, axes, and bytes that repeat."""

from __future__ import annotations

import datetime
import io
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from landscape.report.drawing import log_axis
from landscape.report.text import in_matplotlib

DATE = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)  # noqa: UP017

DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.4)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 1.5, 1, 1.5)),
}
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "star": "*",
}

_STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "axes.unicode_minus": True,
    "svg.hashsalt": "landscape",
}


@contextmanager
def paper_style() -> Iterator[None]:
    with rc_context(_STYLE), warnings.catch_warnings():
        # A name may hold letters that the font lacks: it shows boxes, which is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def figure_bytes(figure: Figure, kind: str, *, dots: int) -> bytes:
    buffer = io.BytesIO()
    if kind == "pdf":
        FigureCanvasPdf(figure)
        metadata: dict[str, Any] = {"CreationDate": DATE, "Producer": None, "Creator": None}
        figure.savefig(buffer, format="pdf", metadata=metadata)
    else:
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=dots, metadata={"Software": None})
    return buffer.getvalue()


def panel_grid(width: float, panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels: up to three in a row at two columns' width, one or two else."""
    columns = min(panels, 3 if width > 5 else 2 if panels > 3 else 1)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for one in axes:
        one.locator_params(axis="x", nbins=4 if columns > 1 else 6)
    return figure, axes


def symbol(title: str) -> str:
    # Subscript letters of the font itself: mathematics would embed a second font in every file.
    return in_matplotlib(title, 60).replace("λmax", "λₘₐₓ").replace("λmin", "λₘᵢₙ")


def log_scale(axes: Axes, values: Iterable[float | None] | None = None) -> None:
    """A logarithmic y axis whose ticks are the numbers that they stand for, as on the page.

    Matplotlib's own are powers of ten, which mathematics sets in a second font, and none of them
    may be in view.

    Args:
        values: that it holds; by default those of the lines that are drawn.
    """
    if values is None:
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
        values = np.concatenate(drawn).tolist() if drawn else []
    plan = log_axis(values)
    axes.set_yscale("log")
    axes.yaxis.set_ticks(plan["tickvals"], labels=plan["ticktext"])
    axes.yaxis.set_minor_formatter(NullFormatter())
