import pytest
import torch
from torch import nn

from sam_variants import GNP, SAM, Every
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


@pytest.mark.parametrize("alpha", [0.8, 1.5])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(alpha):
    def gradient(_, x):
        g = H @ x
        return (1 - alpha) * g + alpha * (H @ (x + 0.4 * unit(g)))

    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    check_follows(GNP(base, rho=0.4, alpha=alpha), q, gradient)


def test_on_a_quadratic_it_is_the_gradient_of_the_loss_and_alpha_rho_times_the_gradients_norm():
    q = problem()
    x = q.x.requires_grad_()
    g = H @ x
    (expected,) = torch.autograd.grad(0.5 * x @ g + 0.8 * 0.4 * g.norm(), x)
    got = descent_of(GNP, q, rho=0.4, alpha=0.8)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_on_a_line_it_is_sam_of_radius_alpha_rho():
    got = descent_of(GNP, line(2.0, 0.7), rho=0.5, alpha=0.8)
    assert got.item() == pytest.approx(2.0 * (0.7 + 0.8 * 0.5), rel=1e-11)


def test_alpha_one_is_sam_bit_for_bit():
    assert torch.equal(steps(GNP, rho=0.3, alpha=1.0), steps(SAM, rho=0.3))


def test_rho_zero_is_the_base_bit_for_bit_and_alpha_zero_to_rounding():
    for alpha in (0.3, 0.8, 1.7):
        assert torch.equal(steps(GNP, rho=0.0, alpha=alpha), base_steps())
    torch.testing.assert_close(steps(GNP, rho=0.3, alpha=0.0), base_steps(), rtol=1e-14, atol=1e-14)


def test_a_linear_loss_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    torch.testing.assert_close(descent_of(GNP, q, rho=0.5), slope)


def test_groups_share_one_norm_and_use_their_own_rho():
    q, groups = scaled_groups()
    x, lr = q.x, 1e-4
    GNP(sgd(groups, lr=lr), rho=2.0, alpha=0.8).step(q.closure)
    g = SCALES @ x
    torch.testing.assert_close(q.visited[1], x + RADII * unit(g), rtol=1e-13, atol=1e-13)
    mixed = 0.2 * g + 0.8 * SCALES @ (x + RADII * unit(g))
    torch.testing.assert_close(x - q.x, lr * mixed, rtol=1e-9, atol=1e-13)


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    GNP(sgd(q.parameters)).step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in [*q.visited, q.x])


def test_a_perturbed_step_costs_two_gradients_and_the_others_are_plain():
    q = problem()
    optimizer = GNP(sgd(q.parameters), when=Every(3))
    for t in range(6):
        x = q.x
        optimizer.step(q.closure)
        if t % 3:
            torch.testing.assert_close(q.x, x - 0.1 * H @ x)
    assert optimizer.counts.gradients == 2 * 2 + 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"alpha": -0.1}, "alpha must be a number >= 0, got -0.1"),
        ({"ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        GNP(sgd([nn.Parameter(torch.ones(1))]), **options)
