"""CheckpointError: why a checkpoint cannot be used; names from a file, made fit to be printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import LoadReport

_LONGEST_NAME, _NAMES_SHOWN = 80, 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit: what is wrong, where, what to do.

    Attributes:
        report: what was matched and what not, in full, where weights were set against a model.
    """

    report: LoadReport | None = None


class StateKeyError(CheckpointError):
    """The file is sound; which of its state dicts is meant has to be said, or was said wrong."""


def shown(name: object) -> str:
    """A name from a file for one line of text: cut, and without characters that move a terminal."""
    text = str(name)
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[object]) -> str:
    """The first ten names, and dots where there are more."""
    names = list(names)
    first = ", ".join(shown(name) for name in names[:_NAMES_SHOWN])
    return f"{first}, ..." if len(names) > _NAMES_SHOWN else first
