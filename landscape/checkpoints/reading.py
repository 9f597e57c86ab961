"""read_checkpoint: what a file of any known format holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .torch_file import read_torch_file

# A reader takes the path and the hash, and returns None where the file is not in its format.
FORMATS: dict[str, Callable[[Path, str], Checkpoint | None]] = {
    "torch": read_torch_file,
}

_NOT_CHECKPOINTS = (
    (b"<!doctype html", "an HTML page: the download saved a web page instead of the file"),
    (b"<html", "an HTML page: the download saved a web page instead of the file"),
    (b"version https://git-lfs", "a Git-LFS pointer: run `git lfs pull` to fetch the file itself"),
)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The weights and plain values of a checkpoint file. Nothing in the file is executed.

    Raises:
        CheckpointError: no such file, empty, damaged, or in no known format.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder without checkpoints" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {kind}; name a .pt file or a run folder")
    content = path.read_bytes()
    if not content:
        raise CheckpointError(f"{path}: the file is empty; take an earlier checkpoint")
    start = content[:64].lstrip().lower()
    for mark, advice in _NOT_CHECKPOINTS:
        if start.startswith(mark):
            raise CheckpointError(f"{path}: this is {advice}")
    sha256 = hashlib.sha256(content).hexdigest()
    for read in FORMATS.values():
        checkpoint = read(path, sha256)
        if checkpoint is not None:
            return checkpoint
    raise CheckpointError(f"{path}: in no known format ({', '.join(FORMATS)})")
