"""Rescaled: a loss around theta in coordinates whose unit is each parameter's own size."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from landscape.estimate import Estimate
from landscape.linalg import Eigenpairs
from landscape.objective import TwiceDifferentiable


class Rescaled:
    """L(theta + T u) as a function of u, shape (P',), T = diag(scale): u = 0 is theta.

        gradient T g,    Hessian T H T

    A ball ||u|| <= rho here is the ball ||T^-1 e|| <= rho of perturbations e = T u there, and
    nothing is divided by T: where it is 0 that ball allows no e but 0, so those coordinates are
    left out, and P' is the number of the others.

    Args:
        objective: L.
        theta: shape (P,).
        scale: the diagonal of T, shape (P,), >= 0.
    """

    def __init__(self, objective: TwiceDifferentiable, theta: Tensor, scale: Tensor) -> None:
        self.objective, self.centre = objective, theta.detach()
        moves = scale > 0
        self._moving = None if bool(moves.all()) else moves.nonzero().flatten()
        self._scale = scale if self._moving is None else scale[self._moving]
        self.theta = torch.zeros_like(self._scale)
        self.dtype, self.device = objective.dtype, objective.device

    @classmethod
    def by_size(cls, objective: TwiceDifferentiable, theta: Tensor, *, eta: float) -> Rescaled:
        """T = |theta| + eta: every parameter moves in units of its own size.

        With eta = 0 a ReLU pair rescaled by a and 1/a has the same loss as a function of u. Any
        other eta voids that.
        """
        return cls(objective, theta, theta.detach().abs() + eta)

    @property
    def num_parameters(self) -> int:
        """P', the coordinates that can move."""
        return self._scale.numel()

    def value(self, u: Tensor) -> float:
        """L(theta + T u)."""
        return self.objective.value(self.there(u))

    def value_and_gradient(self, u: Tensor) -> tuple[float, Tensor]:
        """L(theta + T u) and its gradient by u, T g."""
        loss, gradient = self.objective.value_and_gradient(self.there(u))
        return loss, self.pulled_back(gradient)

    def hvp(self, u: Tensor, v: Tensor) -> Tensor:
        """T H T v, H at theta + T u."""
        return self.pulled_back(self.objective.hvp(self.there(u), self._pushed(v)))

    def there(self, u: Tensor) -> Tensor:
        """theta + T u."""
        return self.centre + self._pushed(u)

    def pulled_back(self, v: Tensor) -> Tensor:
        """T v, of a vector (P,) or of columns (P, n), without the coordinates that are fixed."""
        kept = v if self._moving is None else v[self._moving]
        return kept * (self._scale if v.ndim == 1 else self._scale[:, None])

    def pairs_pulled_back(self, pairs: Eigenpairs) -> Eigenpairs:
        """The same values with vectors T v: sum_i lambda_i (T v_i)(T v_i)' is T H T's own part.

        They are no eigenpairs of T H T, and not orthonormal.
        """
        return replace(pairs, vectors=self.pulled_back(pairs.vectors))

    def stated(
        self, found: Estimate, *, rho: float, norm: str, eta: float, logits: str
    ) -> Estimate:
        """A result in these coordinates as one of theta: it names its ball and what is fixed."""
        size = f"(|theta| + {eta:g})" if eta else "|theta|"
        num_fixed = self.centre.numel() - self.num_parameters
        warnings = list(found.details.get("warnings", ()))
        if eta:
            warnings.append(
                f"eta = {eta:g} is added to |theta|: the value changes where a rescaling of the "
                "weights leaves the network the same; eta = 0 does not"
            )
        if num_fixed == self.centre.numel():
            warnings.append("every parameter is zero: none can move in units of its size")
        details = {
            **found.details,
            "rho": rho,
            "norm": f"{norm} of e / {size}",
            "eta": eta,
            "logits": logits,
            "rescaling_invariant": eta == 0,
            "num_parameters": self.centre.numel(),
            "num_fixed": num_fixed,
            "warnings": warnings,
        }
        return replace(found, details=details)

    def _pushed(self, u: Tensor) -> Tensor:
        """T u, shape (P,), 0 where nothing moves."""
        moved = self._scale * u
        if self._moving is None:
            return moved
        return torch.zeros_like(self.centre).index_put_((self._moving,), moved)
