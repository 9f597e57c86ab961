import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.objective import Objective
from landscape.surface import scan_plane
from landscape.topology import grid_topology, surface_topology
from tests.references import plane_objective


def places(points):
    return {(point.row, point.column) for point in points}


def ordered(pairs):
    return [pair.persistence for pair in pairs]


def local_counts(values):
    """Minima, saddles (with multiplicity) and maxima from each point's eight neighbours alone.

    A point that enters the sublevel set changes its Euler characteristic by 1 - N8, N8 Yokoi's
    connectivity number of its neighbours already there (8-connected; outside is never there).
    """
    order = np.empty(values.size, dtype=int)
    order[np.argsort(values, axis=None, kind="stable")] = np.arange(values.size)
    rank = np.pad(order.reshape(values.shape), 1, constant_values=values.size)
    ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    minima = saddles = maxima = 0
    for row in range(1, rank.shape[0] - 1):
        for column in range(1, rank.shape[1] - 1):
            absent = [int(rank[row + a, column + b] > rank[row, column]) for a, b in ring]
            number = sum(
                absent[k] - absent[k] * absent[k + 1] * absent[(k + 2) % 8] for k in (0, 2, 4, 6)
            )
            if all(absent):
                minima += 1
            elif not any(absent[::2]):
                maxima += 1
            else:
                saddles += number - 1
    return minima, saddles, maxima


def test_two_wells_and_the_pass_between_them():
    found = grid_topology([[9, 9, 9, 9, 9], [9, 1, 5, 2, 9], [9, 9, 9, 9, 9]], x=[0, 2, 4, 6, 8])
    assert [point.loss for point in found.minima] == [1, 2]
    (pair,) = found.minimum_pairs
    assert (pair.extremum.row, pair.extremum.column, pair.extremum.x) == (1, 3, 6.0)
    assert (pair.saddle.row, pair.saddle.column, pair.saddle.loss) == (1, 2, 5)
    assert (pair.persistence, found.total_persistence) == (3, 3)
    assert found.relative_persistence == 3 / 8
    assert (found.num_essential, found.maxima, found.num_dropped) == (1, (), 0)
    assert found.euler_characteristic == 1
    assert not pair.extremum.on_border


def test_a_peak_inside_a_ring_is_a_maximum_that_a_saddle_of_the_ring_ends():
    ring = [[2, 2, 2, 2, 2], [2, 1, 1, 1, 2], [2, 1, 7, 0, 2], [2, 1, 1, 1.5, 2], [2, 2, 2, 2, 2]]
    found = grid_topology(ring)
    assert places(found.minima) == {(2, 3)}
    assert places(found.maxima) == {(2, 2)}
    (pair,) = found.maximum_pairs  # the ring closes at its highest point in the four directions
    assert pair.persistence == 7 - 1
    assert found.total_persistence == 0
    assert found.euler_characteristic == 1


def test_neighbours_are_eight_for_basins_and_four_for_peaks():
    diagonal = np.array([[0, 5, 5], [5, 0.5, 5], [5, 5, 0]])
    assert ordered(grid_topology(diagonal).minimum_pairs) == [0.5]  # they meet in the middle
    # A wall of eight-neighbours does not close in a peak of four-neighbours: two peaks, and the
    # diagonal between them belongs to the low ground.
    peaks = np.zeros((4, 4))
    peaks[1, 1], peaks[2, 2] = 3, 4
    found = grid_topology(peaks)
    assert places(found.maxima) == {(1, 1), (2, 2)}
    assert sorted(ordered(found.maximum_pairs)) == [3, 4]


def test_the_merge_tree_of_three_basins_joins_them_in_the_order_of_their_passes():
    found = grid_topology([[0.0, 4.0, 1.0, 3.0, 2.0]])
    leaves = [node for node in found.merge_tree if not node.children]
    joins = [node for node in found.merge_tree if node.children]
    assert [node.point.loss for node in leaves] == [0, 2, 1]
    assert [node.point.loss for node in joins] == [3, 4]
    first, root = joins
    assert {found.merge_tree[child].point.loss for child in first.children} == {1, 2}
    assert {found.merge_tree[child].point.loss for child in root.children} == {0, 3}
    assert root.parent is None
    assert found.merge_tree[first.parent] is root
    assert ordered(found.minimum_pairs) == [3, 1]  # 1 dies at 4, 2 at 3


def test_ties_go_by_index_and_a_plateau_is_one_minimum():
    found = grid_topology(np.zeros((4, 5)))
    assert places(found.minima) == {(0, 0)}
    assert (found.saddles, found.maxima) == ((), ())
    assert found.relative_persistence is None  # 0 / 0
    # Equal minima: the one with the smaller index is the elder. Plateaus of any form have no pairs.
    found = grid_topology([[3, 3, 3, 3, 3], [3, 1, 2, 1, 3], [3, 3, 3, 3, 3]])
    assert [(p.row, p.column) for p in found.minima] == [(1, 1), (1, 3)]
    horseshoe = [[5, 5, 5, 5, 5], [5, 1, 5, 1, 5], [5, 1, 1, 1, 5], [5, 5, 5, 5, 5]]
    found = grid_topology(horseshoe)
    assert places(found.minima) == {(1, 1)}
    assert found.num_dropped == 0
    assert found.euler_characteristic == 1


@pytest.mark.parametrize("seed", range(20))
def test_minima_minus_saddles_plus_maxima_is_one_and_agrees_with_local_counts(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rng.integers(1, 14), rng.integers(2, 14)))
    if seed % 4 == 0:  # many ties: pairs of persistence zero are no pairs, so compare the number 1
        values = np.round(values)
    found = grid_topology(values)
    assert found.euler_characteristic == 1
    minima, saddles, maxima = local_counts(values)
    assert minima - saddles + maxima == 1
    if seed % 4:
        assert (len(found.minima), len(found.saddles), len(found.maxima)) == (
            minima,
            saddles,
            maxima,
        )


def flood_persistence(values):
    """0-dimensional pairs by growing each level set anew with scipy's labels: slow and plain."""
    from scipy.ndimage import label

    pairs, alive = [], []
    for level in np.sort(values, axis=None):
        labels, _ = label(values <= level, structure=np.ones((3, 3)))
        place = tuple(np.argwhere(values == level)[0])
        alive.append(place)
        oldest = {}
        for minimum in sorted(alive, key=lambda p: values[p]):
            eldest = oldest.setdefault(labels[minimum], minimum)
            if eldest != minimum:
                alive.remove(minimum)
                pairs.append((values[minimum], level))
    return sorted((b, d) for b, d in pairs if d > b)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_agree_with_flooding_level_by_level(seed):
    values = np.random.default_rng(seed).standard_normal((9, 11))
    found = grid_topology(values)
    assert sorted((p.extremum.loss, p.saddle.loss) for p in found.minimum_pairs) == (
        flood_persistence(values)
    )
    assert found.minima[0].loss == values.min()
    assert ordered(found.minimum_pairs) == sorted(ordered(found.minimum_pairs), reverse=True)


def test_a_constant_added_changes_nothing_and_a_factor_only_the_units():
    values = np.random.default_rng(0).standard_normal((12, 12))
    plain, raised, scaled = (grid_topology(v) for v in (values, values + 100.0, 3.0 * values))
    for other in (raised, scaled):
        assert places(other.minima) == places(plain.minima)
        assert places(other.saddles) == places(plain.saddles)
        assert places(other.maxima) == places(plain.maxima)
        assert other.relative_persistence == pytest.approx(plain.relative_persistence)
    assert raised.total_persistence == pytest.approx(plain.total_persistence)
    assert scaled.total_persistence == pytest.approx(3 * plain.total_persistence)


def test_pairs_that_the_error_can_make_are_dropped_and_the_true_ones_survive_noise():
    x = np.linspace(-3, 3, 61)
    truth = (x[None, :] ** 2 - 4) ** 2 / 4 + x[:, None] ** 2  # two wells of depth 4 over the pass
    noise = np.random.default_rng(1).uniform(-0.05, 0.05, truth.shape)
    found = grid_topology(truth + 0.1 * x[None, :] + noise, x=x, y=x, error=0.05)
    assert len(found.minima) == 2
    assert sorted(round(point.x) for point in found.minima) == [-2, 2]
    assert found.maxima == ()
    assert found.threshold == 0.1
    noisy = grid_topology(truth + 0.1 * x[None, :] + noise)
    assert len(noisy.minima) + len(noisy.maxima) == 2 + found.num_dropped > 4
    assert found.euler_characteristic == 1
    clean = grid_topology(truth + 0.1 * x[None, :], x=x, y=x)
    assert found.total_persistence == pytest.approx(clean.total_persistence, abs=found.threshold)
    assert clean.total_persistence == pytest.approx(4 - 0.2, abs=2e-3)


def test_masked_points_are_walls_counted_and_never_extrema():
    values = np.array([[1.0, np.nan, 0.0], [2.0, np.inf, 3.0], [2.5, np.nan, 4.0]])
    found = grid_topology(values)
    assert (found.num_essential, found.num_masked) == (2, 3)
    assert [point.loss for point in found.minima] == [0, 1]
    assert (found.saddles, found.maxima) == ((), ())
    assert found.value_range == 4
    assert [node.parent for node in found.merge_tree] == [None, None]


def test_a_scanned_surface_is_read_with_its_own_error_and_axes():
    def two_wells(x, y):
        return (x**2 - 0.25) ** 2 * 16 + y**2 + 0.1 * x

    objective, e1, e2 = plane_objective(two_wells)
    axis = torch.linspace(-1, 1, 51, dtype=torch.float64)
    exact = surface_topology(scan_plane(objective, e1, e2, x=axis, y=axis, exact=True))
    eps = torch.finfo(torch.float64).eps
    largest = max(abs(two_wells(x, y)) for x in (-1, 1) for y in (-1, 1))
    assert exact.threshold == pytest.approx(2 * 64 * eps * largest)
    assert [(round(p.x, 1), round(p.y, 1)) for p in exact.minima] == [(-0.5, 0.0), (0.5, 0.0)]
    assert exact.total_persistence == pytest.approx(1 - 0.05, abs=5e-3)
    surface = scan_plane(objective, e1, e2, x=axis, y=axis, exact=False)
    found = surface_topology(surface)
    assert found.threshold == 2 * (surface.interpolation_error.working_maximum + surface.rounding)
    assert found.threshold > 2 * surface.rounding > 0
    assert places(found.minima) == places(exact.minima)
    assert found.total_persistence == pytest.approx(exact.total_persistence, abs=found.threshold)


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(ny, nx\)"):
        grid_topology([1.0, 2.0])
    with pytest.raises(ValueError, match="no value of the grid is finite"):
        grid_topology([[math.nan, math.inf]])
    with pytest.raises(ValueError, match=r"x must have shape \(2,\) like the grid"):
        grid_topology([[1.0, 2.0]], x=[1.0])
    with pytest.raises(ValueError, match="error must be >= 0"):
        grid_topology([[1.0, 2.0]], error=-1.0)
    with pytest.raises(ValueError, match="rounding must be >= 0, got -1"):
        grid_topology([[1.0, 2.0]], rounding=-1.0)
    with pytest.raises(ValueError, match="rounding must be >= 0, got nan"):
        grid_topology([[1.0, 2.0]], rounding=math.nan)


def test_rounding_makes_no_basins_on_directions_that_the_loss_does_not_depend_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3), nn.LogSoftmax(1))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    objective = Objective(model, nn.functional.nll_loss, [(x, y)])
    names = list(objective.space.names)
    last = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    last[names[-1]] = torch.ones(3)  # every logit alike: softmax does not see it
    d1 = objective.space.flatten(last)
    last[names[-1]] = torch.zeros(3)
    last[names[-2]] = torch.ones(3, 16)  # and likewise of the weights
    d2 = objective.space.flatten(last)
    axis = torch.linspace(-3, 3, 21)
    surface = scan_plane(objective, d1, d2, x=axis, y=axis, exact=True)
    assert len(grid_topology(surface.loss).minima) > 5  # what rounding makes of it
    found = surface_topology(surface)
    assert (len(found.minima), found.saddles, found.maxima) == (1, (), ())
    assert found.num_dropped > 5
    assert found.relative_persistence is None
    assert 0 < found.value_range <= 2 * surface.rounding
