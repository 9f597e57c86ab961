"""The files of a run folder: written whole or not at all, by one process at a time. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from sam_variants.training.failures import FolderError, save_failed

TEMPORARY = ".*.tmp"
LOCK = ".lock"


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file that is either the old one or the complete new one, whatever happens.

    `write` fills a temporary file of the same folder; it is flushed to the disk and renamed.

    Raises:
        SaveError: the disk is full or refuses; the temporary is gone and the old file kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as RuntimeError("... unexpected pos ..."), not as OSError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise save_failed(path, error) from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text, UTF-8; folder names that are not UTF-8 keep their bytes."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def write_json(path: Path, document: Any) -> None:
    """`write_whole` of a document as strict JSON: keys in order, a final newline."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Adds one line to a log. A torn last line can happen; the checkpoint holds the same lines."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise save_failed(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """Removes what a killed process left half written. Call with the folder locked."""
    for path in [*folder.glob(TEMPORARY), *folder.glob(f"*/{TEMPORARY}")]:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process alone.

    The lock is the kernel's (`flock` on `.lock`), so it dies with its process; the file names the
    process and the host for whoever is refused. A file left by a dead process of this host is taken
    over with a note on stderr; one of another host cannot be checked from here and is refused.

    Raises:
        FolderError: another process holds the folder, or it cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(path)
    except BlockingIOError:
        owner = _owner(path)
        raise FolderError(f"{folder} is in use by {owner}; wait, or give another --out") from None
    except OSError as error:
        raise FolderError(f"cannot write in {folder}: {error.strerror}") from error
    try:
        _take_over(path, handle)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle)
            # between open and lock the holder may have removed the file: then this is another one
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: best effort, no lock
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _take_over(path: Path, handle: int) -> None:
    left = _read_owner(path)
    host = socket.gethostname()
    if left and left.get("host") != host:
        raise FolderError(
            f"{path.parent} is in use by {_owner(path)}, which cannot be checked from {host}; "
            f"if it no longer runs, delete {path}"
        )
    if left and left.get("pid") != os.getpid():
        print(
            f"note: {path} was left by {_owner(path)}, which no longer runs; taken over",
            file=sys.stderr,
        )
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": host}).encode(), 0)


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _owner(path: Path) -> str:
    owner = _read_owner(path)
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}"
