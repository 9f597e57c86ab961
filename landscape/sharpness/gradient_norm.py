"""The length of the gradient, and whether it is small enough to speak of a minimum."""

from __future__ import annotations

import math

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .ball import length
from .measuring import check_options
from .metered import Metered
from .spectrum import Spectrum


def gradient_norm(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.05,
) -> Estimate:
    """||g||, g the gradient of the mean loss, in loss per parameter; flagged when not small.

    Small is a matter of scale, so the slope is set beside the curvature along it. With u = g/||g||,

        L(theta + rho u) ~ L + rho ||g|| + rho^2 u'Hu / 2,     small:  rho ||g|| <= rho^2 u'Hu / 2

    that is: at the radius where sharpness is measured, the rise is more curvature than slope.
    Otherwise (u'Hu <= 0 included) sharpness measures slope and the point is no minimum at that
    radius. Neither a factor nor a constant added to the loss changes the answer, and a rescaling
    of the parameters does not where rho goes with it. The parabola along u has its minimum
    `turning_distance` = ||g|| / u'Hu away: small means within rho / 2. Cost: one gradient and one
    Hessian-vector product.

    Args:
        theta: shape (P,).
        seed, spectrum: not used; nothing is drawn.
        rho: the radius that the flag speaks of; it does not change the value.

    Raises:
        ValueError: rho < 0.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    check_options("gradient-norm", rho=rho)
    meter = Metered(objective)
    _, gradient = meter.centre(theta)
    norm = length(gradient)
    curvature, turning_distance, small = None, 0.0, True
    warnings = []
    if norm > 0:
        u = gradient / norm
        curvature = float(u.double().dot(meter.hvp(theta, u).double()))
        turning_distance = norm / curvature if curvature > 0 else math.inf
        small = turning_distance <= rho / 2
        if not small:
            slope, bend = rho * norm, rho**2 * curvature / 2
            warnings.append(
                f"the gradient is not small ({norm:.3g}): at rho = {rho:g} it raises the loss by "
                f"{slope:.2g}, curvature along it by {bend:.2g}; the point is no minimum"
            )
    details = {
        "small": small,
        "judged_at_rho": rho,
        "curvature_along": curvature,
        "turning_distance": turning_distance,
        "num_parameters": theta.numel(),
        "warnings": warnings,
    }
    return Estimate(norm, None, "exact", meter.cost, details)
