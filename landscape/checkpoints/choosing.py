"""choose_weights: the state dict that is meant, among all that a file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .errors import CheckpointError, StateKeyError, listed, shown
from .names import bare

# The usual names of a model's weights, and of their moving average.
_WEIGHTS = frozenset(
    {
        "state_dict", "model", "model_state_dict", "model_state", "net", "network", "module",
        "params", "weights", "ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model",
        "params_ema",
    }
)  # fmt: skip
# What lies beside them and is no network, whatever tensors are in it.
_OTHERS = frozenset(
    {
        "opt", "optim", "optimizer", "optimizers", "optimizer_state", "optimizer_states",
        "optimizer_state_dict", "scheduler", "schedulers", "lr_scheduler", "lr_schedulers",
        "scheduler_state_dict", "scaler", "grad_scaler", "amp", "rng", "rng_state", "rng_states",
        "random_state", "callbacks", "loops", "hyper_parameters", "hparams", "config", "args",
    }
)  # fmt: skip
_DEEPEST = 3
# Layers may keep things of their own beside the tensors (get_extra_state).
_EXTRA = "_extra_state"
HERE = "."


@dataclass(frozen=True)
class Choice:
    """The weights that were chosen, where they lay, and what was left."""

    weights: dict[str, Tensor]
    state_key: str | None
    candidates: list[str]
    skipped: list[str]


def choose_weights(path: Path, content: Any, state_key: str | None) -> Choice:
    """The weights under the key, or the only ones there are.

    Without a key: a file that is one state dict; else the one entry that is a state dict and has a
    usual name, or the one that is a state dict at all. An entry of another name that shares
    parameters with one of a usual name may be meant just as well.

    Raises:
        StateKeyError: more than one would do, or the key leads nowhere.
        CheckpointError: there is none.
    """
    content = _mapping(content)
    if content is None:
        raise CheckpointError(f"{path}: holds no dictionary of weights; save model.state_dict()")
    found = dict(_state_dicts(content, "", 1, set()))
    if state_key is not None:
        return _chosen_by_key(path, content, state_key, found)
    loose = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    rivals = _rivals(found, loose)
    if len(rivals) > 1:
        choices = ", ".join(f"{shown(name)} ({len(one)})" for name, one in rivals.items())
        choices += " at the top level" if HERE in rivals else ""
        raise StateKeyError(
            f"{path}: several state dicts would do (tensors in each): {choices}; say which with "
            "--state-key NAME"
        )
    if not rivals:
        raise CheckpointError(
            f"{path}: no state dict in it; these keys hold no tensor: {listed(content)}"
            if content
            else f"{path}: an empty state dict"
        )
    ((name, weights),) = rivals.items()
    return _choice(content, name, weights, found)


def _rivals(
    found: Mapping[str, dict[str, Any]], loose: dict[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Those state dicts, and the tensors outside of any, that could be meant."""
    if not found:
        return {HERE: loose} if loose else {}
    usual = {name: one for name, one in found.items() if _WEIGHTS & set(name.split("."))}
    usual = usual or dict(found)
    parameters = {bare(key) for one in usual.values() for key in one}
    alike = {name: one for name, one in found.items() if parameters & set(map(bare, one))}
    here = {HERE: loose} if parameters & set(map(bare, loose)) else {}
    return usual | alike | here


def _chosen_by_key(
    path: Path, content: dict[str, Any], key: str, found: Mapping[str, Mapping[str, Any]]
) -> Choice:
    value = content if key == HERE else _at(content, key)
    weights = _mapping(value)
    if weights is None:
        kind = "nothing" if value is None else f"no state dict, but one {type(value).__name__},"
        there = f"there are {listed(found)}" if found else f"its keys are {listed(content)}"
        raise StateKeyError(f"{path}: {kind} under the state key {shown(key)}; {there}")
    if not any(isinstance(each, Tensor) for each in weights.values()):
        raise StateKeyError(
            f"{path}: no state dict under the state key {shown(key)}; these keys hold no tensor: "
            f"{listed(weights)}"
        )
    return _choice(content, key, weights, found)


def _choice(
    content: dict[str, Any],
    name: str,
    weights: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
) -> Choice:
    chosen = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    taken = {id(value) for value in chosen.values()}
    others = [other for other in found if other != name and not name.startswith(f"{other}.")]
    shelves = [*others, name]
    skipped = [
        key
        for key, value in content.items()
        if id(value) not in taken
        and not any(shelf == key or shelf.startswith(f"{key}.") for shelf in shelves)
    ]
    # What lay beside the chosen: things that are no tensors, or the rest of a flat dictionary.
    if name != HERE:
        skipped += [f"{name}.{key}" for key in weights if key not in chosen]
    for shelf, one in found.items():
        if name.startswith(f"{shelf}."):
            skipped += [f"{shelf}.{key}" for key, value in one.items() if id(value) not in taken]
    whole = name == HERE and not skipped and not others
    return Choice(chosen, None if whole else name, others, skipped)


def _state_dicts(
    content: Mapping[str, Any], start: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state dicts below a dictionary, each with its key: every value a tensor.

    Each object once and not deeper than three levels: dictionaries from a file can hold one another
    in any number, and themselves.
    """
    for key, value in content.items():
        if key in _OTHERS or id(value) in seen:
            continue
        below = _mapping(value)
        if below is None:
            continue
        seen.add(id(value))
        if _is_state_dict(below):
            yield start + key, below
        elif depth < _DEEPEST:
            yield from _state_dicts(below, f"{start}{key}.", depth + 1, seen)


def _is_state_dict(content: Mapping[str, Any]) -> bool:
    kinds = [isinstance(v, Tensor) for key, v in content.items() if not key.endswith(_EXTRA)]
    return bool(kinds) and all(kinds)


def _at(content: Mapping[str, Any], key: str) -> Any:
    """What lies under the key: an entry, one further inside, or all whose names start with it."""
    if key in content:
        return content[key]
    for end in (place for place, sign in enumerate(key) if sign == "."):
        below = _mapping(content.get(key[:end]))
        inside = None if below is None else _at(below, key[end + 1 :])
        if inside is not None:
            return inside
    start = f"{key}."
    return {k.removeprefix(start): v for k, v in content.items() if k.startswith(start)} or None


def _mapping(value: Any) -> dict[str, Any] | None:
    """The dictionary that a value is, or that a trusted module has, with its names as text.

    By the methods of the class: a file can hang attributes on a dictionary that hide them.
    """
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, dict):
        return None
    return {key: each for key, each in dict.items(value) if isinstance(key, str)}
