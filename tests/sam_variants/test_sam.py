import copy
import math

import pytest
import torch
from torch import nn

from sam_variants import SAM
from sam_variants.schedules import Linear
from sam_variants.training.closure import batch_closure, evaluating
from tests.references import HeavyBall, Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


def descent_of(q, **options):
    """The gradient that the rule hands to the base, from one step of lr 1 without momentum."""
    before = q.x
    SAM(sgd(q.parameters, lr=1.0), **options).step(q.closure)
    return before - q.x


def test_on_a_quadratic_the_sam_gradient_is_h_times_x_plus_rho_u():
    h = coupled_matrix()
    x = torch.tensor(START, dtype=torch.float64)
    got = descent_of(Quadratic(h, x, sizes=[1, 3]), rho=0.3)
    torch.testing.assert_close(got, h @ (x + 0.3 * unit(h @ x)), rtol=0, atol=1e-12)


def test_the_unnormalised_sam_gradient_is_h_plus_rho_h_squared_times_x():
    h = coupled_matrix()
    x = torch.tensor(START, dtype=torch.float64)
    got = descent_of(Quadratic(h, x, sizes=[2, 2]), rho=0.3, scale="gradient")
    torch.testing.assert_close(got, (h + 0.3 * h @ h) @ x, rtol=0, atol=1e-12)


def test_along_an_eigenvector_the_sam_gradient_is_lambda_times_x_plus_rho():
    assert descent_of(Quadratic([[2.0]], [0.7]), rho=0.5).item() == pytest.approx(2.0 * 1.2)


def test_a_linear_loss_returns_its_slope_exactly():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    torch.testing.assert_close(descent_of(q, rho=0.5), slope)


def test_the_first_order_identity_holds_on_a_smooth_loss():
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(5, dtype=torch.float64))

    def loss_at(v):
        return torch.log(torch.exp(v * torch.arange(1.0, 6.0, dtype=v.dtype)).sum()) + (v**4).sum()

    g = torch.autograd.functional.jacobian(loss_at, w.detach())
    h = torch.autograd.functional.hessian(loss_at, w.detach())
    errors = []
    for rho in (1e-2, 1e-3):
        p = nn.Parameter(w.detach().clone())
        optimizer = SAM(sgd([p], lr=1.0), rho=rho)

        def closure(p=p):
            p.grad = None
            loss = loss_at(p)
            loss.backward()
            return loss

        optimizer.step(closure)
        errors.append(((w.detach() - p.detach()) - g - rho * h @ unit(g)).norm().item())
    assert errors[1] < 0.02 * errors[0]  # second order in rho


def test_gradient_descent_with_sam_ends_in_the_one_dimensional_limit_cycle():
    eta, rho, lam = 0.5, 0.2, 1.5
    q = Quadratic([[lam]], [1.0])
    optimizer = SAM(sgd(q.parameters, lr=eta), rho=rho)
    for _ in range(300):
        optimizer.step(q.closure)
    amplitude = eta * rho * lam / (2 - eta * lam)
    signs = []
    for _ in range(4):
        optimizer.step(q.closure)
        assert abs(q.x.item()) == pytest.approx(amplitude, rel=1e-9)
        signs.append(math.copysign(1.0, q.x.item()))
    assert signs in ([1, -1, 1, -1], [-1, 1, -1, 1])


@pytest.mark.parametrize(("factor", "stable"), [(0.99, True), (1.01, False)])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_unnormalised_sam_is_stable_up_to_its_edge(factor, stable, beta):
    rho, lam = 0.3, 2.0
    eta = factor * 2 * (1 + beta) / (lam * (1 + rho * lam))
    q = Quadratic([[lam]], [1.0])
    optimizer = SAM(sgd(q.parameters, lr=eta, momentum=beta), rho=rho, scale="gradient")
    for _ in range(1500):
        optimizer.step(q.closure)
        if abs(q.x.item()) > 1e3:
            break
    assert (abs(q.x.item()) < 1.0) == stable


@pytest.mark.parametrize("scale", ["unit", "gradient"])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(scale):
    h = coupled_matrix()
    q = Quadratic(h, START, sizes=[1, 2, 1])
    x = q.x
    base = HeavyBall(lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = SAM(
        sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05), rho=0.4, scale=scale
    )
    for _ in range(20):
        g = h @ x
        x = base(x, h @ (x + 0.4 * (unit(g) if scale == "unit" else g)))
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=1e-11, atol=1e-11)


def test_groups_share_one_norm_and_use_their_own_rho():
    h = torch.diag(torch.tensor([1e3, 1e3, 1e-2, 1.0], dtype=torch.float64)) + 0.01
    x = torch.tensor([1.0, -1.0, 5.0, 2.0], dtype=torch.float64)
    q = Quadratic(h, x, sizes=[2, 1, 1])
    groups = [
        {"params": q.parameters[:1], "rho": 0.3},
        {"params": q.parameters[1:2], "lr": 0.5, "rho": 0.0},
        {"params": q.parameters[2:]},
    ]
    SAM(sgd(groups, lr=1e-4), rho=2.0).step(q.closure)
    offset = torch.tensor([0.3, 0.3, 0.0, 2.0], dtype=torch.float64) * unit(h @ x)
    torch.testing.assert_close(q.visited[1], x + offset, rtol=1e-13, atol=1e-13)
    lr = torch.tensor([1e-4, 1e-4, 0.5, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(q.x, x - lr * (h @ (x + offset)), rtol=1e-12, atol=1e-12)


def test_decay_inside_the_loss_is_sam_on_the_decayed_loss_and_outside_is_not():
    h, wd = coupled_matrix(), 0.5
    x = torch.tensor(START, dtype=torch.float64)
    inside = descent_of(Quadratic(h + wd * torch.eye(4), x), rho=0.3)
    q = Quadratic(h, x)
    SAM(sgd(q.parameters, lr=1.0, weight_decay=wd), rho=0.3).step(q.closure)
    outside = x - q.x
    torch.testing.assert_close(outside, h @ (x + 0.3 * unit(h @ x)) + wd * x)
    assert (inside - outside).norm() > 1e-2


@pytest.mark.parametrize("change", ["clip", "decay", "lr", "momentum"])
def test_the_offset_is_the_same_bits_whatever_the_base_does_to_the_gradient(change):
    def offset(**options):
        q = Quadratic(coupled_matrix(), START, sizes=[3, 1])
        optimizer = SAM(sgd(q.parameters, **options), rho=0.3)
        for request in optimizer.passes():
            request.loss = q.closure().detach()
        if change == "clip":
            nn.utils.clip_grad_norm_(q.parameters, 1e-3)
        optimizer.step()
        return q.visited[1] - q.visited[0]

    options = {"clip": {}, "decay": {"weight_decay": 0.3}, "lr": {"lr": 7.0}}
    reference = Quadratic(coupled_matrix(), START, sizes=[3, 1])
    SAM(sgd(reference.parameters), rho=0.3).step(reference.closure)
    assert torch.equal(
        offset(**options.get(change, {"momentum": 0.9})),
        reference.visited[1] - reference.visited[0],
    )


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(coupled_matrix(), [0.0] * 4)
    SAM(sgd(q.parameters), rho=0.5).step(q.closure)
    assert torch.equal(q.visited[1], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(q.x, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize(
    "base",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.AdamW(p, lr=1e-2),
    ],
)
def test_rho_zero_is_the_base_bit_for_bit_with_dropout_and_batch_norm(base):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3))
    wrapped = copy.deepcopy(plain)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    reference, optimizer = base(plain.parameters()), SAM(base(wrapped.parameters()), rho=0.0)
    for step in range(6):
        torch.manual_seed(step)
        reference.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        reference.step()
        torch.manual_seed(step)
        optimizer.step(batch_closure(wrapped, nn.functional.cross_entropy, x, y))
    for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_frozen_unused_and_tied_parameters_are_treated_as_by_the_base():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode = nn.Linear(4, 4, bias=False)
            self.decode = nn.Linear(4, 4, bias=False)
            self.decode.weight = self.encode.weight  # tied
            self.frozen = nn.Linear(4, 4)
            self.frozen.requires_grad_(False)
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return self.decode(torch.tanh(self.frozen(self.encode(x))))

    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(8, 4, dtype=torch.float64)
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = SAM(sgd(model.parameters(), weight_decay=0.1, momentum=0.9), rho=0.2)
    seen = []
    for request in optimizer.passes():
        seen.append(model.encode.weight.detach().clone())
        loss = model(x).square().mean()
        loss.backward()
        if request.first:
            g = model.encode.weight.grad.clone()
        request.loss = loss.detach()
    optimizer.step()
    torch.testing.assert_close(seen[1] - seen[0], 0.2 * unit(g.reshape(-1)).reshape(4, 4))
    assert torch.equal(model.unused, kept["unused"])  # no gradient: no decay, no momentum either
    assert model.unused not in optimizer.state
    assert torch.equal(model.frozen.weight, kept["frozen.weight"])
    assert len(list(model.parameters())) == len(kept)


def test_statistics_move_once_a_step_by_the_clean_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 3))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    twin = copy.deepcopy(model)
    twin(x)
    optimizer = SAM(sgd(model.parameters()), rho=0.5)
    optimizer.step(batch_closure(model, nn.functional.cross_entropy, x, y))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[1], name), getattr(twin[1], name)), name


def test_both_passes_see_the_same_dropout_mask_and_the_step_leaves_the_generator_after_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 2))
    x = torch.randn(8, 4)
    optimizer = SAM(sgd(model.parameters()), rho=0.05)
    masks = []
    handle = model[1].register_forward_hook(lambda _m, _i, out: masks.append(out == 0))
    torch.manual_seed(5)
    for request in optimizer.passes():
        with evaluating(model, request):
            loss = model(x).square().mean()
            loss.backward()
        request.loss = loss.detach()
    optimizer.step()
    after = torch.rand(3)
    handle.remove()
    assert torch.equal(masks[0], masks[1])
    torch.manual_seed(5)
    model(x)
    assert torch.equal(after, torch.rand(3))


def test_a_scheduled_rho_runs_over_the_training():
    q = Quadratic(torch.zeros(1, 1), [0.0], slope=[1.0])
    optimizer = SAM(sgd(q.parameters), rho=Linear(0.4, 0.0), total_steps=4)
    radii = []
    for _ in range(4):
        q.visited.clear()
        optimizer.step(q.closure)
        radii.append((q.visited[1] - q.visited[0]).item())
        assert optimizer.last.rho == pytest.approx(radii[-1])
    assert radii == pytest.approx([0.4, 0.3, 0.2, 0.1])
    with pytest.raises(ValueError, match=r"SAM needs total_steps, because rho=Linear"):
        SAM(sgd(q.parameters), rho=Linear(0.4, 0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"rho": math.nan}, "rho must be a number >= 0"),
        ({"rho": math.inf}, "rho must be a number >= 0"),
        ({"rho": Linear(0.1, -0.1), "total_steps": 5}, "rho must be a number >= 0, got -0.1"),
        ({"scale": "norm"}, "scale must be one of unit, gradient, got 'norm'"),
        ({"seed": -1}, "seed must be a whole number in"),
        ({"total_steps": 0}, "total_steps must be a number >= 1"),
        ({"ascent": "both"}, "ascent must be one of global, local"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        SAM(sgd([nn.Parameter(torch.ones(1))]), **options)
    with pytest.raises(ValueError, match="rho must be a number >= 0"):
        SAM(sgd([{"params": [nn.Parameter(torch.ones(1))], "rho": -1.0}]))
