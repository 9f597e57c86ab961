"""read_checkpoint: what a file or folder of any known format holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .checkpoint import Checkpoint
from .distributed_folder import read_distributed_folder
from .errors import CheckpointError, listed
from .files import GIGABYTE, MAX_GIGABYTES, ReadOptions, check_file
from .folders import weight_files, what_was_looked_for
from .hugging_face import read_hugging_face_folder
from .safetensors_file import read_safetensors_file
from .sharded_files import read_index
from .torch_file import read_torch_file

# A reader takes the path and the options, and returns None where the path is not in its format.
# The last reads any file, and says what is wrong with one that is in no format.
FORMATS: dict[str, Callable[[Path, ReadOptions], Checkpoint | None]] = {
    "distributed checkpoint": read_distributed_folder,
    "Hugging Face folder": read_hugging_face_folder,
    "index of shards": read_index,
    "safetensors": read_safetensors_file,
    "torch": read_torch_file,
}


def read_checkpoint(
    path: str | Path,
    *,
    state_key: str | None = None,
    trust_pickle: bool = False,
    max_gigabytes: float = MAX_GIGABYTES,
) -> Checkpoint:
    """The weights and plain values of a checkpoint. Nothing in it is executed.

    Args:
        path: a file, or a folder that is one checkpoint as a whole.
        state_key: which state dict of the file is meant, nested keys with dots ("ema.module"); also
            the common start of names in a flat one ("backbone" takes backbone.*). None: the only
            one there is.
        trust_pickle: run the code inside the file, where it cannot be read otherwise.
        max_gigabytes: the most that may be read into memory, in 10^9 bytes.

    Raises:
        StateKeyError: several state dicts would do, or none has this key.
        CheckpointError: no such file, empty, damaged, too large, in no known format, or not to be
            read without running code.
        ValueError: max_gigabytes is not positive.
    """
    if not max_gigabytes > 0:
        raise ValueError(f"max_gigabytes must be > 0, got {max_gigabytes}")
    path = Path(path)
    options = ReadOptions(state_key, trust_pickle, round(min(max_gigabytes, 1e9) * GIGABYTE))
    try:
        if not path.is_dir():
            check_file(path)
        for read in FORMATS.values():
            checkpoint = read(path, options)
            if checkpoint is not None:
                return checkpoint
        names = weight_files(path)
    except OSError as error:
        where = error.filename or path
        raise CheckpointError(f"{where}: cannot be read ({error.strerror or error})") from error
    raise CheckpointError(
        f"{path}: is a folder without a checkpoint; looked for {what_was_looked_for()}"
        + (f"; it holds {listed(names)}: name one of them" if names else "")
    )
