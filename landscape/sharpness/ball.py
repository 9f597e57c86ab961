"""Balls of perturbations: the set ||e|| <= rho in the L2 or Linf norm of the whole vector theta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


def length(v: Tensor) -> float:
    """The Euclidean norm of v, accumulated in float64."""
    wide = None if v.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    return float(torch.linalg.vector_norm(v, dtype=wide))


@dataclass(frozen=True)
class Ball(ABC):
    """The set of e, shape (P,), with ||e|| <= rho: one ball over all parameters together.

    Attributes:
        rho: radius, in the units of the parameters.
    """

    rho: float

    @abstractmethod
    def norm(self, e: Tensor) -> float:
        """||e||."""

    @abstractmethod
    def project(self, e: Tensor) -> Tensor:
        """The point of the ball nearest to e (in the Euclidean distance)."""

    @abstractmethod
    def steepest(self, v: Tensor) -> Tensor:
        """argmax <v, u> over ||u|| <= 1; zeros for v = 0."""

    @abstractmethod
    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """A random point to start from, drawn on the CPU in float64: the same on every device."""


class L2Ball(Ball):
    """||e||_2 <= rho."""

    def norm(self, e: Tensor) -> float:
        return length(e)

    def project(self, e: Tensor) -> Tensor:
        norm = length(e)
        return e if norm <= self.rho else e * (self.rho / norm)

    def steepest(self, v: Tensor) -> Tensor:
        norm = length(v)
        return v / norm if norm > 0 else torch.zeros_like(v)

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform on the sphere of radius rho."""
        z = torch.randn(like.numel(), generator=generator, dtype=torch.float64)
        return (z * (self.rho / length(z))).to(like.dtype).to(like.device)


class LinfBall(Ball):
    """max_i |e_i| <= rho."""

    def norm(self, e: Tensor) -> float:
        return float(e.abs().max())

    def project(self, e: Tensor) -> Tensor:
        return e.clamp(-self.rho, self.rho)

    def steepest(self, v: Tensor) -> Tensor:
        return v.sign()

    def random(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform in the box."""
        u = torch.rand(like.numel(), generator=generator, dtype=torch.float64)
        return (u.mul_(2).sub_(1) * self.rho).to(like.dtype).to(like.device)


BALLS: dict[str, type[Ball]] = {"l2": L2Ball, "linf": LinfBall}
