"""cnn1d: the convolutional net of the MNIST-1D paper."""

from __future__ import annotations

from torch import nn

from .shapes import signal_shape
from .task import Task

_KERNELS = (5, 3, 3)


def cnn1d(task: Task, *, channels: int = 25) -> nn.Module:
    """Three convolutions and one linear layer: (n, c, length) -> logits (n, C).

    Kernels 5, 3, 3, each with stride 2, padding 1 and a ReLU: 40 -> 19 -> 10 -> 5 points, so that
    25 channels give 125 features and 5,210 parameters on mnist1d.

    Source: S. Greydanus and D. Kobak, "Scaling Down Deep Learning with MNIST-1D" (2020).

    Raises:
        ValueError: samples that are no signals, or shorter than 3 points.
    """
    num_inputs, length = signal_shape(task, "cnn1d")
    if length < _KERNELS[0] - 2:
        raise ValueError(f"model cnn1d needs signals of 3 points, task {task.name} gives {length}")
    layers: list[nn.Module] = []
    for kernel in _KERNELS:
        layers += [nn.Conv1d(num_inputs, channels, kernel, stride=2, padding=1), nn.ReLU()]
        num_inputs, length = channels, (length + 2 - kernel) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, task.num_classes))
