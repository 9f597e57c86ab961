"""Answers that are known without `landscape`: dense matrices, closed forms, dual problems."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev

Array = NDArray[np.float64]
Loss = Callable[[Tensor, Tensor], Tensor]


class Dense:
    """All matrices of a small net by torch.func, from the whole data at once.

    Args:
        model: float64, some 100 parameters.
        loss: the mean over all terms, `loss(output, target)`.
        x, y: all the data.
    """

    def __init__(self, model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> None:
        self.model, self.loss, self.x, self.y = model, loss, x, y
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def outputs(self, theta: Tensor, x: Tensor) -> Tensor:
        pieces = theta.split([shape.numel() for shape in self.shapes.values()])
        weights = {
            name: piece.view(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        result: Tensor = functional_call(self.model, weights, (x,))
        return result

    def value(self, theta: Tensor) -> Tensor:
        """L(theta)."""
        return self.loss(self.outputs(theta, self.x), self.y)

    def gradient(self) -> Tensor:
        """grad L, (P,)."""
        return grad(self.value)(self.theta)

    def hessian(self) -> Tensor:
        """H, (P, P)."""
        result: Tensor = hessian(self.value)(self.theta)
        return result

    def gauss_newton(self) -> Tensor:
        """J' H_out J, (P, P), J the Jacobian of all outputs."""
        output = self.outputs(self.theta, self.x).detach()
        jacobian = jacrev(lambda theta: self.outputs(theta, self.x))(self.theta)
        inner = hessian(lambda out: self.loss(out.view_as(output), self.y))(output.reshape(-1))
        jacobian = jacobian.reshape(output.numel(), -1)
        result: Tensor = jacobian.T @ inner @ jacobian
        return result

    def sample_gradients(self) -> Tensor:
        """The gradient of each sample's own loss, one at a time, (N, P)."""
        rows = range(len(self.x))
        return torch.stack(
            [
                grad(
                    lambda t, i=i: self.loss(self.outputs(t, self.x[i : i + 1]), self.y[i : i + 1])
                )(self.theta)
                for i in rows
            ]
        )


def highest_in_ball(h: Array, g: Array, rho: float) -> float:
    """max over ||e|| <= rho of g'e + e'He/2, by its dual, which has no gap and no second optimum.

        min over mu > max(0, lambda_max) of  mu rho^2 / 2 + g'(mu I - H)^-1 g / 2

    Any mu gives an upper bound of the maximum, so a search that exceeds it is wrong.

    Source: Boyd and Vandenberghe 2004, appendix B.1.
    """
    values, vectors = np.linalg.eigh(h)
    along = (vectors.T @ g) ** 2
    lowest = max(0.0, float(values[-1]))

    def dual(logarithm: float) -> float:
        mu = lowest + float(np.exp(logarithm))
        return float(mu * rho**2 / 2 + (along / (mu - values)).sum() / 2)

    found = minimize_scalar(dual, bounds=(-40.0, 20.0), method="bounded", options={"xatol": 1e-10})
    return float(found.fun)


def highest_at_corners(h: Array, g: Array, half_widths: Array) -> float:
    """max over |e_i| <= b_i of g'e + e'He/2, H without a negative eigenvalue: all 2^P corners."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(g))))
    corners = signs * half_widths
    return float((corners @ g + np.einsum("ij,jk,ik->i", corners, h, corners) / 2).max())


def normal(*shape: int, seed: int) -> Tensor:
    """Independent N(0, 1) numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Quadratic:
    """L(theta) = (1/N) sum_i s_i (x_i'theta)^2 / 2 + c_i x_i'theta, x_i the rows of sqrt(N) Q.

    H = Q' diag(s) Q has the eigenvalues s and grad L = H theta + Q'c / sqrt(N). As a linear model
    with a loss of its outputs, so that all of an objective takes part.

    Args:
        spectrum: s, (P,).
        slope: standard deviation of the c_i.
        away: of the entries of theta.
    """

    def __init__(
        self, spectrum: Sequence[float] | Array, *, slope: float, away: float = 1.0, seed: int = 0
    ) -> None:
        size = len(spectrum)
        basis = torch.linalg.qr(normal(size, size, seed=seed)).Q
        signs = torch.tensor(np.asarray(spectrum), dtype=torch.float64)
        lean = slope * normal(size, seed=seed + 1)
        self.model = nn.Linear(size, 1, bias=False).double()
        theta = away * normal(size, seed=seed + 2)
        with torch.no_grad():
            self.model.weight.copy_(theta[None])
        x, targets = basis * size**0.5, torch.stack([signs, lean], dim=1)
        cuts = [size - size // 3, size // 3]
        self.batches = list(zip(x.split(cuts), targets.split(cuts), strict=True))
        self.hessian = (basis.T @ (signs[:, None] * basis)).numpy()
        self.theta = theta.numpy()
        self.gradient = self.hessian @ self.theta + (basis.T @ lean).numpy() / size**0.5
        self.value = float(self.theta @ (self.hessian @ self.theta) / 2)
        self.value += float(self.theta @ (basis.T @ lean).numpy()) / size**0.5

    @staticmethod
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """The mean of s f^2 / 2 + c f."""
        f, (signs, lean) = output[:, 0], target.unbind(1)
        return (signs * f**2 / 2 + lean * f).mean()
