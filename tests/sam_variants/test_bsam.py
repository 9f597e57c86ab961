import pytest
import torch
from torch import nn

from sam_variants import BSAM, SAM, Every
from sam_variants.schedules import Linear
from tests.references import Quadratic, unit
from tests.sam_variants.rule_steps import (
    RADII,
    SCALES,
    START,
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


def around(x, rho, rho_min):
    """g_M, g and g_m on the coupled quadratic."""
    g = H @ x
    return H @ (x + rho * unit(g)), g, H @ (x - rho_min * unit(g))


@pytest.mark.parametrize("match_norms", [False, True])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(match_norms):
    def gradient(_, x):
        above, g, below = around(x, 0.4, 0.15)
        ratio = above.norm() / below.norm() if match_norms else 1.0
        return above + g - ratio * below

    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = BSAM(base, rho=0.4, rho_min=0.15, match_norms=match_norms)
    check_follows(optimizer, q, gradient)


def test_along_an_eigenvector_it_is_sam_of_both_radii_together():
    got = descent_of(BSAM, line(2.0, 0.7), rho=0.5, rho_min=0.3)
    assert got.item() == pytest.approx(2.0 * (0.7 + 0.5 + 0.3), rel=1e-11)


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0.7, 2.0 * 0.7), (0.2, 2.0 * (3 * 0.2 + 2 * 0.5))],  # rho_min = 0.3 before and past the dip
)
def test_matched_norms_along_an_eigenvector_are_plain_outside_rho_min_and_strong_inside(
    x, expected
):
    got = descent_of(BSAM, line(2.0, x), rho=0.5, rho_min=0.3, match_norms=True)
    assert got.item() == pytest.approx(expected, rel=1e-11)


def test_matched_norms_where_the_lower_gradient_is_zero_leave_it_out():
    p = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = BSAM(sgd([p], lr=1.0), rho=0.25, rho_min=1.0, match_norms=True)

    def closure():  # relu(x)^2: gradient 2x above 0, exactly 0 below
        p.grad = None
        loss = torch.relu(p).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert p.item() == pytest.approx(0.5 - (2 * 0.75 + 2 * 0.5))


def test_rho_min_zero_is_sam_bit_for_bit():
    assert torch.equal(steps(BSAM, rho=0.3, rho_min=0.0), steps(SAM, rho=0.3))


def test_rho_min_zero_with_matched_norms_is_not_sam():
    x = torch.tensor(START, dtype=torch.float64)
    got = descent_of(BSAM, problem(), rho=0.3, rho_min=0.0, match_norms=True)
    above, g, _ = around(x, 0.3, 0.0)
    torch.testing.assert_close(got, above + (1 - above.norm() / g.norm()) * g, rtol=1e-12, atol=0)
    assert (got - above).norm() > 1e-2


def test_both_radii_zero_are_the_base_bit_for_bit():
    assert torch.equal(steps(BSAM, rho=0.0, rho_min=0.0), base_steps())


def test_to_first_order_it_is_sam_of_both_radii_together():
    torch.manual_seed(0)
    start = torch.randn(5, dtype=torch.float64)

    def descent(rule, **options):
        p = nn.Parameter(start.clone())

        def closure():
            p.grad = None
            loss = torch.logsumexp(p * torch.arange(1.0, 6.0, dtype=p.dtype), 0) + (p**4).sum()
            loss.backward()
            return loss

        rule(sgd([p], lr=1.0), **options).step(closure)
        return start - p.detach()

    gaps = [
        (descent(BSAM, rho=rho, rho_min=2 * rho) - descent(SAM, rho=3 * rho)).norm().item()
        for rho in (1e-2, 1e-3)
    ]
    assert 1e-8 < gaps[1] < 0.02 * gaps[0]


def test_a_linear_loss_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    for match_norms in (False, True):
        q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
        torch.testing.assert_close(descent_of(BSAM, q, match_norms=match_norms), slope)


def test_groups_share_one_norm_and_their_own_rho_is_the_upper_one():
    q, groups = scaled_groups()
    x = q.x
    BSAM(sgd(groups, lr=1e-4), rho=2.0, rho_min=0.5).step(q.closure)
    u = unit(SCALES @ x)
    torch.testing.assert_close(q.visited[1], x + RADII * u, rtol=1e-13, atol=1e-13)
    lower = torch.where(RADII > 0.0, 0.5, 0.0)  # a group that is not perturbed stays put
    torch.testing.assert_close(q.visited[2], x - lower * u, rtol=1e-13, atol=1e-13)


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    BSAM(sgd(q.parameters), match_norms=True).step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in [*q.visited, q.x])


def test_the_lower_radius_may_follow_a_schedule():
    q = Quadratic(torch.zeros(1, 1), [0.0], slope=[1.0])
    optimizer = BSAM(sgd(q.parameters), rho_min=Linear(0.4, 0.0), total_steps=4)
    radii = []
    for _ in range(4):
        q.visited.clear()
        optimizer.step(q.closure)
        radii.append((q.visited[0] - q.visited[2]).item())
    assert radii == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_perturbed_step_costs_three_gradients_and_the_others_are_plain():
    q = problem()
    optimizer = BSAM(sgd(q.parameters), when=Every(3))
    for t in range(6):
        x = q.x
        optimizer.step(q.closure)
        if t % 3:
            torch.testing.assert_close(q.x, x - 0.1 * H @ x)
    assert optimizer.counts.gradients == 2 * 3 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"rho_min": -0.1}, "rho_min must be a number >= 0, got -0.1"),
        ({"match_norms": 2}, "match_norms must be"),
        ({"ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        BSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
