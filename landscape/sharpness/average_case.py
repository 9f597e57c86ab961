"""Average-case sharpness: the mean rise of the loss under Gaussian noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from landscape.estimate import Estimate
from landscape.linalg import Eigenpairs
from landscape.objective import Objective, TwiceDifferentiable

from .measuring import check_options
from .metered import Metered, rounding_warnings
from .spectrum import Spectrum


def average_case(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.05,
    num_draws: int = 64,
) -> Estimate:
    """E_z L(theta + rho z / sqrt(P)) - L(theta), z ~ N(0, I), with its standard error.

        on a quadratic: rho^2 tr(H) / (2P), exactly

    The 1/sqrt(P) is our convention: the root mean square length of the noise is rho, so that rho
    means the same length as in `sam` and `worst-case`. What the quadratic model predicts of each
    draw is taken off and its known mean put back, a control variate that leaves the mean unbiased
    whatever the vectors and values are worth:

        rise(d) - g'd - 1/2 sum_i lambda_i ((v_i'd)^2 - rho^2 / P),    d = rho z / sqrt(P)

    with the eigenpairs of the spectrum where there is one. `details` holds the 95 % Student-t
    `interval`, and the mean and standard error without the control variate. Antithetic pairs d, -d
    would take off the odd orders alone, for twice the passes. A draw whose loss is not finite makes
    the mean so, and is named, never left out. Cost: one gradient and num_draws forward passes.

    Args:
        theta: shape (P,).
        seed: of the draws, made on the CPU: the same on every device.
        spectrum: its eigenpairs reduce the variance.
        rho: root mean square length of the noise, in the units of the parameters.
        num_draws: at least 2.

    Raises:
        ValueError: an option out of its range.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    check_options("average-case", rho=rho, num_draws=num_draws)
    return mean_rise(
        objective,
        theta,
        rho=rho,
        num_draws=num_draws,
        seed=seed,
        pairs=spectrum.eigenpairs if spectrum is not None else None,
    )


def mean_rise(
    objective: TwiceDifferentiable,
    theta: Tensor,
    *,
    rho: float,
    num_draws: int,
    seed: int,
    pairs: Eigenpairs | None,
) -> Estimate:
    """E_z L(theta + rho z / sqrt(P)) - L(theta), as `average_case` describes it.

    Args:
        pairs: a model of the Hessian as sum_i lambda_i v_i v_i', right or wrong.
    """
    meter = Metered(objective)
    details: dict[str, Any] = {
        "rho": rho,
        "norm": "l2, root mean square",
        "num_parameters": theta.numel(),
        "num_draws": num_draws,
    }
    if rho == 0:
        return Estimate(0.0, 0.0, "exact", meter.cost, {**details, "warnings": []})

    loss, gradient = meter.centre(theta)
    scale = rho / math.sqrt(theta.numel())
    prediction = _QuadraticModel(gradient, pairs, scale)
    generator = torch.Generator().manual_seed(seed)
    rises = torch.empty(num_draws, dtype=torch.float64)
    predicted = torch.empty(num_draws, dtype=torch.float64)
    for draw in range(num_draws):
        z = torch.randn(theta.numel(), generator=generator, dtype=torch.float64)
        noise = (scale * z).to(theta.dtype).to(theta.device)
        rises[draw] = meter.value(theta + noise) - loss
        predicted[draw] = prediction.rise_above_mean(noise)

    corrected = rises - predicted
    value, standard_error = _mean_and_error(corrected)
    plain, plain_error = _mean_and_error(rises)
    warnings = [
        f"the loss is not finite (rise {float(rises[draw])}) at draw {draw + 1} of {num_draws}"
        for draw in (~rises.isfinite()).nonzero().flatten().tolist()
    ]
    half_width = float(stdtrit(num_draws - 1, 0.975)) * standard_error
    details |= {
        "interval": [value - half_width, value + half_width],
        "control_eigenpairs": prediction.num_eigenpairs,
        "plain_value": plain,
        "plain_standard_error": plain_error,
        "warnings": [*warnings, *rounding_warnings(value, loss, theta.dtype)],
    }
    return Estimate(value, standard_error, "estimate", meter.cost, details)


class _QuadraticModel:
    """The part of the rise that slope and known eigenpairs explain, its mean subtracted."""

    def __init__(self, gradient: Tensor, pairs: Eigenpairs | None, scale: float) -> None:
        self.gradient = gradient.double()
        self.num_eigenpairs = 0 if pairs is None else len(pairs.values)
        self.vectors = None if pairs is None else pairs.vectors
        if pairs is not None:
            self.values = pairs.values.to(gradient.device, torch.float64)
            # E (v'd)^2 = scale^2 ||v||^2: with the true length, rounding leaves no bias either.
            # A column at a time: in float64 all of them would be twice the eigenvectors' memory.
            lengths = [torch.linalg.vector_norm(v, dtype=torch.float64) for v in pairs.vectors.T]
            self.means = scale**2 * torch.stack(lengths) ** 2

    def rise_above_mean(self, noise: Tensor) -> float:
        slope = float(self.gradient.dot(noise.double()))
        if self.vectors is None:
            return slope
        along = (self.vectors.T @ noise).double()
        return slope + float((self.values * (along**2 - self.means)).sum()) / 2


def _mean_and_error(sample: Tensor) -> tuple[float, float]:
    return float(sample.mean()), float(sample.std()) / math.sqrt(len(sample))
