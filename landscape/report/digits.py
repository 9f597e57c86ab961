"""Numbers as a reader wants them: as many digits as the error allows, as text without markup."""

from __future__ import annotations

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN_SPACE = "\u2009"
MISSING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """The value to `digits` significant digits: "0.1235", "12 340", "1.235 × 10⁻⁷"."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if isinstance(value, int) and abs(value) < 10**9:
        return _grouped(f"{value:d}")
    if value == 0:
        return "0"
    exponent = _exponent(value, digits)
    if -4 <= exponent < 6:
        return _grouped(f"{value:.{max(0, digits - 1 - exponent)}f}")
    return f"{_grouped(f'{value / 10.0**exponent:.{digits - 1}f}')} × {power(exponent)}"


def with_error(value: float | None, error: float | None, digits: int = 4) -> str:
    """The value with its error to two digits and to the same decimal: "12.3 ± 1.4"."""
    if value is None or error is None or error <= 0 or not math.isfinite(value + error):
        return number(value, digits)
    exponent = _exponent(max(abs(value), error), digits)
    factor = exponent if not -4 <= exponent < 6 else 0
    scaled, scaled_error = value / 10.0**factor, error / 10.0**factor
    decimals = _decimals(scaled_error)
    text = f"{_grouped(f'{scaled:.{decimals}f}')} ± {_grouped(f'{scaled_error:.{decimals}f}')}"
    return f"({text}) × {power(factor)}" if factor else text


def with_interval(value: float | None, interval: object, digits: int = 4) -> str:
    """The value and its interval, "12.3 [11.0, 13.6]"; the value alone where there is none."""
    if value is None or not isinstance(interval, (list, tuple)) or len(interval) != 2:
        return number(value, digits)
    low, high = interval
    if low is None or high is None or not math.isfinite(low + high) or high <= low:
        return number(value, digits)
    exponent = _exponent(max(abs(value), abs(low), abs(high)), digits)
    factor = exponent if not -4 <= exponent < 6 else 0
    decimals = _decimals((high - low) / 2 / 10.0**factor)
    middle, left, right = (
        _grouped(f"{part / 10.0**factor:.{decimals}f}") for part in (value, low, high)
    )
    text = f"{middle} [{left}, {right}]"
    return f"({text}) × {power(factor)}" if factor else text


def share(value: float | None, digits: int = 3) -> str:
    """A share of one in per cent: "85.3 %"."""
    return number(value, digits) if value is None else f"{number(100 * value, digits)} %"


def count(value: float | None) -> str:
    """A whole number, grouped by thousands."""
    return MISSING if value is None else _grouped(f"{round(value):d}")


def seconds(value: float | None) -> str:
    """A duration: "0.42 s", "3 min 05 s", "2 h 10 min"."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 60:
        return f"{number(value, 2)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def power(exponent: int) -> str:
    """10 to the exponent, in superscript digits: "10⁻³"."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def _exponent(value: float, digits: int) -> int:
    # Taken after rounding, or 9.9996 would show as "10.000".
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def _decimals(error: float) -> int:
    return max(0, 1 - _exponent(error, 2))


def _grouped(text: str) -> str:
    sign = "−" if text.startswith("-") else ""
    whole, dot, fraction = text.lstrip("-").partition(".")
    if not (whole + fraction).strip("0"):
        sign = ""  # a number that rounds to zero has no sign
    if len(whole) > 4:
        first = len(whole) % 3 or 3
        whole = _THIN_SPACE.join(
            [whole[:first], *(whole[i : i + 3] for i in range(first, len(whole), 3))]
        )
    return f"{sign}{whole}{dot}{fraction}"
