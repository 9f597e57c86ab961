"""connect: the loss along straight or trained paths between the minima of several subjects."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from landscape.alignment import match_weights
from landscape.batch_statistics import Recalibrated
from landscape.connectivity import (
    Barrier,
    line_barrier,
    path_barrier,
    require_same_loss,
    train_curve,
)
from landscape.estimate import Cost
from landscape.objective import Objective
from landscape.plan import ProbePlan
from landscape.surface import num_passes

from .record import Progress, Subject, objective_of

NUM_POINTS = 25  # of each path, ends included
TRAINING_STEPS = 200  # of each curve, a gradient over the probe data each


@dataclass(frozen=True)
class Paths:
    """The `connection` section of a findings document, and its arrays."""

    section: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]


def connect(
    subjects: Sequence[Subject], plan: ProbePlan, *, progress: Progress | None = None
) -> Paths:
    """The paths between each two subjects, "c0" and so on in their order, as the plan wants them.

    The loss is that of the first subject's data, at all parameters, on every path; a net with
    running statistics has them estimated anew at each point.

    Raises:
        ValueError: fewer than two subjects; other shapes; two subjects at the same weights; a net
            that alignment does not know.
        FloatingPointError: the loss is not finite at an end, or in training.
    """
    if len(subjects) < 2:
        raise ValueError("connect needs two or more checkpoints, got one")
    first = subjects[0]
    batches = tuple(first.batches)
    objective = objective_of(first, plan, batches, parameters=("*",))
    landscape: Objective | Recalibrated = objective
    warnings: dict[str, None] = {}
    if objective.uses_running_statistics:  # they belong to one minimum, not to what lies between
        landscape = Recalibrated(objective)
        plan = dataclasses.replace(plan, batch_norm="batch")  # of the training of a curve
        objective = objective_of(first, plan, batches, parameters=("*",))
        warnings["Running statistics are estimated anew at each point of a path."] = None
    thetas = [_theta_of(objective, subject) for subject in subjects]
    cost = Cost()
    pairs: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    ends = list(combinations(range(len(subjects)), 2))
    for number, (one, other) in enumerate(ends):
        if progress is not None:
            progress("paths between checkpoints", number, len(ends))
        start, end, moved = thetas[one], thetas[other], None
        if plan.align:
            aligned = match_weights(first.model, start, end, seed=plan.seed)
            before, after = (landscape.evaluate(theta).loss for theta in (end, aligned.theta))
            require_same_loss(after, before, end, subjects[other].label)
            end, moved = aligned.theta, aligned.num_moved
            cost += Cost(forwards=2 * num_passes(landscape))
        distance = float((end.double() - start.double()).norm())
        if distance == 0:
            same = f"{subjects[one].label} and {subjects[other].label}"
            raise ValueError(f"{same} have the same weights: there is no path between them")
        straight = line_barrier(landscape, start, end, num_points=NUM_POINTS)
        barrier, steps = straight, 0
        cost += straight.cost
        if plan.connect == "bezier":
            barrier, spent = _along_a_trained_curve(objective, landscape, start, end, plan)
            cost += spent
            steps = TRAINING_STEPS
        identifier = f"p{number}"
        pairs.append(
            {
                "id": identifier,
                "first": f"c{one}",
                "second": f"c{other}",
                "height": barrier.height,
                "where": barrier.where,
                "half_grid_height": barrier.half_grid_height,
                "kind": barrier.kind,
                "distance": distance,
                "length": barrier.length,
                "num_nonfinite": barrier.num_nonfinite,
                "num_moved": moved,
                "line_height": straight.height if steps else None,
            }
        )
        warnings.update(dict.fromkeys(barrier.warnings))
        arrays |= _arrays_of(identifier, barrier)
        if steps:
            arrays[f"path_{identifier}_line_loss"] = straight.loss.numpy().astype(np.float64)
    section = {
        "kind": plan.connect,
        "aligned": plan.align,
        "num_points": NUM_POINTS,
        "training_steps": TRAINING_STEPS if plan.connect == "bezier" else None,
        "cost": dataclasses.asdict(cost),
        "warnings": list(warnings),
        "pairs": pairs,
    }
    return Paths(section, arrays)


def _theta_of(objective: Objective, subject: Subject) -> Tensor:
    try:
        own: Mapping[str, Tensor] = dict(subject.model.named_parameters())
        return objective.space.flatten(own).to(objective.theta)
    except ValueError as error:
        raise ValueError(f"{subject.label} is another network than the first: {error}") from error


def _along_a_trained_curve(
    objective: Objective,
    landscape: Objective | Recalibrated,
    start: Tensor,
    end: Tensor,
    plan: ProbePlan,
) -> tuple[Barrier, Cost]:
    trained = train_curve(
        objective, start, end, seed=plan.seed, num_steps=TRAINING_STEPS, num_points=NUM_POINTS
    )
    if landscape is objective:
        return trained.barrier, trained.cost
    barrier = path_barrier(
        landscape, trained.curve.at, length=trained.curve.length, num_points=NUM_POINTS
    )
    return barrier, trained.cost + barrier.cost


def _arrays_of(identifier: str, barrier: Barrier) -> dict[str, np.ndarray[Any, Any]]:
    found = {"t": barrier.t, "loss": barrier.loss, "accuracy": barrier.accuracy}
    return {
        f"path_{identifier}_{name}": values.numpy().astype(np.float64)
        for name, values in found.items()
        if values is not None
    }
