"""What a study will cost, before it is trained: gradients by rule, seconds by doing a little of it.

A few real steps of each variant are timed, and one of the curvature measurements that end a run.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sam_variants.training.recipe import Recipe, Run
from sam_variants.training.trainer import Trainer

REHEARSED_STEPS = 10_000  # of a toy; a longer training is scaled up from them
UNKNOWN_STEPS = 200  # rehearsed where the budget does not say how many there are
TIMED_STEPS = 8


@dataclass(frozen=True)
class RunPlan:
    """The cost of one run of a variant.

    Attributes:
        label: the variant.
        num_runs: how many seeds.
        steps: optimizer steps; None where the budget counts something else.
        gradients: of one batch, forwards counted as thirds; the smallest and the largest: of the
            seeds where chance chooses the perturbed steps, and of what is possible where the
            gradient or the landscape does.
        exact: whether the two are one number, counted and not scaled.
        seconds: estimate of the time of a run, without evaluations; None where nothing was timed.
        probe_seconds: what the measuring of lambda_max and sharpness takes of it.
        num_parameters: of the model.
        base: the optimizer that takes the steps, in words.
    """

    label: str
    num_runs: int
    steps: int | None
    gradients: tuple[float, float]
    exact: bool
    seconds: float | None
    probe_seconds: float | None
    num_parameters: int
    base: str

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for --json."""
        return {
            "variant": self.label,
            "base": self.base,
            "runs": self.num_runs,
            "steps": self.steps,
            "gradients": self.gradients[0] if self.exact else None,
            "gradients_range": list(self.gradients),
            "exact": self.exact,
            "seconds": self.seconds,
            "probe_seconds": self.probe_seconds,
            "num_parameters": self.num_parameters,
        }


def plan_study(recipe: Recipe, *, allow_code: bool = False, timed: bool = True) -> list[RunPlan]:
    """The cost of one run of each variant.

    Gradients are counted, not computed from a formula: the rule itself is run on a toy of two
    parameters for as many steps, in batches of the real sizes, so that rules which ask for some
    rows ask for the same share of them, and with each seed where the policy draws. Only a rule
    whose policy reads the gradient or the landscape cannot be known in advance: its range is
    between no step perturbed and all.

    Args:
        recipe: what would be trained.
        allow_code: whether task and model may be files of the user's.
        timed: also take a few real steps of each variant, and measure the curvature once for all
            of them (the model and the samples are the same); seconds are None without.

    Raises:
        TrainingFailure: as the training would.
    """
    by_label: dict[str, list[Run]] = {}
    for run in recipe.runs:
        by_label.setdefault(run.label, []).append(run)
    plans: list[RunPlan] = []
    probes: _ProbeSeconds | None = None
    for runs in by_label.values():
        with TemporaryDirectory() as folder:
            trainer = Trainer(recipe, runs[0], Path(folder), allow_code=allow_code)
            a_step = _seconds_a_step(trainer) if timed else None
            probes = _seconds_of_probes(trainer) if timed and probes is None else probes
        plans.append(_plan(trainer, runs, a_step=a_step, probes=probes))
    return plans


@dataclass(frozen=True)
class _ProbeSeconds:
    """How long one measurement of the curvature takes, in between and at the end."""

    between: float
    end: float

    def of_a_run(self, num_epochs: float, every: str | int) -> float:
        """All of a run's; `every` epochs, or only at the end."""
        between = math.ceil(num_epochs / every - 1e-9) - 1 if isinstance(every, int) else 0
        return self.end + max(0, between) * self.between


def _plan(
    trainer: Trainer, runs: list[Run], *, a_step: float | None, probes: _ProbeSeconds | None
) -> RunPlan:
    recipe, policy, total = trainer.recipe, trainer.optimizer.policy, trainer.budget.total_steps
    steps = min(total or UNKNOWN_STEPS, REHEARSED_STEPS)
    sizes = _batch_sizes(trainer)
    if policy.needs_gradient or trainer.gauge is not None:
        counted = [_rehearsed(recipe, runs[0], sizes, steps, perturbed=p) for p in (False, True)]
        exact = False
    else:
        drawn = runs if policy.needs_draw else runs[:1]
        counted = [_rehearsed(recipe, run, sizes, steps, perturbed=None) for run in drawn]
        exact = total == steps and min(counted) == max(counted)
    least, most = min(counted), max(counted)
    training: float | None = None
    if total is not None:
        low, high = least * (total / steps), most * (total / steps)
        training = None if a_step is None else a_step * total
    elif recipe.budget[0] == "max_gradients":
        low = high = recipe.budget[1]
        exact = True
        if a_step is not None:
            training = a_step * recipe.budget[1] / max(1.0, (least + most) / 2 / steps)
    else:
        low, high, exact = 0.0, float("inf"), False
        training = recipe.budget[1]
    probing: float | None = None
    if probes is not None and a_step is not None and training is not None:
        probing = probes.of_a_run(training / a_step / trainer.steps_per_epoch, recipe.probe_every)
    return RunPlan(
        label=runs[0].label,
        num_runs=len(runs),
        steps=total,
        gradients=(low, high),
        exact=exact,
        seconds=None if probing is None or training is None else training + probing,
        probe_seconds=probing,
        num_parameters=trainer.num_parameters,
        base=trainer.plan.words,
    )


def _batch_sizes(trainer: Trainer) -> list[int]:
    """Rows of each batch of an epoch."""
    size = trainer.recipe.batch_size
    starts = range(0, trainer.steps_per_epoch * size, size)
    return [min(size, len(trainer.targets) - start) for start in starts]


def _rehearsed(
    recipe: Recipe, run: Run, sizes: list[int], steps: int, *, perturbed: bool | None
) -> float:
    """Gradients of that many steps of the rule on a toy; `perturbed` overrides its policy."""
    from sam_variants.policies import Always, Never

    weight = torch.nn.Parameter(torch.zeros(2))
    base = replace(recipe.base(run.spec), lr=1e-9).build([("weight", weight)])
    optimizer = run.optimizer(base, total_steps=steps)
    if perturbed is not None:
        optimizer.policy = Always() if perturbed else Never()
    for step in range(steps):
        for request in optimizer.passes(num_rows=sizes[step % len(sizes)]):
            request.unread.clear()  # a toy has one loss, the same for all rows
            weight.grad = torch.ones(2) if request.gradient else None
            rows = request.num_rows or 0
            request.loss = torch.zeros(rows) if request.per_sample else 0.0
        optimizer.step()
    return optimizer.counts.total


def _seconds_a_step(trainer: Trainer) -> float:
    """Of a few steps, after one that warms up."""
    torch.set_num_threads(trainer.threads)
    trainer.take_step()
    steps = max(1, min(TIMED_STEPS, trainer.steps_per_epoch - 1))
    began = time.monotonic()
    for _ in range(steps):
        if trainer.batch == trainer.steps_per_epoch:
            trainer.batch = 0
        trainer.take_step()
    return (time.monotonic() - began) / steps


def _seconds_of_probes(trainer: Trainer) -> _ProbeSeconds:
    """Of lambda_max alone, and of all that is measured of the last weights."""
    if trainer.recipe.probe_every == "never":
        return _ProbeSeconds(0.0, 0.0)
    import sam_variants.training.geometry  # noqa: F401  # its import is no part of a measurement

    lr = trainer.plan.lr
    began = time.monotonic()
    if trainer.probe is not None:
        trainer.curvature(trainer.probe, lr)
    between = time.monotonic() - began
    began = time.monotonic()
    trainer.final_curvature(lr)
    return _ProbeSeconds(between, time.monotonic() - began)
