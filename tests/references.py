"""Closed forms and plain models that the tests measure the code against."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from sklearn.datasets import load_digits

from landscape.linalg import SymmetricOperator

# -- Surfaces: any function of theta seen as an objective -----------------------------------------


class FunctionObjective:
    """What a scan asks of an objective, from a plain function of theta. Counts its evaluations."""

    def __init__(self, function, theta, *, accuracy=None):
        self.function, self.theta, self.accuracy = function, theta, accuracy
        self.visited = []

    def evaluate(self, theta):
        self.visited.append(theta.clone())
        accuracy = None if self.accuracy is None else self.accuracy(theta)
        return SimpleNamespace(loss=float(self.function(theta)), accuracy=accuracy)


def plane_objective(function, *, num_parameters=6, offset=0.0):
    """An objective whose loss at theta0 + x e1 + y e2 is function(x, y), with e1, e2 and theta0.

    theta0 is not zero, so a scan that walks from the origin instead is wrong.
    """
    theta0 = torch.arange(1.0, num_parameters + 1.0, dtype=torch.float64)
    e1, e2 = torch.eye(num_parameters, dtype=torch.float64)[[1, 4]]

    def loss(theta):
        moved = theta - theta0
        return function(float(moved @ e1), float(moved @ e2)) + offset

    return FunctionObjective(loss, theta0), e1, e2


# -- Sharpness: balls, and objectives that count what is asked of them ----------------------------


class CountingObjective:
    """A plain function of theta with everything that a sharpness asks of an objective, counted."""

    def __init__(self, function, theta):
        self.function, self.theta = function, theta
        self.num_parameters, self.dtype, self.device = theta.numel(), theta.dtype, theta.device
        self.forwards = self.gradients = self.products = 0
        self.visited = []

    def value(self, theta):
        self.forwards += 1
        self.visited.append(theta.clone())
        return float(self.function(theta))

    def value_and_gradient(self, theta):
        self.gradients += 1
        self.visited.append(theta.clone())
        leaf = theta.detach().clone().requires_grad_()
        loss = self.function(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient

    def gradient(self, theta):
        return self.value_and_gradient(theta)[1]

    def hvp(self, theta, v):
        self.products += 1
        leaf = theta.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.function(leaf), leaf, create_graph=True)
        if not gradient.requires_grad:
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(gradient, leaf, v, allow_unused=True)
        return torch.zeros_like(v) if product is None else product


def quadratic_objective(hessian, gradient, *, theta=None, offset=1.0):
    """L(theta0 + e) = offset + g'e + e'He / 2, seen from theta0 (not zero unless it is given)."""
    size = len(gradient)
    theta0 = torch.linspace(-1, 1, size, dtype=torch.float64) if theta is None else theta

    def loss(at):
        e = at - theta0
        return offset + gradient @ e + e @ (hessian @ e) / 2

    return CountingObjective(loss, theta0)


def trust_region_maximum(hessian, gradient, rho):
    """max over ||e|| <= rho of g'e + e'He / 2, by the secular equation, in numpy.

    With -H = Q diag(a) Q' and b = -Q'g the minimiser of b'y + y'diag(a)y / 2 has
    y(mu) = -b / (a + mu), mu >= max(0, -min a): inside the ball with mu = 0, or on its sphere with
    ||y(mu)|| = rho; where b has no part along the smallest a and ||y|| stays below rho at
    mu = -min a (the hard case), the rest of the length goes along that eigenvector.
    """
    a, q = np.linalg.eigh(-np.asarray(hessian, dtype=np.float64))
    b = -(q.T @ np.asarray(gradient, dtype=np.float64))

    def point(mu):
        shifted = a + mu
        safe = np.abs(shifted) > 1e-13 * max(1.0, np.abs(a).max())
        return np.where(safe, -b / np.where(safe, shifted, 1.0), 0.0)

    def model(y):
        return float(b @ y + y @ (a * y) / 2)

    if a[0] > 0 and np.linalg.norm(point(0.0)) <= rho:
        return -model(point(0.0))
    lowest = max(0.0, -a[0])
    bottom = np.abs(a + lowest) <= 1e-12 * max(1.0, np.abs(a).max())
    if np.abs(b[bottom]).max(initial=0.0) <= 1e-12 * max(1.0, np.abs(b).max()):
        y = point(lowest)
        rest = rho**2 - float(y @ y)
        if rest >= 0:
            y[np.flatnonzero(bottom)[:1]] += np.sqrt(rest)
            return -model(y)
    low, high = lowest, lowest + np.linalg.norm(b) / rho + 1.0
    for _ in range(200):  # ||y(mu)|| falls with mu
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(point(middle)) > rho else (low, middle)
    return -model(point(high))


# -- Sharpness-aware rules: quadratics, and a step written out from the equations ------------------


def coupled_matrix(size=4, *, seed=0, spectrum=(3.0, 1.0, 0.4, 0.05)):
    """A symmetric positive matrix of that spectrum whose eigenvectors are no axis."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return torch.from_numpy(basis @ np.diag(spectrum[:size]) @ basis.T)


class Quadratic:
    """L(x) = x'Hx / 2 + a'x, with x cut into parameters of the given sizes.

    `closure` is of the LBFGS convention; `visited` holds every x at which it ran.
    """

    def __init__(self, matrix, x, *, sizes=None, slope=None):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64)
        x = torch.as_tensor(x, dtype=torch.float64)
        self.slope = torch.zeros_like(x) if slope is None else torch.as_tensor(slope, dtype=x.dtype)
        self.parameters = [
            torch.nn.Parameter(part.clone()) for part in x.split(sizes or [x.numel()])
        ]
        self.visited = []

    @property
    def x(self):
        return torch.cat([p.detach().clone() for p in self.parameters])

    def gradient(self, x):
        return self.matrix @ x + self.slope

    def loss(self):
        x = torch.cat(list(self.parameters))
        return 0.5 * x @ self.matrix @ x + self.slope @ x

    def closure(self):
        for parameter in self.parameters:
            parameter.grad = None
        self.visited.append(self.x)
        loss = self.loss()
        loss.backward()
        return loss


class HeavyBall:
    """SGD with momentum and outside weight decay, from its equations: b <- mu b + q + wd x."""

    def __init__(self, *, lr, momentum=0.0, weight_decay=0.0):
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.buffer = None

    def __call__(self, x, q):
        q = q + self.weight_decay * x
        self.buffer = q if self.buffer is None else self.momentum * self.buffer + q
        return x - self.lr * self.buffer


def unit(v):
    return v / (torch.linalg.vector_norm(v) + 1e-12)


# -- Matrices with prescribed spectra -------------------------------------------------------------


class PrescribedSpectrum(SymmetricOperator):
    """R diag(eigenvalues) R with one reflection R = I - 2 u u', so that nothing is diagonal."""

    def __init__(self, eigenvalues, *, dtype=torch.float64, seed=0):
        eigenvalues = torch.as_tensor(np.asarray(eigenvalues, dtype=np.float64))
        super().__init__(len(eigenvalues), dtype=dtype, device=torch.device("cpu"))
        u = torch.randn(
            self.size, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64
        )
        self.eigenvalues, self.u = eigenvalues.to(dtype), (u / u.norm()).to(dtype)
        self.num_products = 0

    def _matvec(self, vector):
        self.num_products += 1
        return self.reflected(self.eigenvalues * self.reflected(vector))

    def reflected(self, vector):
        return vector - 2 * (self.u @ vector) * self.u

    def eigenvector(self, index):
        return self.reflected(torch.eye(self.size, dtype=self.dtype)[index])

    def matrix(self):
        reflection = torch.eye(self.size, dtype=self.dtype) - 2 * torch.outer(self.u, self.u)
        return reflection @ torch.diag(self.eigenvalues) @ reflection


def extremes(eigenvalues, num_eigenpairs, ends):
    """The k largest and/or smallest of them, descending, each place listed once."""
    ordered = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    top, bottom = ordered[:num_eigenpairs], ordered[-num_eigenpairs:]
    if ends == "both" and 2 * num_eigenpairs < len(ordered):
        return np.concatenate([top, bottom])
    return {"top": top, "bottom": bottom, "both": ordered}[ends]


def hard_spectrum(name, seed=0):
    """Eigenvalues on which a search that stops at the first k converged pairs misses some."""
    random = np.random.default_rng(seed)
    if name == "copies":
        return np.r_[50, 50, 50, 20, 15, np.full(995, 0.1)]
    if name == "copies, spread bulk":
        return np.r_[50, 50, 50, 20, 15, np.abs(random.normal(0, 0.1, 995))]
    if name == "cluster":
        return np.r_[50, 50, 50, 49, 48, 47, np.full(994, 10.0)]
    if name == "cluster, spread bulk":
        return np.r_[50, 50, 50, 49, 48, 47, random.normal(10, 1, 994)]
    if name == "outliers":  # like a trained net's: ten outliers over a decaying bulk of 1,200
        outliers = [60, 42, 33, 27, 21, 17, 14, 12, 10.5, 9.5]
        return np.r_[outliers, 8 / np.arange(1, 1201) ** 0.7]
    if name == "geometric":
        return np.r_[100 * 0.75 ** np.arange(10), 5 * np.exp(-np.arange(1200) / 60)]
    raise KeyError(name)


def digits_net_hessian(*, num_hidden=16, num_steps=200):
    """Dense Hessians (float64), at the start and trained, of a small tanh net on 400 digits."""
    inputs, targets = load_digits(return_X_y=True)
    inputs = torch.tensor(inputs[:400] / 16)
    targets = torch.tensor(targets[:400])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Linear(64, num_hidden), torch.nn.Tanh(), torch.nn.Linear(num_hidden, 10)
        ).double()
    names = dict(net.named_parameters())

    def loss(theta):
        parts = theta.split([value.numel() for value in names.values()])
        weights = {
            name: part.view(value.shape)
            for (name, value), part in zip(names.items(), parts, strict=True)
        }
        outputs = torch.func.functional_call(net, weights, inputs)
        return torch.nn.functional.cross_entropy(outputs, targets)

    def hessian(theta):
        theta = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
        rows = [
            torch.autograd.grad(gradient, theta, part, is_grads_batched=True, retain_graph=True)[0]
            for part in torch.eye(len(theta), dtype=theta.dtype).split(64)
        ]
        full = torch.cat(rows)
        return (full + full.T) / 2

    theta = torch.cat([value.detach().reshape(-1) for value in names.values()])
    initial = hessian(theta)
    velocity = torch.zeros_like(theta)
    for _ in range(num_steps):
        velocity = 0.9 * velocity + torch.func.grad(loss)(theta)
        theta = theta - 0.5 * velocity
    return initial, hessian(theta)
