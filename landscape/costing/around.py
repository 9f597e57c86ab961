"""What it takes to look around the weights: slices, a plane, a map, and paths between them."""

from __future__ import annotations

from collections.abc import Iterator

from landscape.batch_statistics import Recalibrated
from landscape.eigenvalue_map import FIRST_LOOK
from landscape.estimate import Cost
from landscape.plan import ProbePlan
from landscape.stages.connection import NUM_POINTS, TRAINING_STEPS
from landscape.stages.planes import OWN_WINDOW

from .counts import Probed, StageCost, at_most, exact

_LATTICE = 13  # lines of the first lattice of an interpolated plane
_EXACT_WITHIN = 20.0  # seconds: a plane that takes less is evaluated in full
# From the first distance 40 doublings or halvings, and 6 bisections to 2 %; two ends each.
_RANGE_MOST, _RANGE_TYPICAL = 1 + 2 * (1 + 40 + 6), 18


def around_costs(
    plan: ProbePlan, probed: Probed, *, first: bool, seconds: float | None
) -> Iterator[StageCost]:
    """Of the range, the slices, the plane and the map of eigenvalues that a plan asks for."""
    if not (plan.surface or plan.line or plan.eigenvalue_map):
        return
    if plan.directions == "checkpoints" and not first:
        return
    passes = Recalibrated.num_passes if plan.recalibrate else 1
    if plan.range is None and plan.directions not in OWN_WINDOW:
        found = at_most(Cost(forwards=_RANGE_MOST), Cost(forwards=_RANGE_TYPICAL))
        yield StageCost("range", "", found.times(2 * passes), num_vectors=6)
    if plan.line:
        spent = exact(forwards=2 * (plan.line + 2) * passes)  # the centre before and after
        yield StageCost("slices", "", spent, num_vectors=6)
    if plan.surface:
        yield _surface_cost(plan, passes, seconds)
    if plan.eigenvalue_map:
        points, size = plan.eigenvalue_map**2, probed.num_parameters
        look = exact(products=min(FIRST_LOOK, size), forwards=1)
        most = max(1000, 50 * min(2, size))
        search = at_most(Cost(products=most), Cost(products=min(47, 1.5 * size)))
        yield StageCost(
            "eigenvalue-map",
            f"{points} points",
            (look + search).times(points) + exact(forwards=2),
            num_bases=points,
            num_vectors=8,
            note="fewer where the loss is not finite",
        )


def _surface_cost(plan: ProbePlan, passes: int, seconds: float | None) -> StageCost:
    """Of a plane: every point, or a lattice with a held-out point in each of its cells."""
    points = plan.surface**2
    lattice = _LATTICE**2 + (_LATTICE - 1) ** 2
    extra = 2 if plan.exact is not None else 3  # the centre before and after, and timed
    everything = exact(forwards=(points + extra) * passes)
    if plan.exact or 2 * lattice > points:
        return StageCost("surface", f"{points} points", everything, num_vectors=6)
    in_time = seconds is not None and points * passes * seconds < _EXACT_WITHIN
    likely = points if plan.exact is None and in_time else lattice
    typical = Cost(forwards=(likely + extra) * passes)
    return StageCost(
        "surface",
        f"{likely} of {points} points",
        at_most(everything.most, typical),
        num_vectors=6,
        note="more where the loss is rough; all of them where it is not finite",
    )


def connection_cost(plan: ProbePlan, probed: Probed, num_checkpoints: int) -> StageCost | None:
    """What the paths between each two of so many checkpoints take; None where none is asked for."""
    if plan.connect is None:
        return None
    pairs = num_checkpoints * (num_checkpoints - 1) // 2
    passes = Recalibrated.num_passes if probed.running_statistics else 1
    forwards, gradients = passes * (NUM_POINTS + 2 * plan.align), 0
    if plan.connect == "bezier":  # trained on batch statistics, where those of each point are asked
        gradients = TRAINING_STEPS
        forwards += 2 * NUM_POINTS + (passes * NUM_POINTS if passes > 1 else 0)
    return StageCost(
        "connection",
        f"{pairs} pairs" if pairs != 1 else "1 pair",
        exact(gradients=pairs * gradients, forwards=pairs * forwards),
        num_vectors=num_checkpoints + 10,
    )
