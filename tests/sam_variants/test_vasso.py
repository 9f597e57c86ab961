import pytest
import torch
from torch import nn

from sam_variants import SAM, Every, Never, VaSSO
from tests.references import Quadratic, unit
from tests.sam_variants.rule_steps import (
    RADII,
    SCALES,
    H,
    base_steps,
    check_follows,
    descent_of,
    line,
    problem,
    scaled_groups,
    sgd,
    steps,
)


class ByHand:
    """q of every step from the equations; `every`: steps that are perturbed."""

    def __init__(self, *, rho, theta, every=1):
        self.rho, self.theta, self.every, self.e = rho, theta, every, None

    def __call__(self, t, x):
        g = H @ x
        self.e = g if self.e is None else (1 - self.theta) * self.e + self.theta * g
        return g if t % self.every else H @ (x + self.rho * unit(self.e))


@pytest.mark.parametrize("every", [1, 3])  # at 3 the mean takes the gradients of plain steps too
@pytest.mark.parametrize("theta", [0.4, 0.05])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(every, theta):
    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = VaSSO(base, rho=0.4, theta=theta, when=Every(every))
    by_hand = ByHand(rho=0.4, theta=theta, every=every)
    check_follows(optimizer, q, by_hand)
    torch.testing.assert_close(torch.cat(list(optimizer.recall("e"))), by_hand.e)


def test_theta_one_is_sam_bit_for_bit():
    assert torch.equal(steps(VaSSO, rho=0.3, theta=1.0), steps(SAM, rho=0.3))


def test_the_first_step_is_sam_bit_for_bit():
    assert torch.equal(steps(VaSSO, 1, rho=0.3), steps(SAM, 1, rho=0.3))


def test_rho_zero_is_the_base_bit_for_bit():
    assert torch.equal(steps(VaSSO, rho=0.0), base_steps())


def test_theta_zero_ascends_along_the_first_gradient_for_ever():
    q = problem()
    optimizer = VaSSO(sgd(q.parameters), rho=0.3, theta=0.0)
    first = unit(H @ q.x)
    for _ in range(4):
        q.visited.clear()
        optimizer.step(q.closure)
        torch.testing.assert_close(q.visited[1] - q.visited[0], 0.3 * first, atol=1e-12, rtol=0)


def test_on_a_line_the_average_keeps_its_side_after_the_weight_has_crossed_zero():
    q = line(1.0, 1.0)
    optimizer = VaSSO(sgd(q.parameters, lr=1.0), rho=0.2, theta=0.4)
    optimizer.step(q.closure)
    assert q.x.item() == pytest.approx(-0.2)
    optimizer.step(q.closure)  # e = .6 * 1 + .4 * -.2 > 0: the gradient is lam (x + rho) = 0
    assert q.x.item() == pytest.approx(-0.2)


def test_a_linear_loss_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    torch.testing.assert_close(descent_of(VaSSO, q), slope)


def test_groups_share_one_norm_of_the_average_and_use_their_own_rho():
    q, groups = scaled_groups()
    optimizer = VaSSO(sgd(groups, lr=1e-4), rho=2.0, theta=0.4)
    e = SCALES @ q.x
    for step in range(2):
        if step:
            e = 0.6 * e + 0.4 * SCALES @ q.x
        q.visited.clear()
        optimizer.step(q.closure)
        torch.testing.assert_close(
            q.visited[1] - q.visited[0], RADII * unit(e), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize("when", [Every(2), Never()])
def test_the_average_shares_no_memory_with_what_the_base_descends(when):
    q = problem()
    optimizer = VaSSO(sgd(q.parameters), when=when)
    for _ in range(4):
        optimizer.step(q.closure)
        kept = [t.clone() for t in optimizer.recall("e")]
        for p in q.parameters:
            p.grad.zero_()
        assert all(map(torch.equal, kept, optimizer.recall("e")))


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    optimizer = VaSSO(sgd(q.parameters))
    for _ in range(2):
        optimizer.step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in [*q.visited, q.x])


def test_a_perturbed_step_costs_two_gradients_and_the_others_one():
    q = problem()
    optimizer = VaSSO(sgd(q.parameters), when=Every(3))
    for _ in range(6):
        optimizer.step(q.closure)
    assert optimizer.counts.gradients == 2 * 2 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"theta": 1.1}, "theta must be a number in"),
        ({"ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        VaSSO(sgd([nn.Parameter(torch.ones(1))]), **options)
