"""A SAM step beside two gradients and the base step, on few large and on many small tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sam_variants import SAM
from sam_variants.tasks import build_model
from sam_variants.tasks.task import Split, Task
from sam_variants.training import batch_closure

from .timing import Row, interleaved


def _images(num: int) -> Task:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 32, 32, generator=generator)
    split = Split(images, torch.randint(10, (num,), generator=generator))
    return Task("random images", "classification", split, split, 10, (3, 32, 32), "random")


def _small_tensors() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layers = [module for _ in range(74) for module in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(16, 10)), torch.randn(64, 16), torch.randint(10, (64,))


def run() -> Iterator[Row]:
    task = _images(32)
    resnet = build_model("resnet20", task, seed=0)
    images, labels = task.train.inputs, task.train.targets
    yield _row("ResNet-20", resnet, images, labels, "<= 1.02")
    yield _row("150 small tensors", *_small_tensors(), "<= 1.12")


def _row(name: str, model: nn.Module, x: torch.Tensor, y: torch.Tensor, target: str) -> Row:
    loss = nn.functional.cross_entropy
    sam = SAM(torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), rho=0.05)
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    closure = batch_closure(model, loss, x, y)

    def two_gradients() -> None:
        for _ in range(2):
            base.zero_grad()
            loss(model(x), y).backward()
        base.step()

    ours, other = interleaved(lambda: sam.step(closure), two_gradients, repeat=5)
    return Row(f"a SAM step, {name}", ours, other, "s", "two gradients + base step", target)
