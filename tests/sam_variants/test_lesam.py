import pytest
import torch
from torch import nn

from sam_variants import LESAM, SAM, Every
from sam_variants.schedules import Linear
from tests.references import Quadratic, unit
from tests.sam_variants.rule_steps import (
    SCALES,
    H,
    base_steps,
    check_follows,
    check_plain_steps_average_the_gradient_of_a_local_ascent,
    descent_of,
    line,
    one_of_two_workers,
    problem,
    sgd,
    steps,
    synced,
)


@pytest.mark.parametrize("rho_max", [0.3, 100.0])  # the bound acts towards the end, or never
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(rho_max):
    bounded = []

    def gradient(_, x):
        g = H @ x
        radius = min(0.5 / g.norm().item(), rho_max)
        bounded.append(radius == rho_max)
        return H @ (x + radius * unit(g))

    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    check_follows(LESAM(base, sigma=0.5, rho_max=rho_max), q, gradient, tolerance=1e-10)
    assert any(bounded) == (rho_max < 1.0)
    assert not all(bounded)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("sizes", [[3], [1, 2]])
def test_a_linear_loss_rises_by_sigma_and_its_gradient_is_its_slope(scale, sizes):
    slope = scale * torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64)
    q = Quadratic(torch.zeros(3, 3), [0.0, 0.0, 0.0], slope=slope, sizes=sizes)
    got = descent_of(LESAM, q, sigma=0.35, rho_max=1e9)
    home, worst = q.visited
    # hat's 1e-12 enters twice: once in the radius, once in the direction
    assert (slope @ worst).item() == pytest.approx(0.35, rel=3e-12 / slope.norm().item() + 1e-14)
    assert torch.equal(home, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(got, slope)


def test_the_rise_is_of_the_whole_loss_where_groups_differ_in_scale():
    x = torch.tensor([1.0, -1.0, 5.0, 2.0], dtype=torch.float64)
    q = Quadratic(SCALES, x, sizes=[2, 1, 1])
    groups = [{"params": [p]} for p in q.parameters]
    LESAM(sgd(groups, lr=1e-4), sigma=0.35).step(q.closure)
    g = SCALES @ x
    torch.testing.assert_close(q.visited[1] - x, 0.35 / g.norm() * unit(g), rtol=1e-11, atol=1e-16)


def test_on_a_line_it_adds_sigma_over_x():
    got = descent_of(LESAM, line(2.0, 0.7), sigma=0.35, rho_max=1.0)
    assert got.item() == pytest.approx(2.0 * 0.7 + 0.35 / 0.7, rel=1e-11)


def test_the_bound_makes_it_sam_of_that_radius():
    torch.testing.assert_close(
        steps(LESAM, sigma=1e6, rho_max=0.3), steps(SAM, rho=0.3), rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("options", [{"rho_max": 0.0}, {"sigma": 0.0}])
def test_no_radius_or_no_rise_is_the_base_bit_for_bit(options):
    assert torch.equal(steps(LESAM, **options), base_steps())


def test_a_vanishing_gradient_is_bounded_and_a_zero_one_perturbs_nothing():
    small = Quadratic(torch.zeros(2, 2), [0.0, 0.0], slope=[3e-9, 4e-9])
    LESAM(sgd(small.parameters)).step(small.closure)
    assert small.visited[1].norm().item() == pytest.approx(0.1, rel=1e-3)
    q = Quadratic(H, [0.0] * 4)
    LESAM(sgd(q.parameters)).step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in [*q.visited, q.x])


def test_sigma_and_the_bound_may_follow_schedules():
    for options in (
        {"sigma": Linear(0.4, 0.0), "rho_max": 9.0},
        {"sigma": 9.0, "rho_max": Linear(0.4, 0.0)},
    ):
        q = Quadratic(torch.zeros(1, 1), [0.0], slope=[1.0])
        optimizer = LESAM(sgd(q.parameters), total_steps=4, **options)
        radii = []
        for _ in range(4):
            q.visited.clear()
            optimizer.step(q.closure)
            radii.append((q.visited[1] - q.visited[0]).item())
        assert radii == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_a_local_ascent_syncs_the_second_gradient_alone(monkeypatch):
    one_of_two_workers(monkeypatch)
    q = problem()
    assert synced(LESAM(sgd(q.parameters), ascent="local"), q) == [False, True]


def test_a_perturbed_step_costs_two_gradients_and_the_others_are_plain():
    q = problem()
    optimizer = LESAM(sgd(q.parameters), when=Every(3))
    for t in range(6):
        x = q.x
        optimizer.step(q.closure)
        if t % 3:
            torch.testing.assert_close(q.x, x - 0.1 * H @ x)
    assert optimizer.counts.gradients == 2 * 2 + 4


def test_steps_that_are_not_perturbed_average_the_gradient_of_a_local_ascent(monkeypatch):
    check_plain_steps_average_the_gradient_of_a_local_ascent(monkeypatch, LESAM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -0.1}, "sigma must be a number >= 0, got -0.1"),
        ({"rho_max": -0.1}, "rho_max must be a number >= 0, got -0.1"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        LESAM(sgd([nn.Parameter(torch.ones(1))]), **options)


def test_a_group_with_a_rho_of_its_own_is_refused():
    with pytest.raises(ValueError, match="unknown option of le-sam 'rho'"):
        LESAM(sgd([{"params": [nn.Parameter(torch.ones(1))], "rho": 0.1}]))
