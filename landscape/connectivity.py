"""Connectivity: how high the loss rises on a straight or a trained path between two minima."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .estimate import Cost
from .surface import num_passes

Progress = Callable[[int, int | None], None]
Align = Callable[[Tensor, Tensor], Tensor]

_RUNNING_STATISTICS = (
    "batch norm reads the running statistics of the objective's own model at every point, also at "
    "weights they were never measured for: this is no barrier between the trained networks; build "
    "the objective with statistics of the data (batch_norm='batch')"
)


class _Evaluation(Protocol):
    @property
    def loss(self) -> float: ...
    @property
    def accuracy(self) -> float | None: ...


class _Evaluable(Protocol):
    """What a path needs of an objective."""

    def evaluate(self, theta: Tensor) -> Any: ...


class _Trainable(_Evaluable, Protocol):
    """What a curve that is trained needs of an objective."""

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]: ...


@dataclass(frozen=True)
class Barrier:
    """How far the loss on a path phi rises above the line between the losses of its ends.

        height = max over t in [0, 1] of  L(phi(t)) - (1 - t) L(phi(0)) - t L(phi(1))

    The maximum is over the grid `t`, ends included: never below 0, and a lower bound of the maximum
    over the whole path. `half_grid_height` is the same over every second point: where it is much
    lower, more points will find more.
    """

    height: float  # units of the loss
    where: float  # the t of the maximum; 0 when no point is above the line
    half_grid_height: float
    kind: str  # "lower bound"
    t: Tensor  # (n,) float64, from 0 to 1
    loss: Tensor  # (n,) float64, NaN where it was not finite
    accuracy: Tensor | None  # (n,) float64 in [0, 1]
    length: float  # of the path, in parameter norm
    num_nonfinite: int  # points whose loss was not finite; the maximum is over the others
    warnings: tuple[str, ...]
    cost: Cost

    @property
    def start_loss(self) -> float:
        """L(phi(0))."""
        return float(self.loss[0])

    @property
    def end_loss(self) -> float:
        """L(phi(1))."""
        return float(self.loss[-1])

    @property
    def excess(self) -> Tensor:
        """L(phi(t)) - (1 - t) L(phi(0)) - t L(phi(1)) at each t, shape (n,); 0 at both ends."""
        return self.loss - ((1 - self.t) * self.loss[0] + self.t * self.loss[-1])


@dataclass(frozen=True)
class BarrierMatrix:
    """The straight-line barrier between each two of n minima, each a lower bound (`Barrier`)."""

    heights: Tensor  # (n, n) float64, symmetric, 0 on the diagonal, units of the loss
    where: Tensor  # (n, n) float64: t of the maximum, counted from the row's minimum
    half_grid_heights: Tensor  # (n, n) float64
    kind: str  # "lower bound"
    losses: Tensor  # (n,) float64, of the minima
    distances: Tensor  # (n, n) float64, ||theta_i - theta_j||, after alignment if there was one
    num_nonfinite: Tensor  # (n, n) int64
    num_points: int  # of each line, ends included
    aligned: bool
    warnings: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True)
class BezierCurve:
    """phi(t) = (1 - t)^2 start + 2 t (1 - t) control + t^2 end, t in [0, 1]."""

    start: Tensor  # (P,)
    control: Tensor  # (P,)
    end: Tensor  # (P,)

    def at(self, t: float) -> Tensor:
        """phi(t), shape (P,): at 0 and 1 the ends bit for bit."""
        if t in (0.0, 1.0):
            return (self.end if t else self.start).clone()
        return (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.control + t**2 * self.end

    @property
    def length(self) -> float:
        """The integral over [0, 1] of ||phi'(t)||, by Gauss-Legendre quadrature with 64 nodes.

        phi'(t) = 2 (1 - t) (control - start) + 2 t (end - control)
        """
        out = self.control.double() - self.start.double()
        back = self.end.double() - self.control.double()
        aa, ab, bb = float(out @ out), float(out @ back), float(back @ back)
        nodes, weights = np.polynomial.legendre.leggauss(64)
        t = (nodes + 1) / 2
        squares = (1 - t) ** 2 * aa + 2 * t * (1 - t) * ab + t**2 * bb
        return float(weights @ np.sqrt(np.maximum(squares, 0.0)))


@dataclass(frozen=True)
class TrainedCurve:
    """A trained Bezier curve between two minima, its barrier, and that of the straight line."""

    curve: BezierCurve
    barrier: Barrier  # of the curve, on the data it was trained on
    line: Barrier  # of the straight line, where the training started
    training_loss: Tensor  # (num_steps,) float64: L(phi(t_k)) at each step's own t_k
    num_steps: int
    lr: float
    seed: int
    cost: Cost  # of the training and of both barriers


def line_barrier(
    objective: _Evaluable,
    start: Tensor,
    end: Tensor,
    *,
    num_points: int = 25,
    progress: Progress | None = None,
) -> Barrier:
    """The barrier on the straight line between two minima, a lower bound, in units of the loss.

        max over t in [0, 1] of  L((1 - t) start + t end) - (1 - t) L(start) - t L(end)

    0 for a convex loss. Between networks of other seeds it also measures that their hidden units
    come in another order: align them first (`alignment.match_weights`).

    Args:
        objective: evaluates theta; one forward pass over the data a point.
        start, end: shape (P,).
        num_points: of the grid of equal steps, ends included, at least 3.
        progress: called as progress(done, total) after each point.

    Raises:
        ValueError: other shapes, non-finite points, num_points < 3.
        FloatingPointError: the loss is not finite at an end.

    Source: J. Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020),
        whose instability takes the mean of the two end losses; R. Entezari et al., "The Role of
        Permutation Invariance in Linear Mode Connectivity of Neural Networks" (2022), eq. 1.
    """
    length = _distance(start, end)
    # lerp returns both ends bit for bit; start + t (end - start) misses the second by rounding.
    return path_barrier(
        objective,
        lambda t: torch.lerp(start, end, t),
        length=length,
        num_points=num_points,
        progress=progress,
    )


def path_barrier(
    objective: _Evaluable,
    path: Callable[[float], Tensor],
    *,
    length: float,
    num_points: int = 25,
    progress: Progress | None = None,
) -> Barrier:
    """The barrier on any path t -> theta, t in [0, 1]: of a trained curve on other data, say.

    Arguments, result and errors as of `line_barrier`; `length` is handed on.
    """
    t = _grid(num_points)
    begin = time.perf_counter()
    loss, accuracy = np.full(num_points, np.nan), np.full(num_points, np.nan)
    # The ends first: where one of them has no loss there is no barrier to pay for.
    for done, index in enumerate([0, num_points - 1, *range(1, num_points - 1)], start=1):
        found = objective.evaluate(path(float(t[index])))
        if math.isfinite(found.loss):
            loss[index] = found.loss
        elif index in (0, num_points - 1):
            end = "end" if index else "start"
            raise FloatingPointError(
                f"the loss at the {end} of the path is {found.loss}: no barrier from there"
            )
        if found.accuracy is not None:
            accuracy[index] = found.accuracy
        if progress is not None:
            progress(done, num_points)
    height, where, half = _highest(t, loss)
    return Barrier(
        height=height,
        where=where,
        half_grid_height=half,
        kind="lower bound",
        t=torch.from_numpy(t),
        loss=torch.from_numpy(loss),
        accuracy=None if np.isnan(accuracy).all() else torch.from_numpy(accuracy),
        length=length,
        num_nonfinite=int(np.isnan(loss).sum()),
        warnings=_warnings(objective),
        cost=Cost(forwards=num_passes(objective) * num_points, seconds=time.perf_counter() - begin),
    )


def barrier_matrix(
    objective: _Evaluable,
    thetas: Sequence[Tensor],
    *,
    num_points: int = 25,
    align: Align | None = None,
    progress: Progress | None = None,
) -> BarrierMatrix:
    """The straight-line barrier between each two of n minima: n + n(n-1)/2 (num_points - 2) passes.

    Args:
        objective: evaluates theta; one forward pass over the data a point.
        thetas: two or more minima, each (P,).
        num_points: of each line, ends included, at least 3.
        align: align(reference, theta) gives theta with its units in the reference's order; called
            for each pair, earlier one first, and one forward pass a pair more checks that the loss
            stayed what it was.
        progress: called as progress(done, total) after each pair.

    Raises:
        ValueError: fewer than two minima; a pair that `line_barrier` refuses.
        FloatingPointError: the loss of a minimum is not finite.
        RuntimeError: `align` changed the loss.
    """
    n = len(thetas)
    if n < 2:
        raise ValueError(f"a barrier matrix needs two or more minima, got {n}")
    t = _grid(num_points)
    begin = time.perf_counter()
    losses = np.array([objective.evaluate(theta).loss for theta in thetas], dtype=np.float64)
    for number in np.flatnonzero(~np.isfinite(losses)):
        raise FloatingPointError(
            f"the loss of minimum {number} is {losses[number]}: no barrier from there"
        )
    heights, where, halves, distances = (np.zeros((n, n)) for _ in range(4))
    num_nonfinite = np.zeros((n, n), dtype=np.int64)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for done, (i, j) in enumerate(pairs, start=1):
        start, end = thetas[i], thetas[j]
        if align is not None:
            end = align(start, end)
            require_same_loss(objective.evaluate(end).loss, float(losses[j]), end, f"minimum {j}")
        distances[i, j] = distances[j, i] = _distance(start, end)
        loss = np.full(num_points, np.nan)
        loss[0], loss[-1] = losses[i], losses[j]
        for index in range(1, num_points - 1):
            found = objective.evaluate(torch.lerp(start, end, float(t[index]))).loss
            loss[index] = found if math.isfinite(found) else np.nan
        heights[i, j], where[i, j], halves[i, j] = _highest(t, loss)
        num_nonfinite[i, j] = num_nonfinite[j, i] = int(np.isnan(loss).sum())
        heights[j, i], halves[j, i] = heights[i, j], halves[i, j]
        where[j, i] = 1 - where[i, j] if heights[i, j] > 0 else 0.0
        if progress is not None:
            progress(done, len(pairs))
    forwards = n + len(pairs) * (num_points - 2 + (align is not None))
    return BarrierMatrix(
        heights=torch.from_numpy(heights),
        where=torch.from_numpy(where),
        half_grid_heights=torch.from_numpy(halves),
        kind="lower bound",
        losses=torch.from_numpy(losses),
        distances=torch.from_numpy(distances),
        num_nonfinite=torch.from_numpy(num_nonfinite),
        num_points=num_points,
        aligned=align is not None,
        warnings=_warnings(objective),
        cost=Cost(forwards=num_passes(objective) * forwards, seconds=time.perf_counter() - begin),
    )


def train_curve(
    objective: _Trainable,
    start: Tensor,
    end: Tensor,
    *,
    seed: int,
    num_steps: int = 200,
    lr: float = 0.1,
    num_points: int = 25,
    progress: Progress | None = None,
) -> TrainedCurve:
    """A quadratic Bezier curve between two minima, trained to have a low mean loss.

        min over control of  E_{t ~ U(0, 1)} L(phi(t))
        gradient of one t:   2 t (1 - t) grad L(phi(t))          (Garipov et al. 2018, eq. 1 to 3)

    From the straight line, by Adam whose step falls from `lr` to 0 along a half cosine, in units of
    the root mean square coordinate of end - start, so that neither the scale of the loss nor that
    of the weights matters. The k-th t is u + k (sqrt(5) - 1)/2 modulo 1, u drawn by the seed:
    uniform over seeds, and evenly spread within one.

    The curve is trained and measured on the objective's own data; `path_barrier` measures it on
    others. Training says how low some path is, never that no lower one exists.

    Args:
        objective: its value and gradient; num_steps gradients and 2 num_points forward passes.
        start, end: shape (P,); the curve returns them bit for bit.
        seed: of the t.
        num_steps: at least 1.
        lr: above 0.
        num_points: of the grid on which both barriers are measured, at least 3.
        progress: called as progress(done, total) after each step.

    Raises:
        ValueError: an option out of its range; other shapes, equal or non-finite points.
        FloatingPointError: the loss is not finite at an end, or loss or gradient in training.

    Source: T. Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs"
        (2018), with Adam in place of SGD.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be > 0, got {lr}")
    if torch.equal(start, end):
        raise ValueError("both ends of the curve are the same point: there is nothing to train")
    line = line_barrier(objective, start, end, num_points=num_points)
    begin = time.perf_counter()
    unit = line.length / math.sqrt(start.numel())
    control = torch.lerp(start, end, 0.5).detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([control], lr=lr * unit, betas=(0.9, 0.99), eps=1e-12)
    u = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    history = torch.empty(num_steps, dtype=torch.float64)
    for step in range(num_steps):
        t = math.fmod(u + step * (math.sqrt(5) - 1) / 2, 1.0)
        optimizer.param_groups[0]["lr"] = lr * unit * (1 + math.cos(math.pi * step / num_steps)) / 2
        theta = BezierCurve(start, control.detach(), end).at(t)
        loss, gradient = objective.value_and_gradient(theta)
        if not (math.isfinite(loss) and bool(gradient.isfinite().all())):
            raise FloatingPointError(
                f"the loss is {loss} or its gradient not finite at t = {t:.4f} of the curve, "
                f"training step {step}: use a smaller lr (now {lr:g})"
            )
        history[step] = loss
        control.grad = 2 * t * (1 - t) * gradient.to(control.dtype)
        optimizer.step()
        if progress is not None:
            progress(step + 1, num_steps)
    training = Cost(gradients=float(num_steps), seconds=time.perf_counter() - begin)
    curve = BezierCurve(start.clone(), control.detach(), end.clone())
    barrier = path_barrier(objective, curve.at, length=curve.length, num_points=num_points)
    return TrainedCurve(
        curve, barrier, line, history, num_steps, lr, seed, training + line.cost + barrier.cost
    )


def _grid(num_points: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if num_points < 3:
        raise ValueError(f"num_points must be >= 3 (two ends and one between), got {num_points}")
    return np.linspace(0.0, 1.0, num_points)


def _highest(
    t: np.ndarray[Any, np.dtype[np.float64]], loss: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[float, float, float]:
    """The largest excess, its t, and the largest over every second point."""
    excess = loss - ((1 - t) * loss[0] + t * loss[-1])
    highest = int(np.nanargmax(excess))
    return float(excess[highest]), float(t[highest]), max(0.0, float(np.nanmax(excess[::2])))


def require_same_loss(found: float, loss: float, theta: Tensor, name: str) -> None:
    """Raises RuntimeError where an alignment changed the loss by more than rounding."""
    slack = 1e4 * torch.finfo(theta.dtype).eps * max(abs(loss), 1.0)  # the sums change their order
    if not abs(found - loss) <= slack:
        raise RuntimeError(
            f"{name} has loss {loss:.9g} and {found:.9g} after its alignment, which must "
            "not change it: does the model have more than a sequence of layers, or batch norm with "
            "running statistics (use batch_norm='batch')?"
        )


def _warnings(objective: _Evaluable) -> tuple[str, ...]:
    return (_RUNNING_STATISTICS,) if getattr(objective, "uses_running_statistics", False) else ()


def _distance(start: Tensor, end: Tensor) -> float:
    """||end - start||. Raises ValueError unless both are finite points of one space."""
    if start.shape != end.shape:
        raise ValueError(
            f"the two points have shapes {tuple(start.shape)} and {tuple(end.shape)}: "
            "they are no points of one parameter space"
        )
    distance = float(torch.linalg.vector_norm(end - start, dtype=torch.float64))
    if not math.isfinite(distance):
        raise ValueError("an end of the path holds numbers that are not finite")
    return distance
