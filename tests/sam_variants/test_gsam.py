import pytest
import torch
from torch import nn

from sam_variants import GSAM, SAM, Every
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


def across(g, s):
    """The part of g orthogonal to s."""
    return g - (g @ s) / (s @ s) * s


def test_twenty_steps_follow_the_equations_on_coupled_coordinates():
    def gradient(_, x):
        g = H @ x
        s = H @ (x + 0.4 * unit(g))
        return s - 0.3 * across(g, s)

    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    check_follows(GSAM(base, rho=0.4, alpha=0.3), q, gradient)


def test_what_is_taken_off_is_orthogonal_to_the_perturbed_gradient_and_lowers_the_gap():
    q = problem()
    g = H @ q.x
    s = H @ (q.x + 0.4 * unit(g))
    taken = s - descent_of(GSAM, q, rho=0.4, alpha=0.3)
    assert taken.norm() > 1e-3
    assert abs(taken @ s).item() < 1e-14
    assert (-taken @ (s - g)).item() > 0  # q has more of the gap's gradient S - g than S itself


def test_alpha_zero_is_sam_bit_for_bit():
    assert torch.equal(steps(GSAM, rho=0.3, alpha=0.0), steps(SAM, rho=0.3))


def test_rho_zero_is_the_base_bit_for_bit():
    assert torch.equal(steps(GSAM, rho=0.0), base_steps())


def test_on_a_line_nothing_is_orthogonal_so_it_is_sam():
    assert descent_of(GSAM, line(2.0, 0.7), rho=0.5).item() == pytest.approx(2.0 * 1.2, rel=1e-11)


def test_a_linear_loss_returns_its_slope():
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    torch.testing.assert_close(descent_of(GSAM, q, rho=0.5), slope)


def test_where_the_perturbed_gradient_is_zero_nothing_is_projected_out():
    p = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = GSAM(sgd([p], lr=1.0), rho=1.0, alpha=0.25)

    def closure():  # slope 2 up to 1, flat beyond
        p.grad = None
        loss = 2.0 * torch.clamp(p, max=1.0).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert p.item() == 0.5 + 0.25 * 2.0


def test_the_projection_is_global_and_groups_use_their_own_rho():
    q, groups = scaled_groups()
    x, lr = q.x, 1e-4
    GSAM(sgd(groups, lr=lr), rho=2.0, alpha=0.3).step(q.closure)
    g = SCALES @ x
    torch.testing.assert_close(q.visited[1], x + RADII * unit(g), rtol=1e-13, atol=1e-13)
    s = SCALES @ (x + RADII * unit(g))
    torch.testing.assert_close(x - q.x, lr * (s - 0.3 * across(g, s)), rtol=1e-9, atol=1e-13)


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    GSAM(sgd(q.parameters)).step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in [*q.visited, q.x])


def test_a_perturbed_step_costs_two_gradients_and_the_others_are_plain():
    q = problem()
    optimizer = GSAM(sgd(q.parameters), when=Every(3))
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
        GSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
