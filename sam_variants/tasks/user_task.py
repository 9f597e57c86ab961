"""Training and test data that a function of the user's returns."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from .npz import task_of_arrays
from .task import Request, Task
from .user_code import run_factory, where


def user_task(request: Request) -> Task:
    """The data that the user's factory returns, checked.

    `factory()` returns two things, training and test data, each a pair (inputs, labels) of arrays
    or tensors, or a torch Dataset of (input, label) with a length; or a whole Task.

    Raises:
        ValueError: the factory failed or returned something else; names the user's line.
    """
    word = request.argument
    returned = run_factory(word, allow_code=request.allow_code)
    source = f"{word} at {where(word, allow_code=request.allow_code)}"
    return task_of_returned(request.name, returned, source=source)


def task_of_returned(name: str, returned: Any, *, source: str) -> Task:
    """The task that a factory's answer makes, under this name; `source` says whose answer it is.

    Raises:
        ValueError: it is none of what `user_task` takes.
    """
    if isinstance(returned, Task):
        return returned
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise ValueError(
            f"{source} returned {_described(returned)}; expected training and test data, "
            "each (inputs, labels) or a torch Dataset"
        )
    train, test = (
        _pair(part, kind, source) for part, kind in zip(returned, ("training", "test"), strict=True)
    )
    return task_of_arrays(name, train, test, source=source)


def _pair(data: Any, name: str, source: str) -> tuple[Any, Any]:
    if isinstance(data, Dataset):
        return _stacked(data, name, source)
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1]
    raise ValueError(
        f"{source} returned {_described(data)} as its {name} data; expected (inputs, labels) "
        "or a torch Dataset"
    )


def _stacked(data: Dataset[Any], name: str, source: str) -> tuple[Any, Any]:
    inputs, labels = [], []
    try:
        for index in range(len(data)):  # type: ignore[arg-type]
            sample, label = data[index]
            inputs.append(torch.as_tensor(sample))
            labels.append(int(label))
        return torch.stack(inputs), torch.tensor(labels)
    except Exception as error:  # the user's Dataset is the user's code
        message = " ".join(str(error).split())
        raise ValueError(
            f"{source}: the {name} Dataset failed at sample {len(labels)}: "
            f"{type(error).__name__}: {message}"
        ) from error


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__name__}"
