import pytest
import torch
from torch import nn

from sam_variants import AdaptiveThreshold, Every, PreviousSAM
from tests.references import HeavyBall, Quadratic, coupled_matrix, unit

START = [1.0, -2.0, 0.5, 3.0]
OPTIONS = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.05}


def problem(sizes=(1, 3)):
    return Quadratic(coupled_matrix(), START, sizes=list(sizes))


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, **{"lr": 0.1, **options})


@pytest.mark.parametrize("k", [1, 3])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(k):
    h, rho, q = coupled_matrix(), 0.4, problem((1, 2, 1))
    x, base, previous = q.x, HeavyBall(**OPTIONS), None
    optimizer = PreviousSAM(sgd(q.parameters, **OPTIONS), rho=rho, when=Every(k))
    for t in range(20):
        perturbed = t % k == 0 and previous is not None
        previous = h @ (x + rho * unit(previous)) if perturbed else h @ x
        x = base(x, previous)
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, x, rtol=1e-11, atol=1e-11)
    assert optimizer.counts.gradients == len(q.visited) == 20


def test_the_first_step_is_the_base_and_the_second_is_uphill_by_rho():
    lam, rho, lr = 2.0, 0.3, 0.1
    q = Quadratic([[lam]], [1.0])
    optimizer = PreviousSAM(sgd(q.parameters, lr=lr), rho=rho)
    optimizer.step(q.closure)
    x = 1.0 - lr * lam
    assert q.x.item() == pytest.approx(x)
    assert optimizer.counts.perturbed == 0
    optimizer.step(q.closure)
    assert optimizer.counts.perturbed == 1
    assert q.visited[1].item() == pytest.approx(x + rho)  # plus: Momentum-SAM has minus
    assert q.x.item() == pytest.approx(x - lr * lam * (x + rho))


def test_the_offset_rests_on_the_gradient_before_clipping_decay_and_momentum():
    def check(*, clip=None, **options):
        q = problem()
        optimizer = PreviousSAM(sgd(q.parameters, lr=1e-3, **options), rho=0.3)
        for _ in range(2):
            for request in optimizer.passes():
                request.loss = q.closure().detach()
            kept = torch.cat([p.grad.clone() for p in q.parameters])
            if clip is not None:
                nn.utils.clip_grad_value_(q.parameters, clip)
            home = q.x
            optimizer.step()
            if len(q.visited) == 1:
                first = kept
        torch.testing.assert_close(q.visited[1] - home, 0.3 * unit(first), rtol=0, atol=1e-14)

    for options in ({}, {"clip": 0.2}, {"weight_decay": 0.3}, {"momentum": 0.9}):
        check(**options)


def test_a_skipped_step_leaves_the_previous_gradient():
    q = problem()
    optimizer = PreviousSAM(sgd(q.parameters), rho=0.3)
    optimizer.step(q.closure)
    kept = [t.clone() for t in optimizer.recall("previous")]
    for request in optimizer.passes(scale=4.0):
        loss = q.closure() * float("inf")
        for p in q.parameters:
            p.grad.fill_(float("inf"))
        request.loss = loss.detach()
    optimizer.step()
    assert optimizer.counts.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(kept, optimizer.recall("previous"), strict=True))


def test_a_loss_scale_is_not_remembered():
    plain, scaled = problem(), problem()
    one, two = (PreviousSAM(sgd(q.parameters), rho=0.3) for q in (plain, scaled))
    one.step(plain.closure)
    for request in two.passes(scale=4.0):
        loss = scaled.closure()
        for p in scaled.parameters:
            p.grad.mul_(4.0)
        request.loss = loss.detach()
    pairs = zip(one.recall("previous"), scaled.parameters, strict=True)
    assert all(torch.equal(4.0 * kept, p.grad) for kept, p in pairs)
    for p in scaled.parameters:
        p.grad.div_(4.0)
    two.step()
    pairs = zip(one.recall("previous"), two.recall("previous"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_groups_share_one_norm_and_use_their_own_rho():
    q = problem((2, 2))
    groups = [{"params": q.parameters[:1], "rho": 0.0}, {"params": q.parameters[1:]}]
    optimizer = PreviousSAM(sgd(groups), rho=2.0)
    g = q.matrix @ q.x
    optimizer.step(q.closure)
    home = q.x
    optimizer.step(q.closure)
    radii = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(q.visited[1], home + radii * unit(g), rtol=1e-13, atol=1e-13)


def test_a_linear_loss_returns_its_slope_and_a_zero_gradient_gives_no_nan():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    optimizer = PreviousSAM(sgd(q.parameters, lr=1.0), rho=0.5)
    for t in range(1, 4):
        optimizer.step(q.closure)
        torch.testing.assert_close(q.x, torch.tensor([1.0, 2.0]).double() - t * slope)
    flat = Quadratic(coupled_matrix(), [0.0] * 4)
    optimizer = PreviousSAM(sgd(flat.parameters), rho=0.5)
    for _ in range(3):
        optimizer.step(flat.closure)
    assert torch.equal(flat.x, torch.zeros(4, dtype=torch.float64))


def test_options_out_of_range_and_policies_that_read_the_gradient_raise():
    with pytest.raises(ValueError, match="rho must be a number >= 0"):
        PreviousSAM(sgd(problem().parameters), rho=-1.0)
    with pytest.raises(ValueError, match="PreviousSAM has no clean evaluation"):
        PreviousSAM(sgd(problem().parameters), when=AdaptiveThreshold(), total_steps=5)
