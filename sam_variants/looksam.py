"""LookSAM: SAM now and then, with the part of it that a plain gradient lacks reused in between."""

from __future__ import annotations

from typing import Any, Unpack, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_variants import VARIANTS, build
from sam_variants.base import Common, Descent, Evaluate, SharpnessAware
from sam_variants.policies import Every
from sam_variants.schedules import Schedule
from sam_variants.vector import TINY, ParameterVector


class LookSAM(SharpnessAware):
    """LookSAM (Liu et al., 2203.02714, algorithm 1; global decomposition).

        perturbed step:  g_s = grad L(w + rho g/||g||),   g_v = g_s - (<g_s, g> / <g, g>) g
                         v = g_v / ||g_v||,               q = g_s
        other steps:     q = g + alpha ||g|| v            (q = g before the first v)

    v is 0 where ||g_v|| <= 8 eps ||g_s|| (eps of the dtype): in one dimension, or at rho = 0, what
    is left of g_v is rounding noise, and normalising would give it length 1. <g, g> is taken by the
    same dot product as <g_s, g>, so that g_s = g leaves exactly 0. 1 + 1/k gradients a step.

    Args:
        base: the optimizer that descends.
        rho: radius of the SAM steps, >= 0, or a Schedule of it.
        every: k, steps from one SAM step to the next, >= 1.
        alpha: strength of the reused part, >= 0, in units of the gradient's norm.
        per: "all": one direction over all parameters; "tensor": one for each parameter tensor
            (which of the two the paper means is unconfirmed).
        when: a policy in place of `every` (AE-LookSAM).

    Raises:
        ValueError: an option out of its range; ascent="local" (v keeps the clean gradient).
    """

    name = "looksam"
    keeps_clean_gradient = True
    remembers = ("v",)
    rho: float | Schedule
    every: int
    alpha: float
    per: str

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float | Schedule = 0.05,
        every: int = 5,
        alpha: float = 0.7,
        per: str = "all",
        **common: Unpack[Common],
    ) -> None:
        VARIANTS["looksam"].options["every"].check("every", every)
        if common.get("when") is None:
            common["when"] = Every(every)
        options = {"rho": rho, "every": every, "alpha": alpha, "per": per}
        super().__init__(base, options=options, **common)

    def descent(self) -> Descent:
        clean = yield Evaluate()
        perturbed = self.perturbs(clean)
        gradient = clean.take()
        if perturbed:
            worst = yield Evaluate(offset=self.rho_hat(gradient, clean.norm))
            sharp = worst.take()
            self.remember(v=self._missing_part(sharp, gradient))
            return sharp
        direction = self.recall("v")
        if direction is None or self.alpha == 0.0:
            return gradient
        return gradient.add_(self._reused(direction, gradient, clean.norm))

    def _missing_part(self, sharp: ParameterVector, clean: ParameterVector) -> ParameterVector:
        """v: the unit vector of the sharp gradient's part orthogonal to the clean gradient."""
        if self.per == "tensor":
            part = sharp.clone().orthogonal_by_slot_to_(clean)
            lengths = [square.sqrt() for square in part.dots(part)]
            noise = [square.sqrt() for square in sharp.dots(sharp)]
            return part.mul_(
                [
                    _inverse_length(length, floor, _epsilon(part))
                    for length, floor in zip(lengths, noise, strict=True)
                ]
            )
        part = sharp.clone().orthogonal_to_(clean)
        return part.mul_(_inverse_length(part.norm(), sharp.norm(), _epsilon(part)))

    def _reused(
        self, direction: ParameterVector, gradient: ParameterVector, norm: Tensor
    ) -> ParameterVector:
        """alpha ||g|| v, the norm of each tensor where the direction is one a tensor."""
        if self.per == "tensor":
            squares = gradient.dots(gradient)
            return direction.mul([self.alpha * square.sqrt() for square in squares])
        return direction.mul(self.alpha * norm)


def _inverse_length(length: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """1 / (length + c), or 0 where the length is the rounding noise of vectors of that scale."""
    return torch.where(length <= 8.0 * epsilon * scale, 0.0, 1.0 / (length + TINY))


def _epsilon(vector: ParameterVector) -> float:
    dtypes = {tensor.dtype for tensor in vector if tensor is not None}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def AELookSAM(base: Optimizer, **options: Any) -> LookSAM:
    """LookSAM whose SAM steps come by the adaptive threshold: the entry `ae-looksam` of VARIANTS.

    Where the threshold is met, LookSAM's SAM step; elsewhere q = g + alpha ||g|| v with the v of
    the last one (2304.14647; its alpha is unconfirmed).

    Args:
        base: the optimizer that descends.
        options: rho, alpha, per, signal, delta, lambda1, lambda2, initial_variance, refresh_every,
            total_steps, seed, with the ranges and defaults of VARIANTS["ae-looksam"].

    Raises:
        ValueError: as `build`; among others where total_steps is missing.
    """
    return cast(LookSAM, build("ae-looksam", base, **options))
