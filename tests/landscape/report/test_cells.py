"""Cells and frames: bounds marked, intervals in titles, long tables in their own frame."""

from __future__ import annotations

import pytest

from landscape.report.cells import (
    TALL,
    bounds_note,
    cell_html,
    framed,
    head,
    interval_title,
    number_cell,
    plus_minus,
    symbol,
)
from tests.landscape.report.sample import HOSTILE


@pytest.mark.parametrize(
    ("bound", "text"), [("lower", "≥\u00a00.5000"), ("upper", "≤\u00a00.5000"), ("", "0.5000")]
)
def test_a_bound_is_marked_before_its_number(bound: str, text: str) -> None:
    cell = number_cell(0.5, bound=bound)
    assert cell.html == text
    assert cell_html(cell) == f'<td data-value="0.5">{text}</td>'


def test_a_missing_number_is_a_dash_without_a_value_whatever_its_bound() -> None:
    assert cell_html(number_cell(None, "± 0.1", bound="lower")) == "<td>–</td>"


def test_each_note_stands_on_its_own_line_and_empty_ones_nowhere() -> None:
    html = cell_html(number_cell(2.0, plus_minus(0.1), plus_minus(None), plus_minus(0.3, "data")))
    assert html.count('<span class="note">') == 2
    assert "± 0.10" in html
    assert "data ± 0.30" in html


def test_a_title_holds_the_interval_and_no_markup() -> None:
    assert interval_title([1.5, 2.5], "over the data") == (
        "95 % interval over the data: 1.500 to 2.500"
    )
    assert interval_title(None, "over the data") == ""
    assert interval_title([1.0, None], "over the data") == ""
    assert "<img" not in cell_html(number_cell(1.0, HOSTILE, title=HOSTILE))


def test_the_note_explains_the_marks_that_a_table_has_and_no_others() -> None:
    lower, upper = (cell_html(number_cell(1.0, bound=b)) for b in ("lower", "upper"))
    assert bounds_note("<td>1.0</td>") == ""
    assert "lower bound" in bounds_note(lower)
    assert "upper bound" not in bounds_note(lower)
    assert "upper bound" in bounds_note(upper)
    assert "difference of two bounds" in bounds_note(lower + "Δ 0.1")
    assert "difference of two bounds" not in bounds_note(lower)


def test_a_long_table_scrolls_in_itself() -> None:
    rows = ["<tr><th>a</th></tr>"]
    assert 'class="scroll"' in framed("t", "t", [head("h")], rows * (TALL - 1), "")
    assert 'class="scroll tall"' in framed("t", "t", [head("h")], rows * TALL, "")


def test_a_symbol_is_cut_before_its_subscripts_are_set() -> None:
    assert symbol("λmax of it") == "λ<sub>max</sub> of it"
    html = symbol(HOSTILE)
    assert "<img" not in html
    assert html.startswith("<span title=")
