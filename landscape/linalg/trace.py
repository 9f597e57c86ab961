"""The trace of a symmetric operator from random probes, with its standard error."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from landscape.estimate import Estimate

from .lanczos import Eigenpairs
from .operator import CountedOperator, Progress, SymmetricOperator, rademacher, seeded

LEAST_PROBES = 10  # before an error may stop the run: fewer say too little about their own spread
ROUNDING = 64  # samples that differ by less than this many eps do not differ


def hutchinson_trace(
    operator: SymmetricOperator,
    *,
    num_probes: int = 64,
    seed: int = 0,
    tolerance: float | None = None,
    eigenpairs: Eigenpairs | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Unbiased estimate of tr(A) from Rademacher probes, with its standard error.

        tr(A) ~ (1/m) sum_i v_i'A v_i,     v_i in {-1, +1}^P            (Hutchinson 1990)

    With known eigenpairs (theta_j, u_j) their part is exact and only the rest is sampled:

        tr(A) ~ sum_j theta_j |u_j|^2 + (1/m) sum_i (v_i'A v_i - sum_j theta_j (u_j'v_i)^2)

    As E (u'v)^2 = |u|^2, the second form is unbiased for any theta and u, wrong ones included.

    Args:
        operator: symmetric A, size P.
        num_probes: m, one product each; at least 2, or no error can be given. With a tolerance,
            the most that may be spent.
        seed: same seed, same probes, on every device and every rank.
        tolerance: stop when the half width of the 95 % Student-t interval is below this share of
            |value|, at the earliest after 10 probes. Never on successive means: they agree long
            before they are right.
        eigenpairs: known pairs, of `lanczos`; they cost no product.
        progress: called after each product with (done, num_probes).

    Returns:
        Estimate: value (units of A), standard_error; details `interval` (95 %, Student-t),
        `num_deflated`, `stopped_on` ("tolerance" or "budget"), and `zero_variance`: all probes gave
        the same number to rounding, as they do when the sampled matrix is diagonal; the standard
        error then says nothing more than that.

    Raises:
        ValueError: num_probes < 2, tolerance <= 0, or eigenpairs of another size.
        FloatingPointError: a product is not finite.

    >>> from landscape.linalg import MatrixOperator
    >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    >>> hutchinson_trace(MatrixOperator(matrix), num_probes=2).value
    6.0
    """
    if num_probes < 2:
        raise ValueError(f"num_probes must be >= 2, got {num_probes}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    if eigenpairs is not None and eigenpairs.vectors.shape[0] != operator.size:
        raise ValueError(
            f"eigenpairs have size {eigenpairs.vectors.shape[0]}, the operator {operator.size}"
        )
    counted = CountedOperator(operator, progress, num_probes)
    generator = seeded(seed)
    pairs: list[tuple[float, Tensor]] = []
    if eigenpairs is not None:
        pairs = list(zip(eigenpairs.values.tolist(), eigenpairs.vectors.T, strict=True))
    known = math.fsum(theta * _inner(vector, vector) for theta, vector in pairs)
    samples = np.empty(num_probes)
    largest = 0.0
    for count in range(1, num_probes + 1):
        probe = rademacher(operator, generator)
        whole = _inner(probe, counted @ probe)
        part = math.fsum(theta * _inner(vector, probe) ** 2 for theta, vector in pairs)
        samples[count - 1] = known + whole - part
        largest = max(largest, abs(whole), abs(part))
        if count < min(LEAST_PROBES, num_probes):
            continue
        drawn = samples[:count]
        value, standard_error = float(drawn.mean()), float(drawn.std(ddof=1)) / math.sqrt(count)
        half_width = float(stdtrit(count - 1, 0.975)) * standard_error
        is_reached = (
            tolerance is not None and count >= LEAST_PROBES and half_width <= tolerance * abs(value)
        )
        if is_reached:
            break
    rounding = ROUNDING * torch.finfo(operator.dtype).eps * largest
    return Estimate(
        value=value,
        standard_error=standard_error,
        kind="estimate",
        cost=counted.cost,
        details={
            "interval": [value - half_width, value + half_width],
            "num_deflated": len(pairs),
            "stopped_on": "tolerance" if is_reached else "budget",
            "zero_variance": bool(np.ptp(drawn) <= rounding),
        },
    )


def _inner(first: Tensor, second: Tensor) -> float:
    return float(first.double() @ second.double())
