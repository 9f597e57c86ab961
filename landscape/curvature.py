"""Hessian and GaussNewton: an Objective at one theta, seen as a symmetric matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import SymmetricOperator
from .objective import Objective


class Hessian(SymmetricOperator):
    """H = d^2 L / d theta^2 at one theta, (P, P), known by its products.

        H v = d/d theta (grad L(theta) . v),     L the mean loss over all terms of the data

    Units: loss per squared parameter. Weight decay is in H only where the loss has it.

    Args:
        objective: L.
        theta: where, shape (P,); default the model's own weights.
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()

    def _matvec(self, v: Tensor) -> Tensor:
        return self.objective.hvp(self.theta, v)


class GaussNewton(SymmetricOperator):
    """The generalised Gauss-Newton matrix at one theta, (P, P), known by its products.

        G = (1/N) sum_i J_i^T H_i J_i,    J_i = d f_i / d theta,  H_i = d^2 l_i / d f_i^2

    f_i are the model's outputs (logits for cross-entropy) and l_i the loss terms. G is the Hessian
    of the loss with the model replaced by its linearisation; it is positive semi-definite for a
    loss convex in f. J v comes from two reverse passes, which every layer has; forward mode is not
    used.

    Args:
        objective: L, with batches of (inputs, targets) and `loss(output, target)`.
        theta: where, shape (P,); default the model's own weights.

    Source: Schraudolph 2002, "Fast curvature matrix-vector products", section 3.
    """

    def __init__(self, objective: Objective, theta: Tensor | None = None) -> None:
        theta = objective.theta if theta is None else theta
        super().__init__(objective.num_parameters, dtype=objective.dtype, device=objective.device)
        self.objective = objective
        self.theta = theta.detach().clone()

    def _matvec(self, v: Tensor) -> Tensor:
        leaf = self.theta.detach().clone().requires_grad_()
        total = torch.zeros(self.size, dtype=torch.float64, device=self.device)
        with torch.enable_grad():
            for share, output, loss in self.objective.batch_losses(leaf):
                if not output.requires_grad:
                    continue
                free = torch.zeros_like(output, requires_grad=True)
                (pullback,) = torch.autograd.grad(output, leaf, free, create_graph=True)
                (jv,) = torch.autograd.grad(pullback, free, v)
                point = output.detach().requires_grad_()
                (slope,) = torch.autograd.grad(loss(point), point, create_graph=True)
                if not slope.requires_grad:  # a loss linear in the output has no curvature
                    continue
                (curved,) = torch.autograd.grad(slope, point, jv)
                (part,) = torch.autograd.grad(output, leaf, curved)
                total.add_(part, alpha=share)
        return total.to(self.dtype)
