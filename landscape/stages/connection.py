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
from landscape.parameters import ParameterSpace
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


def check_connectable(subjects: Sequence[Subject], plan: ProbePlan) -> None:
    """Raises ValueError where `connect` would for reasons that need no measurement.

    Fewer than two subjects; other shapes; two subjects at the same weights; a net that alignment
    does not know.
    """
    if len(subjects) < 2:
        raise ValueError("connect needs two or more checkpoints, got one")
    space = ParameterSpace.of(subjects[0].model)
    thetas = [_theta_of(space, subject) for subject in subjects]
    for one, other in combinations(range(len(subjects)), 2):
        if thetas[one].equal(thetas[other]):
            same = f"{subjects[one].label} and {subjects[other].label}"
            raise ValueError(f"{same} have the same weights: there is no path between them")
    if plan.align:
        match_weights(subjects[0].model, thetas[0], thetas[0], seed=plan.seed, max_sweeps=1)


def connect(
    subjects: Sequence[Subject], plan: ProbePlan, *, progress: Progress | None = None
) -> Paths:
    """The paths between each two subjects, "c0" and so on in their order, as the plan wants them.

    The loss is that of the first subject's data, at all parameters, on every path; a net with
    batch norm has its running statistics estimated anew at each point.

    Raises:
        ValueError: what `check_connectable` refuses.
        FloatingPointError: the loss is not finite at an end, or in training.
        RuntimeError: an alignment changed the loss.
    """
    check_connectable(subjects, plan)
    first = subjects[0]
    batches = tuple(first.batches)
    objective = objective_of(first, plan, batches, parameters=("*",))
    thetas = [_theta_of(objective.space, subject).to(objective.theta) for subject in subjects]
    landscape: Objective | Recalibrated = objective
    warnings: dict[str, None] = dict.fromkeys(_not_their_own(subjects))
    if plan.batch_norm == "eval" and objective.batch_norms:
        # Running statistics belong to one minimum, not to what lies between.
        landscape = Recalibrated(objective)
        warnings["Running statistics are estimated anew at each point of a path."] = None
        if plan.connect == "bezier":  # which is trained on the statistics of each batch
            by_batch = dataclasses.replace(plan, batch_norm="batch", micro_batch=None)
            objective = objective_of(first, by_batch, batches, parameters=("*",))
    elif objective.uses_running_statistics:
        warnings[f"Every path uses the running statistics of {first.label}."] = None
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


def _theta_of(space: ParameterSpace, subject: Subject) -> Tensor:
    try:
        own: Mapping[str, Tensor] = dict(subject.model.named_parameters())
        return space.flatten(own)
    except ValueError as error:
        raise ValueError(f"{subject.label} is another network than the first: {error}") from error


def _not_their_own(subjects: Sequence[Subject]) -> list[str]:
    """What a reader must know where the subjects have other data than the first."""
    first, *others = ({k: s.data.get(k) for k in ("sha256", "noise_seed")} for s in subjects)
    if all(other == first for other in others):
        return []
    return [
        f"All paths are measured on the labels of {subjects[0].label}; the others were trained on "
        "another draw of the label noise, or on other data."
    ]


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
