"""Edges of stability: the curvature above which an optimizer leaves the minimum of a quadratic."""

from __future__ import annotations

import math


def gradient_edge(
    lr: float,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
) -> float:
    """The curvature above which full-batch SGD with momentum diverges on a quadratic.

        lambda < 2 / lr - weight_decay                             beta = 0, whatever d
        lambda < 2 (1 + beta) / ((1 - d) lr) - weight_decay        heavy ball, dampening d
        lambda < 2 (1 + beta) / ((1 + 2 beta) lr) - weight_decay   Nesterov

    Decay adds its number to every eigenvalue that the iteration sees. Units: loss / parameter^2.
    Infinite with momentum and dampening 1, where no gradient enters.

    Source: the roots of each iteration's characteristic polynomial on the unit circle; the momentum
    and its variants are those of torch.optim.SGD, which reads dampening beside a momentum alone.
    """
    if nesterov:
        share = 1 + 2 * momentum
    else:
        share = 1 - dampening if momentum else 1.0
    return 2 * (1 + momentum) / (share * lr) - weight_decay if share > 0 else math.inf


def sam_edge(edge: float, *, rho: float, gradient_norm: float | None) -> float:
    """The edge of SAM, where the edge without a perturbation is `edge`: never above it.

        lambda (1 + rho lambda / ||g||) = edge    normalised, ||g|| at the weights
        lambda (1 + rho lambda)         = edge    un-normalised (gradient_norm None)

    The positive root. With edge = 2/lr the first is Long and Bartlett 2309.12488, and holds for
    full-batch gradient descent without momentum alone; the second is Agarwala and Dauphin
    2302.08692, and holds with momentum and decay too.
    """
    if edge <= 0:
        return edge
    if gradient_norm == 0:
        return 0.0
    radius = rho if gradient_norm is None else rho / gradient_norm
    # the root of a x^2 + x = edge, written so that a -> 0 gives edge and not 0 / 0
    return 2 * edge / (1 + math.sqrt(1 + 4 * radius * edge))
