"""Single safetensors files, which cannot execute anything."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .checkpoint import Checkpoint
from .choosing import choose_weights
from .errors import CheckpointError, shown
from .files import ReadOptions, check_file, check_is_whole, check_size, sha256_of
from .tensors import checked

_ENDING = ".safetensors"


def read_safetensors_file(path: Path, options: ReadOptions) -> Checkpoint | None:
    """The tensors of a safetensors file, whatever its name.

    Raises:
        CheckpointError: damaged, too large, or one shard of several.
    """
    if path.is_dir() or not _is_safetensors(path):
        return None
    check_is_whole(path)
    weights = load_tensors(path, options)
    choice = choose_weights(path, weights, options.state_key)
    with path.open("rb") as file:
        sha256 = sha256_of(file)
    return Checkpoint(
        path=str(path),
        format="safetensors",
        weights=checked(path, choice.weights),
        sha256=sha256,
        state_key=choice.state_key,
        candidates=choice.candidates,
        skipped=choice.skipped,
    )


def _is_safetensors(path: Path) -> bool:
    """By its name, or by its beginning: a length, and a JSON object of no more than that."""
    if path.suffix == _ENDING:
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") + 8 <= path.stat().st_size


def load_tensors(path: Path, options: ReadOptions) -> dict[str, Tensor]:
    """The tensors by name, in memory of their own.

    The library maps the file, and a mapped file that is written again changes or ends the program.

    Raises:
        CheckpointError: what the library finds wrong with the file; or it is too large.
    """
    from safetensors import SafetensorError, safe_open

    check_file(path)
    check_size(path, path.stat().st_size, options)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({shown(error)}); copy it again"
        ) from error
