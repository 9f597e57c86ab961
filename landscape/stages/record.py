"""Record: what one subject has given so far, and how a stage writes it down."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature import DifferencedObjective
from landscape.estimate import Cost, Estimate
from landscape.objective import Objective
from landscape.plan import ProbePlan
from landscape.sharpness import Spectrum

Progress = Callable[[str, int, int | None], object]  # (what, done, total)
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One trained model with its data, and what is known about it.

    Attributes:
        model, loss, batches: as `Objective` takes them.
        label: what it is called in tables.
        method: subjects of one method are its seeds.
        test_batches: data to set against; loss and accuracy alone are measured on them.
        data: description of the probed data for the report (plain values); `num_samples_total`
            above the number of rows says that they are a random part of so many.
        checkpoint: path, sha256 and load report of where the weights came from (plain values).
        training: what its training used, where known: `batch_size`, and `edge`, the curvature
            beyond which its last step sizes would not have been stable.
        trajectory: earlier weights of the same run by name, in order; for directions "pca".
        landmarks: weights by name that directions "checkpoints" go through, its own first.
    """

    model: nn.Module
    loss: Callable[..., Any]
    batches: Iterable[Any]
    label: str = "model"
    method: str = "model"
    seed: int | None = None
    test_batches: Iterable[Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    trajectory: Sequence[tuple[str, Weights]] = ()
    landmarks: Sequence[tuple[str, Weights]] = ()


@dataclass
class Record:
    """One subject while it is measured: its objective, and its part of the findings so far.

    Attributes:
        identifier: "c0", ...: names its arrays.
        batches: the raw batches, for those that bind the loss in their own way.
        objective, theta: L and where it is measured, shape (P,).
        entry: its entry of the findings document.
        arrays: by name; `keep` adds one.
        warnings: sentences that qualify its numbers.
        costs: by stage.
        spectrum: what is known of the curvature matrix, for the stages that share it.
    """

    identifier: str
    subject: Subject
    plan: ProbePlan
    batches: tuple[Any, ...]
    objective: Objective
    theta: Tensor
    progress: Progress | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    spectrum: Spectrum = field(default_factory=Spectrum)

    @classmethod
    def of(
        cls, identifier: str, subject: Subject, plan: ProbePlan, progress: Progress | None
    ) -> Record:
        """An empty record of a subject, its objective built as the plan says."""
        batches = tuple(subject.batches)
        objective = objective_of(subject, plan, batches)
        return cls(identifier, subject, plan, batches, objective, objective.theta, progress)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[Cost], None]]:
        """Times a stage; what it yields is told the counts of each part."""

        def charge(cost: Cost) -> None:
            counts = dataclasses.replace(cost, seconds=0.0)  # wall time is added once
            self.costs[name] = self.costs.get(name, Cost()) + counts

        begin = time.perf_counter()
        if "loss" in self.entry:  # nothing may stop a probe before it has a result to keep
            self.tell(name.replace("-", " "), 0, None)
        try:
            yield charge
        finally:
            seconds = time.perf_counter() - begin
            self.costs[name] = self.costs.get(name, Cost()) + Cost(seconds=seconds)

    @property
    def cost(self) -> Cost:
        """Of all stages."""
        return sum(self.costs.values(), start=Cost())

    def keep(self, kind: str, name: str, values: Tensor | np.ndarray[Any, Any]) -> None:
        """An array of this subject, as `KIND_ID_NAME`: float64, or int32 for whole numbers."""
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        whole = not np.issubdtype(array.dtype, np.floating)
        self.arrays[f"{kind}_{self.identifier}_{name}"] = array.astype(
            np.int32 if whole else np.float64
        )

    def tell(self, what: str, done: int, total: int | None) -> None:
        """Progress of one kind of work, under the subject's name."""
        if self.progress is not None:
            self.progress(f"{self.subject.label}: {what}", done, total)

    def telling(self, what: str) -> Callable[[int, int | None], None]:
        """`tell` for those that know what they are doing and not for whom."""
        return lambda done, total: self.tell(what, done, total)


def objective_of(
    subject: Subject,
    plan: ProbePlan,
    batches: Iterable[Any],
    *,
    parameters: Sequence[str] | None = None,
) -> Objective:
    """The loss of a subject on these batches as the plan wants it; `parameters` in its place.

    With `plan.approximate` its Hessian products are central differences of gradients, whoever asks.

    Raises:
        ValueError: as of `Objective`; differences, and the loss has kinks that they jump across.
    """
    how: Callable[..., Objective] = Objective
    if plan.approximate:
        how = partial(DifferencedObjective, across_kinks=plan.across_kinks)
    return how(
        subject.model,
        subject.loss,
        batches,
        parameters=plan.parameters if parameters is None else parameters,
        dtype=getattr(torch, plan.dtype) if plan.dtype else None,
        batch_norm=plan.batch_norm,
        fix_seeds=plan.seed if plan.fix_seeds else None,
        micro_batch=plan.micro_batch,
    )


def plain_estimate(estimate: Estimate) -> dict[str, Any]:
    """An estimate as plain values, its details beside its value."""
    details = {key: value for key, value in estimate.details.items() if key != "warnings"}
    found: dict[str, Any] = plain(
        {
            **details,
            "value": estimate.value,
            "standard_error": estimate.standard_error,
            "kind": estimate.kind,
            "rho": estimate.details.get("rho"),
            "cost": dataclasses.asdict(estimate.cost),
        }
    )
    return found


def plain(value: Any) -> Any:
    """The same with tensors and tuples as lists, so that it can stand in a JSON file."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
