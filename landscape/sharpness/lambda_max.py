"""The largest eigenvalue of the Hessian: the curvature of the sharpest direction."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .measuring import check_options
from .spectrum import Spectrum, extreme_pair

_TOLERANCE = 1e-3  # relative, of a search of our own


def lambda_max(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    tolerance: float | None = None,
) -> Estimate:
    """lambda_max of H, the Hessian of the mean loss at theta, in loss / parameter^2.

        lambda_max = max v'Hv over ||v|| = 1

    The largest algebraically, not in magnitude: a negative eigenvalue does not hide it. An
    eigenvalue lies within `residual` of the value. A Ritz value is never above lambda_max, so
    what is not converged and confirmed is called a lower bound. Autograd's second derivative of
    ReLU and max-pooling is zero: curvature that sits in kinks is not in this number
    (`worst-case` sees it).

    Args:
        theta: shape (P,).
        seed: of the start vector of a search of our own.
        spectrum: its top eigenpair is taken, unless a smaller tolerance is asked for.
        tolerance: ||Hv - lambda v|| / lambda to stop at; None: the spectrum's, else 1e-3.

    Raises:
        ValueError: tolerance outside (0, 1].
        FloatingPointError: a product is not finite.
    """
    check_options("lambda-max", tolerance=tolerance)
    shared = spectrum.eigenpairs if spectrum is not None else None
    if shared is not None and tolerance is not None and tolerance < shared.tolerance:
        spectrum = None
    pair = extreme_pair(
        objective,
        theta,
        spectrum,
        end="top",
        tolerance=tolerance or _TOLERANCE,
        max_products=None,
        seed=seed,
    )
    certain = pair.converged and pair.confirmed
    details: dict[str, Any] = {
        "matrix": spectrum.matrix if spectrum is not None and pair.shared else "hessian",
        "residual": pair.residual,
        "converged": pair.converged,
        "confirmed": pair.confirmed,
        "shared": pair.shared,
        "num_parameters": theta.numel(),
        "warnings": []
        if certain
        else [
            f"lambda-max {pair.value:.4g} is not {'confirmed' if pair.converged else 'converged'} "
            f"(residual {pair.residual:.2g}): a larger eigenvalue may exist"
        ],
    }
    kind = "estimate" if certain else "lower bound"
    return Estimate(pair.value, None, kind, pair.cost, details)
