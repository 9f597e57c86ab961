"""Surfaces: the loss and the accuracy along a line or on a plane through theta, shape (P,).

Each grid point is one evaluation of the objective at a vector of its own, a pure function of its
coordinates: no order of evaluation, no interruption and no other machine can change it. What a scan
has evaluated can therefore be kept (`GridPoints`), and a scan that was stopped goes on from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .directions import report_directions
from .estimate import Cost, Estimate
from .interpolation import Bools, Floats, Indices, InterpolationError, interpolate

Progress = Callable[[int, int | None], None]


class _Evaluation(Protocol):
    @property
    def loss(self) -> float: ...
    @property
    def accuracy(self) -> float | None: ...


class _Evaluable(Protocol):
    """What a scan needs of an objective.

    One whose evaluation takes several passes over the data says so as `num_passes`.
    """

    @property
    def theta(self) -> Tensor: ...

    def evaluate(self, theta: Tensor) -> _Evaluation: ...


@dataclass(frozen=True)
class Line:
    """The loss along one direction: loss[i] = L(theta + t[i] d).

    `t` counts directions; `t * norm` is a distance in parameter space and
    `t * norm / parameter_norm` the share of theta's own length.
    """

    t: Tensor  # (n,) float64
    loss: Tensor  # (n,) float64, NaN where it was not finite
    accuracy: Tensor | None  # (n,) float64 in [0, 1]
    center_loss: float  # L(theta)
    center_accuracy: float | None
    min: float  # smallest and largest finite loss
    max: float
    num_nonfinite: int
    norm: float  # ||d||
    parameter_norm: float  # ||theta||
    cost: Cost

    def plot(self) -> Any:
        """The line as a plotly figure."""
        from .notebook import line_figure

        return line_figure(self.t.numpy(), self.loss.numpy(), center_loss=self.center_loss)


@dataclass(frozen=True)
class Surface:
    """The loss on a plane: loss[j, i] = L(theta + x[i] d1 + y[j] d2), rows along y.

    `x` and `y` count directions; `x * norms[0]` and `y * norms[1]` are distances in parameter
    space. The axes are perpendicular there only if `angle_degrees` is 90.
    """

    x: Tensor  # (nx,) float64
    y: Tensor  # (ny,) float64
    loss: Tensor  # (ny, nx) float64; NaN where it was not finite; a spline's where not evaluated
    accuracy: Tensor | None  # (ny, nx) float64 in [0, 1], NaN where not evaluated
    evaluated: Tensor  # (ny, nx) bool
    center_loss: float  # L(theta)
    center_accuracy: float | None
    min: float  # smallest and largest finite loss among the evaluated points
    max: float
    num_nonfinite: int  # evaluated points whose loss was not finite; their loss here is NaN
    exact: bool  # every point was evaluated
    interpolation_error: InterpolationError | None  # None when exact
    scale: str  # "loss" or "log-loss": what the spline is cubic in
    reason: str  # why the surface is exact, or why the spline was good enough
    angle_degrees: float  # between d1 and d2
    norms: tuple[float, float]  # ||d1||, ||d2||
    parameter_norm: float  # ||theta||
    seed: int  # of the held-out points
    rounding: float  # of a loss here: 64 eps max(1, largest |loss|), eps of the arithmetic
    cost: Cost

    @property
    def num_points(self) -> int:
        return self.loss.numel()

    @property
    def num_evaluated(self) -> int:
        return int(self.evaluated.sum())

    @property
    def saving(self) -> float:
        """Points of the grid for each point evaluated; 1 when exact."""
        return self.num_points / self.num_evaluated

    def plot(self) -> Any:
        """The surface as a plotly figure: contours, with the evaluated points marked."""
        from .notebook import surface_figure

        return surface_figure(
            self.x.numpy(),
            self.y.numpy(),
            self.loss.numpy(),
            evaluated=None if self.exact else self.evaluated.numpy(),
        )


class GridPoints:
    """What is known of the points of a grid on a plane, so that a stopped scan can go on.

    Empty at first. A scan writes each point into it as soon as it has it, and what stops the scan
    (an exception of the progress callback, say) leaves them there. The next scan does not evaluate
    them again and ends in the same bits as one that was never stopped:

        points = GridPoints(x, y)
        scan_plane(objective, d1, d2, x=x, y=y, known=points, progress=stops)    # raises
        scan_plane(objective, d1, d2, x=x, y=y, known=points)                    # the other points

    The first scan makes it its own: one with other axes, weights, data, directions or precision is
    refused afterwards, for two planes in one picture would look like one.

    Attributes:
        x, y: the axes, (nx,) and (ny,) float64.
        values: of each quantity, (ny, nx) float64, NaN where unknown or not finite.
        evaluated: (ny, nx) bool: which points are known.
        exact: what the clock decided where `exact` was None; None before it was asked.

    Args:
        x, y: increasing, two or more.
        quantities: names of what is measured at a point; "loss" and "accuracy" for a surface.

    Raises:
        ValueError: an axis that is not as above.
    """

    def __init__(
        self,
        x: Tensor | Sequence[float] | Floats,
        y: Tensor | Sequence[float] | Floats,
        *,
        quantities: Sequence[str] = ("loss", "accuracy"),
    ) -> None:
        self.x, self.y = _axis(x, "x"), _axis(y, "y")
        self.values = {name: np.full(self.shape, np.nan) for name in quantities}
        self.evaluated: Bools = np.zeros(self.shape, dtype=np.bool_)
        self.exact: bool | None = None
        self._plane: _Plane | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.y.size, self.x.size

    @property
    def num_known(self) -> int:
        return int(self.evaluated.sum())

    def keep(self, row: int, column: int, **values: float) -> None:
        """Stores a point; a value that is not finite is stored as NaN."""
        for name, value in values.items():
            self.values[name][row, column] = value if math.isfinite(value) else np.nan
        self.evaluated[row, column] = True  # last, so that an interruption leaves no half a point

    def require_grid(self, other: GridPoints) -> None:
        """Raises ValueError unless the other has these axes, to the last bit, and quantities."""
        for name, own, theirs in (("x", self.x, other.x), ("y", self.y, other.y)):
            if own.shape != theirs.shape:
                raise ValueError(
                    f"the known points have {own.size} values of {name}, and not {theirs.size}"
                )
            if (own != theirs).any():
                raise ValueError(f"the known points lie at other values of {name}")
        if set(self.values) != set(other.values):
            raise ValueError(
                f"the known points hold {', '.join(self.values)}, and not {', '.join(other.values)}"
            )

    def require_plane(
        self,
        theta: Tensor,
        d1: Tensor,
        d2: Tensor,
        *,
        center_loss: float,
        options: Mapping[str, float] | None = None,
    ) -> None:
        """Makes this its plane if it has none yet; else raises ValueError unless it is the same.

        The same: the loss at the centre and all inner products of theta, d1 and d2 agree to
        rounding, and the options, of which its values depend too, are equal.
        """
        plane = _Plane.of(theta, d1, d2, center_loss, options or {})
        if self._plane is not None:
            self._plane.refuse_other(plane)
        self._plane = self._plane or plane

    def merged(self, other: GridPoints) -> GridPoints:
        """What either of them knows, of one plane.

        Raises:
            ValueError: other axes, quantities, plane or decision of the clock; a point that both
                know has two values, further apart than rounding.
        """
        self.require_grid(other)
        if self._plane is not None and other._plane is not None:
            self._plane.refuse_other(other._plane)
        if None not in (self.exact, other.exact) and self.exact != other.exact:
            raise ValueError("one scan was to evaluate every point, the other to interpolate")
        result = GridPoints(self.x, self.y, quantities=list(self.values))
        result._plane = self._plane or other._plane
        result.exact = other.exact if self.exact is None else self.exact
        result.evaluated = self.evaluated | other.evaluated
        rounding = 0.0 if result._plane is None else result._plane.rounding
        both = self.evaluated & other.evaluated
        for name, own in self.values.items():
            theirs = other.values[name]
            slack = rounding * np.maximum(np.abs(own), 1.0)
            same = (np.abs(own - theirs) <= slack) | (np.isnan(own) & np.isnan(theirs))
            for row, column in np.argwhere(both & ~same)[:1]:
                raise ValueError(
                    f"the {name} at x = {self.x[column]:g}, y = {self.y[row]:g} is "
                    f"{own[row, column]:.9g} in one and {theirs[row, column]:.9g} in the other"
                )
            result.values[name] = np.where(self.evaluated, own, theirs)
        return result

    def as_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays of float64 and int32, for `from_arrays`."""
        decided = -1 if self.exact is None else int(self.exact)
        options = {} if self._plane is None else self._plane.options
        return {
            "x": self.x.copy(),
            "y": self.y.copy(),
            "evaluated": self.evaluated.astype(np.int32),
            "exact": np.array([decided], dtype=np.int32),
            "plane": np.array([np.nan]) if self._plane is None else self._plane.as_array(),
            **{_OPTION + name: np.array([value]) for name, value in options.items()},
            **{name: values.copy() for name, values in self.values.items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> GridPoints:
        """The points that `as_arrays` gave.

        Raises:
            ValueError: an array is missing or does not fit the others.
        """
        left = dict(arrays)
        try:
            x, y, evaluated, exact, plane = (
                np.array(left.pop(name)) for name in ("x", "y", "evaluated", "exact", "plane")
            )
        except KeyError as error:
            raise ValueError(f"the stored points lack the array {error}") from None
        options = {
            name.removeprefix(_OPTION): float(left.pop(name)[0])
            for name in list(left)
            if name.startswith(_OPTION)
        }
        points = cls(x, y, quantities=list(left))
        for name, values in (("evaluated", evaluated), *left.items()):
            if values.shape != points.shape:
                raise ValueError(
                    f"the stored points have {name} of shape {values.shape} on axes of "
                    f"{points.shape}"
                )
        points.evaluated = evaluated.astype(np.bool_)
        for name, values in left.items():
            if not np.isnan(values[~points.evaluated]).all():
                raise ValueError(f"the stored points have a {name} where none was evaluated")
            points.values[name] = np.array(values, dtype=np.float64)
        points.exact = None if exact[0] < 0 else bool(exact[0])
        if plane.size > 1:
            points._plane = _Plane.from_array(plane, options)
        return points


_OPTION = "option_"


@dataclass(frozen=True)
class _Plane:
    """What tells one plane of one objective from another."""

    center_loss: float
    inner_products: Floats  # (3, 3) of theta, d1, d2
    rounding: float  # relative, of a loss
    options: Mapping[str, float]

    @classmethod
    def of(
        cls,
        theta: Tensor,
        d1: Tensor,
        d2: Tensor,
        center_loss: float,
        options: Mapping[str, float],
    ) -> _Plane:
        inner_products = np.zeros((3, 3))
        for begin in range(0, theta.numel(), 1 << 20):  # no float64 copy of whole vectors
            rows = torch.stack([v[begin : begin + (1 << 20)].detach() for v in (theta, d1, d2)])
            rows = rows.to("cpu", torch.float64)
            inner_products += (rows @ rows.T).numpy()
        return cls(center_loss, inner_products, _rounding(theta.dtype), options)

    def refuse_other(self, other: _Plane) -> None:
        if self.rounding != other.rounding:
            raise ValueError("the known points were measured in another precision")
        if self.options != other.options:
            raise ValueError(
                "the known points were measured with other options: "
                f"{_in_words(self.options)} and not {_in_words(other.options)}"
            )
        if not _same_loss(self.center_loss, other.center_loss, self.rounding):
            raise ValueError(
                "the known points belong to other weights or data: the loss at their centre is "
                f"{self.center_loss:.9g} and not {other.center_loss:.9g}"
            )
        norms = np.sqrt(np.diag(self.inner_products))
        apart = np.abs(self.inner_products - other.inner_products)
        if not (apart <= self.rounding * np.outer(norms, norms)).all():
            raise ValueError(
                "the known points lie on another plane: its centre or its directions are others"
            )

    def as_array(self) -> Floats:
        return np.array([self.center_loss, self.rounding, *self.inner_products.ravel()])

    @classmethod
    def from_array(cls, array: Floats, options: Mapping[str, float]) -> _Plane:
        if array.shape != (11,):
            raise ValueError(f"the stored points have a plane of shape {array.shape}, not (11,)")
        inner_products = np.array(array[2:], dtype=np.float64).reshape(3, 3)
        return cls(float(array[0]), inner_products, float(array[1]), options)


def _in_words(options: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "none"


def scan_line(
    objective: _Evaluable,
    direction: Tensor,
    *,
    t: Tensor | Sequence[float] | Floats,
    theta: Tensor | None = None,
    progress: Progress | None = None,
) -> Line:
    """The loss and accuracy at theta + t d for every t, all of them evaluated.

    A loss that is not finite is NaN in the result and counted; it is never filled.

    Args:
        objective: evaluates theta; one forward pass over the data a point.
        direction: d, shape (P,), of any norm.
        t: increasing, two or more; 0 need not be among them.
        theta: the centre; default the model's own weights.
        progress: called as progress(done, total) after each point.

    Raises:
        ValueError: a direction or axis that is not as above.
        FloatingPointError: the loss is not finite at the centre, or at every other point.
        RuntimeError: the loss at the centre is not the same throughout the scan.
    """
    theta = objective.theta if theta is None else theta
    axis = _axis(t, "t")
    facts = report_directions([direction], theta)
    direction = direction.to(theta.device, theta.dtype)
    center = _Center(objective, theta)

    def point(row: int, column: int) -> _Evaluation:
        return objective.evaluate(torch.add(theta, direction, alpha=float(axis[column])))

    grid = _Grid(point, (1, axis.size), progress, num_passes(objective))
    loss = grid.losses(np.zeros(axis.size, dtype=np.intp), np.arange(axis.size))
    center.check(grid, np.zeros(1), axis)
    grid.refuse_empty(np.zeros(1), axis)
    return Line(
        t=torch.from_numpy(axis),
        loss=torch.from_numpy(loss),
        accuracy=None if center.accuracy is None else torch.from_numpy(grid.accuracy[0]),
        center_loss=center.loss,
        center_accuracy=center.accuracy,
        min=float(np.nanmin(loss)),
        max=float(np.nanmax(loss)),
        num_nonfinite=grid.num_nonfinite,
        norm=facts.norms[0],
        parameter_norm=facts.parameter_norm,
        cost=grid.cost + center.cost,
    )


def scan_plane(
    objective: _Evaluable,
    d1: Tensor,
    d2: Tensor,
    *,
    x: Tensor | Sequence[float] | Floats,
    y: Tensor | Sequence[float] | Floats,
    theta: Tensor | None = None,
    exact: bool | None = None,
    exact_within: float = 20.0,
    range_tolerance: float = 5e-3,
    relative_tolerance: float = 0.2,
    seed: int = 0,
    known: GridPoints | None = None,
    progress: Progress | None = None,
) -> Surface:
    """The loss and accuracy at theta + x d1 + y d2 on a grid, all evaluated or mostly interpolated.

    Interpolated: a bicubic spline through a lattice of evaluated points, refined until its largest
    error on held-out points is below both tolerances (`interpolation.interpolate`). That error is
    in the result, with the mask of the points that are exact. A grid that has few points, or where
    a point is not finite, is evaluated in full whatever `exact` says.

    Args:
        objective: evaluates theta; one forward pass over the data a point.
        d1, d2: shape (P,), of any norms and any angle but 0 and 180 degrees.
        x, y: increasing, two or more; 0 need not be among them.
        theta: the centre; default the model's own weights.
        exact: True evaluates every point, False interpolates; None decides by the clock, see
            `worth_evaluating_all`, and is thus the only choice that can differ between two runs.
        exact_within: seconds that evaluating every point may take before None interpolates.
        range_tolerance: largest interpolation error, as a share of the range of the losses.
        relative_tolerance: largest interpolation error as a share of the loss there.
        seed: of the held-out points.
        known: points that need no evaluation, and where the others are kept: what a scan that was
            stopped goes on from. The result is that of a scan which was never stopped, but for the
            cost, which is this scan's own. None decides by the clock once: `known` remembers it.
        progress: called as progress(done, total) after each point; total is what is planned so far.
            What it raises ends the scan.

    Raises:
        ValueError: a direction, axis or tolerance that is not as above; known points of other axes,
            weights, data or directions.
        FloatingPointError: the loss is not finite at the centre, or at every other point.
        RuntimeError: the loss at the centre is not the same throughout the scan.
    """
    theta = objective.theta if theta is None else theta
    columns, rows = _axis(x, "x"), _axis(y, "y")
    if known is not None:
        known.require_grid(GridPoints(columns, rows))
    facts = report_directions([d1, d2], theta)
    assert facts.angle_degrees is not None
    if min(facts.angle_degrees, 180.0 - facts.angle_degrees) < 1e-3:
        raise ValueError("d1 and d2 are parallel: they span a line, not a plane")
    d1, d2 = (d.to(theta.device, theta.dtype) for d in (d1, d2))
    center = _Center(objective, theta)
    if known is not None:
        known.require_plane(theta, d1, d2, center_loss=center.loss)

    @lru_cache(maxsize=1)  # points come row by row: one vector addition a point instead of two
    def on_row(row: int) -> Tensor:
        return torch.add(theta, d2, alpha=float(rows[row]))

    def point(row: int, column: int) -> _Evaluation:
        return objective.evaluate(torch.add(on_row(row), d1, alpha=float(columns[column])))

    grid = _Grid(point, (rows.size, columns.size), progress, num_passes(objective), known)
    reason = "every point was asked for"
    if exact is None:
        exact = None if known is None else known.exact
        reason = f"every point takes less than {exact_within:g} s"
    if exact is None:
        seconds = center.time_one()
        exact = worth_evaluating_all(columns.size * rows.size, seconds, within=exact_within)
        if known is not None:
            known.exact = exact
    error, scale = None, "loss"
    if exact:
        loss = grid.losses(*(index.ravel() for index in np.indices(grid.shape))).reshape(grid.shape)
    else:
        found = interpolate(
            grid.losses,
            columns,
            rows,
            center=_position_of_zero(rows, columns),
            range_tolerance=range_tolerance,
            relative_tolerance=relative_tolerance,
            seed=seed,
        )
        loss, error, scale, reason = found.values, found.error, found.scale, found.reason
    center.check(grid, rows, columns)
    grid.refuse_empty(rows, columns)
    return Surface(
        x=torch.from_numpy(columns),
        y=torch.from_numpy(rows),
        loss=torch.from_numpy(loss),
        accuracy=None if center.accuracy is None else torch.from_numpy(grid.accuracy),
        evaluated=torch.from_numpy(grid.evaluated),
        center_loss=center.loss,
        center_accuracy=center.accuracy,
        min=float(np.nanmin(grid.loss)),
        max=float(np.nanmax(grid.loss)),
        num_nonfinite=grid.num_nonfinite,
        exact=error is None,
        interpolation_error=error,
        scale=scale,
        reason=reason,
        angle_degrees=facts.angle_degrees,
        norms=(facts.norms[0], facts.norms[1]),
        parameter_norm=facts.parameter_norm,
        seed=seed,
        rounding=max(_rounding(theta.dtype), _rounding(objective.theta.dtype))
        * max(1.0, float(np.nanmax(np.abs(grid.loss)))),
        cost=grid.cost + center.cost,
    )


def worth_evaluating_all(
    num_points: int, seconds_per_point: float, *, within: float = 20.0
) -> bool:
    """Whether every point is evaluated within so many seconds: then a spline gains nothing."""
    return num_points * seconds_per_point < within


def automatic_range(
    objective: _Evaluable,
    direction: Tensor,
    *,
    multiple: float = 10.0,
    floor: float = 0.1,
    theta: Tensor | None = None,
    relative_width: float = 0.02,
) -> Estimate:
    """How far to walk along a direction, both ways, for the loss to rise to a multiple of itself.

        target = L(theta) + (multiple - 1) max(|L(theta)|, floor)
        r :  max(L(theta + r d), L(theta - r d)) = target

    The floor, in units of the loss, keeps the window of a nearly perfect fit from closing on it.
    From r = ||theta|| / (10 ||d||), r is doubled or halved until the target is crossed, then the
    bracket is bisected in log r. A loss that is not finite counts as above the target. Where the
    loss is not monotone, r is one crossing, not always the first.

    Args:
        objective: evaluates theta; one forward pass over the data a point, about 20 in all.
        direction: d, shape (P,), of any norm.
        multiple: above 1.
        floor: above 0.
        theta: the centre; default the model's own weights.
        relative_width: of the last bracket.

    Returns:
        Estimate: r in units of the direction, the end of the last bracket where the loss is still
        finite and at most the target; `details` has the target and the multiple.

    Raises:
        ValueError: an argument that is not as above; the loss does not cross the target between
            r / 2^40 and 2^40 r: give the range.
        FloatingPointError: the loss is not finite at the centre.
    """
    if not multiple > 1:
        raise ValueError(f"multiple must be > 1, got {multiple}")
    if not floor > 0:
        raise ValueError(f"floor must be > 0, got {floor}")
    if not 0 < relative_width < 1:
        raise ValueError(f"relative_width must be in (0, 1), got {relative_width}")
    theta = objective.theta if theta is None else theta
    facts = report_directions([direction], theta)
    direction = direction.to(theta.device, theta.dtype)
    begin = time.perf_counter()
    center = _Center(objective, theta)
    target = center.loss + (multiple - 1.0) * max(abs(center.loss), floor)
    num_forwards = 1

    def above(distance: float) -> bool:
        nonlocal num_forwards
        for end in (distance, -distance):
            num_forwards += 1
            loss = objective.evaluate(torch.add(theta, direction, alpha=end)).loss
            if not loss <= target:  # nan is not <= anything
                return True
        return False

    distance = 0.1 * (facts.parameter_norm or 1.0) / facts.norms[0]
    start_is_above = above(distance)
    factor = 0.5 if start_is_above else 2.0
    for _ in range(40):
        previous, distance = distance, factor * distance
        if above(distance) != start_is_above:
            break
    else:
        raise ValueError(
            f"the loss does not cross {target:.6g} along this direction between distances "
            f"{min(distance, previous):.3g} and {max(distance, previous):.3g}; give the range"
        )
    low, high = sorted((previous, distance))
    while high > (1.0 + relative_width) * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if above(middle) else (middle, high)
    forwards = num_forwards * num_passes(objective)
    cost = Cost(forwards=forwards, seconds=time.perf_counter() - begin)
    details = {"target": target, "multiple": multiple, "relative_width": relative_width}
    return Estimate(low, None, "estimate", cost, details)


class _Center:
    """The loss at theta itself, which the grid must agree with and the scan must not change."""

    def __init__(self, objective: _Evaluable, theta: Tensor) -> None:
        self.objective = objective
        self.theta = theta
        self.passes = num_passes(objective)
        begin = time.perf_counter()
        found = objective.evaluate(theta)
        self.cost = Cost(forwards=self.passes, seconds=time.perf_counter() - begin)
        self.loss, self.accuracy = found.loss, found.accuracy
        if not math.isfinite(self.loss):
            raise FloatingPointError(
                f"the loss at the centre is {self.loss}: nothing to scan around"
            )

    def time_one(self) -> float:
        """Seconds that one point takes: of a second evaluation, because the first one warms up."""
        begin = time.perf_counter()
        self.objective.evaluate(self.theta)
        seconds = time.perf_counter() - begin
        self.cost = self.cost + Cost(forwards=self.passes, seconds=seconds)
        return seconds

    def check(self, grid: _Grid, rows: Floats, columns: Floats) -> None:
        """Raises RuntimeError unless the centre's loss is the same on the grid and after it."""
        begin = time.perf_counter()
        again = self.objective.evaluate(self.theta).loss
        self.cost = self.cost + Cost(forwards=self.passes, seconds=time.perf_counter() - begin)
        require_same_loss(self.loss, again, "after the scan", dtype=self.theta.dtype)
        position = _position_of_zero(rows, columns)
        if position is not None and grid.evaluated[position]:
            there = float(grid.loss[position])
            require_same_loss(self.loss, there, "at the grid's centre", dtype=self.theta.dtype)


def require_same_loss(center: float, again: float, where: str, *, dtype: torch.dtype) -> None:
    """Raises RuntimeError unless the centre's loss is the same again, to rounding."""
    if not _same_loss(center, again, _rounding(dtype)):
        raise RuntimeError(
            f"the model's loss is {center:.9g}, but {again:.9g} {where}: something besides "
            "theta moves (running statistics, random numbers, data)"
        )


def _same_loss(first: float, second: float, rounding: float) -> bool:
    return abs(first - second) <= rounding * max(abs(first), 1.0)


def _rounding(dtype: torch.dtype) -> float:
    # The same sum twice: on a CPU the same bits, on an accelerator up to the order of addition.
    return 64.0 * torch.finfo(dtype).eps


def num_passes(objective: object) -> float:
    """Forward passes over the data that one evaluation takes."""
    return float(getattr(objective, "num_passes", 1))


class _Grid:
    """What has been evaluated of a grid: each point once, by a function of its place alone."""

    def __init__(
        self,
        point: Callable[[int, int], _Evaluation],
        shape: tuple[int, int],
        progress: Progress | None,
        passes: float,
        known: GridPoints | None = None,
    ) -> None:
        self.point = point
        self.shape = shape
        self.progress = progress
        self.passes = passes
        self.known = known
        self.loss: Floats = np.full(shape, np.nan)
        self.accuracy: Floats = np.full(shape, np.nan)
        self.evaluated: Bools = np.zeros(shape, dtype=np.bool_)
        self.cost = Cost()

    @property
    def num_nonfinite(self) -> int:
        return int((self.evaluated & ~np.isfinite(self.loss)).sum())

    def losses(self, rows: Indices, columns: Indices) -> Floats:
        """The losses at these points, shape (m,), NaN where not finite; the new ones evaluated."""
        if self.known is not None:
            self._recall(self.known, rows, columns)
        todo = [
            (int(row), int(column))
            for row, column in zip(rows, columns, strict=True)
            if not self.evaluated[row, column]
        ]
        done = int(self.evaluated.sum())
        total = done + len(todo)
        begin = time.perf_counter()
        for row, column in todo:
            found = self.point(row, column)
            if math.isfinite(found.loss):
                self.loss[row, column] = found.loss
            if found.accuracy is not None:
                self.accuracy[row, column] = found.accuracy
            self.evaluated[row, column] = True
            if self.known is not None:
                accuracy = math.nan if found.accuracy is None else found.accuracy
                self.known.keep(row, column, loss=found.loss, accuracy=accuracy)
            done += 1
            if self.progress is not None:
                self.progress(done, total)
        self.cost = self.cost + Cost(
            forwards=self.passes * len(todo), seconds=time.perf_counter() - begin
        )
        return self.loss[rows, columns]

    def _recall(self, known: GridPoints, rows: Indices, columns: Indices) -> None:
        """Takes over those of these points that are known.

        Others stay out even if they are known, so that the surface is that of an unbroken scan.
        """
        there = known.evaluated[rows, columns]
        at = rows[there], columns[there]
        self.loss[at] = known.values["loss"][at]
        self.accuracy[at] = known.values["accuracy"][at]
        self.evaluated[at] = True

    def refuse_empty(self, rows: Floats, columns: Floats) -> None:
        """Raises FloatingPointError when no point but the centre has a finite loss."""
        finite = np.isfinite(self.loss)
        position = _position_of_zero(rows, columns)
        if position is not None:
            finite[position] = False
        if not finite.any():
            raise FloatingPointError(
                f"the loss is not finite at any of the {finite.size} grid points around the "
                "centre: use a smaller range"
            )


def _axis(values: Tensor | Sequence[float] | Floats, name: str) -> Floats:
    """The coordinates in float64, with 0 where the float32 of `torch.linspace` just misses it."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    axis = np.array(values, dtype=np.float64)
    if axis.ndim != 1 or axis.size < 2:
        raise ValueError(f"{name} must hold two or more numbers in a row, got shape {axis.shape}")
    if not np.isfinite(axis).all() or not (np.diff(axis) > 0).all():
        raise ValueError(f"{name} must be finite and increasing")
    axis[np.abs(axis) < 1e-3 * np.diff(axis).min()] = 0.0
    return axis


def _position_of_zero(rows: Floats, columns: Floats) -> tuple[int, int] | None:
    """(row, column) of the centre; None where the grid leaves it out."""
    row, column = np.flatnonzero(rows == 0.0), np.flatnonzero(columns == 0.0)
    return (int(row[0]), int(column[0])) if row.size and column.size else None
