import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from landscape.directions import filter_normalised
from landscape.objective import Objective
from landscape.surface import (
    GridPoints,
    automatic_range,
    scan_line,
    scan_plane,
    worth_evaluating_all,
)
from tests.references import FunctionObjective, plane_objective

COARSE = torch.linspace(-1, 1, 5)
FINE = torch.linspace(-1, 1, 51)


def trained_net(*, num_samples=60, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        model = model.to(dtype)
        inputs = torch.randn(num_samples, 5, dtype=dtype)
        targets = torch.randint(0, 3, (num_samples,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return model, Objective(model, nn.functional.cross_entropy, [(inputs, targets)])


def test_a_quadratic_gives_the_exact_parabola():
    """L = 1/2 (theta - m)' A (theta - m) on any two vectors is a quadratic form in x and y."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    a, theta = root @ root.T, torch.randn(9, generator=generator, dtype=torch.float64)
    u, v = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    objective = FunctionObjective(lambda w: 0.5 * w @ a @ w, theta)
    for exact in (True, False):
        surface = scan_plane(objective, u, v, x=FINE * 2, y=FINE, exact=exact)
        x, y = surface.x[None, :], surface.y[:, None]
        expected = (
            0.5 * theta @ a @ theta
            + x * (u @ a @ theta)
            + y * (v @ a @ theta)
            + 0.5 * x**2 * (u @ a @ u)
            + 0.5 * y**2 * (v @ a @ v)
            + x * y * (u @ a @ v)
        )
        torch.testing.assert_close(surface.loss, expected, rtol=1e-10, atol=1e-10)
        assert surface.exact is exact
        assert surface.center_loss == pytest.approx(float(0.5 * theta @ a @ theta))


def test_rows_run_along_y_and_columns_along_x():
    objective, e1, e2 = plane_objective(lambda x, y: 3 * x + 100 * y)
    surface = scan_plane(objective, e1, e2, x=[0.0, 1.0, 2.0], y=[-1.0, 0.5], exact=True)
    expected = [[-100, -97, -94], [50, 53, 56]]
    assert surface.loss.tolist() == [pytest.approx(row) for row in expected]


def test_a_line_is_the_loss_along_its_direction():
    objective, e1, _ = plane_objective(lambda x, y: math.cos(x) + y, offset=2.0)
    line = scan_line(objective, 2 * e1, t=COARSE)
    assert line.loss.tolist() == pytest.approx([2 + math.cos(2 * t) for t in COARSE.tolist()])
    assert line.center_loss == pytest.approx(3.0)
    assert (line.min, line.max) == pytest.approx((2 + math.cos(2), 3.0))
    assert line.norm == 2.0
    assert line.parameter_norm == pytest.approx(math.sqrt(91))
    assert line.num_nonfinite == 0
    assert line.cost.forwards == 5 + 2  # the centre before and after


def test_every_point_is_the_objectives_own_value_there_and_the_model_stays_untouched():
    model, objective = trained_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    d1, d2 = (
        filter_normalised(objective.space, objective.theta, model=model, seed=seed)
        for seed in (0, 1)
    )
    surface = scan_plane(objective, d1, d2, x=COARSE, y=COARSE, exact=True)
    assert surface.center_loss == objective.value(objective.theta)
    assert float(surface.loss[2, 2]) == surface.center_loss
    for j in range(5):
        for i in range(5):
            there = objective.evaluate(
                objective.theta + float(surface.x[i]) * d1 + float(surface.y[j]) * d2
            )
            assert float(surface.loss[j, i]) == pytest.approx(there.loss, rel=1e-12)
            assert float(surface.accuracy[j, i]) == pytest.approx(there.accuracy)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_an_interpolated_surface_keeps_its_claims_and_marks_what_is_exact():
    model, objective = trained_net()
    d1, d2 = (
        filter_normalised(objective.space, objective.theta, model=model, seed=seed)
        for seed in (0, 1)
    )
    truth = scan_plane(objective, d1, d2, x=FINE, y=FINE, exact=True)
    found = scan_plane(objective, d1, d2, x=FINE, y=FINE, exact=False)
    assert truth.exact
    assert not found.exact
    assert found.saving >= 8
    assert found.num_evaluated == int(found.evaluated.sum()) < found.num_points == 2601
    torch.testing.assert_close(found.loss[found.evaluated], truth.loss[found.evaluated])
    miss = (found.loss - truth.loss).abs()
    error = found.interpolation_error
    assert error.num_held_out >= 59
    assert float(miss.max()) <= error.working_maximum
    assert float(miss.max()) <= 5e-3 * (truth.max - truth.min)
    assert float(miss[found.evaluated].max()) == 0
    assert torch.equal(found.accuracy.isnan(), ~found.evaluated)
    assert truth.interpolation_error is None
    assert found.cost.forwards == found.num_evaluated + 2


def test_the_evaluated_points_do_not_depend_on_the_order_of_evaluation():
    """Each loss is a function of its place: a scan seen backwards gives the same numbers."""
    objective, e1, e2 = plane_objective(lambda x, y: math.sin(3 * x) + y * x)
    forward = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True)
    backward = scan_plane(objective, -e1, -e2, x=COARSE, y=COARSE, exact=True)
    torch.testing.assert_close(backward.loss.flip(0, 1), forward.loss, rtol=0, atol=1e-15)


def test_the_centre_may_lie_elsewhere_than_the_models_weights():
    objective, e1, e2 = plane_objective(lambda x, y: x**2 + 2 * y)
    moved = objective.theta + 3 * e1 + e2
    surface = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, theta=moved, exact=True)
    assert surface.center_loss == pytest.approx(11.0)
    assert float(surface.loss[0, 4]) == pytest.approx(4.0**2 + 2 * 0.0)


def test_the_axes_zero_is_exact_although_linspace_misses_it():
    shifted = torch.linspace(-1, 1, 51) + 3e-8
    objective, e1, e2 = plane_objective(lambda x, y: 1 + x + y)
    surface = scan_plane(objective, e1, e2, x=shifted, y=shifted, exact=True)
    assert float(surface.x[25]) == 0.0
    assert any(torch.equal(theta, objective.theta) for theta in objective.visited[1:-1])


def test_a_grid_without_the_centre_still_states_its_loss():
    objective, e1, e2 = plane_objective(lambda x, y: 5 + x + y)
    surface = scan_plane(objective, e1, e2, x=[1.0, 2.0], y=[3.0, 4.0], exact=True)
    assert surface.center_loss == 5.0
    assert surface.min == 9.0


def test_a_loss_that_moves_during_the_scan_is_an_error():
    calls = iter(range(1000))
    objective = FunctionObjective(lambda theta: 1 + 1e-3 * next(calls), torch.ones(3))
    d1, d2 = torch.eye(3)[:2]
    with pytest.raises(RuntimeError, match="something besides theta moves"):
        scan_plane(objective, d1, d2, x=COARSE, y=COARSE, exact=True)
    with pytest.raises(RuntimeError, match=r"the model's loss is 1\.02\d*, but 1\.03"):
        scan_line(objective, d1, t=[1.0, 2.0, 3, 4, 5, 6, 7, 8, 9, 10])


def test_a_grid_whose_own_centre_differs_is_an_error():
    calls = iter(range(1000))  # 0 is the centre, then a 3 x 3 grid whose middle is 5
    objective = FunctionObjective(lambda theta: 2.0 if next(calls) == 5 else 1.0, torch.ones(3))
    d1, d2 = torch.eye(3)[:2]
    with pytest.raises(RuntimeError, match="loss is 1, but 2 at the grid's centre"):
        scan_plane(objective, d1, d2, x=[-1.0, 0, 1], y=[-1.0, 0, 1], exact=True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite_stay_holes_and_are_counted(value):
    def function(x, y):
        return value if x > 0.5 and y > 0.5 else 1 + x**2 + y**2

    objective, e1, e2 = plane_objective(function)
    for exact in (True, False):
        surface = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=exact)
        hole = (surface.x[None, :] > 0.5) & (surface.y[:, None] > 0.5)
        assert torch.equal(surface.loss.isnan(), hole)
        assert surface.num_nonfinite == int(hole.sum()) == 13 * 13
        assert surface.exact
        assert surface.min == pytest.approx(1.0)
        assert surface.max == pytest.approx(3.0)  # the corners without a hole
    assert "not finite" in surface.reason


def test_a_line_counts_its_holes():
    objective, e1, _ = plane_objective(lambda x, y: math.inf if x < -0.4 else x)
    line = scan_line(objective, e1, t=COARSE)
    assert line.num_nonfinite == 2
    assert line.loss.isnan().tolist() == [True, True, False, False, False]
    assert (line.min, line.max) == (0.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_centre_that_is_not_finite_draws_nothing(value):
    objective, e1, e2 = plane_objective(lambda x, y: value)
    with pytest.raises(FloatingPointError, match=f"the loss at the centre is {value}"):
        scan_plane(objective, e1, e2, x=COARSE, y=COARSE)
    with pytest.raises(FloatingPointError, match="the loss at the centre"):
        scan_line(objective, e1, t=COARSE)
    with pytest.raises(FloatingPointError, match="the loss at the centre"):
        automatic_range(objective, e1)
    assert len(objective.visited) == 3


@pytest.mark.parametrize("exact", [True, False])
def test_a_grid_that_is_finite_nowhere_else_advises_a_smaller_range(exact):
    objective, e1, e2 = plane_objective(lambda x, y: 1.0 if x == y == 0 else math.nan)
    with pytest.raises(FloatingPointError, match=r"any of the 2601 grid points.*smaller range"):
        scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=exact)
    with pytest.raises(FloatingPointError, match="use a smaller range"):
        scan_line(objective, e1, t=[1.0, 2.0])


def test_overflow_of_a_real_net_is_a_hole_and_not_an_exception():
    model, objective = trained_net(dtype=torch.float32)
    d = filter_normalised(objective.space, objective.theta, model=model, seed=0)
    line = scan_line(objective, d, t=[0.0, 1.0, 3e38])
    assert line.num_nonfinite == 1
    assert math.isnan(line.loss[2])


def test_the_result_says_how_the_directions_lie():
    objective, e1, e2 = plane_objective(lambda x, y: x + y)
    surface = scan_plane(objective, 3 * e1, e1 + e2, x=COARSE, y=COARSE, exact=True)
    assert surface.angle_degrees == pytest.approx(45)
    assert surface.norms == pytest.approx((3, math.sqrt(2)))
    assert surface.parameter_norm == pytest.approx(math.sqrt(91))


def test_the_clock_decides_by_a_stated_rule():
    assert worth_evaluating_all(2601, 0.007)
    assert not worth_evaluating_all(2601, 0.008)
    assert not worth_evaluating_all(10, 0.1, within=1.0)
    objective, e1, e2 = plane_objective(lambda x, y: 1 + x**2)
    quick = scan_plane(objective, e1, e2, x=FINE, y=FINE)
    assert quick.exact
    assert "less than 20 s" in quick.reason
    hurried = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact_within=0)
    assert not hurried.exact


def test_a_slow_objective_is_interpolated_by_default():
    waits = iter([0.0, 0.02])  # the first two evaluations are the centre's

    def function(x, y):
        time.sleep(next(waits, 0.0))
        return 1 + x**2 + y

    objective, e1, e2 = plane_objective(function)
    assert not scan_plane(objective, e1, e2, x=FINE, y=FINE).exact


def test_progress_counts_every_point_once():
    objective, e1, e2 = plane_objective(lambda x, y: x)
    calls = []
    scan_plane(
        objective, e1, e2, x=COARSE, y=[0.0, 1.0], exact=True, progress=lambda *c: calls.append(c)
    )
    assert calls == [(done, 10) for done in range(1, 11)]
    calls.clear()
    found = scan_plane(
        objective, e1, e2, x=FINE, y=FINE, exact=False, progress=lambda *c: calls.append(c)
    )
    assert [done for done, _ in calls] == list(range(1, found.num_evaluated + 1))
    assert calls[-1] == (found.num_evaluated, found.num_evaluated)


def test_float32_directions_and_theta_work_together():
    objective = FunctionObjective(lambda theta: theta.double().square().sum(), torch.ones(4))
    d1, d2 = torch.eye(4, dtype=torch.float64)[:2]
    surface = scan_plane(objective, d1, d2, x=COARSE, y=COARSE, exact=True)
    assert float(surface.loss[4, 4]) == pytest.approx(4 + 4 + 1 + 1)
    assert surface.loss.dtype == torch.float64


def test_axes_and_directions_are_checked_at_the_door():
    objective, e1, e2 = plane_objective(lambda x, y: x)

    def scan(x=COARSE, y=COARSE, d1=e1, d2=e2):
        return scan_plane(objective, d1, d2, x=x, y=y, exact=True)

    with pytest.raises(ValueError, match="x must hold two or more numbers"):
        scan(x=[0.0])
    with pytest.raises(ValueError, match="y must be finite and increasing"):
        scan(y=[0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="x must be finite and increasing"):
        scan(x=[0.0, math.inf])
    with pytest.raises(ValueError, match="direction 2 is zero"):
        scan(d2=0 * e1)
    with pytest.raises(ValueError, match="they span a line"):
        scan(d2=-2 * e1)
    with pytest.raises(ValueError, match="direction 1 must have shape"):
        scan(d1=torch.ones(3))
    with pytest.raises(ValueError, match="tolerances must be > 0"):
        scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=False, relative_tolerance=-1)
    assert len(objective.visited) <= 1


def test_results_are_frozen_and_draw_themselves():
    model, objective = trained_net()
    d1, d2 = (
        filter_normalised(objective.space, objective.theta, model=model, seed=seed)
        for seed in (0, 1)
    )
    surface = scan_plane(objective, d1, d2, x=FINE, y=FINE, exact=False)
    with pytest.raises(AttributeError):
        surface.loss = None
    figure = surface.plot()
    np.testing.assert_allclose(figure.data[0].z, np.log10(surface.loss.numpy()))
    np.testing.assert_allclose(figure.data[0].x, surface.x.numpy())
    assert len(figure.data[1].x) == surface.num_evaluated
    line = scan_line(objective, d1, t=FINE)
    np.testing.assert_allclose(line.plot().data[0].y, line.loss.numpy())


@pytest.mark.parametrize("curvature", [1e-6, 1.0, 3e5])
@pytest.mark.parametrize("minimum", [0.0, 0.02, 2.0])
def test_the_automatic_range_is_the_parabolas_own(curvature, minimum):
    """L = c + k r^2 / 2 reaches c + 9 max(c, 0.1) at r = sqrt(18 max(c, 0.1) / k)."""
    objective, e1, _ = plane_objective(lambda x, y: minimum + 0.5 * curvature * x**2)
    found = automatic_range(objective, e1)
    truth = math.sqrt(18 * max(minimum, 0.1) / curvature)
    assert truth / 1.02 <= found.value <= truth
    assert found.details["target"] == pytest.approx(minimum + 9 * max(minimum, 0.1))
    assert found.cost.forwards == len(objective.visited) < 80
    scaled = automatic_range(objective, 7 * e1, multiple=2.0)
    truth = math.sqrt(2 * max(minimum, 0.1) / curvature) / 7
    assert truth / 1.02 <= scaled.value <= truth


def test_the_automatic_range_stops_at_the_steeper_side_and_before_a_hole():
    objective, e1, _ = plane_objective(lambda x, y: 1 + (9 * x if x > 0 else -x))
    assert automatic_range(objective, e1).value == pytest.approx(1.0, rel=0.02)
    objective, e1, _ = plane_objective(lambda x, y: math.nan if x < -0.3 else 1 + x**2)
    assert automatic_range(objective, e1).value == pytest.approx(0.3, rel=0.02)
    assert automatic_range(objective, e1).value <= 0.3


def test_the_automatic_range_refuses_a_flat_direction_and_bad_arguments():
    objective, e1, _ = plane_objective(lambda x, y: 1.0)
    with pytest.raises(ValueError, match=r"does not cross 10 along this direction.*give the range"):
        automatic_range(objective, e1)
    for options, message in (
        ({"multiple": 1.0}, "multiple must be > 1"),
        ({"floor": 0.0}, "floor must be > 0"),
        ({"relative_width": 1.0}, r"relative_width must be in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            automatic_range(objective, e1, **options)


# -- A stopped scan goes on -----------------------------------------------------------------------


class Stopped(Exception):
    pass


def stop_after(num_points):
    """A progress callback that ends the scan after so many points of its own."""
    calls = iter(range(1, num_points + 1))

    def progress(done, total):
        if next(calls) == num_points:
            raise Stopped

    return progress


def same_surface(found, expected):
    """Every field but the cost, bit for bit."""
    for name in expected.__dataclass_fields__.keys() - {"cost"}:
        ours, theirs = getattr(found, name), getattr(expected, name)
        if isinstance(theirs, torch.Tensor):
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=name)
        else:
            assert ours == theirs, name


def rough(x, y):
    """A loss that takes the spline two rounds: a bump between the first lattice's lines."""
    return 1 + x**2 + 2 * y**2 - 0.5 * math.exp(-((x - 0.75) ** 2 + (y - 0.07) ** 2) / 4e-3)


def test_the_bump_takes_the_spline_a_second_round():
    objective, e1, e2 = plane_objective(rough)
    totals = []
    found = scan_plane(
        objective, e1, e2, x=FINE, y=FINE, exact=False, progress=lambda _, n: totals.append(n)
    )
    assert len(set(totals)) > 1
    assert not found.exact


@pytest.mark.parametrize("stops", [(1,), (40,), (200, 100, 30), (313,), (330,)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_stopped_scan_goes_on_to_the_same_bits(exact, stops):
    objective, e1, e2 = plane_objective(rough)
    arguments = {"x": FINE, "y": FINE, "exact": exact, "seed": 3}
    expected = scan_plane(objective, e1, e2, **arguments)
    points = GridPoints(FINE, FINE)
    for number, stop in enumerate(stops, start=1):
        with pytest.raises(Stopped):
            scan_plane(objective, e1, e2, **arguments, known=points, progress=stop_after(stop))
        assert points.num_known == sum(stops[:number])
    del objective.visited[:]
    found = scan_plane(objective, e1, e2, **arguments, known=points)
    same_surface(found, expected)
    missing = expected.num_evaluated - sum(stops)
    assert found.cost.forwards == len(objective.visited) == missing + 2
    assert points.num_known == expected.num_evaluated


def test_a_stopped_scan_of_a_net_with_accuracies_and_holes_goes_on_to_the_same_bits():
    model, objective = trained_net(dtype=torch.float32)
    d1, d2 = (
        filter_normalised(objective.space, objective.theta, model=model, seed=seed)
        for seed in (0, 1)
    )
    arguments = {"x": [-1.0, 0.0, 1.0, 3e38], "y": COARSE, "exact": True}
    expected = scan_plane(objective, d1, d2, **arguments)
    assert expected.num_nonfinite == 5
    points = GridPoints(arguments["x"], COARSE)
    with pytest.raises(Stopped):
        scan_plane(objective, d1, d2, **arguments, known=points, progress=stop_after(9))
    assert int(np.isnan(points.values["loss"][points.evaluated]).sum()) == 2
    restored = GridPoints.from_arrays(points.as_arrays())
    same_surface(scan_plane(objective, d1, d2, **arguments, known=restored), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("exact", [True, False])
def test_a_hole_found_before_the_stop_is_the_hole_of_an_unbroken_scan(exact, value):
    objective, e1, e2 = plane_objective(lambda x, y: value if y < -0.9 else rough(x, y))
    arguments = {"x": FINE, "y": FINE, "exact": exact}
    expected = scan_plane(objective, e1, e2, **arguments)
    points = GridPoints(FINE, FINE)
    with pytest.raises(Stopped):
        scan_plane(objective, e1, e2, **arguments, known=points, progress=stop_after(1500))
    same_surface(scan_plane(objective, e1, e2, **arguments, known=points), expected)
    assert not np.isinf(points.values["loss"]).any()


def test_an_error_of_the_objective_leaves_what_was_known():
    calls = iter(range(1000))

    def function(x, y):
        if next(calls) == 8:
            raise KeyboardInterrupt
        return 1 + x + y**2

    objective, e1, e2 = plane_objective(function)
    points = GridPoints(COARSE, COARSE)
    with pytest.raises(KeyboardInterrupt):
        scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True, known=points)
    assert points.num_known == 7  # the first evaluation is the centre's
    assert np.isnan(points.values["loss"][~points.evaluated]).all()


def test_a_finished_scan_is_answered_from_what_is_known():
    objective, e1, e2 = plane_objective(rough)
    points = GridPoints(FINE, FINE)
    first = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=False, known=points)
    calls = []
    again = scan_plane(
        objective,
        *(e1, e2),
        x=FINE,
        y=FINE,
        exact=False,
        known=points,
        progress=lambda *c: calls.append(c),
    )
    same_surface(again, first)
    assert again.cost.forwards == 2
    assert calls == []


def test_points_that_a_scan_does_not_ask_for_stay_out_of_it():
    """What is known from an exact scan does not make the interpolated one another surface."""
    objective, e1, e2 = plane_objective(rough)
    points = GridPoints(FINE, FINE)
    scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=True, known=points)
    expected = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=False)
    found = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=False, known=points)
    same_surface(found, expected)


def test_progress_goes_on_counting_from_what_is_known():
    objective, e1, e2 = plane_objective(lambda x, y: x)
    points = GridPoints(COARSE, [0.0, 1.0])
    arguments = {"x": COARSE, "y": [0.0, 1.0], "exact": True, "known": points}
    with pytest.raises(Stopped):
        scan_plane(objective, e1, e2, **arguments, progress=stop_after(4))
    calls = []
    scan_plane(objective, e1, e2, **arguments, progress=lambda *c: calls.append(c))
    assert calls == [(done, 10) for done in range(5, 11)]


@pytest.mark.parametrize("within", [0.0, 1e6])
def test_the_clocks_decision_is_kept_and_not_made_again(within):
    objective, e1, e2 = plane_objective(rough)
    expected = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact=within > 0)
    points = GridPoints(FINE, FINE)
    with pytest.raises(Stopped):
        scan_plane(
            objective,
            *(e1, e2),
            x=FINE,
            y=FINE,
            exact_within=within,
            known=points,
            progress=stop_after(20),
        )
    assert points.exact is (within > 0)
    points = GridPoints.from_arrays(points.as_arrays())
    # The clock would now say the opposite.
    found = scan_plane(objective, e1, e2, x=FINE, y=FINE, exact_within=1e6 - within, known=points)
    assert found.exact is expected.exact
    np.testing.assert_array_equal(found.loss.numpy(), expected.loss.numpy())


def stopped_scan(function=rough):
    """An objective, its directions and the points of a scan that was stopped after three."""
    objective, e1, e2 = plane_objective(function)
    points = GridPoints(COARSE, COARSE)
    with pytest.raises(Stopped):
        scan_plane(
            objective,
            *(e1, e2),
            x=COARSE,
            y=COARSE,
            exact=True,
            known=points,
            progress=stop_after(3),
        )
    return objective, e1, e2, points


def test_points_of_other_weights_data_or_directions_are_refused():
    objective, e1, e2, points = stopped_scan()

    def go_on(objective=objective, d1=e1, d2=e2, x=COARSE, y=COARSE, **options):
        scan_plane(objective, d1, d2, x=x, y=y, exact=True, known=points, **options)

    num_evaluations = len(objective.visited)
    with pytest.raises(ValueError, match="5 values of x, and not 51"):
        go_on(x=FINE)
    with pytest.raises(ValueError, match="lie at other values of y"):
        go_on(y=COARSE * (1 + 1e-7))
    assert len(objective.visited) == num_evaluations  # refused before anything is evaluated

    other_data, _, _ = plane_objective(rough, offset=1e-12)
    with pytest.raises(ValueError, match=r"other weights or data: the loss at their centre is"):
        go_on(other_data)
    with pytest.raises(ValueError, match="other weights or data"):
        go_on(theta=objective.theta + 0.1 * e1)
    flat, _, _ = plane_objective(lambda x, y: rough(0, 0))
    with pytest.raises(ValueError, match="lie on another plane"):
        go_on(flat, theta=objective.theta + 0.1 * e1)  # other weights of the same loss
    other = torch.eye(6, dtype=torch.float64)[2]
    for directions in ((e2, e1), (-e1, e2), (e1, 2 * e2), (e1, other)):
        with pytest.raises(ValueError, match="lie on another plane"):
            go_on(d1=directions[0], d2=directions[1])
    single = FunctionObjective(objective.function, objective.theta.float())
    with pytest.raises(ValueError, match="in another precision"):
        go_on(single)
    assert points.num_known == 3
    go_on()
    assert points.num_known == 25


def test_the_points_of_a_map_are_not_those_of_a_surface():
    objective, e1, e2, _ = stopped_scan()
    points = GridPoints(COARSE, COARSE, quantities=("loss", "lambda_max"))
    with pytest.raises(ValueError, match="hold loss, lambda_max, and not loss, accuracy"):
        scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True, known=points)


def test_stored_points_come_back_through_arrays_of_float64_and_int32(tmp_path):
    objective, e1, e2, points = stopped_scan()
    arrays = points.as_arrays()
    assert {array.dtype for array in arrays.values()} == {np.dtype("f8"), np.dtype("i4")}
    assert all(array.size for array in arrays.values())
    np.savez(tmp_path / "points.npz", **arrays)
    with np.load(tmp_path / "points.npz") as file:
        # A NetCDF file holds its numbers the other way round.
        swapped = {name: file[name].astype(file[name].dtype.newbyteorder(">")) for name in file}
    restored = GridPoints.from_arrays(swapped)
    expected = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True)
    found = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True, known=restored)
    same_surface(found, expected)
    assert found.cost.forwards == expected.cost.forwards - 3
    with pytest.raises(ValueError, match="lie on another plane"):
        scan_plane(objective, e2, e1, x=COARSE, y=COARSE, exact=True, known=restored)


def test_points_are_stored_before_the_first_scan_too():
    points = GridPoints.from_arrays(GridPoints(COARSE, FINE).as_arrays())
    assert points.shape == (51, 5)
    assert points.num_known == 0
    assert points.exact is None
    objective, e1, e2 = plane_objective(rough)
    scan_plane(objective, e1, e2, x=COARSE, y=FINE, exact=True, known=points)
    assert points.num_known == 255


def test_stored_points_that_do_not_fit_together_are_refused():
    *_, points = stopped_scan()

    def restored(**changed):
        arrays = {**points.as_arrays(), **changed}
        return GridPoints.from_arrays({k: v for k, v in arrays.items() if v is not None})

    with pytest.raises(ValueError, match="lack the array 'plane'"):
        restored(plane=None)
    with pytest.raises(ValueError, match=r"accuracy of shape \(5,\) on axes of \(5, 5\)"):
        restored(accuracy=np.zeros(5))
    with pytest.raises(ValueError, match="a loss where none was evaluated"):
        restored(loss=np.zeros((5, 5)))
    with pytest.raises(ValueError, match="y must be finite and increasing"):
        restored(y=np.zeros(5))
    with pytest.raises(ValueError, match=r"a plane of shape \(3,\), not \(11,\)"):
        restored(plane=np.zeros(3))


def test_points_of_one_plane_merge_and_contradictory_ones_do_not():
    objective, e1, e2, first = stopped_scan()
    expected = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True)
    second = GridPoints(COARSE, COARSE)
    scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True, known=second)
    second.evaluated[0, 1:] = False  # all but the four last points of the first row
    second.values["loss"][0, 1:] = np.nan
    for whole in (first.merged(second), second.merged(first)):
        assert whole.num_known == 23
        with pytest.raises(ValueError, match="lie on another plane"):
            scan_plane(objective, e2, e1, x=COARSE, y=COARSE, exact=True, known=whole)
        found = scan_plane(objective, e1, e2, x=COARSE, y=COARSE, exact=True, known=whole)
        same_surface(found, expected)
        assert found.cost.forwards == 2 + 2
    assert (first.num_known, second.num_known) == (3, 21)

    second.values["loss"][0, 0] += 1e-9
    with pytest.raises(ValueError, match=r"loss at x = -1, y = -1 is 4.* in one and 4.* in the"):
        first.merged(second)
    second.values["loss"][0, 0] = np.nan
    with pytest.raises(ValueError, match="is 4 in one and nan in the other"):
        first.merged(second)
    *_, shifted = stopped_scan(lambda x, y: rough(x, y) + 1)
    with pytest.raises(ValueError, match="other weights or data"):
        first.merged(shifted)
    with pytest.raises(ValueError, match="values of x"):
        first.merged(GridPoints(FINE, COARSE))
    exact, interpolated = GridPoints(COARSE, COARSE), GridPoints(COARSE, COARSE)
    exact.exact, interpolated.exact = True, False
    with pytest.raises(ValueError, match="to evaluate every point, the other to interpolate"):
        exact.merged(interpolated)
    assert interpolated.merged(first).exact is False
    assert first.merged(interpolated).exact is False


def test_an_objective_of_several_passes_is_charged_for_them():
    objective, e1, e2 = plane_objective(lambda x, y: 1 + x**2 + y)
    objective.num_passes = 2
    assert scan_line(objective, e1, t=COARSE).cost.forwards == 2 * (5 + 2)
    surface = scan_plane(objective, e1, e2, x=COARSE, y=COARSE)
    assert surface.cost.forwards == 2 * (25 + 3)  # one of them timed
    visited = len(objective.visited)
    found = automatic_range(objective, e1)
    assert found.cost.forwards == 2 * (len(objective.visited) - visited)
