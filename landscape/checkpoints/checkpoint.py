"""Checkpoint: the weights that a file held, and LoadReport: what became of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError

# What wrappers put in front of every name (DataParallel and DDP, torch.compile).
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Attributes:
        path: the file, as it was named.
        format: the format that read it.
        weights: name to tensor, on the CPU.
        sha256: of the file's bytes.
        recipe: the plain values that rebuild model and data, where the file is one of our own.
        run: variant, label and seed of the run, where known.
        history: one line of metrics an epoch, where known.
    """

    path: str
    format: str
    weights: Mapping[str, Tensor]
    sha256: str
    recipe: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class LoadReport:
    """What was matched, and what was done so that it matched."""

    format: str
    matched: int
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    casts: list[str] = field(default_factory=list)
    prefixes_removed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, *, allow_nonfinite: bool = False
) -> LoadReport:
    """Copies the checkpoint's weights into the model, all of them or none.

    Raises:
        CheckpointError: a key is missing, unexpected or of another shape; two keys become one when
            a wrapper's prefix is removed.
        FloatingPointError: a weight is not finite and `allow_nonfinite` is False.
    """
    own = model.state_dict()
    weights, removed = _without_prefixes(checkpoint, own)
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name}: {tuple(weights[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes)):
        if names:
            first = ", ".join(names[:10])
            raise CheckpointError(
                f"{checkpoint.path} does not fit the model: {len(names)} {problem} "
                f"({first}{', ...' if len(names) > 10 else ''}); "
                "give the model that this checkpoint was saved from"
            )
    nonfinite = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if nonfinite and not allow_nonfinite:
        raise FloatingPointError(
            f"{checkpoint.path}: {len(nonfinite)} tensors hold nan or inf "
            f"({', '.join(nonfinite[:10])}); take an earlier checkpoint"
        )
    casts = [
        f"{name}: {weights[name].dtype} to {tensor.dtype}".replace("torch.", "")
        for name, tensor in own.items()
        if weights[name].dtype != tensor.dtype
    ]
    model.load_state_dict(dict(weights))
    return LoadReport(checkpoint.format, len(own), casts=casts, prefixes_removed=removed)


def _without_prefixes(
    checkpoint: Checkpoint, own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without the wrappers' prefixes that the model's own names do not have."""
    weights, removed = dict(checkpoint.weights), []
    while weights and not set(weights) & set(own):
        found = next((p for p in _PREFIXES if any(name.startswith(p) for name in weights)), None)
        if found is None:
            break
        renamed = {name.removeprefix(found): tensor for name, tensor in weights.items()}
        if len(renamed) < len(weights):
            raise CheckpointError(
                f"{checkpoint.path}: two keys become one without the prefix {found!r}"
            )
        weights = renamed
        removed.append(found)
    return weights, removed
