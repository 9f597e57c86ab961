"""Adaptive worst-case sharpness: the worst case where each parameter moves in units of its size."""

from __future__ import annotations

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .ascent import largest_rise
from .measuring import check_options
from .normalised_logits import on_normalised_logits
from .rescaled import Rescaled
from .spectrum import Spectrum


def adaptive_worst_case(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.5,
    norm: str = "l2",
    eta: float = 0.0,
    num_steps: int = 20,
    num_restarts: int = 2,
    logits: str = "raw",
) -> Estimate:
    """max over ||T^-1 e|| <= rho of L(theta + e) - L(theta), T = diag(|theta|), a lower bound.

        on a quadratic with g = 0:  rho^2 lambda_max(T H T) / 2

    In units of the loss. The searches of `worst_case` in u = T^-1 e: from rho Tg/||Tg|| (ASAM's
    step), plus and minus rho times the top eigenvector of T H T, and random points. Parameters that
    are zero stay zero. Unchanged when the weights into a ReLU are multiplied by a > 0 and those out
    of it by 1/a, bias included. `details["num_fixed"]` counts the zeros.

    With logits="normalised" L is the loss of z~ = (z - mean(z)) / ||z - mean(z)||, z the logits of
    one term (`normalised_logits.py`): then multiplying the last linear layer, bias included, by a
    leaves it unchanged too. The eigenvector and the search are of that loss.

    Args:
        theta: shape (P,).
        seed: of the random starts.
        spectrum: not used: its eigenvectors are those of H, not of T H T.
        rho: radius, a pure number: with "l2" the root of the summed squares of all relative
            changes, with "linf" the largest of them.
        norm: "l2" or "linf", of T^-1 e as one vector.
        eta: T = |theta| + eta; above 0 it voids the invariance, and a warning says so.
        num_steps: of each run: that many gradients and one forward pass.
        num_restarts: random starts.
        logits: "raw", as the loss takes them, or "normalised".

    Raises:
        ValueError: an option out of its range; normalised logits of a loss that has none (not of
            the form loss(output, target), or without classes).
        FloatingPointError: the loss or the gradient at theta is not finite.

    Source: Kwon et al. 2021, equation 2 and section 3; Andriushchenko et al. 2023, equation 1, and
    for the normalised logits their code.
    """
    check_options(
        "adaptive-worst-case",
        rho=rho,
        norm=norm,
        eta=eta,
        num_steps=num_steps,
        num_restarts=num_restarts,
        logits=logits,
    )
    measured = on_normalised_logits(objective) if logits == "normalised" else objective
    scaled = Rescaled.by_size(measured, theta, eta=eta)
    found = largest_rise(
        scaled,
        scaled.theta,
        uphill=True,
        rho=rho if scaled.num_parameters else 0.0,
        norm=norm,
        num_steps=num_steps,
        num_restarts=num_restarts,
        seed=seed,
        spectrum=None,
    )
    return scaled.stated(found, rho=rho, norm=norm, eta=eta, logits=logits)
