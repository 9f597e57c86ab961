"""Weights in several files, named by an index.json beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import Checkpoint
from .choosing import choose_weights
from .errors import CheckpointError, listed, shown
from .files import ReadOptions, check_file, check_size, sha256_of_files
from .folders import INDEX_ENDING
from .safetensors_file import load_tensors
from .tensors import checked
from .torch_content import load_content

_LARGEST_INDEX = 100_000_000


def read_index(path: Path, options: ReadOptions) -> Checkpoint | None:
    """The tensors of all the shards that an index names, read one shard at a time.

    Raises:
        CheckpointError: the index is damaged or names files elsewhere; a shard is missing, damaged,
            or holds other tensors than the index says; they are too large together.
    """
    if path.is_dir() or not path.name.endswith(INDEX_ENDING):
        return None
    places = _weight_map(path)
    shards = sorted(set(places.values()))
    files = {shard: _inside(path, shard) for shard in shards}
    missing = [shard for shard, file in files.items() if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} shards missing ({listed(missing)}); fetch "
            "them too"
        )
    if len(set(files.values())) < len(files):
        raise CheckpointError(f"{path}: two of its shards are one file: {listed(shards)}")
    check_size(path, sum(file.stat().st_size for file in files.values()), options)
    weights: dict[str, Tensor] = {}
    warnings: list[str] = []
    for shard, file in files.items():
        tensors = _tensors(shard, file, options, warnings)
        expected = {name for name, place in places.items() if place == shard}
        if set(tensors) != expected:
            raise CheckpointError(
                f"{file}: not the shard that {path.name} describes: "
                f"{listed(sorted(set(tensors) ^ expected))} in one of them only"
            )
        weights |= tensors
    choice = choose_weights(path, weights, options.state_key)
    return Checkpoint(
        path=str(path),
        format=f"{len(shards)} shards ({path.name})",
        weights=choice.weights,
        sha256=sha256_of_files(path.parent, [path.name, *shards]),
        state_key=choice.state_key,
        candidates=choice.candidates,
        skipped=choice.skipped,
        warnings=warnings,
    )


def _tensors(
    shard: str, file: Path, options: ReadOptions, warnings: list[str]
) -> dict[str, Tensor]:
    if shard.endswith(".safetensors"):  # behind a link the file itself may have no ending
        return checked(file, load_tensors(file, options))
    content = load_content(file, options)
    choice = choose_weights(file, content.value, None)
    if choice.state_key is not None:
        raise CheckpointError(f"{file}: holds more than the tensors of a shard")
    warnings += content.warnings
    return checked(file, choice.weights, held_bytes=content.num_bytes)


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name to file name, as the index says."""
    check_file(path)
    if path.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"{path}: larger than an index can be")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable index ({shown(error)})") from error
    places = content.get("weight_map") if isinstance(content, Mapping) else None
    if (
        not isinstance(places, Mapping)
        or not places
        or not all(isinstance(place, str) for place in places.values())
    ):
        raise CheckpointError(f"{path}: not an index of shards: no weight_map of names to files")
    return dict(places)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name stands in it twice")
    return names


def _inside(index: Path, name: str) -> Path:
    """The file that the index names, which must lie in the index's folder.

    A folder of the Hugging Face cache, snapshots/HASH, holds links to ../../blobs; those are let
    through, no others.

    Raises:
        CheckpointError: it lies elsewhere.
    """
    folder = index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    try:
        file = (folder / name).resolve()
        within = any(file.is_relative_to(each) for each in allowed)
    except (ValueError, OSError, RuntimeError):  # a null byte, a loop of links
        within = False
    # Backslashes and drives are names here and ways out elsewhere: refused on every system.
    if not within or Path(name).is_absolute() or ".." in Path(name).parts or set(name) & set("\\:"):
        raise CheckpointError(
            f"{index}: names the shard {shown(name)}, which is not inside its folder: refused"
        )
    return file
