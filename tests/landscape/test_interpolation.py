"""The spline's claims, on functions whose every value is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape.interpolation import MIN_HELD_OUT, interpolate

AXIS = np.linspace(-1.0, 1.0, 51)
X, Y = np.meshgrid(AXIS, AXIS)


class Sampled:
    """A known surface that is only handed out point by point, with a record of what was asked."""

    def __init__(self, truth):
        self.truth = truth
        self.asked = []

    def __call__(self, rows, columns):
        self.asked += list(zip(rows.tolist(), columns.tolist(), strict=True))
        return self.truth[rows, columns]


def interpolated(truth, **options):
    sample = Sampled(truth)
    axes = [np.linspace(-1.0, 1.0, n) for n in truth.shape]
    found = interpolate(sample, axes[1], axes[0], **options)
    assert len(set(sample.asked)) == len(sample.asked) == found.evaluated.sum()
    known = found.evaluated & np.isfinite(truth)
    np.testing.assert_array_equal(found.values[known], truth[known])
    return found


SMOOTH = {
    "bowl": 1 + X**2 + 3 * Y**2 + X * Y**3,
    "wave": 2 + np.sin(2 * X + 1) * np.cos(3 * Y),
    "basin": 1e-3 + np.log1p(np.exp(6 * (X**2 + 2 * Y**2 + 0.3 * X * Y) - 3)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_surface_needs_an_eighth_of_its_points_and_keeps_both_tolerances(name):
    truth = SMOOTH[name]
    found = interpolated(truth, center=(25, 25))
    assert truth.size >= 8 * found.evaluated.sum()
    miss = np.abs(found.values - truth)
    assert miss.max() <= 5e-3 * np.ptp(truth)
    assert (miss / truth).max() <= 0.2
    assert miss.max() <= found.error.working_maximum
    assert found.evaluated[25, 25]


def test_a_cubic_is_reproduced_exactly_on_an_uneven_rectangular_grid():
    x = np.sort(np.random.default_rng(0).uniform(-2, 1, 40))
    y = np.sort(np.random.default_rng(1).uniform(0, 5, 60))
    truth = (x**3 - 2 * x)[None, :] + (y**2 * 0.7)[:, None] * x[None, :]
    found = interpolate(Sampled(truth), x, y)
    assert not found.evaluated.all()
    np.testing.assert_allclose(found.values, truth, atol=1e-11 * np.abs(truth).max())
    assert found.error.maximum < 1e-11
    assert found.error.relative is None  # the function changes sign


def test_the_stated_error_is_the_largest_over_the_points_off_the_lattice():
    truth = SMOOTH["basin"]
    found = interpolated(truth)
    lines = np.round(np.linspace(0, 50, 13)).astype(int)
    lattice = np.zeros_like(found.evaluated)
    lattice[np.ix_(lines, lines)] = True
    assert found.evaluated[lattice].all()
    held_out = found.evaluated & ~lattice
    assert found.error.num_held_out == held_out.sum() == 144 >= MIN_HELD_OUT
    # An independent fit: the same spline from scipy's own two-dimensional class.
    from scipy.interpolate import RectBivariateSpline

    nodes = truth[np.ix_(lines, lines)]
    log = found.scale == "log-loss"
    spline = RectBivariateSpline(AXIS[lines], AXIS[lines], np.log(nodes) if log else nodes)
    values = np.exp(spline(AXIS, AXIS)) if log else spline(AXIS, AXIS)
    miss = np.abs(values - truth)[held_out]
    assert found.error.maximum == pytest.approx(miss.max(), rel=1e-6)
    assert found.error.relative == pytest.approx((miss / truth[held_out]).max(), rel=1e-6)
    assert found.error.of_range == pytest.approx(
        miss.max() / np.ptp(truth[found.evaluated]), rel=1e-6
    )
    assert found.error.working_maximum == 3 * found.error.maximum


def test_every_cell_of_the_lattice_is_looked_into():
    found = interpolated(SMOOTH["wave"])
    lines = np.round(np.linspace(0, 50, 13)).astype(int)
    for low, high in pairwise(lines):
        for left, right in pairwise(lines):
            block = found.evaluated[low : high + 1, left : right + 1]
            assert block.sum() > 4  # more than its four corners


def test_an_exponential_well_is_fitted_in_log_loss_and_a_bowl_in_the_loss():
    well = np.exp(6 * X**2 + 5 * Y**2 - 3 * X * Y)
    assert interpolated(well).scale == "log-loss"
    assert interpolated(well).error.maximum < 1e-9 * well.max()
    assert interpolated(SMOOTH["bowl"]).scale == "loss"


def bump(row, column, width, *, depth=0.5):
    rows, columns = np.mgrid[:51, :51]
    return -depth * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", [(2, 2), (23, 31), (27, 44), (48, 10)])
def test_a_narrow_bump_between_the_nodes_is_refined(place, seed):
    """One grid step wide, in the middle of a cell four steps wide: no node sees it."""
    truth = 1 + X**2 + 2 * Y**2 + bump(*place, 1.0)
    lines = np.round(np.linspace(0, 50, 13)).astype(int)
    assert np.abs(bump(*place, 1.0)[np.ix_(lines, lines)]).max() < 0.2 * 0.5
    found = interpolated(truth, seed=seed)
    miss = np.abs(found.values - truth).max()
    assert found.evaluated.sum() > 313
    assert found.error is None or miss <= found.error.working_maximum
    assert miss < 0.1  # the bump of 0.5 is in the surface


def test_lines_are_added_where_the_error_is_and_fresh_points_judge_the_new_spline():
    place = (27, 44)  # in the cell between lines 25 and 29, 42 and 46
    batches = []
    truth = 1 + X**2 + 2 * Y**2 + bump(*place, 1.0)

    def sample(rows, columns):
        batches.append((rows, columns))
        return truth[rows, columns]

    found = interpolate(sample, AXIS, AXIS)
    assert len(batches) > 1
    density = found.evaluated.mean()
    assert found.evaluated[25:30].mean() > 1.3 * density
    assert found.evaluated[:, 42:47].mean() > 1.3 * density
    # Nothing was wrong far from the bump; yet the second spline is judged there too.
    rows, columns = batches[1]
    far = (np.abs(rows - place[0]) > 12) & (np.abs(columns - place[1]) > 12)
    assert far.sum() >= 0.2 * MIN_HELD_OUT


def test_a_lattice_line_runs_through_the_centre_wherever_it_lies():
    y, x = np.linspace(-1, 1, 60), np.linspace(-1, 1, 52)
    truth = 2 + np.sin(2 * x)[None, :] * y[:, None]
    found = interpolate(Sampled(truth), x, y, center=(17, 31))
    assert not found.evaluated.all()
    assert found.evaluated[17].sum() >= 13
    assert found.evaluated[:, 31].sum() >= 13


def test_refinement_ends_within_both_tolerances_on_a_kinked_surface():
    truth = 0.05 + np.abs(X - 0.31) + np.maximum(0, 2 * Y - X) + np.maximum(0, -Y - 0.4)
    for seed in range(8):
        found = interpolated(truth, seed=seed)
        if found.error is not None:
            assert found.error.of_range <= 5e-3
            assert found.error.relative <= 0.2


def test_noise_ends_in_every_point():
    truth = 1 + np.random.default_rng(0).random((51, 51))
    found = interpolated(truth)
    assert found.evaluated.all()
    assert found.error is None
    assert "halve" in found.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_corner_that_is_not_finite_makes_every_point_evaluated_and_none_filled(value):
    truth = SMOOTH["bowl"].copy()
    truth[40:, 42:] = value
    sample = Sampled(truth)
    found = interpolate(sample, AXIS, AXIS)
    assert found.evaluated.all()
    assert "not finite" in found.reason
    np.testing.assert_array_equal(found.values, truth)


def test_a_constant_is_fitted_without_dividing_by_its_range():
    found = interpolated(np.full((51, 51), 0.7))
    np.testing.assert_allclose(found.values, 0.7, rtol=1e-13)
    assert found.error.of_range < 1e-12 or np.ptp(found.values) < 1e-12


@pytest.mark.parametrize("shape", [(2, 2), (3, 200), (13, 13), (25, 25)])
def test_a_grid_too_small_to_save_anything_is_evaluated_in_full(shape):
    smooth = 1 + np.add.outer(np.linspace(0, 1, shape[0]) ** 2, np.linspace(0, 2, shape[1]))
    assert interpolated(smooth).error is None


def test_the_seed_fixes_the_points_and_another_seed_takes_others():
    first, again, other = (interpolated(SMOOTH["wave"], seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.evaluated, again.evaluated)
    assert (first.evaluated != other.evaluated).any()


def test_a_tighter_tolerance_costs_points_and_is_kept():
    loose = interpolated(SMOOTH["wave"])
    tight = interpolated(SMOOTH["wave"], range_tolerance=2e-5)
    assert tight.evaluated.sum() > loose.evaluated.sum()
    assert tight.error is None or tight.error.of_range <= 2e-5


def test_tolerances_and_lines_are_checked():
    with pytest.raises(ValueError, match="tolerances must be > 0, got 0 of the range"):
        interpolated(SMOOTH["bowl"], range_tolerance=0)
    with pytest.raises(ValueError, match="num_lines must be >= 4, got 3"):
        interpolated(SMOOTH["bowl"], num_lines=3)


def relu_surface(seed, epochs, *, batch_norm):
    """The loss of a trained ReLU net on a filter-normalised plane, every point evaluated."""
    from landscape.directions import filter_normalised
    from landscape.objective import Objective
    from landscape.parameters import ParameterSpace

    data = load_digits(n_class=10)
    inputs = torch.tensor(data.data[:400] / 16 - 0.5, dtype=torch.float32)
    targets = torch.tensor(data.target[:400])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        between = [nn.BatchNorm1d(32)] if batch_norm else []
        model = nn.Sequential(nn.Linear(64, 32), *between, nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(epochs):
            for rows in torch.randperm(400).split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[rows]), targets[rows]).backward()
                optimizer.step()
    model.eval()
    objective = Objective(model, nn.functional.cross_entropy, [(inputs, targets)])
    space = ParameterSpace.of(model)
    d1, d2 = (
        filter_normalised(space, objective.theta, model=model, seed=2 * seed + k) for k in (0, 1)
    )
    return np.array(
        [[objective.value(objective.theta + x * d1 + y * d2) for x in AXIS] for y in AXIS]
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("epochs", [3, 40])
def test_on_trained_relu_nets_the_working_maximum_holds_at_every_point(epochs, batch_norm):
    """Measured over 12 nets x 8 seeds with the first lattice of 13: the true maximum was 1.26
    times the stated one in the median and 2.5 times at most. Here: at most one seed in twenty
    beyond three times, both tolerances kept everywhere, an eighth of the points."""
    truth = relu_surface(4, epochs, batch_norm=batch_norm)
    ratios = []
    for seed in range(20):
        found = interpolated(truth, center=(25, 25), seed=seed)
        miss = np.abs(found.values - truth)
        ratios.append(miss.max() / found.error.maximum)
        assert truth.size >= 8 * found.evaluated.sum()
        assert miss.max() <= 5e-3 * np.ptp(truth)
        assert (miss / truth).max() <= 0.2
    assert np.median(ratios) < 2
    assert sum(ratio > 3 for ratio in ratios) <= 1


def test_on_random_smooth_surfaces_at_most_a_twentieth_of_the_grid_is_worse_than_stated():
    """The claim has 95 % confidence: over 60 surfaces at most 3 + 3 sigma may break it."""
    rng = np.random.default_rng(5)
    broken, beyond = 0, 0
    for seed in range(60):
        weights = rng.normal(size=(3, 40))
        truth = 1 + sum(
            a * np.maximum(0, X * np.cos(5 * b) + Y * np.sin(5 * b) + c / 2) ** 2
            for a, b, c in weights.T
        )
        found = interpolated(truth - truth.min() + 1, seed=seed)
        if found.error is None:
            continue
        miss = np.abs(found.values - (truth - truth.min() + 1))
        broken += (miss > found.error.maximum).mean() > 0.05
        beyond += miss.max() > found.error.working_maximum
    assert broken <= 8
    assert beyond <= 6
