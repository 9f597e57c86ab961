"""Momentum-SAM: the base optimizer's own momentum as the perturbation, for one gradient a step."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor
from torch.optim import Optimizer

from sam_variants import VARIANTS
from sam_variants.base import Common, Descent, Evaluate, SharpnessAware
from sam_variants.schedules import Schedule
from sam_variants.vector import ParameterVector


class MomentumSAM(SharpnessAware):
    """Momentum-SAM (Becker et al., 2401.12033, algorithm 1).

        v = the base's momentum:  momentum_buffer (SGD),  exp_avg (the Adam family)
        eps = -rho v / (||v|| + 1e-12),    q = grad L(w + eps),    base steps by q at w

    The minus is the method: v adds up +gradients, so eps is where the momentum is going to descend
    (moving along +v soon does harm). Before the base has a momentum, at the first step, the
    gradient is taken at home, and the step counts as not perturbed. One gradient a step.

    The paper and its code keep the perturbed weights w - rho v/||v|| and step from there; w follows
    the same path here, but the weights stay at home, so that nothing is moved back for evaluation
    and weight decay acts on w (in the authors' SGD on the perturbed weights). Running statistics
    are those of the perturbed place. With rho = lr mu ||v|| the place is Nesterov's.

    Args:
        base: the optimizer that descends, with momentum: SGD(momentum=...) or an Adam.
        rho: radius, >= 0, or a Schedule of it; about ten times SAM's.

    Raises:
        ValueError: an option out of its range; a base without momentum; a policy that reads the
            gradient.
    """

    name = "momentum-sam"
    starts_clean = VARIANTS["momentum-sam"].starts_clean
    rho: float | Schedule

    def __init__(
        self, base: Optimizer, *, rho: float | Schedule = 0.3, **common: Unpack[Common]
    ) -> None:
        super().__init__(base, options={"rho": rho}, **common)
        if not any(_has_momentum(group) for group in base.param_groups):
            raise ValueError(
                f"MomentumSAM perturbs along the base's momentum, and {type(base).__name__} has "
                "none here; give it SGD(..., momentum=0.9), or Adam or AdamW"
            )

    def descent(self) -> Descent:
        momentum = self.momentum()
        if self.perturbs() and momentum is not None:
            evaluation = yield Evaluate(offset=self.rho_hat(momentum).mul_(-1.0))
        else:
            evaluation = yield Evaluate()
        return evaluation.take()

    def momentum(self) -> ParameterVector | None:
        """v, the base's own tensors, not to be changed; None before its first step."""
        buffers = [self._buffer(parameter) for parameter in self.parameters]
        if any(buffer is not None for buffer in buffers):
            return ParameterVector(buffers)
        if any(self.state.values()):
            raise RuntimeError(
                f"{type(self.base).__name__} keeps no momentum_buffer or exp_avg, so MomentumSAM "
                "has nothing to perturb along; give it SGD(..., momentum=0.9), or Adam or AdamW"
            )
        return None

    def _buffer(self, parameter: Tensor) -> Tensor | None:
        state = self.state.get(parameter, {}) if parameter.requires_grad else {}
        buffer: Tensor | None = state.get("momentum_buffer", state.get("exp_avg"))
        return buffer


def _has_momentum(group: dict[str, object]) -> bool:
    return bool(group.get("momentum")) or "betas" in group
