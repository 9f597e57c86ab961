import math

import pytest
import torch
from torch import nn

from sam_variants import AdaptiveThreshold, Every, MomentumSAM
from tests.references import HeavyBall, Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]


def problem(sizes=(1, 3)):
    return Quadratic(coupled_matrix(), START, sizes=list(sizes))


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, "momentum": 0.9, **options})


def flat(tensors):
    return torch.cat([t.detach().reshape(-1).clone() for t in tensors])


def test_the_first_perturbed_gradient_is_downhill_by_rho():
    # lam (x - rho), not lam (x + rho): v adds up +gradients and the perturbation is -v.
    lam, rho, lr, x = 2.0, 0.3, 0.1, 1.0
    q = Quadratic([[lam]], [x])
    optimizer = MomentumSAM(sgd(q.parameters, lr=lr), rho=rho)
    optimizer.step(q.closure)
    x -= lr * lam * x
    optimizer.step(q.closure)
    assert q.visited[1].item() == pytest.approx(x - rho)
    v = 0.9 * lam * 1.0 + lam * (x - rho)
    assert q.x.item() == pytest.approx(x - lr * v)


def test_the_closed_recursion_on_the_one_dimensional_quadratic():
    lam, rho, lr, mu = 1.5, 0.2, 0.3, 0.9
    q, w, v = Quadratic([[lam]], [1.0]), 1.0, 0.0
    optimizer = MomentumSAM(sgd(q.parameters, lr=lr, momentum=mu), rho=rho)
    signs = set()
    for _ in range(40):
        optimizer.step(q.closure)
        v = mu * v + lam * (w - rho * math.copysign(float(v != 0.0), v))
        w -= lr * v
        signs.add(math.copysign(1.0, v))
        assert q.x.item() == pytest.approx(w, rel=1e-9, abs=1e-10)
    assert signs == {1.0, -1.0}


@pytest.mark.parametrize("k", [1, 3])
def test_twenty_steps_follow_the_equations_with_decay_at_the_weights_at_home(k):
    h, rho, q = coupled_matrix(), 0.4, problem((1, 2, 1))
    options = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.05}
    x, base = q.x, HeavyBall(**options)
    optimizer = MomentumSAM(sgd(q.parameters, **options), rho=rho, when=Every(k))
    for t in range(20):
        at = x
        if t % k == 0 and base.buffer is not None:
            at = x - rho * unit(base.buffer)
        x = base(x, h @ at)  # HeavyBall adds weight_decay * x, not weight_decay * at
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=1e-11, atol=1e-11)
    assert optimizer.counts.gradients == len(q.visited) == 20


def test_the_first_step_has_no_momentum_yet_and_counts_as_the_plain_one_it_is():
    q = problem()
    optimizer = MomentumSAM(sgd(q.parameters), rho=0.4)
    for step in range(3):
        optimizer.step(q.closure)
        assert optimizer.last.perturbed == (step > 0)
    assert optimizer.counts.perturbed == 2


def test_without_decay_the_weights_follow_the_papers_stored_perturbed_weights():
    h, rho, lr, mu, q = coupled_matrix(), 0.4, 0.2, 0.9, problem()
    optimizer = MomentumSAM(sgd(q.parameters, lr=lr, momentum=mu), rho=rho)
    stored, v = q.x, torch.zeros(4, dtype=torch.float64)
    for _ in range(20):
        optimizer.step(q.closure)
        g = h @ stored
        w = stored + rho * unit(v)
        v = mu * v + g
        w = w - lr * v
        stored = w - rho * unit(v)
        torch.testing.assert_close(q.x, w, rtol=1e-11, atol=1e-11)


def test_the_first_step_is_the_bases_and_every_later_offset_has_length_rho():
    plain, q = problem(), problem((1, 1, 2))
    reference = sgd(plain.parameters)
    plain.closure()
    reference.step()
    optimizer = MomentumSAM(sgd(q.parameters), rho=0.3)
    for t in range(6):
        home, momentum = q.x, optimizer.momentum()
        before = None if momentum is None else flat(momentum)
        optimizer.step(q.closure)
        if t == 0:
            assert torch.equal(q.visited[0], home)
            assert torch.equal(q.x, plain.x)
        else:
            assert (q.visited[t] - home).norm().item() == pytest.approx(0.3, rel=1e-12)
            torch.testing.assert_close(q.visited[t] - home, -0.3 * unit(before))


def test_at_rho_lr_mu_times_the_momentums_norm_it_is_nesterovs_gradient():
    h, lr, mu, q = coupled_matrix(), 0.2, 0.9, problem()
    optimizer = MomentumSAM(sgd(q.parameters, lr=lr, momentum=mu), rho=0.0)
    w, v = q.x, torch.zeros(4, dtype=torch.float64)
    for t in range(15):
        optimizer.rho = lr * mu * v.norm().item()
        optimizer.step(q.closure)
        point = w - lr * mu * v
        torch.testing.assert_close(q.visited[t], point, rtol=1e-10, atol=1e-11)
        v = mu * v + h @ point
        w = w - lr * v
        torch.testing.assert_close(q.x, w, rtol=1e-10, atol=1e-11)


def test_over_adamw_the_direction_is_exp_avg_and_decay_is_decoupled_at_home():
    h, rho, q = coupled_matrix(), 0.3, problem()
    lr, beta1, beta2, decay = 0.05, 0.8, 0.95, 0.1
    base = torch.optim.AdamW(
        q.parameters, lr=lr, betas=(beta1, beta2), eps=1e-8, weight_decay=decay
    )
    optimizer = MomentumSAM(base, rho=rho)
    w = q.x
    m, s = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for t in range(1, 16):
        optimizer.step(q.closure)
        g = h @ (w - rho * unit(m))
        m, s = beta1 * m + (1 - beta1) * g, beta2 * s + (1 - beta2) * g * g
        corrected = m / (1 - beta1**t) / ((s / (1 - beta2**t)).sqrt() + 1e-8)
        w = w - lr * decay * w - lr * corrected
        torch.testing.assert_close(q.x, w, rtol=1e-10, atol=1e-10)


def test_the_bases_buffer_is_read_and_never_changed_by_the_offset():
    q = problem()
    optimizer = MomentumSAM(sgd(q.parameters), rho=0.5)
    optimizer.step(q.closure)
    before = flat(optimizer.momentum())
    for request in optimizer.passes():
        request.loss = q.closure().detach()
    assert torch.equal(flat(optimizer.momentum()), before)
    optimizer.zero_grad()


def test_groups_share_one_norm_and_use_their_own_rho_and_one_may_have_no_momentum():
    q = problem((1, 1, 2))
    groups = [
        {"params": q.parameters[:1], "rho": 0.1},
        {"params": q.parameters[1:2], "momentum": 0.0},
        {"params": q.parameters[2:]},
    ]
    optimizer = MomentumSAM(sgd(groups), rho=2.0)
    optimizer.step(q.closure)
    home, v = q.x, q.matrix @ torch.tensor(START, dtype=torch.float64)
    v[1] = 0.0
    optimizer.step(q.closure)
    radii = torch.tensor([0.1, 0.0, 2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(q.visited[1], home - radii * unit(v), rtol=1e-13, atol=1e-13)


def test_a_parameter_frozen_later_is_neither_moved_nor_counted_in_the_norm():
    q = problem((2, 2))
    optimizer = MomentumSAM(sgd(q.parameters), rho=0.4)
    optimizer.step(q.closure)
    q.parameters[0].requires_grad_(False)
    home, v = q.x, flat(optimizer.momentum().tensors[1:])
    optimizer.step(q.closure)
    assert torch.equal(q.visited[1][:2], home[:2])
    torch.testing.assert_close(q.visited[1][2:], home[2:] - 0.4 * unit(v))


@pytest.mark.parametrize(
    "make",
    [
        sgd,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        lambda p: torch.optim.RMSprop(p, momentum=0.9),
    ],
)
def test_every_base_with_a_momentum_is_perturbed_from_the_second_step(make):
    q = problem()
    optimizer = MomentumSAM(make(q.parameters), rho=0.25)
    optimizer.step(q.closure)
    home = q.x
    optimizer.step(q.closure)
    assert (q.visited[1] - home).norm().item() == pytest.approx(0.25)


class Betas(torch.optim.SGD):
    """Says betas and keeps its average under a name of its own."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["betas"] = (0.9, 0.99)

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["average"] = p.grad.clone()


def test_a_base_without_momentum_is_refused_with_one_that_has_it():
    p = [nn.Parameter(torch.ones(2))]
    for base in (sgd(p, momentum=0.0), torch.optim.Adagrad(p), torch.optim.RMSprop(p)):
        with pytest.raises(ValueError, match=r"give it SGD\(..., momentum=0.9\), or Adam or AdamW"):
            MomentumSAM(base)
    q = problem()
    optimizer = MomentumSAM(Betas(q.parameters))
    optimizer.step(q.closure)
    with pytest.raises(RuntimeError, match="Betas keeps no momentum_buffer or exp_avg"):
        optimizer.step(q.closure)


def test_options_out_of_range_and_policies_that_read_the_gradient_raise():
    with pytest.raises(ValueError, match="rho must be a number >= 0"):
        MomentumSAM(sgd(problem().parameters), rho=-1.0)
    with pytest.raises(ValueError, match="MomentumSAM has no clean evaluation"):
        MomentumSAM(sgd(problem().parameters), when=AdaptiveThreshold(), total_steps=5)
