"""Small nets in float64, their data, and their dense matrices."""

import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F


def net(seed=0, activation=nn.Tanh, hidden=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, hidden), activation(), nn.Linear(hidden, 3)).double()


def data(num=50, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (num,), generator=generator)


def batches(num=50, size=20):
    x, y = data(num)
    return list(zip(x.split(size), y.split(size), strict=True))


def theta_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def outputs(model, x):
    """theta -> the model's outputs."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def at(theta):
        parts = theta.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return functional_call(model, weights, (x,))

    return at


def dense_hessian(model, num=50):
    x, y = data(num)
    at = outputs(model, x)
    return hessian(lambda theta: F.cross_entropy(at(theta), y))(theta_of(model))


def sample_gradients(model, num=50):
    """(N, P): the gradient of each sample's own loss."""
    x, y = data(num)
    at = outputs(model, x)
    return jacrev(lambda theta: F.cross_entropy(at(theta), y, reduction="none"))(theta_of(model))


def dense_gauss_newton(model, num=50):
    x, _ = data(num)
    theta = theta_of(model)
    at = outputs(model, x)
    jacobian = jacrev(at)(theta)  # (N, C, P)
    p = torch.softmax(at(theta), 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / num
