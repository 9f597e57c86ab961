"""One Hessian-vector product, fresh graphs, beside the bare sum over batches and PyHessian."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pyhessian import hessian

from landscape import Objective
from sam_variants.tasks import build_model, build_task

from .timing import Row, interleaved


def run() -> Iterator[Row]:
    for word in ("cnn1d", "mlp:hidden=400"):
        yield from _rows(word)


def _rows(word: str) -> Iterator[Row]:
    task = build_task("mnist1d")
    loss = torch.nn.functional.cross_entropy
    model = build_model(word, task, seed=0).eval()
    batches = task.train.first(1000).batches(500)
    objective = Objective(model, loss, batches)
    theta = objective.theta
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(model.parameters())
    cut = v.split([p.numel() for p in parameters])
    pieces = [piece.view_as(p) for piece, p in zip(cut, parameters, strict=True)]

    def ours() -> torch.Tensor:
        return objective.hvp(theta, v)

    def bare() -> torch.Tensor:
        total = torch.zeros_like(v)
        for x, y in batches:
            gradient = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
            product = torch.autograd.grad(gradient, parameters, pieces)
            total += torch.cat([part.reshape(-1) for part in product]) / len(batches)
        return total

    assert torch.allclose(bare(), ours(), rtol=1e-3, atol=1e-5)
    yield Row(
        f"a product, {word}", *interleaved(ours, bare, repeat=5), "s", "bare sum over batches",
        "<= 1.05",
    )  # fmt: skip

    theirs = hessian(model, loss, dataloader=batches, cuda=False)
    yield Row(
        f"a product, {word}",
        *interleaved(ours, lambda: theirs.dataloader_hv_product(pieces), repeat=5),
        "s",
        "PyHessian, same batches",
        "<= 1.0",
    )
