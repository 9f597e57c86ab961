"""find_checkpoints: the checkpoints that a path stands for. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import CheckpointError, listed
from .folders import RUN_FILE, is_checkpoint, weight_files, what_was_looked_for


def find_checkpoints(path: str | Path) -> list[Path]:
    """The checkpoints that a path stands for, each a path that `read_checkpoint` takes.

    A file stands for itself. A folder stands for its `checkpoint.pt`; for itself, where it is one
    checkpoint as a whole (Hugging Face, sharded safetensors, distributed checkpoint); or for those
    of its subfolders, in natural order.

    Raises:
        CheckpointError: there is none, or a folder cannot be read.
    """
    path = Path(path)
    try:
        return _found(path)
    except OSError as error:
        where = error.filename or path
        raise CheckpointError(f"{where}: cannot be read ({error.strerror or error})") from error


def _found(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder")
        return [path]
    own = _in_folder(path)
    if own is not None:
        return [own]
    below = [_in_folder(folder) for folder in path.iterdir() if folder.is_dir()]
    found = sorted((each for each in below if each is not None), key=_natural)
    if not found:
        names = weight_files(path)
        there = f"; it holds {listed(names)}: name one of them" if names else ""
        raise CheckpointError(
            f"{path}: no checkpoint; looked for {what_was_looked_for()} there and in its "
            f"subfolders{there}"
        )
    return found


def _in_folder(folder: Path) -> Path | None:
    if (folder / RUN_FILE).is_file():
        return folder / RUN_FILE
    return folder if is_checkpoint(folder) else None


def _natural(path: Path) -> list[str | int]:
    """Sorts seed10 after seed2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]
