"""What the figures share: traces, layouts, axes, ticks and rounding. Plain types alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscape.report import digits, measures
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


def axis_titles(checkpoint: Mapping[str, Any]) -> tuple[str, str]:
    """ "direction 1 (norm of each filter)" and the same of the second."""
    parts = (checkpoint.get(part) or {} for part in ("surface", "line"))
    unit = next((part["unit"] for part in parts if part.get("unit")), None)
    words = f" ({in_plotly(unit, 24)})" if unit else ""
    return f"direction 1{words}", f"direction 2{words}"


def subscripts(title: str) -> str:
    text = in_plotly(title, 60)
    return text.replace("λmax", "λ<sub>max</sub>").replace("λmin", "λ<sub>min</sub>")


def with_unit(measure: measures.Measure) -> str:
    """The title of an axis: with its unit, and the mark of a bound where values are no more."""
    bound = {"lower": " (≥)", "upper": " (≤)"}.get(measure.bound, "")
    return subscripts(measure.title) + (" (%)" if measure.percent else "") + bound


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


@dataclass(frozen=True)
class ColorAxis:
    """The colours of a map: its ends and ticks (log10 of the values when `log`), and their labels.

    Attributes:
        log: whether heights are log10 of the values.
        low, high: the ends.
        ticks, labels: where, and the values there.
    """

    log: bool
    low: float
    high: float
    ticks: list[float | None]
    labels: list[str]

    def heights(self, values: Array) -> Array:
        """What is coloured: the values, or their log10 where they are above zero."""
        if not self.log:
            return values
        return np.log10(values, where=values > 0, out=np.full(values.shape, np.nan))


def color_axis(values: Array, *, log: bool) -> ColorAxis:
    """The colour axis that holds all finite values; non-finite ones take no part."""
    values = values[np.isfinite(values)]
    if log:
        values = np.log10(values[values > 0])
    low, high = float(values.min()), float(values.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    ticks = log_ticks(low, high) if log else nice_ticks(low, high)
    if log and len(ticks) < 3:
        ticks = [math.log10(t) for t in nice_ticks(10**low, 10**high) if t > 0]
    return ColorAxis(
        log,
        rounded_number(low),
        rounded_number(high),
        rounded(ticks),
        [plain_number(10**tick if log else tick) for tick in ticks],
    )


def log_axis(values: Iterable[float | None]) -> dict[str, Any]:
    """A logarithmic axis that holds the values, its ticks written as the numbers they are.

    Plotly's own ticks say "5" for 0.5 as for 50, and say nothing where no power of ten is in view.
    """
    above = [value for value in values if value is not None and 0 < value < math.inf]
    low, high = math.log10(min(above, default=1.0)), math.log10(max(above, default=1.0))
    room = 0.06 * (high - low) or 0.1
    low, high = low - room, high + room
    ticks = [10**tick for tick in log_ticks(low, high)]
    if len(ticks) < 3:
        ticks = [tick for tick in nice_ticks(10**low, 10**high) if tick > 0]
    return {
        "type": "log",
        "range": [rounded_number(low), rounded_number(high)],
        "tickmode": "array",
        "tickvals": rounded(ticks),
        "ticktext": [plain_number(tick) for tick in ticks],
    }


def value_axis(values: Sequence[float | None]) -> dict[str, Any]:
    """A logarithmic axis where the values are above zero and span a factor of 30, else linear."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    wide = bool(known) and min(known) > 0 and max(known) > 30 * min(known)
    return log_axis(known) if wide else {"type": "linear"}


def plain_number(value: float) -> str:
    """A tick's number without zeros at its end: "0.5", "200", "10⁻⁵"."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    if -3 <= exponent < 5:
        return f"{value:.6g}".replace("-", "−")
    factor = value / 10.0**exponent
    head = "" if abs(factor - 1) < 1e-9 else f"{factor:.3g} × ".replace("-", "−")
    return f"{head}{digits.power(exponent)}"


def log_ticks(low: float, high: float) -> list[float]:
    """log10 of 1, 2, 5 x powers of ten between the ends (fewer of them over many decades)."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    step = max(1, math.ceil((high - low) / 8))
    decades = (d for d in range(math.floor(low), math.ceil(high) + 1) if d % step == 0)
    ticks = [math.log10(f) + d for d in decades for f in factors]
    return [tick for tick in ticks if low <= tick <= high]
