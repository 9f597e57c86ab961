"""Folders of torch.distributed.checkpoint: shards, and a .metadata that is a pickle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .choosing import choose_weights
from .errors import CheckpointError, listed, shown
from .files import ReadOptions, check_file, check_size, sha256_of_files
from .folders import METADATA, is_distributed
from .tensors import checked


def read_distributed_folder(path: Path, options: ReadOptions) -> Checkpoint | None:
    """The weights in the folder, put together from their shards without a process group.

    The metadata alone says what there is, so the state dict is chosen before any tensor is read,
    and the optimizer's are never.

    Raises:
        CheckpointError: the save did not finish; pickles are not trusted; a shard is missing or
            damaged; too large.
    """
    if not path.is_dir() or not is_distributed(path):
        return None
    if not (path / METADATA).is_file():
        raise CheckpointError(
            f"{path}: distributed-checkpoint shards without {METADATA}, which is written last: the "
            "save did not finish; take an earlier checkpoint"
        )
    if not options.trust_pickle:
        raise CheckpointError(
            f"{path}: a distributed-checkpoint folder, whose {METADATA} is a pickle that can run "
            "any code when it is read; if you trust where it comes from, give --trust-pickle, or "
            "convert it where it was made (python -m torch.distributed.checkpoint.format_utils "
            "dcp_to_torch FOLDER FILE)"
        )
    check_file(path / METADATA)
    content, keys, shards = _described(path, _metadata(path))
    size = sum((path / shard).stat().st_size for shard in shards)
    check_size(path, size, options)
    choice = choose_weights(path, content, options.state_key)
    wanted = {name: keys[id(tensor)] for name, tensor in choice.weights.items()}
    claimed = sum(t.numel() * t.element_size() for t in choice.weights.values())
    check_size(path, claimed, options)
    tensors = {
        keys[id(tensor)]: torch.empty(tensor.shape, dtype=tensor.dtype)
        for tensor in choice.weights.values()
    }
    _read_into(path, tensors)
    return Checkpoint(
        path=str(path),
        format="distributed checkpoint",
        weights=checked(path, {name: tensors[key] for name, key in wanted.items()}),
        sha256=sha256_of_files(path, [METADATA, *shards]),
        state_key=choice.state_key,
        candidates=choice.candidates,
        skipped=choice.skipped,
        warnings=[f"{METADATA} was run as a pickle, as --trust-pickle allows"],
    )


def _metadata(path: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:  # a damaged pickle raises what its bytes happen to spell
        raise CheckpointError(f"{path / METADATA}: not readable ({shown(error)})") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, Mapping):
        raise CheckpointError(f"{path / METADATA}: not the metadata of a distributed checkpoint")
    return metadata


def _described(path: Path, metadata: Any) -> tuple[dict[str, Any], dict[int, str], list[str]]:
    """What was saved, with a tensor without numbers for each; the keys of those; the shards."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    content: dict[str, Any] = {}
    keys: dict[int, str] = {}
    places = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    try:
        for key, entry in metadata.state_dict_metadata.items():
            *above, last = (str(part) for part in places.get(key, (key,)))
            node = content
            for part in above:
                node = node.setdefault(part, {})
            node[last] = None
            if isinstance(entry, TensorStorageMetadata):
                tensor = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
                node[last], keys[id(tensor)] = tensor, key
        shards = {str(place.relative_path) for place in metadata.storage_data.values()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path / METADATA}: damaged ({shown(error)})") from error
    _check_shards(path, shards)
    return content, keys, sorted(shards)


def _check_shards(path: Path, names: set[str]) -> None:
    outside = [n for n in names if not (path / n).resolve().is_relative_to(path.resolve())]
    if outside:
        raise CheckpointError(f"{path}: names shards outside of the folder: {listed(outside)}")
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(names)} shards missing ({listed(missing)}); fetch "
            "them too"
        )


def _read_into(path: Path, tensors: dict[str, Tensor]) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group, which is the point
            load(dict(tensors), storage_reader=FileSystemReader(path), no_dist=True)
    except BaseException as error:  # its CheckpointException is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: a shard cannot be read ({shown(reason[-1])})") from error
