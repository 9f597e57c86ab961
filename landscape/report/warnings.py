"""grouped_warnings: everything that qualifies the numbers, told once and not once a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from landscape.findings import Findings

from . import captions
from .text import clean, cut

_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class GroupedWarning:
    """A warning and whom it is about; of several that differ in their numbers alone, the first.

    Attributes:
        message: as it was given for the first label.
        labels: the checkpoints; empty for a warning about the whole.
        numbers_differ: whether the other labels have other numbers.
    """

    message: str
    labels: tuple[str, ...]
    numbers_differ: bool

    def owner(self, num_checkpoints: int) -> str:
        """Whom it is about, in words; "" for the whole."""
        if not self.labels:
            return ""
        if len(self.labels) == num_checkpoints > 1:
            words = "All checkpoints"
        elif len(self.labels) <= 3:
            words = ", ".join(cut(label, 32) for label in self.labels)
        else:
            words = f"{len(self.labels)} checkpoints"
        if self.numbers_differ:
            words += f" (the numbers are those of {cut(self.labels[0], 32)})"
        return words


def grouped_warnings(findings: Findings) -> list[GroupedWarning]:
    """The findings' warnings and their checkpoints', those alike but for numbers as one."""
    groups: dict[str, list[tuple[str, str]]] = {}
    document = findings.document
    whole = [
        clean(warning)
        for part in (document, document.get("connection"), document.get("comparison"))
        for warning in (part or {}).get("warnings") or []
    ]
    for checkpoint in findings.checkpoints:
        for warning in _of(checkpoint):
            key = _NUMBER.sub("#", warning)
            groups.setdefault(key, []).append(
                (warning, str(checkpoint.get("label") or checkpoint["id"]))
            )
    return [GroupedWarning(warning, (), False) for warning in dict.fromkeys(whole)] + [
        GroupedWarning(
            message=found[0][0],
            labels=tuple(dict.fromkeys(label for _, label in found)),
            numbers_differ=len({warning for warning, _ in found}) > 1,
        )
        for found in groups.values()
    ]


def _of(checkpoint: Mapping[str, Any]) -> list[str]:
    given = [*(checkpoint.get("warnings") or []), *captions.load_notes(checkpoint)]
    return [clean(warning) for warning in given]
