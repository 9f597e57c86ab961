"""Power iteration with deflation: the slow, transparent second way to eigenpairs."""

from __future__ import annotations

import torch

from .lanczos import FLOOR, Basis, Eigenpairs
from .operator import CountedOperator, Progress, SymmetricOperator, gaussian, seeded


def power_iteration(
    operator: SymmetricOperator,
    *,
    num_eigenpairs: int = 1,
    tolerance: float = 1e-3,
    max_products: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Eigenpairs:
    """The eigenpairs of largest |lambda|, ranked by magnitude: not the largest eigenvalues.

        w = A v,   theta = v'w,   v <- w / ||w||,   stopped at ||w - theta v|| <= tolerance |theta|

    Each further pair is sought orthogonally to those before it, its w taken orthogonal to them
    too. A large negative eigenvalue comes before a smaller lambda_max; of a pair lambda, -lambda
    neither is found, and `converged` says so. The stated residuals are those of A itself: what an
    earlier pair lacks stands in the later ones too, so small later pairs need a smaller tolerance.
    No momentum: the Rayleigh quotient is that of the vector just multiplied.

    Args:
        operator: symmetric A, size P.
        num_eigenpairs: k; at most P are given.
        tolerance: relative residual, never asked to be below 64 eps ||A||.
        max_products: budget for all pairs together.
        seed: of the start vectors; the same on every device.
        progress: called after each product with (done, max_products).

    Returns:
        Eigenpairs: by falling |theta|, `ends` all "magnitude", none confirmed.

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: a product is not finite.

    >>> from landscape.linalg import MatrixOperator
    >>> matrix = torch.diag(torch.tensor([2.0, -5.0]))
    >>> power_iteration(MatrixOperator(matrix)).values.round(decimals=2)
    tensor([-5.], dtype=torch.float64)
    """
    if num_eigenpairs < 1:
        raise ValueError(f"num_eigenpairs must be >= 1, got {num_eigenpairs}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    if max_products < 1:
        raise ValueError(f"max_products must be >= 1, got {max_products}")
    counted = CountedOperator(operator, progress, max_products)
    generator = seeded(seed)
    num_eigenpairs = min(num_eigenpairs, operator.size)
    found = Basis(operator, first_block=num_eigenpairs, capacity=num_eigenpairs)
    eps = torch.finfo(operator.dtype).eps
    values: list[float] = []
    residuals: list[float] = []
    scale = 0.0
    while len(found) < num_eigenpairs and counted.num_products < max_products:
        vector = gaussian(operator, generator)
        _, norm = found.orthogonalise(vector)
        while True:
            vector /= norm
            product = (counted @ vector).clone()
            scale = max(scale, found.norm(product))
            value = found.inner(vector, product)
            residual = found.norm(product - value * vector)
            _, norm = found.orthogonalise(product)
            remaining = found.norm(product - value * vector)
            if (
                remaining <= max(tolerance * abs(value), FLOOR * eps * scale)
                or counted.num_products == max_products
            ):
                break
            vector = product
        found.append(vector, 1.0)
        values.append(value)
        residuals.append(residual + eps * scale)

    ranked = sorted(range(len(values)), key=lambda index: -abs(values[index]))
    theta = torch.tensor(values, dtype=torch.float64)[ranked]
    residual_bounds = torch.tensor(residuals, dtype=torch.float64)[ranked]
    allowed = (tolerance * theta.abs()).clamp(min=FLOOR * eps * scale)
    return Eigenpairs(
        values=theta,
        vectors=found.columns()[:, ranked],
        residuals=residual_bounds,
        error_estimates=residual_bounds,
        converged=residual_bounds <= allowed,
        confirmed=torch.zeros(len(ranked), dtype=torch.bool),
        ends=("magnitude",) * len(ranked),
        tolerance=tolerance,
        cost=counted.cost,
    )
