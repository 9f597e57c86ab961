"""Files of torch.save: our own checkpoints, and plain state dicts."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import CheckpointError

_OWN_FAMILY, _OWN_FORMAT = "loss-landscape-toolkit/", "loss-landscape-toolkit/1"


def read_torch_file(path: Path, sha256: str) -> Checkpoint | None:
    """A checkpoint of ours or a state dict, read with `weights_only=True`: nothing is executed.

    Raises:
        CheckpointError: damaged, or it holds other things than tensors and plain values.
    """
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises what its bytes happen to spell
        reason = str(error).strip().splitlines()
        unsafe = "Unsupported global" in str(error) or "Unsupported class" in str(error)
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which would have to be executed; "
            "save model.state_dict() instead"
            if unsafe
            else f"{path}: not a readable torch file ({reason[0] if reason else 'empty'})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    if str(content.get("format", "")).startswith(_OWN_FAMILY):
        return _own_checkpoint(path, content, sha256)
    return Checkpoint(str(path), "state dict", _tensors_of(path, content), sha256)


def _own_checkpoint(path: Path, content: Mapping[str, Any], sha256: str) -> Checkpoint:
    if content["format"] != _OWN_FORMAT:
        raise CheckpointError(
            f"{path}: written in format {content['format']}, and this version reads {_OWN_FORMAT}"
        )
    for key, kind in (("model", Mapping), ("recipe", Mapping), ("run", Mapping), ("history", list)):
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: damaged: {key!r} is missing or of another type")
    return Checkpoint(
        path=str(path),
        format=_OWN_FORMAT,
        weights=_tensors_of(path, content["model"]),
        sha256=sha256,
        recipe=content["recipe"],
        run=content["run"],
        history=list(content["history"]),
    )


def _tensors_of(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        raise CheckpointError(
            f"{path}: not a plain state dict; these keys hold no tensor: {', '.join(others[:10])}"
            if others
            else f"{path}: an empty state dict"
        )
    return {str(key): value for key, value in content.items()}


def _check_archive(path: Path) -> None:
    """A damaged zip file is named before torch guesses: torch does not check the checksums."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path}: incomplete file ({error}); take an earlier checkpoint"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: damaged in {damaged} (checksum); copy it again or take an earlier checkpoint"
        )
