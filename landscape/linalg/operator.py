"""SymmetricOperator: a symmetric matrix known only by its product with a vector."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from landscape.estimate import Cost

Progress = Callable[[int, int | None], object]  # called with (products done, products at most)


class SymmetricOperator(ABC):
    """A symmetric matrix A, shape (P, P), by its product v -> A v.

    A subclass writes `_matvec`; where several products at once are cheaper than one after the
    other it also writes `_matmat`. Neither may change its argument.

    Attributes:
        size: P.
        dtype: of the vectors it takes and gives.
        device: where they live.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.size = size
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def _matvec(self, vector: Tensor) -> Tensor:
        """A v, shape (P,), for a v of the right shape and dtype."""

    def _matmat(self, matrix: Tensor) -> Tensor:
        if matrix.shape[1] == 0:
            return torch.empty_like(matrix)
        return torch.stack([self._matvec(column) for column in matrix.unbind(1)], dim=1)

    def matvec(self, vector: Tensor) -> Tensor:
        """A v, shape (P,). Raises ValueError on another shape or dtype."""
        return self @ self._checked(vector, 1)

    def matmat(self, matrix: Tensor) -> Tensor:
        """A V, shape (P, m), m products. Raises ValueError on another shape or dtype."""
        return self @ self._checked(matrix, 2)

    def __matmul__(self, other: Tensor) -> Tensor:
        other = self._checked(other, 2 if other.ndim == 2 else 1)
        return self._matvec(other) if other.ndim == 1 else self._matmat(other)

    def where_not_finite(self, vector: Tensor) -> str:
        """Which part of A v is not finite, for an error's message; "" where nobody can tell."""
        return ""

    def to_scipy(self) -> LinearOperator:
        """The same matrix for scipy's solvers: float64 or float32 arrays on the CPU."""
        precision = np.float64 if self.dtype == torch.float64 else np.float32

        def product(array: np.ndarray) -> np.ndarray:
            # A copy, because scipy hands out read-only arrays and views of its work space.
            tensor = torch.tensor(array, dtype=self.dtype, device=self.device)
            return (self @ tensor).cpu().numpy().astype(precision)

        def column(array: np.ndarray) -> np.ndarray:
            return product(array.reshape(-1))

        return LinearOperator(
            shape=(self.size, self.size),
            dtype=np.dtype(precision),
            matvec=column,
            rmatvec=column,
            matmat=product,
            rmatmat=product,
        )

    def _checked(self, value: Tensor, ndim: int) -> Tensor:
        if value.ndim != ndim or value.shape[0] != self.size:
            wanted = f"({self.size},)" if ndim == 1 else f"({self.size}, m)"
            raise ValueError(f"operator takes shape {wanted}, got {tuple(value.shape)}")
        if value.dtype != self.dtype:
            raise ValueError(f"operator takes {self.dtype}, got {value.dtype}")
        return value


class MatrixOperator(SymmetricOperator):
    """A given symmetric matrix, shape (P, P).

    >>> MatrixOperator(torch.diag(torch.tensor([2.0, 3.0]))) @ torch.ones(2)
    tensor([2., 3.])

    Raises:
        ValueError: not square, or not symmetric beyond rounding.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must be square, got shape {tuple(matrix.shape)}")
        if not matrix.numel():
            raise ValueError("matrix is empty: there is nothing to measure")
        asymmetry = float((matrix - matrix.T).abs().max())
        if asymmetry > 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max()):
            raise ValueError(f"matrix must be symmetric, A and A' differ by up to {asymmetry:.3g}")
        super().__init__(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        self.matrix = matrix

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.matrix @ vector

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.matrix @ matrix


class ShiftedOperator(SymmetricOperator):
    """A + sigma I: the same eigenvectors, every eigenvalue moved by sigma."""

    def __init__(self, operator: SymmetricOperator, sigma: float) -> None:
        super().__init__(operator.size, dtype=operator.dtype, device=operator.device)
        self.operator, self.sigma = operator, sigma

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.operator @ vector + self.sigma * vector

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.operator @ matrix + self.sigma * matrix


class DeflatedOperator(SymmetricOperator):
    """A - V diag(values) V': with eigenpairs of A, the same matrix with these moved to zero.

    Args:
        operator: A, size P.
        vectors: V, shape (P, n), columns of unit length.
        values: shape (n,).

    Raises:
        ValueError: shapes that do not fit together.
    """

    def __init__(self, operator: SymmetricOperator, vectors: Tensor, values: Tensor) -> None:
        if vectors.ndim != 2 or (operator.size, values.numel()) != vectors.shape:
            raise ValueError(
                f"vectors must have shape ({operator.size}, {values.numel()}) "
                f"to go with {values.numel()} values, got {tuple(vectors.shape)}"
            )
        super().__init__(operator.size, dtype=operator.dtype, device=operator.device)
        self.operator = operator
        self.vectors = vectors.to(self.dtype)
        self.values = values.to(self.device, self.dtype)

    def _matvec(self, vector: Tensor) -> Tensor:
        return self.operator @ vector - self.vectors @ (self.values * (self.vectors.T @ vector))

    def _matmat(self, matrix: Tensor) -> Tensor:
        inner = self.values[:, None] * (self.vectors.T @ matrix)
        return self.operator @ matrix - self.vectors @ inner


class CountedOperator(SymmetricOperator):
    """The same matrix with its products counted, checked and told to a progress bar.

    Raises:
        FloatingPointError: a product is not finite; the message names its number.
    """

    def __init__(
        self, operator: SymmetricOperator, progress: Progress | None, at_most: int | None
    ) -> None:
        super().__init__(operator.size, dtype=operator.dtype, device=operator.device)
        self.operator, self.num_products = operator, 0
        self._progress, self._at_most, self._begun = progress, at_most, time.perf_counter()

    def _matvec(self, vector: Tensor) -> Tensor:
        product = self.operator @ vector
        self.num_products += 1
        if not math.isfinite(float(product.sum())) and not bool(product.isfinite().all()):
            raise FloatingPointError(
                f"matrix-vector product {self.num_products} is not finite: "
                f"{int((~product.isfinite()).sum())} of {self.size} entries"
                f"{self.operator.where_not_finite(vector)}"
            )
        if self._progress is not None:
            self._progress(self.num_products, self._at_most)
        return product

    @property
    def cost(self) -> Cost:
        """What the products have taken so far."""
        return Cost(products=self.num_products, seconds=time.perf_counter() - self._begun)


def seeded(seed: int) -> torch.Generator:
    """A CPU generator with this seed: the same vectors on every device and every rank.

    A generator that nobody seeds starts from one fixed number, so "random restarts" repeat.
    """
    return torch.Generator().manual_seed(seed)


def gaussian(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Independent N(0, 1) entries, shape (P,), drawn on the CPU."""
    precision = torch.float64 if operator.dtype == torch.float64 else torch.float32
    draw = torch.randn(operator.size, generator=generator, dtype=precision)
    return draw.to(operator.dtype).to(operator.device)


def rademacher(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Independent signs -1 or +1, shape (P,), drawn on the CPU."""
    draw = torch.randint(0, 2, (operator.size,), generator=generator, dtype=torch.int8)
    return draw.mul_(2).sub_(1).to(operator.dtype).to(operator.device)
