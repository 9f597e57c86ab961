"""The trace of the Hessian: the sum of all curvatures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from landscape.curvature import Hessian
from landscape.estimate import Cost, Estimate
from landscape.linalg import hutchinson_trace
from landscape.objective import Objective

from .measuring import check_options
from .spectrum import Spectrum

_NUM_PROBES = 64


def trace(
    objective: Objective,
    theta: Tensor,
    *,
    seed: int,
    spectrum: Spectrum | None = None,
    num_probes: int | None = None,
) -> Estimate:
    """tr H, H the Hessian of the mean loss at theta, in loss / parameter^2, with a standard error.

        tr H = E v'Hv,    v random signs        (Hutchinson 1990)

    Known eigenpairs serve as a control variate. Autograd's second derivative of ReLU and
    max-pooling is zero: kinks are not in this number.

    Args:
        theta: shape (P,).
        seed: of the probes.
        spectrum: its trace is taken, unless another number of probes is asked for.
        num_probes: None: the spectrum's, else 64.

    Raises:
        ValueError: num_probes < 2.
        FloatingPointError: a product is not finite.
    """
    check_options("trace", num_probes=num_probes)
    shared = spectrum.trace if spectrum is not None else None
    details: dict[str, Any] = {"num_parameters": theta.numel()}
    if spectrum is not None and shared is not None and num_probes in (None, shared.num_matvecs):
        details |= {"matrix": spectrum.matrix, "shared": True, "num_probes": shared.num_matvecs}
        return Estimate(
            shared.value, shared.standard_error, shared.kind, Cost(), {**shared.details, **details}
        )
    hessian_pairs = spectrum.eigenpairs if spectrum and spectrum.matrix == "hessian" else None
    found = hutchinson_trace(
        Hessian(objective, theta),
        num_probes=_NUM_PROBES if num_probes is None else num_probes,
        seed=seed,
        eigenpairs=hessian_pairs,
    )
    details |= {"matrix": "hessian", "shared": False, "num_probes": found.num_matvecs}
    return Estimate(
        found.value, found.standard_error, found.kind, found.cost, {**found.details, **details}
    )
