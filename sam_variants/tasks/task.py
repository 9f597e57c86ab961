"""Task and Split: the data of a task, its loss, and what builders of tasks are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their targets, on the CPU, in a fixed order.

    Attributes:
        inputs: (n, ...) float32, or int64 tokens (n, T).
        targets: (n,) int64 class indices, or (n, T) int64 next tokens.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Views of the samples in order, `batch_size` at a time; the last may be smaller.

        Raises:
            ValueError: batch_size < 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        parts = torch.split(self.inputs, batch_size), torch.split(self.targets, batch_size)
        return list(zip(*parts, strict=True))

    def first(self, num_samples: int) -> Split:
        """The first samples, as views."""
        return Split(self.inputs[:num_samples], self.targets[:num_samples])


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with its splits and its loss.

    Attributes:
        name: the word that names it, options included.
        kind: "classification" (one class a sample) or "language" (the next token everywhere).
        train, test: the splits; label noise touches `train` and `validation` alone.
        num_classes: C, classes or tokens of the vocabulary.
        input_shape: of one sample: (features,), (channels, length), (channels, height, width),
            or (context,) tokens.
        description: one line for people.
        validation: taken out of the training data, or None.
        augment: (inputs, generator) -> inputs, for training batches alone; or None.
        vocabulary: the characters that the tokens stand for; "" where there are none.
        sha256: of every array, in hexadecimal; `build_task` fills it in.
    """

    name: str
    kind: str
    train: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    description: str
    validation: Split | None = None
    augment: Augmentation | None = None
    vocabulary: str = ""
    sha256: str = ""

    def loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats over all targets (samples, or tokens), a scalar.

            L = (1/N) sum_i -sum_c q_ic log softmax(z_i)_c,  q_ic = (1 - s) [c = y_i] + s / C

        Args:
            outputs: z, logits (n, C), or (n, T, C) of a language model.
            targets: y, (n,) or (n, T).
            label_smoothing: s in [0, 1].
        """
        return functional.cross_entropy(
            outputs.flatten(0, -2), targets.flatten(), label_smoothing=label_smoothing
        )


@dataclass(frozen=True)
class Request:
    """What a builder of a task is asked for, besides the options of its entry.

    Attributes:
        name: the whole word that the user gave.
        argument: the file or factory in it; "" where it has none.
        data_seed: seeds generation and splits, never the training.
        test_size: test samples wanted; None: all there are.
        data_dir: the folder with downloaded data, or None.
        allow_code: whether a .py file may be run.
    """

    name: str
    argument: str = ""
    data_seed: int = 0
    test_size: int | None = None
    data_dir: str | Path | None = None
    allow_code: bool = False


def hash_arrays(task: Task) -> str:
    """SHA-256 over dtype, shape and bytes of every array of the task, and its vocabulary."""
    digest = hashlib.sha256(task.vocabulary.encode())
    for name in ("train", "test", "validation"):
        split = getattr(task, name)
        if split is None:
            continue
        for part in ("inputs", "targets"):
            array = np.ascontiguousarray(getattr(split, part).numpy())
            # Little-endian bytes, so that the hash is the same everywhere.
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(f"{name}.{part} {array.dtype.str} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
