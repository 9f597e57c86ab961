"""What every table is made of: cells with full numbers behind them, heads and a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from landscape.report import digits, theme
from landscape.report.text import clean, cut, escaped, shown

# How a number that is but a bound is marked; the word stands in the table's note.
MARKS = {"lower": "≥\u00a0", "upper": "≤\u00a0", "": ""}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        html: what is shown.
        value: what is sorted by.
        notes: what stands small below it, one line each, as plain text.
        title: what the pointer finds, as plain text.
    """

    html: str
    value: float | str | None = None
    notes: tuple[str, ...] = ()
    title: str = ""


def cell_html(cell: Cell, word: str = "") -> str:
    """The cell as a table's; `word` says that it holds the best value of its column."""
    sort = "" if cell.value is None else f' data-value="{escaped(cell.value)}"'
    title = f' title="{escaped(cell.title)}"' if cell.title else ""
    mark = f' <span class="best">{word}</span>' if word else ""
    notes = "".join(f'<span class="note">{escaped(note)}</span>' for note in cell.notes)
    return f"<td{sort}{title}{' class=is-best' if word else ''}>{cell.html}{mark}{notes}</td>"


def number_cell(value: float | None, *notes: str, bound: str = "", title: str = "") -> Cell:
    """A number to four digits, marked where it is but a bound; a dash alone for None."""
    if value is None:
        return Cell(digits.MISSING, title=title)
    text = MARKS[bound] + digits.number(value)
    return Cell(text, value, tuple(filter(None, notes)), title)


def plus_minus(error: float | None, of: str = "") -> str:
    """ "± 0.12", "data ± 0.12"; nothing without an error."""
    words = f"{of} " if of else ""
    return f"{words}± {digits.number(error, 2)}" if error else ""


def interval_title(interval: object, what: str) -> str:
    """ "95 % interval over the data: 1.2 to 3.4"; nothing where there is no interval."""
    if not isinstance(interval, (list, tuple)) or len(interval) != 2 or None in interval:
        return ""
    low, high = interval
    return f"95 % interval {what}: {digits.number(low)} to {digits.number(high)}"


def head(html: str, hint: str = "") -> str:
    """The head of a column that is not sorted by."""
    return f'<th scope="col"{_hint(hint)}>{html}</th>'


def sort_head(html: str, note: str = "", hint: str = "") -> str:
    """The head of a column that sorts by it; `note`, in HTML, stands small below."""
    below = f'<span class="note">{note}</span>' if note else ""
    return (
        f'<th scope="col"{_hint(hint)}><button type="button" class="sort">{html}</button>{below}'
        "</th>"
    )


def _hint(hint: str) -> str:
    return f' title="{escaped(hint)}"' if hint else ""


def label_of(checkpoint: Mapping[str, Any], styles: Mapping[str, theme.Style]) -> str:
    """A checkpoint's name with its method's marker, for the head of a row."""
    label = shown(checkpoint.get("label") or checkpoint["id"], 40)
    return swatch(styles[str(checkpoint["id"])]) + label


def row_head(html: str) -> str:
    return f'<th scope="row">{html}</th>'


TALL = 16  # rows from which on a table scrolls in itself, its heads in view


def framed(
    label: str,
    name: str,
    heads: Sequence[str],
    rows: Sequence[str],
    note: str,
    *,
    kind: str = "sortable",
) -> str:
    """A table that scrolls sideways in itself, its first column in view, with its note below.

    Args:
        label: for those who hear the page.
        name: the table's id.
        heads, rows: of HTML.
        note: in HTML; outside, for a caption would be as wide as the table and scroll with it.
        kind: classes.
    """
    described = f' aria-describedby="{name}-note"' if note else ""
    below = f'<p class="hint" id="{name}-note">{note}</p>' if note else ""
    tall = " tall" if len(rows) >= TALL else ""
    return (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{label}, wide table">'
        f'<table class="data {kind}" id="{name}"{described}>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"{below}"
    )


def bounds_note(html: str) -> str:
    """What the marks of bounds in a table mean, for those that are in it."""
    words = ""
    if MARKS["lower"] in html:
        words += (
            " <b>≥</b> is a lower bound: so much was found, more may exist. Two of them compare "
            "only when found by the same search."
        )
    if MARKS["upper"] in html:
        words += " <b>≤</b> is an upper bound: the number is at most this."
    if words and "Δ" in html:
        words += " The difference of two bounds is no bound."
    return words


def symbol(title: str) -> str:
    """A measure's title in HTML, with its subscripts set as such; cut where it is very long."""
    short = cut(title, 64)
    text = escaped(short).replace("λmax", "λ<sub>max</sub>").replace("λmin", "λ<sub>min</sub>")
    return text if short == clean(title) else f'<span title="{escaped(title)}">{text}</span>'


def line_sample(style: theme.Style) -> str:
    """The line of a method in its colour and dash, as an inline picture without words."""
    dash = _STROKES[style.dash]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        '<svg class="sample" viewBox="0 0 26 8" aria-hidden="true">'
        f'<path d="M0,4H26" stroke="{style.color}" stroke-width="2.2"{dashes}/></svg>'
    )


_STROKES = {
    "solid": "",
    "dash": "7,3",
    "dot": "2,2.5",
    "dashdot": "7,2.5,2,2.5",
    "longdash": "11,4",
    "longdashdot": "10,2.5,2,2.5",
}


def swatch(style: theme.Style) -> str:
    """The marker of a method in its colour, as an inline picture with no words of its own."""
    return (
        f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true">'
        f'<path fill="{style.color}" d="{_SHAPES[style.marker]}"/></svg>'
    )


_SHAPES = {
    "circle": "M0,-5A5,5 0 1,1 0,5A5,5 0 1,1 0,-5Z",
    "square": "M-4.5,-4.5H4.5V4.5H-4.5Z",
    "diamond": "M0,-5.6L5.6,0L0,5.6L-5.6,0Z",
    "triangle-up": "M0,-5L5.4,4.4H-5.4Z",
    "x": "M-4,-5.4L0,-1.6L4,-5.4L5.4,-4L1.6,0L5.4,4L4,5.4L0,1.6L-4,5.4L-5.4,4L-1.6,0L-5.4,-4Z",
    "star": "M0,-6L1.5,-2L5.7,-1.9L2.4,.8L3.5,4.9L0,2.5L-3.5,4.9L-2.4,.8L-5.7,-1.9L-1.5,-2Z",
}
