"""Gradient noise: how single samples and training batches differ from the whole probe data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from .curvature import Hessian
from .estimate import Cost, Estimate
from .linalg import lanczos
from .linalg.operator import Progress, seeded
from .objective import Objective
from .sampling import LEAST_GROUPS, finite_value_and_gradient, random_groups, require_separable


def gradient_covariance_trace(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    num_groups: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """tr S, S the covariance of the gradients of single samples, (loss per parameter)^2.

        S = (1/(n-1)) sum_i (g_i - g)(g_i - g)',     g the gradient of the mean loss

    A batch of B samples drawn from many has a gradient of covariance S / B. A sample is a row;
    where rows have different numbers of loss terms T_i, g_i - g is weighted by n T_i / sum T, so
    that the mean of the g_i is g. From groups, with group b of n_b rows, w_b of the terms:

        tr S ~ sum_b ||G w_b (g_b - g)||^2 / ((G/n)^2 (n - sum_b n_b^2 / n))

    which is unbiased over the random cut into groups, and tr S itself for groups of one row. The
    squared gradient of a batch is another number: the samples' noise partly cancels in it.

    Args:
        objective: L.
        theta: where, shape (P,); default the model's own weights.
        num_groups: G, from 20 to n rows; n small passes are slow, so fewer groups are cheaper in
            time though the same in samples. None: single rows, exact over the probe data.
        seed: of the groups.
        progress: called after each group with (done, G).

    Returns:
        Estimate. From groups the standard error and the 95 % Student-t `interval` in details are
        those of tr S on what the rows were drawn from, conservative for tr S on the probe data. On
        single rows kind is "exact" and these stand in details, `sampling_error` and `interval`. The
        squared lengths have a long tail: of 240 rows the interval was seen to hold 92 %.
        Details also have `gradient_norm` and `noise_scale`, tr S / (||g||^2 - tr S / n) in samples:
        the batch at which noise is as long as the gradient (McCandlish et al. 2018, equation 2.9;
        None where the gradient does not stand out from its noise). Cost: two gradients and one
        forward pass over the data.

    Raises:
        ValueError: num_groups out of its range; rows that are not independent.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    theta = objective.theta if theta is None else theta
    num_rows = objective.num_samples
    if num_groups is not None and not LEAST_GROUPS <= num_groups <= num_rows:
        raise ValueError(
            f"num_groups must be from {LEAST_GROUPS} to the {num_rows} rows, got {num_groups}"
        )
    if num_rows < 2:
        raise ValueError("one row has no covariance: gradient noise needs at least 2")
    count = num_rows if num_groups is None else num_groups
    begin = time.perf_counter()
    loss, gradient = finite_value_and_gradient(objective, theta)
    squares, losses, shares = np.empty(count), np.empty(count), np.empty(count)
    sizes = np.empty(count)
    for index, part in enumerate(random_groups(objective, count, seeded(seed))):
        losses[index], own = part.value_and_gradient(theta)
        shares[index] = part.num_terms / objective.num_terms
        sizes[index] = part.num_samples
        distance = float(torch.linalg.vector_norm(own.double() - gradient.double()))
        squares[index] = (count * shares[index] * distance) ** 2
        if progress is not None:
            progress(index + 1, count)
    require_separable(objective, loss, float(shares @ losses))

    norm = (count / num_rows) ** 2 * (num_rows - float((sizes**2).sum()) / num_rows)
    per_group = count * squares / norm
    value, error = float(per_group.mean()), float(per_group.std(ddof=1)) / math.sqrt(count)
    half_width = float(stdtrit(count - 1, 0.975)) * error
    length = float(torch.linalg.vector_norm(gradient.double()))
    signal = length**2 - value / num_rows
    details = {
        "interval": [max(value - half_width, 0.0), value + half_width],
        "num_groups": count,
        "num_samples": num_rows,
        "gradient_norm": length,
        "noise_scale": value / signal if signal > 0 else None,
        "seed": seed,
    }
    cost = Cost(gradients=2, forwards=1, seconds=time.perf_counter() - begin)
    if count == num_rows:
        return Estimate(value, None, "exact", cost, {**details, "sampling_error": error})
    return Estimate(value, error, "estimate", cost, details)


def batch_lambda_max(
    objective: Objective,
    theta: Tensor | None = None,
    *,
    batch_size: int,
    num_batches: int = 10,
    tolerance: float = 1e-2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The mean largest eigenvalue of the Hessian of a training batch, loss / parameter^2.

        E_B lambda_max(H_B),     H_B the Hessian of the mean loss over B random rows

    Never below lambda_max(H), for the maximum of a mean is at most the mean of the maxima; the
    smaller the batch, the further above.

    Args:
        objective: L, on the probe data.
        theta: where, shape (P,); default the model's own weights.
        batch_size: rows of a batch, at most all.
        num_batches: how many are drawn, each on its own, without a row twice in one; at least 2.
        tolerance: relative residual of each eigenvalue.
        seed: of the batches and of the start vectors.
        progress: called after each batch with (done, num_batches).

    Returns:
        Estimate: the mean over batches and its standard error; kind "lower bound" where a batch's
        value is not converged or not confirmed. Details: `interval` (95 %, Student-t),
        `standard_deviation` over batches, `values`, `num_unconfirmed`, `num_batches`. Cost in
        products over the probe data: one over a batch counts batch_size / n.

    Raises:
        ValueError: an argument out of its range; batch norm on batch statistics with probe data in
            several batches, of which a batch would be put together.
        FloatingPointError: a product is not finite.
    """
    theta = objective.theta if theta is None else theta
    num_rows = objective.num_samples
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"batch_size must be from 1 to the {num_rows} rows, got {batch_size}")
    if num_batches < 2:
        raise ValueError(f"num_batches must be >= 2, or there is no error, got {num_batches}")
    if objective.batch_norm == "batch" and objective.num_batches > 1:
        raise ValueError(
            "batch norm on batch statistics needs the probe data as one batch, or a random batch "
            "is taken apart again"
        )
    begin = time.perf_counter()
    generator = seeded(seed)
    values, products, num_unconfirmed = np.empty(num_batches), 0, 0
    for index in range(num_batches):
        rows = torch.randperm(num_rows, generator=generator)[:batch_size].tolist()
        hessian = Hessian(objective.over_rows(rows), theta)
        found = lanczos(hessian, num_eigenpairs=1, tolerance=tolerance, seed=seed + index)
        values[index] = float(found.values[0])
        products += found.num_matvecs
        num_unconfirmed += not found.complete
        if progress is not None:
            progress(index + 1, num_batches)
    value, deviation = float(values.mean()), float(values.std(ddof=1))
    error = deviation / math.sqrt(num_batches)
    half_width = float(stdtrit(num_batches - 1, 0.975)) * error
    share = batch_size / num_rows
    return Estimate(
        value,
        error,
        "lower bound" if num_unconfirmed else "estimate",
        Cost(products * share, 0.0, num_batches * share, time.perf_counter() - begin),
        {
            "interval": [value - half_width, value + half_width],
            "standard_deviation": deviation,
            "values": values.tolist(),
            "num_unconfirmed": num_unconfirmed,
            "batch_size": batch_size,
            "num_batches": num_batches,
            "num_samples": num_rows,
            "seed": seed,
        },
    )


@dataclass(frozen=True)
class GradientAlignment:
    """How the gradient lies to the curvature.

    Attributes:
        curvature: u'Hu, u = g / ||g||, loss / parameter^2; None where g is zero.
        cosine: |cos(g, v1)|, for the sign of an eigenvector means nothing; None without v1.
        gradient_norm: ||g||.
        cost: one gradient and one product.
    """

    curvature: float | None
    cosine: float | None
    gradient_norm: float
    cost: Cost


def gradient_alignment(
    objective: Objective, theta: Tensor | None = None, *, top_vector: Tensor | None = None
) -> GradientAlignment:
    """u'Hu along the gradient's direction u, and |cos(g, v1)| with the top eigenvector v1.

    lambda_min <= u'Hu <= lambda_max, and u'Hu = lambda_max where g lies along v1. Exact up to
    rounding, for the probe data.

    Args:
        objective: L.
        theta: where, shape (P,); default the model's own weights.
        top_vector: v1, shape (P,), of any length but zero (`lanczos`).

    Raises:
        ValueError: top_vector of another shape, or zero.
        FloatingPointError: the loss, the gradient or the product is not finite.
    """
    theta = objective.theta if theta is None else theta
    if top_vector is not None and not (top_vector.shape == theta.shape and bool(top_vector.any())):
        raise ValueError(
            f"top_vector must have shape {tuple(theta.shape)} and not be zero, "
            f"got shape {tuple(top_vector.shape)}"
        )
    begin = time.perf_counter()
    _, gradient = finite_value_and_gradient(objective, theta)
    length = float(torch.linalg.vector_norm(gradient.double()))
    if length == 0:
        cost = Cost(gradients=1, seconds=time.perf_counter() - begin)
        return GradientAlignment(None, None, 0.0, cost)
    u = gradient.double() / length
    curvature = float(u @ objective.hvp(theta, u.to(gradient.dtype)).double())
    if not math.isfinite(curvature):
        raise FloatingPointError(f"the curvature along the gradient is {curvature}")
    cosine = None
    if top_vector is not None:
        v1 = top_vector.to(u)
        cosine = min(abs(float(u @ v1)) / float(torch.linalg.vector_norm(v1)), 1.0)
    cost = Cost(products=1, gradients=1, seconds=time.perf_counter() - begin)
    return GradientAlignment(curvature, cosine, length, cost)
