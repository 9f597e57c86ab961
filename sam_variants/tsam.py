"""TSAM: gradients at several random places nearby, the higher the loss the heavier."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_variants import VARIANTS
from sam_variants.base import Common, Descent, Evaluate, SharpnessAware
from sam_variants.schedules import Schedule
from sam_variants.vector import TINY, ParameterVector


class TSAM(SharpnessAware):
    """Tilted SAM (Li et al., 2410.22656): ascent on (1/t) log E exp(t L(w + eps)), sampled.

        for j = 1..s:   z_j of length `radius`, at random;   g_j = grad L(w + z_j)
                        eps_j = z_j + rho g_j / (||g_j|| + 1e-12)
                        L_j, q_j = L, grad L  at w + eps_j
        q = sum_j a_j q_j,    a = softmax over j of (t - delta) L_j

    There is no clean gradient. t = 0 is the plain mean, t -> inf the sample of largest loss, and
    radius = 0 is SAM. L is the mean over the batch, so t is in units of one over that. The sum is
    taken as the samples come, in one vector whatever s is. 2 s gradients a perturbed step, s where
    rho = 0.

    The paper moves each sample by a leapfrog step, whose constants are unconfirmed; this is the
    authors' code, which also ascends by a normalised step but weighs by the full t (delta = 0). It
    clips its Gaussian noise to the radius and has radius 1 and rho 0.05 as defaults.

    Args:
        base: the optimizer that descends.
        rho: length of the ascent from each start, >= 0, or a Schedule of it.
        tilt: t, >= 0, in one over the loss's unit, or a Schedule of it.
        samples: s, >= 1.
        radius: of the noise, in the parameters' own norm, >= 0, or a Schedule of it; None: as rho.
        noise: "sphere": z uniform on the sphere; "gaussian": z = radius / sqrt(D) times a standard
            normal vector of D numbers, those that are perturbed, so that E ||z||^2 = radius^2,
            unclipped. A group whose own rho is 0 has no noise.
        delta: the part of the tilt that the samples are taken to have by themselves, >= 0.
        schedule: of t over the training: "constant", "rising" from 0, or "falling" to 0.

    Raises:
        ValueError: an option out of its range; a policy that reads the gradient; no total_steps
            where t moves.
    """

    name = "tsam"
    starts_clean = VARIANTS["tsam"].starts_clean
    scheduled = ("rho", "tilt", "radius")
    rho: float | Schedule
    tilt: float | Schedule
    samples: int
    radius: float | Schedule | None
    noise: str
    delta: float
    schedule: str

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float | Schedule = 0.05,
        tilt: float | Schedule = 1.0,
        samples: int = 3,
        radius: float | Schedule | None = None,
        noise: str = "sphere",
        delta: float = 0.0,
        schedule: str = "constant",
        **common: Unpack[Common],
    ) -> None:
        options = {
            "rho": rho,
            "tilt": tilt,
            "samples": samples,
            "radius": radius,
            "noise": noise,
            "delta": delta,
            "schedule": schedule,
        }
        super().__init__(base, options=options, **common)

    def descent(self) -> Descent:
        if not self.perturbs():
            plain = yield Evaluate()
            return plain.take()
        tilt = self.tilt_now() - self.delta
        ascends = any(self._rho_of(group) != 0.0 for group in self.param_groups)
        mean = _SoftmaxMean()
        for _ in range(self.samples):
            offset = self.start()
            if ascends:
                below = yield Evaluate(offset=offset, sync=self.synced)
                offset.add_(self.rho_hat_(below.take()))
            sample = yield Evaluate(offset=offset)
            mean.add(sample.take(), tilt * self.over_workers(_wide(sample.loss)))
        return mean.take()

    def start(self) -> ParameterVector:
        """z: where a sample begins, relative to home."""
        radius = self._now(self.rho if self.radius is None else self.radius)
        start = self.without_still_groups(self.normals())
        if self.noise == "sphere":
            return start.mul_(radius / (start.norm() + TINY))
        size = sum(tensor.numel() for tensor in start if tensor is not None)
        return start.mul_(radius / max(size, 1) ** 0.5)

    def tilt_now(self) -> float:
        """t at this progress."""
        shares = {"constant": 1.0, "rising": self.progress, "falling": 1.0 - self.progress}
        return self._now(self.tilt) * shares[self.schedule]


class _SoftmaxMean:
    """sum_j softmax(e)_j q_j of vectors that come one by one, in the memory of one.

    The sums are in units of exp(the highest exponent yet): nothing overflows, and a constant added
    to all exponents changes nothing.
    """

    def __init__(self) -> None:
        self.vector: ParameterVector | None = None
        self.weight = torch.zeros(())
        self.highest = torch.zeros(())

    def add(self, vector: ParameterVector, exponent: Tensor) -> None:
        """Adds q_j, whose tensors it may use up, of exponent e_j (0-dim)."""
        if self.vector is None:
            self.vector, self.weight, self.highest = vector, torch.ones_like(exponent), exponent
            return
        highest = torch.maximum(self.highest, exponent)
        kept, share = torch.exp(self.highest - highest), torch.exp(exponent - highest)
        self.vector.mul_(kept).add_(vector.mul_(share))
        self.weight, self.highest = self.weight * kept + share, highest

    def take(self) -> ParameterVector:
        """The mean, which uses up the sums."""
        if self.vector is None:
            raise RuntimeError("a mean of nothing")
        return self.vector.mul_(1.0 / self.weight)


def _wide(loss: Tensor) -> Tensor:
    """The loss in at least float32: a tilt of some size would magnify half precision's rounding."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32))
