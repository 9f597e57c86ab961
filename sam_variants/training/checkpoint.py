"""A run's state in one file of plain types and tensors, loadable with `weights_only=True`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sam_variants.training.failures import BadInputError
from sam_variants.training.folder import write_whole

FORMAT = "loss-landscape-toolkit/1"


def save_checkpoint(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the document with the format's name, whole or not at all.

    Raises:
        SaveError: the disk is full or refuses; the old file is kept.
    """
    write_whole(path, lambda file: torch.save({"format": FORMAT, **document}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The document of `save_checkpoint`, tensors on the CPU. Executes nothing.

    Raises:
        BadInputError: no such file, not complete, or not ours.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInputError(f"there is no checkpoint {path}") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(
            f"cannot read {path}: {reason}; remove it to start that run again"
        ) from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise BadInputError(f"{path} is not a checkpoint of this program (format {found!r})")
    return dict(document)
