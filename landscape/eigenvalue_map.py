"""Eigenvalue map: how convex the loss is over a plane, by the extreme eigenvalues at each point.

A plane shows two of P directions. Where |lambda_min| / lambda_max is small, the directions that it
leaves out hold no downward curvature that counts beside the upward one, and the bowl is no artefact
of the plane (Li et al. 2018, figure 7).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .curvature import Hessian
from .directions import report_directions
from .estimate import Cost
from .interpolation import Floats
from .linalg import Eigenpairs, ShiftedOperator, SymmetricOperator, lanczos, tridiagonalise
from .linalg.operator import CountedOperator, gaussian, seeded
from .objective import TwiceDifferentiable
from .surface import GridPoints, Progress, require_same_loss

# What is stored of a point: of `GridPoints(x, y, quantities=QUANTITIES)`, to go on from.
QUANTITIES = (
    *("loss", "lambda_max", "lambda_min"),
    *("lambda_max_residual", "lambda_min_residual", "converged"),
)
FIRST_LOOK = 6  # products that tell roughly how wide the spectrum is


@dataclass(frozen=True)
class EigenvalueMap:
    """The extreme eigenvalues of the Hessian at theta + x[i] d1 + y[j] d2, rows along y.

    The Hessian is that over all P parameters, not of the plane.
    """

    x: Tensor  # (nx,) float64
    y: Tensor  # (ny,) float64
    loss: Tensor  # (ny, nx) float64; this and what follows NaN where something was not finite
    lambda_max: Tensor  # (ny, nx) float64, loss per squared parameter
    lambda_min: Tensor  # (ny, nx) float64
    lambda_max_residual: Tensor  # (ny, nx) float64: an eigenvalue lies within it of lambda_max
    lambda_min_residual: Tensor  # (ny, nx) float64
    converged: Tensor  # (ny, nx) bool: residuals within the tolerance, and nothing found missing
    center_loss: float  # L(theta)
    num_nonfinite: int  # points whose loss or a product was not finite, or by differences no matrix
    tolerance: float
    seed: int
    angle_degrees: float  # between d1 and d2
    norms: tuple[float, float]  # ||d1||, ||d2||
    parameter_norm: float  # ||theta||
    cost: Cost

    @property
    def ratio(self) -> Tensor:
        """|lambda_min| / |lambda_max|, (ny, nx): 0 for a convex loss whose smallest curvature is 0.

        inf where lambda_max alone is 0, NaN where both are.
        """
        return self.lambda_min.abs() / self.lambda_max.abs()

    @property
    def ratio_error(self) -> Tensor:
        """The most that the residuals allow the ratio to be off, (ny, nx); inf: nothing is known.

        |a'/b' - a/b| <= (r_a + |a/b| r_b) / (|b| - r_b)    for |a' - a| <= r_a, |b' - b| <= r_b
        """
        left = (self.lambda_max.abs() - self.lambda_max_residual).clamp(min=0.0)
        error = (self.lambda_min_residual + self.ratio * self.lambda_max_residual) / left
        return torch.where(self.lambda_max.isfinite() & (left == 0), torch.inf, error)


def eigenvalue_map(
    objective: TwiceDifferentiable,
    d1: Tensor,
    d2: Tensor,
    x: Tensor | Sequence[float] | Floats,
    y: Tensor | Sequence[float] | Floats,
    *,
    theta: Tensor | None = None,
    tolerance: float = 1e-2,
    max_products: int | None = None,
    seed: int = 0,
    known: GridPoints | None = None,
    progress: Progress | None = None,
) -> EigenvalueMap:
    """The largest and smallest eigenvalue of the Hessian at each point of a grid on a plane.

    Both come from one Lanczos run (`lanczos`, ends="both"), in H - s I with s the middle of the
    Ritz values of six products where the spectrum reaches across or near 0. A residual is relative
    to the eigenvalue, and lambda_min is near 0 wherever the loss is nearly convex, where it would
    be asked to be exact far below what the ratio shows: 290 products a point on logistic
    regression without the shift, about 50 with it. The search that confirms that no eigenvalue was
    missed is about half of these, and is kept: without it a run can settle on the second value.

    Args:
        objective: loss and Hessian-vector products; 30 to 60 of them a point on small nets. Where
            its products are differences (`approximate`), a point at which they are not symmetric is
            left NaN.
        d1, d2: shape (P,), of any norms and any angle but 0 and 180 degrees.
        x, y: increasing, two or more; a coarse grid will do.
        theta: the centre; default the model's own weights.
        tolerance: largest residual, relative to lambda_max - lambda_min, or to the eigenvalue
            itself where that is larger.
        max_products: of each point's run; default that of `lanczos`. A point that needs more keeps
            what it has and is not `converged`.
        seed: of the random vectors, the same at each point.
        known: points that need no products, and where the others are kept, as of `scan_plane`; made
            by `GridPoints(x, y, quantities=QUANTITIES)`.
        progress: called as progress(done, total) after each point. What it raises ends the map.

    Raises:
        ValueError: a direction, axis or option that is not as above; known points of other axes,
            weights, data, directions or options; a Hessian that is not symmetric.
        FloatingPointError: the loss is not finite at the centre, or nothing is at every point.
        RuntimeError: the loss at the centre is not the same after the scan.

    Source: H. Li et al., "Visualizing the Loss Landscape of Neural Nets" (2018), figure 7, who take
        |lambda_min / lambda_max| by implicitly restarted Lanczos.
    """
    begin = time.perf_counter()
    theta = objective.theta if theta is None else theta
    points = GridPoints(x, y, quantities=QUANTITIES)
    if known is not None:
        known.require_grid(points)
        points = known
    facts = report_directions([d1, d2], theta)
    assert facts.angle_degrees is not None
    if min(facts.angle_degrees, 180.0 - facts.angle_degrees) < 1e-3:
        raise ValueError("d1 and d2 are parallel: they span a line, not a plane")
    d1, d2 = (d.to(theta.device, theta.dtype) for d in (d1, d2))
    center_loss = objective.value(theta)
    if not math.isfinite(center_loss):
        raise FloatingPointError(f"the loss at the centre is {center_loss}: nothing to map around")
    options = {"tolerance": tolerance, "max_products": max_products or 0, "seed": seed}
    points.require_plane(theta, d1, d2, center_loss=center_loss, options=options)

    cost = Cost(forwards=2.0)
    num_points = points.evaluated.size
    for row, column in np.argwhere(~points.evaluated):
        at_x, at_y = float(points.x[column]), float(points.y[row])
        there = torch.add(torch.add(theta, d2, alpha=at_y), d1, alpha=at_x)
        loss = objective.value(there)
        values: dict[str, float] = {}
        if math.isfinite(loss):
            hessian = Hessian(objective, there)
            operator = CountedOperator(hessian, None, None)
            try:
                values = _extremes(operator, tolerance, max_products, seed)
            except FloatingPointError:
                pass  # a hole, like a loss that is not finite
            except ValueError as error:
                # Where a difference of gradients spans too much, its products are no matrix's: a
                # hole in an approximate map, which must not cost the other points.
                if not (hessian.approximate and "not symmetric" in str(error)):
                    raise ValueError(f"at x = {at_x:g}, y = {at_y:g}: {error}") from error
            cost += Cost(products=float(operator.num_products))
        cost += Cost(forwards=1.0)
        points.keep(row, column, loss=loss, **values)
        if progress is not None:
            progress(points.num_known, num_points)

    require_same_loss(center_loss, objective.value(theta), "after the map", dtype=theta.dtype)
    if not np.isfinite(points.values["lambda_max"]).any():
        raise FloatingPointError(
            f"loss or curvature is not finite at any of the {num_points} points of the map: use a "
            "smaller range"
        )
    arrays = {name: torch.from_numpy(values.copy()) for name, values in points.values.items()}
    converged = arrays.pop("converged") == 1.0
    return EigenvalueMap(
        x=torch.from_numpy(points.x.copy()),
        y=torch.from_numpy(points.y.copy()),
        **arrays,
        converged=converged,
        center_loss=center_loss,
        num_nonfinite=int(arrays["lambda_max"].isnan().sum()),
        tolerance=tolerance,
        seed=seed,
        angle_degrees=facts.angle_degrees,
        norms=(facts.norms[0], facts.norms[1]),
        parameter_norm=facts.parameter_norm,
        cost=cost + Cost(seconds=time.perf_counter() - begin),
    )


def _extremes(
    operator: SymmetricOperator, tolerance: float, max_products: int | None, seed: int
) -> dict[str, float]:
    """The largest and the smallest eigenvalue, by the names of `QUANTITIES`."""
    start = gaussian(operator, seeded(seed))
    look = np.linalg.eigvalsh(tridiagonalise(operator, start, num_steps=FIRST_LOOK).matrix)
    middle, width = (look[0] + look[-1]) / 2, look[-1] - look[0]
    # Far from 0 a shift would gain nothing, and near a multiple of I leave nothing but rounding.
    shift = float(middle) if abs(middle) < width else 0.0
    pairs: Eigenpairs = lanczos(
        ShiftedOperator(operator, -shift) if shift else operator,
        num_eigenpairs=1,
        ends="both",
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
    )
    return {
        "lambda_max": float(pairs.values[0]) + shift,
        "lambda_min": float(pairs.values[-1]) + shift,
        "lambda_max_residual": float(pairs.residuals[0]),
        "lambda_min_residual": float(pairs.residuals[-1]),
        "converged": float(pairs.complete),
    }
