"""ASAM: SAM in a ball whose axes are as long as the weights, so that rescaling changes nothing."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_variants.base import Common, Descent, Evaluate, Evaluation, SharpnessAware
from sam_variants.schedules import Schedule
from sam_variants.vector import TINY, ParameterVector


class ASAM(SharpnessAware):
    """Adaptive SAM (Kwon et al., 2102.11600, algorithm 1).

        T = |w| + eta on weights, 1 elsewhere (diagonal)
        eps = rho T^2 g / (||T g|| + 1e-12),    q = grad L(w + eps),    base steps by q at w

    so that ||T^-1 eps|| = rho. A tensor is a weight where its name contains "weight" (the authors'
    code: batch norm's scale is one, biases are not); where the base was built without names, one of
    two or more dimensions is. Two gradients a perturbed step.

    Args:
        base: the optimizer that descends; built from `named_parameters()` it knows the names.
        rho: radius, in units of the weights, >= 0, or a Schedule of it.
        eta: floor of T, >= 0: with 0 a weight of exactly 0 never moves in the ascent.
        adapt: "weights" as above, or "all": T = |w| + eta for every tensor.

    Raises:
        ValueError: an option out of its range.
    """

    name = "asam"
    rho: float | Schedule
    eta: float
    adapt: str

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float | Schedule = 0.5,
        eta: float = 0.01,
        adapt: str = "weights",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(base, options={"rho": rho, "eta": eta, "adapt": adapt}, **common)

    def descent(self) -> Descent:
        clean = yield Evaluate(sync=self.synced)
        if not self.perturbs(clean):
            return self.averaged(clean.take())
        worst = yield Evaluate(offset=self.ascent(clean))
        return worst.take()

    def ascent(self, clean: Evaluation) -> ParameterVector:
        """eps, in the clean gradient's own tensors."""
        gradient = clean.take()
        scaled, sizes = self._adapted(gradient)
        scaled.mul_(sizes)  # T g
        factor = 1.0 / (gradient.norm() + TINY)
        scaled.mul_(sizes)  # T^2 g
        return gradient.mul_(self.times_rho(factor))

    def _adapted(self, gradient: ParameterVector) -> tuple[ParameterVector, ParameterVector]:
        """The gradient's tensors that are weights (the same storage), and T = |w| + eta there."""
        chosen: list[Tensor | None] = []
        sizes: list[Tensor | None] = []
        for weight, tensor, adapts in zip(self.parameters, gradient, self._adapts(), strict=True):
            use = adapts and tensor is not None
            chosen.append(tensor if use else None)
            sizes.append(torch.abs(weight.detach()).add_(self.eta) if use else None)
        return ParameterVector(chosen), ParameterVector(sizes)

    def _adapts(self) -> list[bool]:
        if self.adapt == "all":
            return [True] * len(self.parameters)
        return [
            "weight" in name if name is not None else weight.ndim >= 2
            for name, weight in zip(self.names, self.parameters, strict=True)
        ]
