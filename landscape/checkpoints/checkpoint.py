"""Checkpoint: the weights that a file held, and LoadReport: what became of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """What a file, or a folder of files, held.

    Attributes:
        path: the file or folder, as it was named.
        format: the format that read it.
        weights: name to tensor, as the file names them, on the CPU, in memory of their own.
        sha256: of the file's bytes; of several files, see `files.sha256_of_files`.
        recipe: the plain values that rebuild model and data, where the file is one of our own.
        run: variant, label and seed of the run, where known.
        history: one line of metrics an epoch, where known.
        state_key: where in the file the weights lay; None: the file holds nothing but them.
        candidates: other state dicts in the file, which were not taken.
        skipped: entries of the file that are no state dicts.
        warnings: what a reader of numbers from this checkpoint has to know.
    """

    path: str
    format: str
    weights: Mapping[str, Tensor]
    sha256: str
    recipe: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    state_key: str | None = None
    candidates: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoadReport:
    """What was matched, and what was done so that it matched.

    Attributes:
        format, state_key, candidates: of the checkpoint.
        matched: entries of the model that have their values from the file.
        missing: entries of the model that the file does not have and that kept the model's own.
        unexpected: entries of the file that the model does not have; where there are any, nothing
            was loaded.
        shapes: entries of another shape; likewise.
        casts: entries whose dtype was changed to the model's.
        prefixes_removed: what wrappers had put into the names.
        tied: entries of the model that are one tensor with another entry.
        skipped: entries of the file that were not needed.
        warnings: what a reader of numbers from this model has to know.
    """

    format: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    casts: list[str] = field(default_factory=list)
    prefixes_removed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    state_key: str | None = None
    candidates: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
