"""The zip archive that torch.save writes: whole, undamaged, not a bomb, before torch opens it."""

from __future__ import annotations

import zipfile
from io import BufferedReader
from pathlib import Path

from .errors import CheckpointError, shown
from .files import ReadOptions, check_size

ZIP_MARK = b"PK\x03\x04"
_LARGEST_RATIO = 100


def checked_archive(path: Path, file: BufferedReader, options: ReadOptions) -> tuple[str, int]:
    """The name of the archive's pickle, and the bytes of all its members.

    torch checks no checksums, and unpacks deflated members of any size.

    Raises:
        CheckpointError: incomplete, damaged, too large once unpacked, a TorchScript model, or not
            from torch.save.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            num_bytes = _check_sizes(path, archive, options)
            pickle = _name_of_pickle(path, archive)
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(
            f"{path}: incomplete file ({shown(error)}); take an earlier checkpoint"
        ) from error
    except (RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
        # Encrypted members, unknown compressions, versions and places: a damaged directory.
        raise CheckpointError(f"{path}: damaged archive ({shown(error)})") from error
    finally:
        file.seek(0)
    if damaged is not None:
        raise CheckpointError(
            f"{path}: damaged in {shown(damaged)} (checksum); copy it again or take an earlier "
            "checkpoint"
        )
    return pickle, num_bytes


def _check_sizes(path: Path, archive: zipfile.ZipFile, options: ReadOptions) -> int:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    check_size(path, unpacked, options)
    if unpacked > _LARGEST_RATIO * max(packed, 1):
        raise CheckpointError(
            f"{path}: {packed} bytes that unpack to {unpacked}, more than {_LARGEST_RATIO} times "
            "as many; torch.save does not compress: save it anew from a source you trust"
        )
    names = [member.filename.lower() for member in members]  # torch looks them up in any case
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: two members of one name: not written by torch.save")
    return unpacked


def _name_of_pickle(path: Path, archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    root = names[0].split("/")[0] if names else ""
    if f"{root}/constants.pkl" in names:
        raise CheckpointError(
            f"{path}: a TorchScript model, which is code; export a state_dict: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if f"{root}/data.pkl" not in names:
        kind = "a numpy archive" if any(name.endswith(".npy") for name in names) else "a zip file"
        raise CheckpointError(f"{path}: {kind} without data.pkl: not written by torch.save")
    return f"{root}/data.pkl"
