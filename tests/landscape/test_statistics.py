"""Means, intervals, paired differences and tau against scipy, closed forms and known models."""

import math

import numpy as np
import pytest
from scipy import stats

from landscape.statistics import (
    NUM_DRAWS,
    cell_tau,
    deviation,
    half_width,
    mean,
    paired,
    summary,
    tau_within_cells,
)

VALUES = [3.1, 2.7, 3.9, 3.3, 2.2]


def test_the_interval_is_scipys_student_t_interval():
    low, high = stats.t.interval(0.95, 4, loc=mean(VALUES), scale=stats.sem(VALUES))
    assert summary(VALUES)["interval"] == pytest.approx([low, high], rel=1e-12)
    assert half_width(VALUES) == pytest.approx((high - low) / 2, rel=1e-12)


def test_the_deviation_divides_by_n_minus_one():
    assert deviation([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_a_paired_interval_drops_what_both_share():
    shared = [10.0, -40.0, 25.0, 3.0, 8.0]
    mine = [s + v for s, v in zip(shared, VALUES, strict=True)]
    found = paired(mine, shared)
    assert found["difference"] == pytest.approx(mean(VALUES))
    assert found["interval"] == pytest.approx(summary(VALUES)["interval"])
    assert found["num_pairs"] == 5


def test_one_value_has_no_interval():
    assert summary([2.0]) == {"mean": 2.0, "standard_deviation": None, "interval": None}
    assert paired([2.0], [1.5])["interval"] is None


def test_an_infinite_value_gives_no_interval_and_no_mean():
    assert summary([1.0, math.inf]) == {
        "mean": None, "standard_deviation": None, "interval": None,
    }  # fmt: skip


# -- Rank correlation -----------------------------------------------------------------------------


def study(seed, *, num_cells=6, size=3, ties=False):
    """Two correlated measurements in cells of their own; rounded where they shall have ties."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(np.arange(num_cells), size)
    x = rng.standard_normal(num_cells)[cells] + rng.standard_normal(len(cells))
    y = x + rng.standard_normal(num_cells)[cells] + rng.standard_normal(len(cells))
    x, y = (x.round(), y.round()) if ties else (x, y)
    order = rng.permutation(len(cells))
    return x[order].tolist(), y[order].tolist(), cells[order].tolist()


def test_tau_counts_concordant_less_discordant_pairs():
    # 1 of 6 pairs discordant: (5 - 1) / 6
    assert cell_tau([1, 2, 3, 4], [1, 2, 4, 3], "abcd").tau == pytest.approx(4 / 6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_tau_b(seed, ties):
    x, y, cells = study(seed, num_cells=7, size=4, ties=ties)
    assert (len(set(x)) < len(x)) == ties
    assert cell_tau(x, y, cells).tau == pytest.approx(stats.kendalltau(x, y).statistic, rel=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_tau_within_cells_sees_no_pair_of_two_cells(ties):
    x, y, cells = study(3, ties=ties)
    agreement = untied_x = untied_y = 0
    for i in range(len(x)):
        for j in range(i):
            if cells[i] == cells[j]:
                a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
                agreement, untied_x, untied_y = (
                    agreement + a * b,
                    untied_x + a * a,
                    untied_y + b * b,
                )
    expected = agreement / math.sqrt(untied_x * untied_y)
    assert tau_within_cells(x, y, cells).tau == pytest.approx(expected, rel=1e-12)
    # What a whole cell has more of than another changes nothing within.
    shifted = [value + 100 * cell for value, cell in zip(x, cells, strict=True)]
    assert tau_within_cells(shifted, y, cells).tau == pytest.approx(expected, rel=1e-12)
    assert cell_tau(shifted, y, cells).tau != pytest.approx(cell_tau(x, y, cells).tau, abs=0.01)


def test_tau_within_can_have_the_opposite_sign():
    # Two methods: the second has more of both, and within each more of one is less of the other.
    x, y = [1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11]
    assert cell_tau(x, y, "aaabbb").tau == pytest.approx((9 - 6) / 15)
    assert tau_within_cells(x, y, "aaabbb").tau == -1


def interval_by_copies(x, y, cells, *, copies_count):
    """The interval from draws written out as lists with copies; every pair is looked at.

    `copies_count`: whether a pair of two copies of one cell counts.
    """
    names = list(dict.fromkeys(cells))
    size = len(names)
    draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=NUM_DRAWS)
    taus = []
    for draw in draws:
        drawn = [
            (i, (cell, copy))
            for cell, times in enumerate(draw)
            for copy in range(times)
            for i in range(len(x))
            if cells[i] == names[cell]
        ]
        index = np.array([i for i, _ in drawn])
        a, b = (np.sign(v[index][:, None] - v[index]) for v in (np.array(x), np.array(y)))
        cell, copy = (np.array([tag[k] for _, tag in drawn]) for k in (0, 1))
        counts = (cell[:, None] != cell) | (copy[:, None] == copy) | copies_count
        untied = math.sqrt((a * a)[counts].sum() * (b * b)[counts].sum())
        if untied:
            taus.append((a * b)[counts].sum() / untied)
    tau = stats.kendalltau(x, y).statistic
    error = np.std(taus, ddof=1) * math.sqrt(size / (size - 1)) / (1 - tau**2)
    half = stats.t.ppf(0.975, size - 1) * error
    return [math.tanh(math.atanh(tau) - half), math.tanh(math.atanh(tau) + half)]


@pytest.mark.parametrize("ties", [False, True])
def test_no_pair_of_two_copies_of_a_cell_counts_in_a_draw(ties):
    x, y, cells = study(4, num_cells=5, size=3, ties=ties)
    found = cell_tau(x, y, cells).interval
    assert found == pytest.approx(interval_by_copies(x, y, cells, copies_count=False), rel=1e-9)
    naive = interval_by_copies(x, y, cells, copies_count=True)
    assert found != pytest.approx(naive, abs=1e-3)


def test_a_tau_depends_on_its_seed_a_little_and_on_nothing_else():
    x, y, cells = study(5)
    assert cell_tau(x, y, cells) == cell_tau(x, y, cells)
    other = cell_tau(x, y, cells, seed=1).interval
    assert other != cell_tau(x, y, cells).interval
    assert other == pytest.approx(cell_tau(x, y, cells).interval, abs=0.05)
    doubled = [2 * value + 1 for value in x]
    assert cell_tau(doubled, y, cells) == cell_tau(x, y, cells)


def test_more_measurements_of_a_cell_are_no_more_cells():
    # Copies of each measurement in its own cell say nothing new: sqrt(n) must not narrow it.
    x, y, cells = study(2, num_cells=8, size=1)
    rng = np.random.default_rng(0)
    near = [np.repeat(v, 10) + 1e-9 * rng.standard_normal(80) for v in (x, y)]
    once, often = cell_tau(x, y, cells), cell_tau(*near, np.repeat(cells, 10).tolist())
    width, same = (r.interval[1] - r.interval[0] for r in (once, often))
    assert same > 0.8 * width
    as_if = cell_tau(*near, list(range(80)))
    assert as_if.interval[1] - as_if.interval[0] < 0.5 * width


def test_fewer_than_four_cells_have_no_interval():
    x, y, cells = study(0, num_cells=3, size=5)
    found = cell_tau(x, y, cells)
    assert (found.interval, found.num_cells) == (None, 3)
    assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.skipped == "3 cells: an interval from resampling them needs 4"
    assert cell_tau(*study(0, num_cells=4, size=5)).skipped is None


def test_cells_of_one_do_not_count_within():
    x, y, cells = study(0, num_cells=5, size=3)
    found = tau_within_cells([*x, 0.0, 9.0], [*y, 9.0, 0.0], [*cells, "single", "alone"])
    assert found == tau_within_cells(x, y, cells)
    assert found.num_cells == 5
    alone = tau_within_cells([1, 2, 3], [1, 2, 3], "abc")
    assert (alone.tau, alone.interval, alone.num_cells) == (None, None, 0)
    assert alone.skipped == "there are no cells of two or more"


def test_where_all_draws_agree_there_is_no_interval():
    found = cell_tau(range(8), range(8), "aabbccdd")
    assert (found.tau, found.interval) == (1, None)
    assert found.skipped.startswith("every draw of cells has this tau")
    # One tau of 1/3 in every cell is no certainty either.
    x, y = [1, 2, 3] * 5, [1, 3, 2] * 5
    found = tau_within_cells(x, y, "aaabbbcccdddeee")
    assert found.tau == pytest.approx(1 / 3)
    assert found.interval is None


def test_a_constant_measurement_has_no_tau():
    found = cell_tau([1, 2, 3, 4, 5], [5] * 5, "abcde")
    assert (found.tau, found.interval) == (None, None)
    assert found.skipped == "one of the two is the same in every pair"


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equally long, got 2, 3 and 3"):
        cell_tau([1, 2], [1, 2, 3], "abc")


@pytest.mark.slow
@pytest.mark.parametrize("num_cells", [4, 8, 20])
@pytest.mark.parametrize(("across", "within", "share"), [(0.9, 0.9, 0.8), (0.8, 0.0, 0.7)])
def test_the_interval_holds_the_tau_of_a_clustered_gaussian_model(num_cells, across, within, share):
    """x, y = cell + own, correlated by `across` and `within`; cells hold `share` of the variance.

    tau = 2 arcsin(r) / pi of a Gaussian pair with correlation r (Greiner's relation): differences
    of two cells have r = share across + (1 - share) within, differences within a cell r = within.
    """
    size, num_samples = 3, 500
    pairs_within = num_cells * size * (size - 1) / 2
    pairs_across = num_cells * (num_cells - 1) / 2 * size**2
    own = 2 / math.pi * math.asin(within)
    other = 2 / math.pi * math.asin(share * across + (1 - share) * within)
    whole = (pairs_across * other + pairs_within * own) / (pairs_across + pairs_within)
    rng = np.random.default_rng(num_cells)
    cells = np.repeat(np.arange(num_cells), size)
    roots = [np.linalg.cholesky([[1, r], [r, 1]]) for r in (across, within)]
    found = {True: [], False: []}
    for _ in range(num_samples):
        of_cells = math.sqrt(share) * rng.standard_normal((num_cells, 2)) @ roots[0].T
        of_seeds = math.sqrt(1 - share) * rng.standard_normal((len(cells), 2)) @ roots[1].T
        x, y = (of_cells[cells] + of_seeds).T.tolist()
        for correlation, truth, is_whole in (
            (cell_tau(x, y, cells.tolist()), whole, True),
            (tau_within_cells(x, y, cells.tolist()), own, False),
        ):
            if correlation.interval is not None:
                low, high = correlation.interval
                found[is_whole].append(low <= truth <= high)
    for held in found.values():
        error = math.sqrt(0.95 * 0.05 / len(held))
        assert len(held) > 0.75 * num_samples
        assert np.mean(held) > 0.95 - 3 * error, np.mean(held)
