import pytest
import torch
from torch import nn

from sam_variants import FSAM, SAM, Every, Never
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

    def __init__(self, *, rho, sigma, decay, every=1):
        self.rho, self.sigma, self.decay, self.every = rho, sigma, decay, every
        self.m = None

    def __call__(self, t, x):
        g, old = H @ x, self.m
        self.m = g if old is None else self.decay * old + (1 - self.decay) * g
        if t % self.every:
            return g
        d = g if old is None else g - self.sigma * old
        return H @ (x + self.rho * unit(d))


@pytest.mark.parametrize("every", [1, 3])  # at 3 the mean takes the gradients of plain steps too
@pytest.mark.parametrize(("sigma", "decay"), [(1.0, 0.9), (0.5, 0.6), (2.0, 0.0)])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(every, sigma, decay):
    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = FSAM(base, rho=0.4, sigma=sigma, decay=decay, when=Every(every))
    by_hand = ByHand(rho=0.4, sigma=sigma, decay=decay, every=every)
    check_follows(optimizer, q, by_hand, tolerance=1e-10)
    torch.testing.assert_close(torch.cat(list(optimizer.recall("m"))), by_hand.m)


def test_the_first_step_is_sam_bit_for_bit():
    assert torch.equal(steps(FSAM, 1, rho=0.3), steps(SAM, 1, rho=0.3))
    assert not torch.equal(steps(FSAM, 2, rho=0.3), steps(SAM, 2, rho=0.3))


def test_sigma_zero_is_sam_bit_for_bit():
    assert torch.equal(steps(FSAM, rho=0.3, sigma=0.0), steps(SAM, rho=0.3))


def test_rho_zero_is_the_base_bit_for_bit():
    assert torch.equal(steps(FSAM, rho=0.0), base_steps())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_gradient_leaves_exactly_nothing_to_ascend(dtype):
    slope = torch.tensor([0.1, -0.3, 7.7], dtype=dtype)  # none of them exact in binary
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = FSAM(sgd([p]), rho=0.5)
    for step in range(6):
        visited = []
        for request in optimizer.passes():
            visited.append(p.detach().clone())
            loss = slope @ p
            loss.backward()
            request.loss = loss.detach()
        assert torch.equal(p.grad, slope)
        assert torch.equal(visited[0], visited[1]) == (step > 0)
        optimizer.step()


def offsets(q, optimizer, num):
    found = []
    for _ in range(num):
        q.visited.clear()
        optimizer.step(q.closure)
        found.append(q.visited[1] - q.visited[0])
    return found


def paper_order(sigma, decay, points):
    """hat(d) of each point where the mean is updated before the direction is taken."""
    m, directions = None, []
    for x in points:
        g = H @ x
        m = g if m is None else decay * m + (1 - decay) * g
        directions.append(unit(g - sigma * m))
    return directions


@pytest.mark.parametrize(("sigma", "same"), [(1.0, True), (0.5, False)])
def test_at_sigma_one_alone_the_papers_order_of_update_gives_the_same_offsets(sigma, same):
    q = problem()
    optimizer = FSAM(sgd(q.parameters), rho=1.0, sigma=sigma, decay=0.6)
    points, found = [], []
    for _ in range(5):
        points.append(q.x)
        found += offsets(q, optimizer, 1)
    gaps = [
        (a - b).norm().item()
        for a, b in zip(found[1:], paper_order(sigma, 0.6, points)[1:], strict=True)
    ]
    assert max(gaps) < 1e-9 if same else min(gaps) > 1e-3


def test_on_a_line_a_falling_gradient_is_ascended_backwards():
    q = line(1.0, 1.0)
    first, second = offsets(q, FSAM(sgd(q.parameters), rho=0.2), 2)
    assert first.item() == pytest.approx(0.2)
    assert second.item() == pytest.approx(-0.2)  # d = g - m < 0: g fell from 1 to 0.88


def test_a_linear_loss_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    torch.testing.assert_close(descent_of(FSAM, q), slope)


def test_groups_share_one_norm_of_the_difference_and_use_their_own_rho():
    q, groups = scaled_groups()
    optimizer = FSAM(sgd(groups, lr=1e-4), rho=2.0, sigma=0.5)
    m = SCALES @ q.x
    (first,) = offsets(q, optimizer, 1)
    torch.testing.assert_close(first, RADII * unit(m), rtol=1e-11, atol=1e-13)
    direction = SCALES @ q.x - 0.5 * m
    (second,) = offsets(q, optimizer, 1)
    torch.testing.assert_close(second, RADII * unit(direction), rtol=1e-11, atol=1e-13)


def test_a_gradient_that_comes_and_goes_counts_as_zero_where_it_is_missing():
    a, b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = FSAM(sgd([a, b]), rho=0.5, decay=0.75)
    expected = torch.zeros(2, dtype=torch.float64)
    for step, used in enumerate([False, True, False, True]):
        for request in optimizer.passes():
            loss = a.square().sum() + (b.exp().sum() if used else 0.0)
            loss.backward()
            if request.first and used:
                g = b.grad.clone()
            request.loss = loss.detach()
        optimizer.step()
        if step:
            expected = 0.75 * expected + (0.25 * g if used else 0.0)
            torch.testing.assert_close(optimizer.recall("m").tensors[1], expected)


@pytest.mark.parametrize("when", [Every(2), Never()])
def test_the_mean_shares_no_memory_with_what_the_base_descends(when):
    q = problem()
    optimizer = FSAM(sgd(q.parameters), when=when)
    for _ in range(4):
        optimizer.step(q.closure)
        kept = [t.clone() for t in optimizer.recall("m")]
        for p in q.parameters:
            p.grad.zero_()
        assert all(map(torch.equal, kept, optimizer.recall("m")))


def test_a_perturbed_step_costs_two_gradients_and_the_others_one():
    q = problem()
    optimizer = FSAM(sgd(q.parameters), when=Every(3))
    for _ in range(6):
        optimizer.step(q.closure)
    assert optimizer.counts.gradients == 2 * 2 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"sigma": -1.0}, "sigma must be a number >= 0"),
        ({"decay": 1.0}, "decay must be a number in"),
        ({"ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        FSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
