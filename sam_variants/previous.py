"""Previous-SAM: the last step's gradient as the perturbation, for one gradient a step."""

from __future__ import annotations

from typing import Unpack

from torch.optim import Optimizer

from sam_variants import VARIANTS
from sam_variants.base import Common, Descent, Evaluate, SharpnessAware
from sam_variants.schedules import Schedule


class PreviousSAM(SharpnessAware):
    """SAM along the previous step's gradient (DP-SAT of Park et al., 2306.05651, not private).

        eps_t = rho q_{t-1} / (||q_{t-1}|| + 1e-12),   eps_0 = 0,    q_t = grad L(w + eps_t)

    Plus, an ascent, where Momentum-SAM has minus. q_{t-1} is what the rule handed to the base:
    before clipping, without decay, of every step, perturbed or not; the first step, at home, counts
    as not perturbed. In the paper it is the privatised gradient, which costs no further privacy.
    One gradient a step and one vector kept.

    Args:
        base: the optimizer that descends.
        rho: radius, >= 0, or a Schedule of it.

    Raises:
        ValueError: an option out of its range; a policy that reads the gradient.
    """

    name = "previous-sam"
    starts_clean = VARIANTS["previous-sam"].starts_clean
    remembers = ("previous",)
    rho: float | Schedule

    def __init__(
        self, base: Optimizer, *, rho: float | Schedule = 0.05, **common: Unpack[Common]
    ) -> None:
        super().__init__(base, options={"rho": rho}, **common)

    def descent(self) -> Descent:
        previous = self.recall("previous")
        if self.perturbs() and previous is not None:
            evaluation = yield Evaluate(offset=self.rho_hat(previous))
        else:
            evaluation = yield Evaluate()
        gradient = evaluation.take()
        self.remember(previous=gradient.clone())
        return gradient
