"""Adaptive average-case sharpness: the mean rise under noise in units of each parameter's size."""

from __future__ import annotations

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .average_case import mean_rise
from .measuring import check_options
from .normalised_logits import on_normalised_logits
from .rescaled import Rescaled
from .spectrum import Spectrum


def adaptive_average_case(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.5,
    eta: float = 0.0,
    num_draws: int = 64,
    logits: str = "raw",
) -> Estimate:
    """E_z L(theta + rho T z / sqrt(P)) - L(theta), z ~ N(0, I), T = diag(|theta|).

        on a quadratic: rho^2 tr(T H T) / (2P), exactly

    In units of the loss, with its standard error. P is the number of parameters that are not zero,
    the others stay zero. The 1/sqrt(P) is our convention: the root mean square of ||T^-1 e|| is
    rho, so that rho means the same as in `adaptive-worst-case`. Unchanged when the weights into a
    ReLU are multiplied by a > 0 and those out of it by 1/a, bias included. The variance is reduced
    as in `average_case`, with T v_i for the eigenvectors v_i. With logits="normalised" L is the
    loss of the normalised logits, as in `adaptive_worst_case`.

    Args:
        theta: shape (number of parameters,).
        seed: of the draws, made on the CPU: the same on every device.
        spectrum: its eigenpairs reduce the variance; not used with normalised logits, because they
            are those of another Hessian.
        rho: root mean square length of T^-1 e, a pure number.
        eta: T = |theta| + eta; above 0 it voids the invariance, and a warning says so.
        num_draws: at least 2.
        logits: "raw", as the loss takes them, or "normalised".

    Raises:
        ValueError: an option out of its range; normalised logits of a loss that has none.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    check_options("adaptive-average-case", rho=rho, eta=eta, num_draws=num_draws, logits=logits)
    measured = on_normalised_logits(objective) if logits == "normalised" else objective
    scaled = Rescaled.by_size(measured, theta, eta=eta)
    pairs = spectrum.eigenpairs if spectrum is not None and measured is objective else None
    found = mean_rise(
        scaled,
        scaled.theta,
        rho=rho if scaled.num_parameters else 0.0,
        num_draws=num_draws,
        seed=seed,
        pairs=None if pairs is None else scaled.pairs_pulled_back(pairs),
    )
    return scaled.stated(found, rho=rho, norm="l2, root mean square,", eta=eta, logits=logits)
