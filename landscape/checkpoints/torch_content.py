"""load_content: what torch.save wrote, read without running anything that is not trusted."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import torch

from .errors import CheckpointError, listed, shown
from .files import ReadOptions, check_file, check_size, sha256_of
from .pickles import is_plain, names_called
from .torch_archive import ZIP_MARK, checked_archive

# A file from before torch 1.6 is five pickles (magic number, protocol, system, the object, keys of
# its storages), then the storages.
_LEGACY_MAGIC, _LEGACY_PICKLES = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 5
_QUANTIZED = "torch._utils._rebuild_qtensor"


@dataclass(frozen=True)
class TorchContent:
    """What lay in a file of torch.save.

    Attributes:
        value: the object that was saved.
        sha256: of the file.
        num_bytes: of the file, unpacked.
        executed: the classes that had to be called; empty unless pickles are trusted.
    """

    value: Any
    sha256: str
    num_bytes: int
    executed: list[str]

    @property
    def warnings(self) -> list[str]:
        if not self.executed:
            return []
        return [
            f"code in the file was run, as --trust-pickle allows: it named {listed(self.executed)}"
        ]


def load_content(path: Path, options: ReadOptions) -> TorchContent:
    """What torch.save wrote, with nothing executed unless the options trust the file.

    The one open file is hashed, checked and read, so that all three mean the same bytes.

    Raises:
        CheckpointError: damaged, too large, not from torch.save, or only readable by running it.
    """
    check_file(path)
    check_size(path, path.stat().st_size, options)
    with path.open("rb") as file:
        sha256 = sha256_of(file)
        if file.read(len(ZIP_MARK)) == ZIP_MARK:
            pickle, num_bytes = checked_archive(path, file, options)
            with zipfile.ZipFile(file) as archive:
                called = _names_called(path, io.BytesIO(archive.read(pickle)), 1)
        else:
            num_bytes = path.stat().st_size
            _check_legacy(path, file)
            called = _names_called(path, file, _LEGACY_PICKLES)
        code = sorted(name for name in called if not is_plain(name))
        if code and (_QUANTIZED in code or not options.trust_pickle):
            raise CheckpointError(_why_not(path, code))
        file.seek(0)
        return TorchContent(_loaded(path, file, unsafe=bool(code)), sha256, num_bytes, code)


def _check_legacy(path: Path, file: BufferedReader) -> None:
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    if _LEGACY_MAGIC in start[:32]:  # behind the pickle's own header
        return
    if start[257:262] == b"ustar":
        kind = "a tar archive, as torch wrote before 2017: load and save it with torch 1.x"
    elif start[:1] == b"\x80":
        kind = "a pickle that torch.save did not write: not a readable torch file"
    else:
        kind = "not a readable torch file, and in no other known format"
    raise CheckpointError(f"{path}: {kind}")


def _names_called(path: Path, file: IO[bytes], num_pickles: int) -> set[str]:
    try:
        return {name for _ in range(num_pickles) for name in names_called(file)}
    except Exception as error:  # a damaged pickle raises what its bytes happen to spell
        raise CheckpointError(
            f"{path}: not a readable torch file ({shown(error)}); take an earlier checkpoint"
        ) from error


def _why_not(path: Path, code: list[str]) -> str:
    if _QUANTIZED in code:
        return (
            f"{path}: holds quantized tensors, and a loss of them has no gradient; save the "
            "weights they were made from"
        )
    return (
        f"{path}: holds more than tensors and plain values, which would have to be executed: "
        f"{listed(code)}; save model.state_dict() instead, or, if you trust where the file comes "
        "from, give --trust-pickle"
    )


def _loaded(path: Path, file: BufferedReader, *, unsafe: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=not unsafe)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: needs the module {error.name} to be read; install it, or save "
            "model.state_dict() where it is installed"
        ) from error
    except Exception as error:  # a damaged pickle raises what its bytes happen to spell
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: not a readable torch file ({shown(reason[0])})") from error
