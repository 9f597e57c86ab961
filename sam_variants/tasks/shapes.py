"""What a task's samples look like, asked by the builder of a model that takes one kind alone."""

from __future__ import annotations

from math import prod

from .task import Task

_MAX_COLOURS = 64  # more "channels" than that are pixels in the wrong place


def num_features(task: Task, model: str) -> int:
    """Numbers in one flattened sample. Raises ValueError for tokens."""
    _no_tokens(task, model)
    return prod(task.input_shape)


def signal_shape(task: Task, model: str) -> tuple[int, int]:
    """(channels, length) of one signal. Raises ValueError for anything else."""
    _no_tokens(task, model)
    if len(task.input_shape) != 2:
        raise ValueError(_mismatch(task, model, "signals (channels, length)"))
    channels, length = task.input_shape
    return channels, length


def image_shape(task: Task, model: str) -> tuple[int, int, int]:
    """(channels, height, width) of one image. Raises ValueError for anything else."""
    _no_tokens(task, model)
    if len(task.input_shape) != 3:
        raise ValueError(_mismatch(task, model, "images (channels, height, width)"))
    channels, height, width = task.input_shape
    if channels > _MAX_COLOURS or (width in (1, 3) and channels > width):
        raise ValueError(
            _mismatch(task, model, "images (channels, height, width)")
            + "; move the channels to the front"
        )
    return channels, height, width


def num_tokens(task: Task, model: str) -> tuple[int, int]:
    """(context length, size of the vocabulary). Raises ValueError for anything but tokens."""
    if task.kind != "language":
        raise ValueError(_mismatch(task, model, "tokens of a text (python-docs, text:FILE)"))
    return task.input_shape[0], task.num_classes


def _no_tokens(task: Task, model: str) -> None:
    if task.kind == "language":
        raise ValueError(
            f"model {model} takes numbers, task {task.name} gives tokens; use gpt-mini"
        )


def _mismatch(task: Task, model: str, wanted: str) -> str:
    return (
        f"model {model} takes {wanted}, task {task.name} gives samples of shape {task.input_shape}"
    )
