"""What a plan will take: counts times the seconds of a pass; its memory and the kept vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from landscape.estimate import Cost
from landscape.linalg.lanczos import SPARE_VECTORS
from landscape.plan import ProbePlan
from landscape.stages.record import Record, Subject

from .around import around_costs, connection_cost
from .at_weights import (
    dynamics_costs,
    layers_cost,
    second_opinion_cost,
    spectrum_costs,
    test_passes,
)
from .counts import Passes, Probed, StageCost, exact
from .measures import Known, sharpness_costs
from .memory import Bounds, resident_bytes
from .rates import ORDER, Rates, measure_rates

_BASIS_BYTES = 2.0**30  # that `lanczos` takes for its basis before it restarts
_RESIDENT = 1.15  # of what passes were seen to add to the process: a long run adds more
_HOLES = 0.3  # of what tensors hold, where that cannot be seen: freed blocks that fit no others


@dataclass(frozen=True)
class Prediction:
    """What a plan will take on one checkpoint.

    Attributes:
        costs: each part of each stage.
        rates: of the passes that they are made of.
        probed: on what.
        overhead: bytes that the process grows by beside what tensors hold: libraries, and memory
            that its allocator has freed and cannot use (up to twice the tensors, of blocks under
            32 MB in glibc).
    """

    costs: tuple[StageCost, ...]
    rates: Rates
    probed: Probed
    overhead: float = 0.0

    @property
    def seconds(self) -> Bounds:
        """Of all of it."""
        return sum(map(self.seconds_of, self.costs), start=Bounds(0.0, 0.0))

    @property
    def memory(self) -> Bounds:
        """Bytes that the process grows by at the most; the data and the model are not in it."""
        parts = [self.memory_of(cost) for cost in self.costs]
        return Bounds(max(p.typical for p in parts), max(p.most for p in parts))

    def seconds_of(self, cost: StageCost) -> Bounds:
        """Of one part: its passes, and the linear algebra between them."""
        spent = cost.spent
        return Bounds(self._seconds(cost, spent.typical), self._seconds(cost, spent.most))

    def memory_of(self, cost: StageCost) -> Bounds:
        """Bytes that one part holds at the most: a pass, and vectors of length P."""
        held = self.overhead + self.rates.of[cost.passes].working_set
        held += cost.num_vectors * self._bytes_of_a_vector
        spent = cost.spent
        if not (spent.adaptive and cost.num_bases):
            return Bounds(held, held)
        sizes = [self._products_a_basis(cost, count) for count in (spent.typical, spent.most)]
        typical, most = (
            min(size, self._capacity(cost)) * self._bytes_of_a_vector for size in sizes
        )
        return Bounds(held + typical, held + most)

    def _seconds(self, cost: StageCost, count: Cost) -> float:
        rate, passes = self.rates.of[cost.passes], count + cost.uncounted
        seconds = (
            passes.products * rate.product
            + passes.gradients * rate.gradient
            + passes.forwards * rate.forward
        )
        if not cost.num_bases:
            return seconds
        num_products = self._products_a_basis(cost, count)
        share = 1 / len(self.probed.layers) if cost.passes.one_layer else 1.0  # of the parameters
        sizes = np.minimum(np.arange(round(num_products)), self._capacity(cost))
        algebra = float(sizes.sum()) * share * self.rates.orthogonalising
        if cost.spent.adaptive:  # `lanczos` solves two eigenproblems, at first after every product
            solved = (sizes / ORDER) ** 3 / (1 + sizes // 64)
            algebra += 2 * self.rates.solving * float(solved.sum())
        return seconds + cost.num_bases * algebra

    def _products_a_basis(self, cost: StageCost, count: Cost) -> float:
        rows = cost.passes.rows
        share = rows / self.probed.num_rows if rows else 1.0
        return count.products / share / cost.num_bases

    def _capacity(self, cost: StageCost) -> float:
        """Vectors of a basis before its search is restarted."""
        affordable = _BASIS_BYTES / self._bytes_of_a_vector
        return min(max(cost.num_wanted + SPARE_VECTORS, affordable), self.probed.num_parameters)

    @property
    def _bytes_of_a_vector(self) -> int:
        return self.probed.num_parameters * self.probed.itemsize


def predict(
    subject: Subject,
    plan: ProbePlan,
    *,
    whole: bool = True,
    first: bool = True,
    num_connected: int = 0,
) -> Prediction:
    """What a plan will take on a checkpoint, from a few passes over its data.

    Args:
        subject: the checkpoint with its data, as the probe takes it.
        plan: what is measured.
        whole, first: as of `predicted_costs`.
        num_connected: checkpoints between which the plan's paths run; they are counted here.

    Raises:
        ValueError, FloatingPointError: what the probe itself would raise of the passes.
    """
    before = resident_bytes()
    record = Record.of("c0", subject, plan, None)
    probed = Probed.of(record)
    paths = connection_cost(plan, probed, num_connected) if num_connected > 1 else None
    between = [] if paths is None else [paths]
    costs = [*predicted_costs(plan, probed, whole=whole, first=first), *between]
    rates = measure_rates(record, costs)
    costs = predicted_costs(
        plan, probed, whole=whole, first=first, seconds_per_forward=rates.of[Passes()].forward
    )
    overhead = _HOLES * rates.working_set
    on_cpu = record.objective.device.type == "cpu"
    if on_cpu and before is not None and rates.resident is not None:
        overhead = max(0.0, _RESIDENT * (rates.resident - before) - rates.working_set)
    return Prediction((*costs, *between), rates, probed, overhead)


def predicted_costs(
    plan: ProbePlan,
    probed: Probed,
    *,
    whole: bool = True,
    first: bool = True,
    seconds_per_forward: float | None = None,
) -> list[StageCost]:
    """What each stage of a plan takes on one checkpoint, in the order in which they run.

    Args:
        plan: what is measured.
        probed: on what.
        whole: whether this checkpoint gets a density, slices and a plane (`measured_whole`).
        first: whether it is the first of all: a plane through checkpoints is measured on its data.
        seconds_per_forward: decides, where `exact` is None, whether a plane is likely to be
            evaluated in full; None: interpolated.
    """
    known = Known.of(plan, probed, whole=whole)
    passes = 2 if probed.num_test_rows else 1
    costs = [StageCost("loss", "", exact(forwards=passes), uncounted=test_passes(probed))]
    costs += spectrum_costs(plan, probed, whole=whole)
    if plan.dynamics:
        costs += dynamics_costs(plan, probed)
    if plan.per_layer:
        costs.append(layers_cost(plan, probed))
    costs += sharpness_costs(plan.specs, known)
    if plan.second_opinion:
        costs.append(second_opinion_cost(probed))
    if whole:
        costs += around_costs(plan, probed, first=first, seconds=seconds_per_forward)
    stages = [cost.stage for cost in costs]
    found = stages.index("eigenvalues") + 1 if "eigenvalues" in stages else len(costs)
    later = [replace(c, num_vectors=c.num_vectors + known.num_pairs) for c in costs[found:]]
    return [*costs[:found], *later]  # the eigenvectors stay
