"""Folders as Hugging Face writes them: config.json and model.safetensors, or pytorch_model.bin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .checkpoint import Checkpoint
from .files import ReadOptions
from .folders import INDEX_ENDING, model_file
from .safetensors_file import read_safetensors_file
from .sharded_files import read_index
from .torch_file import read_torch_file


def read_hugging_face_folder(path: Path, options: ReadOptions) -> Checkpoint | None:
    """The weights in the folder, safetensors where there is a choice, in one file or in shards.

    The configuration is not read: the network comes from the caller.
    """
    weights = model_file(path) if path.is_dir() else None
    if weights is None:
        return None
    if weights.name.endswith(INDEX_ENDING):
        checkpoint = read_index(weights, options)
    elif weights.suffix == ".safetensors":
        checkpoint = read_safetensors_file(weights, options)
    else:
        checkpoint = read_torch_file(weights, options)
    if checkpoint is None:
        return None
    return replace(checkpoint, path=str(path), format=f"folder with {weights.name}")
