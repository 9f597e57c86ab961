"""Hessian and GaussNewton against closed forms and dense Jacobians."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F

from landscape import GaussNewton, Hessian, Objective


def data(num=40, features=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (num,), generator=generator)


def dense(operator):
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def batches(x, y):
    return list(zip(x.split([19, 14, 7]), y.split([19, 14, 7]), strict=True))


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_linear_regression_has_two_over_n_x_transposed_x(matrix):
    x, _ = data()
    model = nn.Linear(5, 1, bias=False).double()
    y = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = dense(matrix(Objective(model, F.mse_loss, batches(x, y))))
    assert torch.allclose(found, 2 / 40 * x.T @ x, atol=1e-13)


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_logistic_regression_has_x_transposed_diag_p_times_one_minus_p_x(matrix):
    x, y = data()
    model = nn.Linear(5, 1, bias=False).double()
    target = (y > 0).double()[:, None]
    p = torch.sigmoid(model(x)).detach()
    expected = x.T @ ((p * (1 - p)) * x) / 40
    loss = F.binary_cross_entropy_with_logits
    assert torch.allclose(dense(matrix(Objective(model, loss, batches(x, target)))), expected)


@pytest.mark.parametrize("matrix", [Hessian, GaussNewton])
def test_softmax_regression_has_the_kronecker_form(matrix):
    x, y = data()
    model = nn.Linear(5, 3, bias=False).double()
    p = torch.softmax(model(x), 1).detach()
    expected = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(row, row))
        for q, row in zip(p, x, strict=True)
    )
    found = dense(matrix(Objective(model, F.cross_entropy, batches(x, y))))
    assert torch.allclose(found, expected / 40, atol=1e-13)


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        partial(F.cross_entropy, reduction="sum"),
        partial(F.cross_entropy, label_smoothing=0.2),
        lambda out, y: F.mse_loss(out, F.one_hot(y, 3).double()),
    ],
)
def test_gauss_newton_of_a_net_is_the_jacobians_around_the_losss_own_hessian(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data()
    objective = Objective(model, loss, batches(x, y))

    def outputs(theta):
        return functional_call(model, objective.space.unflatten(theta), (x,))

    jacobian = jacrev(outputs)(objective.theta).reshape(120, -1)
    mean_loss = partial(loss, reduction="mean") if isinstance(loss, partial) else loss
    inner = hessian(lambda out: mean_loss(out.view(40, 3), y))(model(x).detach().reshape(-1))
    expected = jacobian.T @ inner @ jacobian
    found = dense(GaussNewton(objective))
    assert torch.allclose(found, expected, atol=1e-13)
    assert torch.linalg.eigvalsh(found)[0] > -1e-13
    assert not torch.allclose(found, dense(Hessian(objective)), atol=1e-4)


def test_a_matrix_elsewhere_is_the_matrix_there():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data()
    objective = Objective(model, F.cross_entropy, batches(x, y))
    elsewhere = objective.theta + 0.3

    def value(theta):
        return F.cross_entropy(functional_call(model, objective.space.unflatten(theta), (x,)), y)

    found = dense(Hessian(objective, elsewhere))
    assert torch.allclose(found, hessian(value)(elsewhere), atol=1e-13)
    assert torch.allclose(found, found.T, atol=1e-14)


def test_gauss_newton_needs_a_loss_of_outputs_and_targets():
    x, y = data()
    model = nn.Linear(5, 3).double()
    objective = Objective(
        model, lambda call, b: F.cross_entropy(call(b["x"]), b["y"]), [{"x": x, "y": y}]
    )
    with pytest.raises(ValueError, match=r"needs batches of \(inputs, targets\)"):
        GaussNewton(objective) @ torch.ones(18, dtype=torch.float64)


def test_gauss_newton_of_a_loss_linear_in_the_output_is_zero():
    x, _ = data()
    model = nn.Linear(5, 3).double()
    objective = Objective(model, lambda out, y: out.mean(), [(x, torch.zeros(40, 3))])
    assert torch.count_nonzero(GaussNewton(objective) @ torch.ones(18, dtype=torch.float64)) == 0


def test_gauss_newton_gives_zeros_for_unused_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    x, y = data()
    objective = Objective(Net().double(), F.cross_entropy, [(x, y)])
    product = GaussNewton(objective) @ torch.ones(24, dtype=torch.float64)
    assert torch.count_nonzero(product[18:]) == 0
    assert torch.count_nonzero(product[:18]) > 0
