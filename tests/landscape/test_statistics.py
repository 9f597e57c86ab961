"""Means, intervals and paired differences against scipy and closed forms."""

import math

import pytest
from scipy import stats

from landscape.statistics import deviation, half_width, kendall_tau, mean, paired, summary

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


def test_kendalls_tau_of_a_known_ranking():
    # 1 of 6 pairs discordant: (5 - 1) / 6
    assert kendall_tau([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 2, 3], [5, 5, 5]) is None
