"""find_checkpoints: the checkpoint files that a path stands for. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import CheckpointError


def find_checkpoints(path: str | Path) -> list[Path]:
    """The checkpoint files that a path stands for: itself, a run's, or those of a folder of runs.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder")
        return [path]
    own = path / "checkpoint.pt"
    found = [own] if own.is_file() else sorted(path.glob("*/checkpoint.pt"), key=_natural)
    if not found:
        raise CheckpointError(
            f"{path}: no checkpoint; looked for checkpoint.pt and */checkpoint.pt"
        )
    return found


def _natural(path: Path) -> list[str | int]:
    """Sorts seed10 after seed2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
