"""A function on a grid from few of its values: a bicubic spline whose error is measured.

The spline stands on a lattice of grid lines. Points between them that the spline never saw say how
wrong it is; where they find it wrong, lines are added. Nothing here knows what the function is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

# The chance that n random points all miss a set of 5 % of the grid is 0.95^n: 4.8 % for n = 59.
MIN_HELD_OUT = 59

# The largest error of all points was at most about three times the largest of 59 held-out ones in
# nine of ten surfaces of trained networks.
WORKING_FACTOR = 3.0

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class InterpolationError:
    """How far the spline was from points it had not seen.

    Attributes:
        maximum: largest |spline - loss| over the held-out points, in units of the loss. With 95 %
            confidence at most 5 % of the grid is worse.
        working_maximum: three times that: what to reckon with at the worst point of all.
        relative: largest |spline - loss| / loss; None where the loss is not positive everywhere.
        of_range: maximum / (largest - smallest loss seen).
        num_held_out: number of held-out points, at least 59, one or more in every cell.
    """

    maximum: float
    working_maximum: float
    relative: float | None
    of_range: float
    num_held_out: int


@dataclass(frozen=True)
class Interpolation:
    """Values of a function on a grid, some of them evaluated and the rest from a spline."""

    values: Floats  # (ny, nx), exact where evaluated
    evaluated: Bools  # (ny, nx)
    error: InterpolationError | None  # None: every point was evaluated
    scale: str  # "loss" or "log-loss": what the spline is cubic in
    reason: str  # why the evaluation stopped where it did


def interpolate(
    sample: Callable[[Indices, Indices], Floats],
    x: Floats,
    y: Floats,
    *,
    center: tuple[int, int] | None = None,
    range_tolerance: float = 5e-3,
    relative_tolerance: float = 0.2,
    num_lines: int = 13,
    seed: int = 0,
) -> Interpolation:
    """The function on the whole grid, from a lattice of it and a spline with measured error.

    Algorithm:
        1. Evaluate the crossings of `num_lines` rows and columns of the grid.
        2. Evaluate held-out points: one drawn at random in every cell of the lattice, so that no
           cell goes unlooked at; after the first round also 59 fresh ones over the whole grid,
           because lines were placed by the earlier ones.
        3. Fit a bicubic not-a-knot spline to the crossings, in the loss and in log-loss; keep the
           one whose largest held-out error, in tolerances, is smaller.
        4. Stop if that error is below both tolerances. Otherwise halve, in both axes, the intervals
           around the held-out points that are not, and go back to 2.

    Every point is evaluated instead where more than half of them would be, and where a value is not
    finite: a spline has no value near a hole, and holes are never filled.

    Args:
        sample: values at grid points (rows, columns), each (m,); asked once for each point.
        x, y: coordinates of the columns (nx,) and rows (ny,), increasing.
        center: (row, column) through which lattice lines must run.
        range_tolerance: largest error allowed, as a share of the range of the values seen.
        relative_tolerance: largest |error| / value allowed; ignored unless all values seen are
            positive.
        num_lines: rows and columns of the first lattice, at least 4 (a cubic needs them).
        seed: of the held-out points.

    Raises:
        ValueError: a tolerance <= 0 or num_lines < 4.
    """
    if not (range_tolerance > 0 and relative_tolerance > 0):
        raise ValueError(
            f"tolerances must be > 0, got {range_tolerance} of the range, "
            f"{relative_tolerance} relative"
        )
    if num_lines < 4:
        raise ValueError(f"num_lines must be >= 4, got {num_lines}")
    seen = _Seen(sample, (len(y), len(x)))
    rng = np.random.default_rng(seed)
    rows = _coarse_lines(len(y), num_lines, None if center is None else center[0])
    columns = _coarse_lines(len(x), num_lines, None if center is None else center[1])
    first = True
    while True:
        nodes = _crossings(seen.mask.shape, rows, columns)
        fresh = _held_out(seen.mask | nodes, rows, columns, 0 if first else MIN_HELD_OUT, rng)
        wanted = seen.mask | nodes | fresh
        held_out = wanted & ~nodes
        first = False
        if 2 * wanted.sum() > wanted.size or held_out.sum() < MIN_HELD_OUT:
            return seen.whole("a spline would not halve the number of points")
        seen.ask(wanted)
        if not np.isfinite(seen.values[seen.mask]).all():
            return seen.whole("a value was not finite, and a spline has no value near a hole")
        spline = _best_spline(
            seen.values,
            x,
            y,
            rows,
            columns,
            held_out,
            _Tolerance.of(seen.values[seen.mask], range_tolerance, relative_tolerance),
        )
        if spline.worst <= 1:
            values = np.where(seen.mask, seen.values, spline.values)
            return Interpolation(
                values, seen.mask, spline.error, spline.scale, "within both tolerances"
            )
        too_far = np.argwhere(held_out & (spline.excess > 1))
        rows = _halved(rows, too_far[:, 0])
        columns = _halved(columns, too_far[:, 1])


class _Seen:
    """The values evaluated so far; each point is asked for once."""

    def __init__(
        self, sample: Callable[[Indices, Indices], Floats], shape: tuple[int, int]
    ) -> None:
        self.sample = sample
        self.values: Floats = np.full(shape, np.nan)
        self.mask: Bools = np.zeros(shape, dtype=np.bool_)

    def ask(self, wanted: Bools) -> None:
        rows, columns = np.nonzero(wanted & ~self.mask)
        if rows.size:
            self.values[rows, columns] = self.sample(rows, columns)
            self.mask[rows, columns] = True

    def whole(self, reason: str) -> Interpolation:
        self.ask(np.ones_like(self.mask))
        return Interpolation(self.values, self.mask, None, "loss", reason)


@dataclass(frozen=True)
class _Tolerance:
    """What an error may be: absolute everywhere, and relative where all values are positive."""

    absolute: float
    relative: float | None
    value_range: float

    @classmethod
    def of(cls, values: Floats, range_tolerance: float, relative_tolerance: float) -> _Tolerance:
        value_range = float(np.ptp(values))
        # A constant is fitted up to rounding, which no share of a range of zero would forgive.
        floor = 64 * np.finfo(np.float64).eps * float(np.abs(values).max()) + 1e-300
        return cls(
            max(range_tolerance * value_range, floor),
            relative_tolerance if values.min() > 0 else None,
            value_range,
        )


@dataclass(frozen=True)
class _Spline:
    values: Floats  # (ny, nx)
    scale: str
    excess: Floats  # (ny, nx): error in tolerances, NaN where the truth is unknown
    worst: float
    error: InterpolationError


def _best_spline(
    truth: Floats,
    x: Floats,
    y: Floats,
    rows: Indices,
    columns: Indices,
    held_out: Bools,
    tolerance: _Tolerance,
) -> _Spline:
    """The spline in the loss or in log-loss, whichever predicts the held-out points better."""
    nodes = truth[np.ix_(rows, columns)]
    scales = ["loss", "log-loss"] if tolerance.relative is not None else ["loss"]
    splines = []
    for scale in scales:
        with np.errstate(over="ignore"):  # a log spline may overshoot: its error is then infinite
            values = (
                _bicubic(nodes, x, y, rows, columns)
                if scale == "loss"
                else np.exp(_bicubic(np.log(nodes), x, y, rows, columns))
            )
        miss = np.abs(values - truth)
        excess = miss / tolerance.absolute
        relative = None
        if tolerance.relative is not None:
            excess = np.maximum(excess, miss / truth / tolerance.relative)
            relative = float((miss / truth)[held_out].max())
        largest = float(miss[held_out].max())
        error = InterpolationError(
            maximum=largest,
            working_maximum=WORKING_FACTOR * largest,
            relative=relative,
            of_range=largest / tolerance.value_range if tolerance.value_range else 0.0,
            num_held_out=int(held_out.sum()),
        )
        splines.append(_Spline(values, scale, excess, float(excess[held_out].max()), error))
    return min(splines, key=lambda spline: spline.worst)


def _bicubic(nodes: Floats, x: Floats, y: Floats, rows: Indices, columns: Indices) -> Floats:
    """The tensor-product cubic spline through the nodes, on the whole grid, shape (ny, nx)."""
    along_y = make_interp_spline(y[rows], nodes, k=3, axis=0)(y)
    return np.asarray(make_interp_spline(x[columns], along_y, k=3, axis=1)(x), dtype=np.float64)


def _coarse_lines(num_points: int, num_lines: int, through: int | None) -> Indices:
    """Indices of evenly spread lines, both ends among them; `through` replaces the nearest."""
    lines = np.unique(np.round(np.linspace(0, num_points - 1, num_lines)).astype(np.intp))
    if through is not None and through not in lines:
        inner = lines[1:-1]
        if inner.size:
            inner[np.abs(inner - through).argmin()] = through
        else:
            lines = np.append(lines, through)
    return np.unique(lines)


def _crossings(shape: tuple[int, ...], rows: Indices, columns: Indices) -> Bools:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[np.ix_(rows, columns)] = True
    return mask


def _held_out(
    taken: Bools, rows: Indices, columns: Indices, at_least: int, rng: np.random.Generator
) -> Bools:
    """New points: `at_least` anywhere, then one in each cell that has none off the crossings."""
    chosen = np.zeros_like(taken)
    free = np.flatnonzero(~taken)
    chosen.flat[rng.permutation(free)[:at_least]] = True
    looked_at = (taken | chosen) & ~_crossings(taken.shape, rows, columns)
    cells = _cells(taken.shape, rows, columns)
    empty = ~taken & ~np.isin(cells, cells[looked_at])
    candidates = rng.permutation(np.flatnonzero(empty))
    _, first = np.unique(cells.flat[candidates], return_index=True)
    chosen.flat[candidates[first]] = True
    return chosen


def _cells(shape: tuple[int, ...], rows: Indices, columns: Indices) -> Indices:
    """The number of the lattice cell of each grid point, shape (ny, nx)."""
    row = _interval(rows, np.arange(shape[0], dtype=np.intp))
    column = _interval(columns, np.arange(shape[1], dtype=np.intp))
    return row[:, None] * len(columns) + column[None, :]


def _interval(lines: Indices, points: Indices) -> Indices:
    """Which interval between lines each index lies in; a line belongs to the one it opens."""
    return np.clip(np.searchsorted(lines, points, side="right") - 1, 0, len(lines) - 2)


def _halved(lines: Indices, points: Indices) -> Indices:
    """The lines with one more in the middle of each interval that holds one of the points."""
    marked = np.unique(_interval(lines, points))
    return np.unique(np.append(lines, (lines[marked] + lines[marked + 1]) // 2))
