"""What is counted: passes, exactly where a budget is fixed, else at most and typically."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from landscape.estimate import Cost
from landscape.plan import ProbePlan
from landscape.stages.layers import layers_of
from landscape.stages.record import Record

NOTHING = Cost()


@dataclass(frozen=True)
class Passes:
    """Which passes a count is of.

    Attributes:
        matrix: of the products: a plan's matrix, or "approximate" for differences of gradients.
        rows: of each pass; None: the batches as they are. Counts are over the whole data all the
            same, a pass over a group being its share of one.
        one_layer: the parameters of one layer move alone.
        one_batch: all rows at once.
    """

    matrix: str = "hessian"
    rows: int | None = None
    one_layer: bool = False
    one_batch: bool = False


@dataclass(frozen=True)
class Spent:
    """The passes of a piece of work: the most it can take, and what it takes on trained nets.

    Where it is not `adaptive` the budget is fixed, and the two are the same.
    """

    most: Cost = NOTHING
    typical: Cost = NOTHING
    adaptive: bool = False

    def __add__(self, other: Spent) -> Spent:
        adaptive = self.adaptive or other.adaptive
        return Spent(self.most + other.most, self.typical + other.typical, adaptive)

    def times(self, factor: float) -> Spent:
        """The same work so many times, or on a share of the data."""
        return Spent(times(self.most, factor), times(self.typical, factor), self.adaptive)


@dataclass(frozen=True)
class StageCost:
    """What one part of a stage takes on one checkpoint.

    Attributes:
        stage: as the `costs` of a result name it.
        part: of the stage: a measure's label, a matrix; "" where the stage is one.
        spent: passes over the whole probe data, counted as results count them.
        passes: which passes these are.
        uncounted: passes that results do not count and that take time too.
        num_bases: bases that the products are spread over, each kept orthonormal.
        num_wanted: eigenpairs that an adaptive search wants of each.
        num_vectors: vectors of length P that are held beside such bases and what a pass needs.
        note: what would make it less than it says, or why it is nothing.
    """

    stage: str
    part: str
    spent: Spent
    passes: Passes = Passes()
    uncounted: Cost = NOTHING
    num_bases: float = 0
    num_wanted: int = 1
    num_vectors: float = 0
    note: str = ""

    @property
    def kind(self) -> str:
        """ "exact" or "at most"."""
        return "at most" if self.spent.adaptive else "exact"

    @property
    def products(self) -> float:
        """Exactly so many, or at most."""
        return self.spent.most.products

    @property
    def gradients(self) -> float:
        """Exactly so many, or at most."""
        return self.spent.most.gradients

    @property
    def forwards(self) -> float:
        """Exactly so many, or at most."""
        return self.spent.most.forwards

    @property
    def typical(self) -> Cost | None:
        """What it took on trained nets; None where the count is exact."""
        return self.spent.typical if self.spent.adaptive else None


@dataclass(frozen=True)
class Probed:
    """A checkpoint and its data, as far as costs depend on them.

    Attributes:
        num_parameters: P, those that move.
        itemsize: bytes of each.
        num_rows, num_batches: of the probe data.
        num_test_rows: of the data set beside them.
        layers: parameters of each layer.
        has_kinks: whether the loss has kinks that double backward does not see.
        has_outputs: whether the batches are (inputs, targets), so that outputs can be told apart.
        one_term_a_row: whether every row is one loss term.
        running_statistics: whether batch norm reads running statistics.
        population: rows of the whole that these are a part of; None: not known.
        training_batch: rows of a training batch; None: not known.
    """

    num_parameters: int
    num_rows: int
    num_batches: int = 1
    itemsize: int = 4
    num_test_rows: int = 0
    layers: tuple[int, ...] = ()
    has_kinks: bool = False
    has_outputs: bool = True
    one_term_a_row: bool = True
    running_statistics: bool = False
    population: int | None = None
    training_batch: int | None = None

    @classmethod
    def of(cls, record: Record) -> Probed:
        """The facts of a record whose objective is built."""
        objective, subject = record.objective, record.subject
        sizes = dict(zip(objective.space.names, objective.space.shapes, strict=True))
        population = subject.data.get("num_samples_total")
        return cls(
            num_parameters=objective.num_parameters,
            itemsize=objective.dtype.itemsize,
            num_rows=objective.num_samples,
            num_batches=objective.num_batches,
            num_test_rows=rows_in(subject.test_batches),
            layers=tuple(
                sum(math.prod(sizes[name]) for name in names)
                for names in layers_of(objective.space.names).values()
            ),
            has_kinks=bool(objective.kinks),
            has_outputs=all(isinstance(b, tuple | list) and len(b) == 2 for b in record.batches),
            one_term_a_row=objective.num_terms == objective.num_samples,
            running_statistics=objective.uses_running_statistics,
            population=None if population is None else int(population),
            training_batch=subject.training.get("batch_size"),
        )


def exact(*, products: float = 0, gradients: float = 0, forwards: float = 0) -> Spent:
    """A fixed budget: the most and the typical are the same."""
    cost = Cost(products, gradients, forwards)
    return Spent(cost, cost)


def at_most(most: Cost, typical: Cost) -> Spent:
    """The budget of a search, and what it takes on trained nets."""
    return Spent(most, typical, adaptive=True)


def times(cost: Cost, factor: float) -> Cost:
    """So many times each kind of pass."""
    return Cost(factor * cost.products, factor * cost.gradients, factor * cost.forwards)


def matrix_name(plan: ProbePlan) -> str:
    """The matrix of a plan's products, as `Passes` names it."""
    return "approximate" if plan.approximate else plan.matrix


def rows_in(batches: Iterable[Any] | None) -> int:
    """Rows of batches, counted as `Objective` does; 0 of data that can be looked at but once."""
    if not isinstance(batches, Sequence):
        return 0
    pairs = [b[1] if isinstance(b, tuple | list) and len(b) == 2 else b for b in batches]
    firsts = [next((t for t in tree_leaves(b) if isinstance(t, Tensor)), None) for b in pairs]
    return sum(len(t) if t is not None and t.ndim else 1 for t in firsts)
