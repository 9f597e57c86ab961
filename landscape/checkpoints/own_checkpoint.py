"""The checkpoints that this program's own training writes: weights, recipe, run and history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Checkpoint
from .choosing import choose_weights
from .errors import CheckpointError, listed, shown
from .files import ReadOptions
from .tensors import checked
from .torch_content import TorchContent

_FAMILY, _FORMAT = "loss-landscape-toolkit/", "loss-landscape-toolkit/1"
_KEYS = {"format": str, "model": Mapping, "recipe": Mapping, "run": Mapping, "history": list}
# Some ten thousand epochs. What a file repeats by reference would have no end.
_MOST_VALUES = 1_000_000
_DEEPEST = 20


def is_own(value: Any) -> bool:
    """Whether the content of a file says that it is one of our own, of any version."""
    if not isinstance(value, dict):
        return False
    written = dict.get(value, "format")
    return isinstance(written, str) and written.startswith(_FAMILY)


def own_checkpoint(path: Path, content: TorchContent, options: ReadOptions) -> Checkpoint:
    """The checkpoint in the content of a file of ours.

    Raises:
        CheckpointError: of another version, or damaged.
        StateKeyError: the state key leads nowhere.
    """
    value = dict(dict.items(content.value))
    if value["format"] != _FORMAT:
        raise CheckpointError(
            f"{path}: written in format {shown(value['format'])}, and this version reads {_FORMAT}"
        )
    for key, kind in _KEYS.items():
        if not isinstance(value.get(key), kind):
            raise CheckpointError(f"{path}: damaged: {key!r} is missing or of another type")
    others = [key for key, each in dict.items(value["model"]) if not isinstance(each, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: damaged: in 'model' these keys hold no tensor: {listed(others)}"
        )
    choice = choose_weights(path, value, options.state_key or "model")
    plain = _Plain(path)
    return Checkpoint(
        path=str(path),
        format=_FORMAT,
        weights=checked(path, choice.weights, held_bytes=content.num_bytes),
        sha256=content.sha256,
        recipe=plain.copy(value["recipe"], "recipe"),
        run=plain.copy(value["run"], "run"),
        history=plain.copy(value["history"], "history"),
        state_key=choice.state_key,
        candidates=choice.candidates,
        skipped=[],  # the rest of a file of ours goes on with the training; nobody misses it
        warnings=content.warnings,
    )


class _Plain:
    """Copies values that have to be plain, so many and so deep as a training writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_values = 0

    def copy(self, value: Any, key: str, depth: int = 0) -> Any:
        self.num_values += 1
        if self.num_values > _MOST_VALUES or depth > _DEEPEST:
            raise CheckpointError(f"{self.path}: damaged: {key!r} has no end")
        if isinstance(value, dict):
            items = dict.items(value)
            return {str(name): self.copy(each, key, depth + 1) for name, each in items}
        if isinstance(value, (list, tuple)):
            kind = list if isinstance(value, list) else tuple
            return kind(self.copy(each, key, depth + 1) for each in value)
        if value is None or isinstance(value, (str, int, float)):
            return value
        raise CheckpointError(
            f"{self.path}: damaged: {key!r} holds a {type(value).__name__}, expected plain values"
        )
