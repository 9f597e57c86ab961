"""What a pass of each kind takes: its seconds, timed, and the memory that it holds."""

from __future__ import annotations

import glob
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from landscape.curvature import GaussNewton, Hessian, Remainder
from landscape.estimate import Cost
from landscape.linalg import SymmetricOperator
from landscape.linalg.lanczos import Basis
from landscape.linalg.operator import gaussian, seeded
from landscape.objective import Objective
from landscape.plan import ProbePlan
from landscape.stages.layers import layers_of
from landscape.stages.record import Record, objective_of
from landscape.stages.spectrum import matrix_of

from .counts import NOTHING, Passes, StageCost, matrix_name, rows_in
from .memory import Held, working_set

_LEAST_TIMES, _LEAST_SECONDS = 3, 0.2  # passes of a kind: so many, and for so long
_MOST_SECONDS = 2.0  # and no further one after so long
_PART_SECONDS = 0.5  # that a product may take over the part of the data that is timed
_PRODUCT_FORWARDS = 10  # a product in forward passes, roughly: 5 to 13 on dense nets and ResNets
_NUM_TIMED, _MOST_COORDINATES = 32, 1 << 18  # of the vectors that Gram-Schmidt is timed on
_ONE_BATCH_BYTES = 1 << 26  # of inputs that PyHessian is given as one batch
ORDER = 64  # of the eigenproblem that is timed


@dataclass(frozen=True)
class Rate:
    """What passes of one kind take.

    Attributes:
        product, gradient, forward: seconds of each, over the whole probe data; 0 where not asked.
        working_set: bytes that the dearest of them holds at once, beside what was there before.
        resident: bytes of the whole process meanwhile; None where they cannot be read.
    """

    product: float = 0.0
    gradient: float = 0.0
    forward: float = 0.0
    working_set: float = 0.0
    resident: float | None = None


@dataclass(frozen=True)
class Rates:
    """What was timed.

    Attributes:
        of: each kind of passes.
        orthogonalising: seconds that each vector of a basis takes when a product is made orthogonal
            to it.
        solving: seconds of an eigenproblem of order 64.
        rows_timed: rows of the data that were looked at; the rest is scaled up.
    """

    of: Mapping[Passes, Rate]
    orthogonalising: float
    solving: float
    rows_timed: int

    @property
    def working_set(self) -> float:
        """Bytes that the dearest of the passes that were made holds at once."""
        made = [rate.working_set for passes, rate in self.of.items() if not passes.one_batch]
        return max(made, default=0.0)

    @property
    def resident(self) -> float | None:
        """Bytes of the whole process at its fullest; None where they cannot be read."""
        known = [rate.resident for rate in self.of.values() if rate.resident is not None]
        return max(known, default=None)


def measure_rates(record: Record, costs: Iterable[StageCost]) -> Rates:
    """Seconds of each kind of pass that these costs are made of, and the memory that it holds.

    Medians of three passes or more after one that warms up; of fewer where those take two seconds.
    Data over which a product takes long are timed on their first batches alone. The probe then
    takes as long if it has as many threads and the machine does no more beside it.

    Args:
        record: of the checkpoint, with its objective.
        costs: of `predicted_costs`; nothing that they do not need is timed.

    Raises:
        ValueError, FloatingPointError: what the probe itself would raise of these passes.
    """
    wanted: dict[Passes, Cost] = {}
    for cost in costs:
        asked = cost.spent.most + cost.uncounted
        wanted[cost.passes] = wanted.get(cost.passes, NOTHING) + asked
    timed = _timed_part(record.objective)
    return Rates(
        of={passes: _rate(record, timed, passes, asked) for passes, asked in wanted.items()},
        orthogonalising=_seconds_of_orthogonalising(record.objective),
        solving=_seconds_of_solving(),
        rows_timed=timed.num_samples,
    )


def _timed_part(objective: Objective) -> Objective:
    """The objective, or its first batches where a product over all of it takes long."""
    first = _first_batches(objective, 1)
    seconds = _PRODUCT_FORWARDS * _seconds(lambda: first.evaluate(objective.theta))
    return _first_batches(objective, int(_PART_SECONDS / seconds))


def _first_batches(objective: Objective, num: int) -> Objective:
    """The objective over so many of its batches, at least one."""
    if num >= objective.num_batches:
        return objective
    return objective.over_rows(range(max(1, rows_in(objective.batches[: max(1, num)]))))


def _rate(record: Record, timed: Objective, passes: Passes, asked: Cost) -> Rate:
    """Of one kind of passes: the means over the objectives that stand for it."""
    objectives = _objectives(record, timed, passes)
    num_rows = record.objective.num_samples
    seconds = [
        [
            _seconds(call) * num_rows / objective.num_samples if call else 0.0
            for call in _calls(record.plan, objective, passes, asked)
        ]
        for objective in objectives
    ]
    product, gradient, forward = (statistics.fmean(column) for column in zip(*seconds, strict=True))
    if passes.rows is not None:  # a group of rows never holds more than a batch of all of them
        return Rate(product, gradient, forward)
    calls = _calls(record.plan, _first_batches(objectives[-1], 2), passes, asked)
    dearest = next((call for call in calls if call), None)
    held = Held(0.0, None) if dearest is None else working_set(dearest)
    size = held.size
    if passes.one_batch and _input_bytes(record.objective) <= _ONE_BATCH_BYTES:
        size *= max(1.0, num_rows / max(1, rows_in(record.objective.batches[:1])))
    return Rate(product, gradient, forward, size, held.resident)


def _objectives(record: Record, timed: Objective, passes: Passes) -> list[Objective]:
    """Objectives whose passes are of that kind: of layers the first, a middle and the last one."""
    if passes.one_layer:
        layers = list(layers_of(record.objective.space.names).values())
        chosen = sorted({0, len(layers) // 2, len(layers) - 1})
        return [_of_parameters(record, timed, layers[index]) for index in chosen]
    if passes.rows is not None:
        order = torch.randperm(record.objective.num_samples, generator=seeded(0))
        return [record.objective.over_rows(order[: passes.rows].tolist())]
    return [timed]


def _of_parameters(record: Record, timed: Objective, names: Sequence[str]) -> Objective:
    exactly = [glob.escape(name) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever there is to say was said of the whole
        return objective_of(record.subject, record.plan, timed.batches, parameters=exactly)


def _calls(
    plan: ProbePlan, objective: Objective, passes: Passes, asked: Cost
) -> list[Callable[[], object] | None]:
    """A product, a gradient and a forward pass, the dearest first; None for what is not asked."""
    theta = objective.theta
    product = None
    if asked.products:
        operator = _operator(plan, passes.matrix, objective)
        v = gaussian(operator, seeded(0))
        product = partial(lambda a: float((a @ v).sum()), operator)  # waits for an accelerator
    return [
        product,
        partial(objective.value_and_gradient, theta) if asked.gradients else None,
        partial(objective.evaluate, theta) if asked.forwards else None,
    ]


def _operator(plan: ProbePlan, name: str, objective: Objective) -> SymmetricOperator:
    if name == matrix_name(plan):
        return matrix_of(plan)(objective, objective.theta)
    return _PARTS[name](objective)


_PARTS: dict[str, Callable[[Objective], SymmetricOperator]] = {
    "hessian": Hessian,
    "ggn": GaussNewton,
    "remainder": Remainder,
}


def _seconds(call: Callable[[], object]) -> float:
    """The median of a few calls after the first, which warms up; of that one where it is long."""
    times: list[float] = []
    while len(times) <= _LEAST_TIMES or sum(times) < _LEAST_SECONDS:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
        if sum(times) > _MOST_SECONDS:
            break
    return statistics.median(times[1:] or times)


def _seconds_of_orthogonalising(objective: Objective) -> float:
    """Of one coefficient at P; timed on fewer coordinates where P is large."""
    size = min(objective.num_parameters, _MOST_COORDINATES)
    identity = _Identity(size, dtype=objective.dtype, device=objective.device)
    num, generator = min(_NUM_TIMED, size), seeded(0)
    basis = Basis(identity, first_block=num, capacity=num)
    for _ in range(num):
        vector = gaussian(identity, generator)
        basis.append(vector, basis.orthogonalise(vector)[1])
    vector = gaussian(identity, generator)
    seconds = _seconds(lambda: basis.orthogonalise(vector))
    return seconds / num * (objective.num_parameters / size)


class _Identity(SymmetricOperator):
    """Stands for a matrix where its size, its precision and its device alone matter."""

    def _matvec(self, vector: Tensor) -> Tensor:
        return vector


def _seconds_of_solving() -> float:
    matrix = np.random.default_rng(0).standard_normal((ORDER, ORDER))
    return _seconds(lambda: np.linalg.eigh(matrix + matrix.T))


def _input_bytes(objective: Objective) -> int:
    """Of the inputs of all batches."""
    leaves = [leaf for b in objective.batches if isinstance(b, tuple) for leaf in tree_leaves(b[0])]
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
