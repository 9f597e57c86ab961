"""Min-sharpness: how far the loss falls within a radius, 0 at a minimum of the whole ball."""

from __future__ import annotations

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .ascent import largest_rise
from .measuring import check_options
from .spectrum import Spectrum


def min_sharpness(
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
    """L(theta) - min over ||e|| <= rho of L(theta + e), a lower bound, in units of the loss.

    The machinery of `worst_case` downhill: from -rho g/||g||, plus and minus rho times the
    eigenvector of the Hessian's smallest eigenvalue, and random points. Never below 0.

    Args:
        theta: shape (P,).
        seed: of the random starts.
        spectrum: its bottom eigenvector is a start, if it has that end; else Lanczos finds one
            within 40 products.
        rho: radius in the norm of the whole vector, in the units of the parameters.
        norm: "l2" or "linf".
        num_steps: of each run: that many gradients and one forward pass.
        num_restarts: random starts.

    Raises:
        ValueError: an option out of its range.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    check_options(
        "min-sharpness", rho=rho, norm=norm, num_steps=num_steps, num_restarts=num_restarts
    )
    return largest_rise(
        objective,
        theta,
        uphill=False,
        rho=rho,
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        seed=seed,
        spectrum=spectrum,
    )
