"""Reading checkpoints safely: tensors and plain values in, nothing executed.

`read_checkpoint(path)` tries the formats of `reading.FORMATS` in order; each file holds one format
and says whether a file is its own. `load_weights(model, checkpoint)` is strict: every key must
match. Finding checkpoints needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Checkpoint": "landscape.checkpoints.checkpoint",
    "CheckpointError": "landscape.checkpoints.errors",
    "LoadReport": "landscape.checkpoints.checkpoint",
    "MAX_GIGABYTES": "landscape.checkpoints.files",
    "StateKeyError": "landscape.checkpoints.errors",
    "find_checkpoints": "landscape.checkpoints.finding",
    "load_weights": "landscape.checkpoints.loading",
    "read_checkpoint": "landscape.checkpoints.reading",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
