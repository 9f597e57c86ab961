"""What the figures share: traces, layouts, axes, ticks and rounding. Plain types alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.report import measures
from landscape.report.text import in_plotly

Array = NDArray[Any]
Figure = dict[str, Any]

LOSS = "loss L"


def trace(kind: str, **attributes: Any) -> dict[str, Any]:
    return {"type": kind, **attributes}


def figure_of(traces: Sequence[dict[str, Any]], *, height: int) -> Figure:
    layout = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 36, "b": 40},
        "hovermode": "x unified" if len(traces) < 8 else "closest",
    }
    return {"data": list(traces), "layout": layout}


def rows_axis(names: Sequence[str], *, length: int = 20) -> dict[str, Any]:
    """An axis with one named row a method, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [in_plotly(name, length) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "showline": False,
    }


def axis_name(letter: str, panel: int) -> str:
    return letter if panel == 1 else f"{letter}{panel}"


def subscripts(title: str) -> str:
    text = in_plotly(title, 60)
    return text.replace("λmax", "λ<sub>max</sub>").replace("λmin", "λ<sub>min</sub>")


def with_unit(measure: measures.Measure) -> str:
    return subscripts(measure.title) + (" (%)" if measure.percent else "")


def rounded_number(value: float, digits_kept: int = 6) -> float:
    return float(f"{value:.{digits_kept - 1}e}")


def scale_of(losses: Sequence[Array]) -> str:
    values = np.concatenate([loss.ravel() for loss in losses])
    values = values[np.isfinite(values)]
    wide = values.size > 0 and values.min() > 0 and values.max() > 50 * values.min()
    return "log" if wide else "linear"


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six significant digits, more than a screen resolves; None where there is no finite number."""
    return [
        None if value is None or not math.isfinite(value) else rounded_number(float(value))
        for value in values
    ]


def rounded_rows(values: Array) -> list[list[float | None]]:
    """The same for a grid, to five digits."""
    return [
        [rounded_number(v, 5) if math.isfinite(v) else None for v in row] for row in values.tolist()
    ]


def nice_ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the ends."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 8)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """log10 of 1, 2, 5 x powers of ten between the ends (1 x alone over many decades)."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [math.log10(f) + d for d in decades for f in factors]
    return [tick for tick in ticks if low <= tick <= high]
