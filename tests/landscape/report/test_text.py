"""Strings from users: shown as text, whatever is in them."""

from __future__ import annotations

import pytest

from landscape.report.text import clean, cut, escaped, in_matplotlib, in_plotly, shown
from tests.landscape.report.sample import HOSTILE


def test_control_bidi_and_zero_width_characters_are_gone() -> None:
    assert clean("a\u202eb\u2066c\u200bd\ufeffe\x00f\x1bg\u00adh") == "abcdefgh"


def test_line_breaks_and_wide_spaces_become_single_spaces() -> None:
    assert clean(" a\nb\r\n\tc\u2028d\u2003\u00a0e ") == "a b c d e"


def test_letters_of_any_script_and_mathematics_stay() -> None:
    assert clean("Größe 损失 λ₁ ‖θ‖ é") == "Größe 损失 λ₁ ‖θ‖ é"


def test_lone_surrogates_of_undecodable_paths_are_gone() -> None:
    name = b"run-\xff.pt".decode("utf-8", errors="surrogateescape")
    assert clean(name).encode("utf-8") == b"run-.pt"


@pytest.mark.parametrize("length", [5, 20, 33])
def test_a_cut_name_has_the_asked_length_and_keeps_its_end(length: int) -> None:
    name = "a very long method name indeed, seed 4"
    short = cut(name, length)
    assert len(short) == length
    assert short[0] == "a"
    assert short[-1] == "4"
    assert "…" in short


def test_a_name_that_fits_is_not_cut() -> None:
    assert cut("sam seed 0", 10) == "sam seed 0"


def test_what_is_cut_stands_whole_in_a_title() -> None:
    html = shown("x" * 100, 20)
    assert html.startswith(f'<span title="{"x" * 100}">')
    assert html.count("x") == 100 + 19


def test_html_and_attributes_hold_no_markup() -> None:
    for text in (escaped(HOSTILE), shown(HOSTILE, 200)):
        assert "<img" not in text
        assert "</script" not in text
    assert '"' not in escaped('a "quoted" name')
    assert "'" not in escaped("an 'other' name")


def test_plotly_names_hold_no_tag_and_no_entity_that_plotly_does_not_know() -> None:
    assert in_plotly('<b>a</b> & "b"', 50) == '&lt;b&gt;a&lt;/b&gt; &amp; "b"'


def test_dollar_signs_start_no_mathematics_in_matplotlib() -> None:
    assert in_matplotlib(r"$\frac$") == r"\$⧵frac\$"
