import math

import pytest
import torch
from torch import nn

from sam_variants import SAM, Every, MultiStepSAM
from tests.references import Quadratic, unit
from tests.sam_variants.rule_steps import (
    RADII,
    SCALES,
    H,
    base_steps,
    check_follows,
    check_plain_steps_average_the_gradient_of_a_local_ascent,
    descent_of,
    line,
    one_of_two_workers,
    problem,
    scaled_groups,
    sgd,
    steps,
    synced,
)

AVERAGES = ("none", "path", "path+clean")


def path(x, *, rho, n, project):
    """g_0, ..., g_n on the coupled quadratic."""
    d, gradients = torch.zeros_like(x), [H @ x]
    for _ in range(n):
        d = d + (rho if project else rho / n) * unit(gradients[-1])
        if project and d.norm() > rho:
            d = rho * unit(d)
        gradients.append(H @ (x + d))
    return gradients


def mean(gradients, average):
    kept = {"none": gradients[-1:], "path": gradients[1:], "path+clean": gradients}[average]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("n", [2, 5])
def test_twenty_steps_follow_the_equations_on_coupled_coordinates(average, project, n):
    q = problem()
    base = sgd(q.parameters, lr=0.2, momentum=0.9, weight_decay=0.05)
    optimizer = MultiStepSAM(base, rho=0.7, steps=n, average=average, project=project)
    check_follows(optimizer, q, lambda _, x: mean(path(x, rho=0.7, n=n, project=project), average))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_on_a_line_the_path_average_is_sam_at_rho_times_n_plus_one_over_two_n(n):
    lam, x, rho = 2.0, 0.7, 0.5
    radii = {"none": rho, "path": rho * (n + 1) / (2 * n), "path+clean": rho / 2}
    for average, radius in radii.items():
        got = descent_of(MultiStepSAM, line(lam, x), rho=rho, steps=n, average=average)
        assert got.item() == pytest.approx(lam * (x + radius), rel=1e-11)


@pytest.mark.parametrize("average", ["none", "path"])
@pytest.mark.parametrize("project", [False, True])
def test_one_step_is_sam_bit_for_bit(average, project):
    one = steps(MultiStepSAM, rho=0.3, steps=1, average=average, project=project)
    assert torch.equal(one, steps(SAM, rho=0.3))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("project", [False, True])
def test_rho_zero_is_the_base_for_any_number_of_steps(average, project):
    got = steps(MultiStepSAM, rho=0.0, steps=4, average=average, project=project)
    if average == "none":
        assert torch.equal(got, base_steps())
    torch.testing.assert_close(got, base_steps(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_linear_loss_returns_its_slope(average):
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    q = Quadratic(torch.zeros(2, 2), [1.0, 2.0], slope=slope)
    got = descent_of(MultiStepSAM, q, rho=0.5, average=average)
    torch.testing.assert_close(got, slope, rtol=1e-15, atol=0)


def test_parts_of_rho_stay_inside_the_ball_and_reach_it_where_all_directions_agree():
    def last_offset(matrix):
        q = Quadratic(matrix, [1.0, -2.0, 0.5, 3.0])
        descent_of(MultiStepSAM, q, rho=2.0, steps=4)
        return (q.visited[-1] - q.visited[0]).norm().item()

    assert last_offset(3.0 * torch.eye(4)) == pytest.approx(2.0, rel=1e-11)
    assert 1.0 < last_offset(H) < 2.0 - 1e-4


def test_projected_steps_go_rho_at_once_and_end_on_the_sphere():
    q = problem()
    descent_of(MultiStepSAM, q, rho=2.0, steps=4, project=True)
    lengths = [(x - q.visited[0]).norm().item() for x in q.visited[1:]]
    assert lengths == pytest.approx([2.0] * 4, rel=1e-11)
    first, last = q.visited[1] - q.visited[0], q.visited[-1] - q.visited[0]
    assert (first - last).norm() > 0.05  # they turn on it


def test_groups_share_one_norm_and_scale_every_step_by_their_own_rho():
    q, groups = scaled_groups()
    x = q.x
    MultiStepSAM(sgd(groups, lr=1e-4), rho=2.0, steps=2).step(q.closure)
    d = RADII / 2 * unit(SCALES @ x)
    torch.testing.assert_close(q.visited[1], x + d, rtol=1e-13, atol=1e-13)
    d = d + RADII / 2 * unit(SCALES @ (x + d))
    torch.testing.assert_close(q.visited[2], x + d, rtol=1e-13, atol=1e-13)


def test_groups_of_their_own_rho_make_the_ball_an_ellipsoid():
    q, groups = scaled_groups()
    x = q.x
    MultiStepSAM(sgd(groups, lr=1e-4), rho=2.0, steps=3, project=True).step(q.closure)
    path = torch.zeros(4, dtype=torch.float64)
    for visited in q.visited[1:]:
        path = path + unit(SCALES @ (x + RADII * path)) * (RADII > 0)
        path = path / max(1.0, path.norm().item())
        torch.testing.assert_close(visited, x + RADII * path, rtol=1e-11, atol=1e-11)
    assert visited[2] == x[2]


def test_a_zero_gradient_perturbs_nothing_and_gives_no_nan():
    q = Quadratic(H, [0.0] * 4)
    MultiStepSAM(sgd(q.parameters), rho=0.5, project=True, average="path").step(q.closure)
    assert all(torch.equal(x, torch.zeros(4, dtype=torch.float64)) for x in q.visited)


def test_a_perturbed_step_costs_n_plus_one_gradients_and_the_others_one():
    q = problem()
    optimizer = MultiStepSAM(sgd(q.parameters), steps=4, average="path", when=Every(3))
    for t in range(6):
        x = q.x
        optimizer.step(q.closure)
        if t % 3:
            torch.testing.assert_close(q.x, x - 0.1 * H @ x)
    assert optimizer.counts.gradients == 2 * 5 + 4
    assert optimizer.counts.perturbed == 2


def test_the_gradient_held_for_the_mean_is_no_offset_and_is_gone_after_the_step():
    q = problem()
    optimizer = MultiStepSAM(sgd(q.parameters, lr=1.0), rho=0.4, steps=3, average="path+clean")
    for _ in range(3):
        x = q.x
        expected = mean(path(x, rho=0.4, n=3, project=False), "path+clean")
        optimizer.step(q.closure)
        torch.testing.assert_close(x - q.x, expected, rtol=1e-12, atol=1e-12)


def test_a_local_ascent_syncs_the_last_gradient_and_averages_the_sum_of_the_others(monkeypatch):
    averaged = one_of_two_workers(monkeypatch)
    for average in ("none", "path"):
        q = problem()
        optimizer = MultiStepSAM(sgd(q.parameters), rho=0.3, average=average, ascent="local")
        x = q.x
        assert synced(optimizer, q) == [False, False, False, True]
    g = path(x, rho=0.3, n=3, project=False)
    (inner,) = averaged  # of "path"
    torch.testing.assert_close(torch.cat(list(inner)), g[1] + g[2], rtol=1e-12, atol=1e-12)


def test_steps_that_are_not_perturbed_average_the_gradient_of_a_local_ascent(monkeypatch):
    check_plain_steps_average_the_gradient_of_a_local_ascent(monkeypatch, MultiStepSAM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be a number >= 0, got -0.1"),
        ({"rho": math.nan}, "rho must be a number >= 0"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 1.5}, "steps must be a whole number >= 1"),
        ({"average": "all"}, "average must be one of none, path"),
        ({"project": "yes"}, "project must be"),
        ({"average": "path+clean", "ascent": "local"}, "keeps the clean gradient"),
    ],
)
def test_options_out_of_range_raise_with_the_range(options, message):
    with pytest.raises(ValueError, match=message):
        MultiStepSAM(sgd([nn.Parameter(torch.ones(1))]), **options)
