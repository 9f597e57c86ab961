"""Sharded: a model and its rule to and from a folder of torch.distributed.checkpoint."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam_variants.base import SharpnessAware


def save_sharded(folder: Path | str, model: nn.Module, optimizer: SharpnessAware) -> None:
    """Writes both states, each worker its own shards; a collective that every worker calls.

    `optimizer.state_dict()` cannot be handed over as it is: a fresh optimizer has no tensors to
    load into, and the format drops empty dicts and turns integer keys into strings. So the sharded
    tensors go by name, and the rest beside them as bytes that say which tensors there are.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    shards: dict[str, Tensor] = {}
    file = io.BytesIO()
    torch.save(_split(optimizer.state_dict(), "optimizer", shards), file)
    parts = {"model": model.state_dict(), "shards": shards, "rest": file.getvalue()}
    save(parts, checkpoint_id=folder)


def load_sharded(folder: Path | str, model: nn.Module, optimizer: SharpnessAware) -> None:
    """Restores `save_sharded` into a model and optimizer built as then; every worker calls it.

    The number of workers may be another: shards are cut anew.

    Raises:
        ValueError: the state is of another rule or base optimizer, or of other parameters; the
            model is as it was then.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    beside: dict[str, Any] = {"rest": b""}
    load(beside, checkpoint_id=folder)
    rest = torch.load(io.BytesIO(beside["rest"]), weights_only=True)
    shards: dict[str, Tensor] = {}

    def place(key: str, dtype: torch.dtype) -> None:
        words = key.split(".")  # optimizer.state.SLOT.NAME, or optimizer.rule...NAME.vector.SLOT
        slot = int(words[2] if words[1] == "state" else words[-1])
        if slot >= len(optimizer.parameters):
            raise ValueError(
                f"the saved optimizer has a parameter {slot}, this one {len(optimizer.parameters)}"
            )
        shards[key] = torch.empty_like(optimizer.parameters[slot], dtype=dtype).detach()

    _join(rest, place)
    load({"shards": shards}, checkpoint_id=folder)
    optimizer.load_state_dict(_join(rest, lambda key, _: shards[key]))
    # Last: this reads into the model's own tensors, and what was refused above leaves it alone.
    parts = {"model": model.state_dict()}
    load(parts, checkpoint_id=folder)
    model.load_state_dict(parts["model"])


def _split(node: Any, key: str, shards: dict[str, Tensor]) -> Any:
    """The state with every sharded tensor moved to `shards`, its key and dtype in its place."""
    if hasattr(node, "full_tensor"):
        shards[key] = node
        return {"shard": key, "dtype": node.dtype}
    if isinstance(node, dict):
        return {name: _split(value, f"{key}.{name}", shards) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_split(value, f"{key}.{i}", shards) for i, value in enumerate(node))
    return node


def _join(node: Any, found: Callable[[str, torch.dtype], Any]) -> Any:
    """The state with found(key, dtype) where `_split` left a mark."""
    if isinstance(node, dict) and set(node) == {"shard", "dtype"}:
        return found(node["shard"], node["dtype"])
    if isinstance(node, dict):
        return {name: _join(value, found) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_join(value, found) for value in node)
    return node
