"""Worst-case sharpness: the largest rise of the loss within a radius."""

from __future__ import annotations

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .ascent import largest_rise
from .measuring import check_options
from .spectrum import Spectrum


def worst_case(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.05,
    norm: str = "l2",
    num_steps: int = 20,
    num_restarts: int = 2,
) -> Estimate:
    """max over ||e|| <= rho of L(theta + e) - L(theta), a lower bound, in units of the loss.

        at a minimum, small rho:  rho^2 lambda_max / 2        (Wen, Ma and Li 2023)

    Projected ascent (`ascent.py`) from rho g/||g||, +rho v1, -rho v1 and random points; the best
    is the value, all runs are in `details["starts"]` and `details["spread"]` is the difference of
    the best and the worst of them. Never below 0, because e = 0 is in the ball. A point where the
    loss is not finite is named in the warnings: plus infinity is the worst case, nan ends its run.

    Args:
        theta: shape (P,).
        seed: of the random starts.
        spectrum: its top eigenvector is v1; else Lanczos finds one within 40 products.
        rho: radius in the norm of the whole vector, in the units of the parameters.
        norm: "l2" or "linf".
        num_steps: of each run: that many gradients and one forward pass.
        num_restarts: random starts.

    Raises:
        ValueError: an option out of its range.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    check_options("worst-case", rho=rho, norm=norm, num_steps=num_steps, num_restarts=num_restarts)
    return largest_rise(
        objective,
        theta,
        uphill=True,
        rho=rho,
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        seed=seed,
        spectrum=spectrum,
    )
