"""ERM: the base optimizer alone, in the form of a rule."""

from __future__ import annotations

from typing import Unpack

from torch.optim import Optimizer

from sam_variants.base import Common, Descent, Evaluate, SharpnessAware
from sam_variants.policies import Never


class ERM(SharpnessAware):
    """Empirical risk minimisation: q = grad L(w), one gradient a step.

    The reference of every comparison: bit for bit the base optimizer's own step, counted and saved
    like the others.
    """

    name = "erm"
    moves_weights = False

    def __init__(self, base: Optimizer, **common: Unpack[Common]) -> None:
        common["when"] = Never()
        super().__init__(base, options={}, **common)

    def descent(self) -> Descent:
        clean = yield Evaluate()
        self.perturbs(clean)  # never: notes the gradient's norm, as every rule does
        return clean.take()
