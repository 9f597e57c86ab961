"""Top eigenpairs: confirmed Lanczos beside scipy's eigsh, counted in matrix-vector products."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from landscape import Hessian, Objective, lanczos
from landscape.linalg import MatrixOperator
from sam_variants import build
from sam_variants.tasks import build_model, build_task
from sam_variants.training import batch_closure

from .timing import Row


def trained_hessian() -> torch.Tensor:
    """The dense Hessian (410 parameters, float64) of a trained net."""
    task = build_task("digits")
    model = build_model("mlp:hidden=5", task, seed=0)
    optimizer = build("erm", torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    x, y = task.train.inputs, task.train.targets
    for _ in range(200):
        optimizer.step(batch_closure(model, torch.nn.functional.cross_entropy, x, y))
    model.double()
    objective = Objective(model, torch.nn.functional.cross_entropy, [(x.double(), y)])
    eye = torch.eye(objective.num_parameters, dtype=torch.float64)
    matrix = Hessian(objective) @ eye
    return (matrix + matrix.T) / 2


def outliers() -> torch.Tensor:
    """Ten outliers over a decaying bulk, 400 in all, in a random basis."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(400, 400, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(draw).Q
    values = torch.cat([torch.linspace(50, 10, 10), torch.logspace(0, -4, 390)]).double()
    return (basis * values) @ basis.T


def run() -> Iterator[Row]:
    for name, matrix in (("trained net", trained_hessian()), ("outliers", outliers())):
        truth = torch.linalg.eigvalsh(matrix).flip(0)
        for k in (5, 10):
            pairs = lanczos(MatrixOperator(matrix), num_eigenpairs=k, ends="top", tolerance=1e-3)
            reached = float((pairs.values - truth[:k]).abs().div(truth[:k]).max())
            assert pairs.complete, f"{name}: {k} eigenpairs not confirmed"
            assert reached < 1e-3, f"{name}: wrong by {reached:g}"
            products = _eigsh_products(matrix, truth, k, max(reached, 1e-12))
            yield Row(
                f"top-{k} of a {name}, confirmed", pairs.num_matvecs, products, "products",
                "eigsh at the accuracy reached", "<= 1.05",
            )  # fmt: skip


def _eigsh_products(matrix: torch.Tensor, truth: torch.Tensor, k: int, accuracy: float) -> int:
    """Products of eigsh at its loosest tolerance that is as accurate as we were."""
    array = matrix.numpy()
    for exponent in range(2, 15):
        count = 0

        def product(vector):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            return array @ vector

        operator = LinearOperator(array.shape, matvec=product, dtype=array.dtype)
        found = eigsh(operator, k=k, which="LA", tol=10.0**-exponent, return_eigenvectors=False)
        error = abs(sorted(found)[::-1] - truth[:k].numpy()) / truth[:k].numpy()
        if error.max() <= accuracy:
            return count
    raise AssertionError("eigsh never became as accurate")
