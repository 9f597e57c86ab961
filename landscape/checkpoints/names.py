"""match_names: which entry of a model each name in a file means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from .errors import CheckpointError, shown

# What wrappers put into names: DataParallel, DDP and AveragedModel, torch.compile, FSDP, activation
# checkpointing. A wrapped submodule carries them in the middle of its name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Where training classes keep their network, Lightning modules first of all. Only in front: further
# inside they are names like any other.
_HOLDERS = frozenset({"model", "net"})


def match_names(
    path: str, names: Iterable[str], own: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """The model's name for each name of the file that has one, and the prefixes that were removed.

    A name that the model has is taken as it is. From another as many wrappers' prefixes are removed
    as are needed, in any nesting, and as few.

    Raises:
        CheckpointError: two names become one.
    """
    by_bare: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for name in own:
        by_bare[bare(name)].append(name.split("."))
    matched: dict[str, str] = {}
    taken: dict[str, str] = {}
    removed: dict[str, None] = {}
    for name in names:
        target, prefix = (name, "") if name in own else _nearest(name, by_bare)
        if target is None:
            continue
        if target in taken:
            raise CheckpointError(
                f"{path}: two keys become one without their prefixes: {shown(taken[target])} and "
                f"{shown(name)} both are the model's {target}"
            )
        taken[target] = name
        matched[name] = target
        if prefix:
            removed[prefix] = None
    return matched, list(removed)


def bare(name: str) -> tuple[str, ...]:
    """The name's parts without everything that a wrapper may have put there."""
    *parts, last = name.split(".")
    start = 0
    while start < len(parts) and parts[start] in _WRAPPERS | _HOLDERS:
        start += 1
    return (*(part for part in parts[start:] if part not in _WRAPPERS), last)


def _nearest(name: str, by_bare: dict[tuple[str, ...], list[list[str]]]) -> tuple[str | None, str]:
    """The model's name that is left after the fewest removals, if one is, and what was removed."""
    parts = name.split(".")
    found = []
    for target in by_bare.get(bare(name), ()):
        removed = _removals(parts, target)
        if removed is not None:
            found.append((len(removed), ".".join(target), "".join(f"{part}." for part in removed)))
    found.sort()
    if not found or (len(found) > 1 and found[0][0] == found[1][0]):
        return None, ""
    return found[0][1], found[0][2]


def _removals(parts: list[str], target: list[str]) -> list[str] | None:
    """The parts without which the one name is the other; None where no removal makes it so."""
    removed, place = [], 0
    for part in parts:
        if place < len(target) and part == target[place]:
            place += 1
        else:
            removed.append(part)
    return removed if place == len(target) else None
