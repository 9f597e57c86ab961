"""A file before its format is asked: there, not empty, not a web page, not too large; its hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from .errors import CheckpointError

GIGABYTE = 10**9
# The weights of a model of some billion parameters, or its training state; more is said on purpose.
MAX_GIGABYTES = 16.0

_WEB_PAGE = "an HTML page: the download saved a web page instead of the file"
_OTHER_FILES = (
    (b"<!doctype html", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
    (b"<?xml", "an XML page: the download saved an error message instead of the file"),
    (b"version https://git-lfs", "a Git-LFS pointer: run `git lfs pull` to fetch the file itself"),
    (b"\x89hdf", "an HDF5 file, as Keras writes: save the weights as safetensors instead"),
    (b"gguf", "a GGUF file, whose weights are quantised: take the weights it was made from"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
)
_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.(safetensors|bin)")


@dataclass(frozen=True)
class ReadOptions:
    """How a checkpoint may be read.

    Attributes:
        state_key: the state dict that is meant, nested keys with dots; None: the only one.
        trust_pickle: code inside the file may be run.
        max_bytes: the most that may be read into memory.
    """

    state_key: str | None
    trust_pickle: bool
    max_bytes: int


def check_file(path: Path) -> None:
    """Refuses what is no checkpoint in any format.

    Raises:
        CheckpointError: not there, not a regular file, not readable, empty, or known to be
            something else.
    """
    if not path.is_file():
        kind = "not a regular file" if path.exists() else "no such file or folder"
        raise CheckpointError(f"{path}: {kind}")
    try:
        with path.open("rb") as file:
            start = file.read(128)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty; take an earlier checkpoint")
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, meaning in _OTHER_FILES:
        if start.startswith(mark):
            raise CheckpointError(f"{path}: this is {meaning}")


def check_is_whole(path: Path) -> None:
    """Refuses one shard of several under its own name."""
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and int(shard[1]) > 1:
        raise CheckpointError(
            f"{path}: one of {int(shard[1])} shards; name the folder, or its index.json"
        )


def check_size(path: Path, num_bytes: int, options: ReadOptions) -> None:
    """Refuses what would take more memory than allowed, before any of it is read."""
    if num_bytes > options.max_bytes:
        raise CheckpointError(
            f"{path}: {num_bytes / GIGABYTE:.3g} GB to read, over the limit of "
            f"{options.max_bytes / GIGABYTE:g} GB; raise it with --max-checkpoint-gb if you know "
            "the file"
        )


def sha256_of(file: BufferedReader) -> str:
    """The hash of an open file, in hexadecimal digits, read piece by piece; rewinds the file."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def sha256_of_files(folder: Path, names: Sequence[str]) -> str:
    """One hash for the files of a checkpoint, in hexadecimal digits.

    It is the hash of the lines `HASH  NAME` of the files in the order of their names, what
    `sha256sum NAMES | sha256sum` prints with LC_ALL=C in the folder.
    """
    lines = []
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            lines.append(f"{sha256_of(file)}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
