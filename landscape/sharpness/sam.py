"""SAM's own sharpness: how far the loss rises in the one step that SAM takes."""

from __future__ import annotations

import math

from torch import Tensor

from landscape.estimate import Estimate
from landscape.objective import Objective

from .ball import L2Ball, length
from .measuring import check_options
from .metered import Metered, rounding_warnings
from .spectrum import Spectrum


def sam(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    rho: float = 0.05,
) -> Estimate:
    """L(theta + rho g / ||g||) - L(theta): the rise along the gradient, in units of the loss.

        on a quadratic:  rho ||g|| + rho^2 u'Hu / 2,    u = g / ||g||

    One point of the ball, so never more than the worst case; at a saddle or a minimum it may be
    far less, and it depends on the direction from which the minimum was approached (Wen, Ma and
    Li 2023): where g = 0 it is 0 and says so. Cost: one gradient and one forward pass.

    Args:
        theta: shape (P,).
        seed, spectrum: not used; nothing is drawn.
        rho: length of the step, in the units of the parameters.

    Raises:
        ValueError: rho < 0.
        FloatingPointError: the loss or the gradient at theta is not finite.

    Source: Foret et al. 2021, equation 2.
    """
    check_options("sam", rho=rho)
    meter = Metered(objective)
    loss, gradient = meter.centre(theta)
    gradient_norm = length(gradient)
    warnings = []
    rise = 0.0
    if gradient_norm == 0:
        warnings.append("the gradient is zero: there is no direction to ascend, 0 by convention")
    elif rho > 0:
        rise = meter.value(theta + rho * L2Ball(rho).steepest(gradient)) - loss
        if not math.isfinite(rise):
            warnings.append(f"the loss at theta + rho g/||g|| is not finite (rise {rise})")
        warnings += rounding_warnings(rise, loss, theta.dtype)
    details = {
        "rho": rho,
        "norm": "l2",
        "num_parameters": theta.numel(),
        "gradient_norm": gradient_norm,
        "first_order": rho * gradient_norm,
        "warnings": warnings,
    }
    return Estimate(rise, None, "exact", meter.cost, details)
