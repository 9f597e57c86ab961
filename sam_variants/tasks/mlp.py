"""logistic and mlp: dense layers on the flattened sample."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from .shapes import num_features
from .task import Task

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def logistic(task: Task) -> nn.Module:
    """Multinomial logistic regression: (n, ...) -> logits (n, C).

    F C + C parameters for F features: 410 on mnist1d.
    """
    num_inputs = num_features(task, "logistic")
    return nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, task.num_classes))


def mlp(task: Task, *, hidden: int = 100, depth: int = 2, activation: str = "relu") -> nn.Module:
    """`depth` hidden layers of `hidden` units: (n, ...) -> logits (n, C).

    15,210 parameters on mnist1d, as the multi-layer perceptron of Greydanus and Kobak (2020).
    """
    widths = [num_features(task, "mlp"), *[hidden] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for num_inputs, num_outputs in pairwise(widths):
        layers += [nn.Linear(num_inputs, num_outputs), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], task.num_classes))
