"""Strings from files and users, made into text that no renderer takes for markup."""

from __future__ import annotations

import html
import unicodedata
from functools import lru_cache

# Letters stay; what moves, hides or reorders other letters goes: controls, bidi overrides and
# zero-width characters (Cf), lone surrogates, private and unassigned code points.
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_SPACES = frozenset({"Zs", "Zl", "Zp"})


def clean(value: object) -> str:
    """The value as one line of visible characters."""
    return _visible(str(value))


@lru_cache(maxsize=4096)
def _visible(text: str) -> str:
    # A page says each name many times.
    characters = []
    for character in text:
        category = unicodedata.category(character)
        if category in _SPACES or character in "\t\n\r\v\f":
            characters.append(" ")
        elif category not in _DROPPED:
            characters.append(character)
    return " ".join("".join(characters).split())


def cut(value: object, length: int = 48) -> str:
    """At most `length` visible characters; what is left out of the middle shows as an ellipsis.

    The middle, because labels differ at their ends: "a long method name seed 0" and "... seed 1".
    """
    text = clean(value)
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def escaped(value: object) -> str:
    """Whole and safe inside an HTML element or a quoted attribute."""
    return html.escape(clean(value), quote=True)


def shown(value: object, length: int = 48) -> str:
    """HTML of a string cut to `length`; where it is cut, the whole is in the title."""
    text = clean(value)
    short = cut(text, length)
    if short == text:
        return html.escape(short, quote=True)
    return f'<span title="{html.escape(text, quote=True)}">{html.escape(short, quote=True)}</span>'


def in_plotly(value: object, length: int = 32) -> str:
    """Safe in plotly's titles, names and ticks, which read a subset of HTML.

    Quotes stay as they are: plotly knows `&lt;` but shows `&quot;` and `&#x27;` letter by letter.
    """
    return html.escape(cut(value, length), quote=False)


def in_matplotlib(value: object, length: int = 32) -> str:
    """Safe in matplotlib's text, where an even number of dollar signs means mathematics."""
    return cut(value, length).replace("\\", "⧵").replace("$", r"\$")
