"""Numbers as text: digits from the error, minus signs and powers as typeset."""

from __future__ import annotations

import math

import pytest

from landscape.report import digits


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (3, "3"),
        (1234567, "1\u2009234\u2009567"),
        (0.123456, "0.1235"),
        (9.9996, "10.00"),
        (-0.5, "−0.5000"),
        (123456.7, "123\u2009457"),
        (1.2346e-7, "1.235 × 10⁻⁷"),
        (6.022e23, "6.022 × 10²³"),
        (-2.5e6, "−2.500 × 10⁶"),
    ],
)
def test_a_number_has_four_significant_digits(value: float | None, text: str) -> None:
    assert digits.number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 1.4444, "12.3 ± 1.4"),
        (12.3456, 0.0123, "12.346 ± 0.012"),
        (1234.5, 321.0, "1234 ± 321"),
        (12345.6, 98.76, "12\u2009346 ± 99"),
        (0.5, 0.0, "0.5000"),
        (0.5, None, "0.5000"),
        (1.234e-8, 2.2e-10, "(1.234 ± 0.022) × 10⁻⁸"),
        (0.001, 2.5e-8, "0.001000000 ± 0.000000025"),
    ],
)
def test_a_value_ends_where_its_error_ends(value: float, error: float | None, text: str) -> None:
    assert digits.with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (85.34, [84.1, 86.58], "85.3 [84.1, 86.6]"),
        (0.5, None, "0.5000"),
        (0.5, [0.5, 0.5], "0.5000"),
        (-3.2e-6, [-4.0e-6, -2.4e-6], "(−3.20 [−4.00, −2.40]) × 10⁻⁶"),
    ],
)
def test_a_value_has_the_decimals_of_its_interval(
    value: float, interval: list[float] | None, text: str
) -> None:
    assert digits.with_interval(value, interval) == text


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    assert digits.with_error(-0.001, 1.2) == "0.0 ± 1.2"


def test_durations_read_as_clocks_do() -> None:
    assert digits.seconds(0.4167) == "0.42 s"
    assert digits.seconds(185) == "3 min 05 s"
    assert digits.seconds(7800) == "2 h 10 min"
    assert digits.seconds(None) == "–"


def test_numbers_use_the_point_in_any_locale() -> None:
    import locale

    before = locale.setlocale(locale.LC_ALL)
    try:
        for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "C.UTF-8"):
            try:
                locale.setlocale(locale.LC_ALL, name)
            except locale.Error:
                continue
            assert digits.number(0.5) == "0.5000"
    finally:
        locale.setlocale(locale.LC_ALL, before)
