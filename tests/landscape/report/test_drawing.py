"""Axes: ticks that say the numbers they stand for, in view whatever is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from landscape.report.drawing import color_axis, log_axis, plain_number, value_axis


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (200.0, "200"),
        (0.02, "0.02"),
        (1e-5, "10⁻⁵"),
        (2e-7, "2 × 10⁻⁷"),
        (-0.25, "−0.25"),
        (0.0, "0"),
        (1e6, "10⁶"),
    ],
)
def test_a_tick_says_its_number_without_zeros_at_the_end(value: float, text: str) -> None:
    assert plain_number(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0.03, 2.3), (0.51, 0.56), (1e-9, 3.0), (0.7, 7.0), (3.0, 3.0)]
)
def test_a_logarithmic_axis_has_three_ticks_or_more_inside_its_range(
    low: float, high: float
) -> None:
    axis = log_axis([low, None, high, math.nan, -1.0, 0.0])
    begin, end = (10**edge for edge in axis["range"])
    assert begin < low <= high < end
    assert 3 <= len(axis["tickvals"]) <= 12
    assert all(begin <= tick <= end for tick in axis["tickvals"])
    assert axis["ticktext"] == [plain_number(tick) for tick in axis["tickvals"]]
    assert len(set(axis["ticktext"])) == len(axis["ticktext"])


def test_an_axis_is_logarithmic_only_where_positive_values_span_a_factor_of_30() -> None:
    assert value_axis([1.0, 31.0])["type"] == "log"
    assert value_axis([1.0, 29.0])["type"] == "linear"
    assert value_axis([-1.0, 100.0])["type"] == "linear"
    assert value_axis([None, math.nan])["type"] == "linear"


def test_a_colour_axis_takes_logarithms_of_what_is_above_zero_alone() -> None:
    values = np.array([[0.01, 1.0], [math.inf, -3.0]])
    axis = color_axis(values, log=True)
    assert (axis.low, axis.high) == (-2.0, 0.0)
    heights = axis.heights(values)
    assert heights[0].tolist() == pytest.approx([-2.0, 0.0])
    assert math.isnan(heights[1, 1])
    assert axis.labels[0] == "0.01"
