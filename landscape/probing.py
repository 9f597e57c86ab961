"""probe: every measurement of a plan on one or more trained models, as Findings."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from . import __version__
from .comparing import compare_checkpoints
from .differentiability import NoSecondDerivative
from .estimate import Cost
from .findings import Findings
from .plan import ProbePlan
from .stages import planes
from .stages.connection import Paths, check_connectable, connect
from .stages.dynamics import measure_dynamics
from .stages.layers import measure_layers
from .stages.loss import measure_loss
from .stages.record import Progress, Record, Subject, plain
from .stages.sharpness import ask_second_opinion, measure_sharpness
from .stages.spectrum import measure_spectrum
from .surface import require_same_loss

__all__ = [
    "BudgetSpent",
    "Measured",
    "Progress",
    "Session",
    "Subject",
    "assemble",
    "measured_by_position",
    "measured_whole",
    "probe",
    "probe_all",
]


class BudgetSpent(Exception):
    """Raised by a progress callback to end the probe; what is measured by then is kept."""


@dataclass(frozen=True)
class Measured:
    """What one subject gave: its entry of the findings document, and its arrays by name."""

    entry: dict[str, Any]
    arrays: dict[str, np.ndarray[Any, Any]]


def probe(
    model: nn.Module,
    loss: Callable[..., Any],
    batches: Iterable[Any],
    *,
    plan: ProbePlan | None = None,
    label: str = "model",
    progress: Progress | None = None,
) -> Findings:
    """The findings of a plan on one model; `findings.show()`, `save_findings`, `write_report`.

    Raises:
        ValueError: the data, the loss or the plan do not fit the model (see `Objective`).
        FloatingPointError: the loss, the gradient or a product is not finite at the weights.
    """
    subject = Subject(model, loss, batches, label=label, method=label)
    return probe_all([subject], plan=plan, progress=progress)


def probe_all(
    subjects: Sequence[Subject],
    *,
    plan: ProbePlan | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    title: str | None = None,
) -> Findings:
    """The findings of a plan on several models, on the same seeds, radii, planes and axes.

    A progress callback `progress(what, done, total)` may raise `BudgetSpent`: what is measured by
    then comes back, marked incomplete.

    Raises:
        ValueError: no subject; the data, the loss or the plan do not fit a model.
        FloatingPointError: the loss, the gradient or a product is not finite at some weights; the
            message names the subject.
    """
    plan = plan or ProbePlan()
    if plan.directions == "checkpoints":
        subjects = _with_landmarks(subjects)
    whole = measured_whole([subject.method for subject in subjects], plan)
    if plan.connect is not None:
        check_connectable(subjects, plan)
    session = Session(dict(enumerate(subjects)), plan, whole, progress=progress, command=command)
    session.measure_around(session.measure_at_weights())
    complete, connection = session.complete, None
    if plan.connect is not None and complete:
        try:
            connection = connect(subjects, plan, progress=progress)
        except BudgetSpent:
            complete = False
    return assemble(
        session.results(),
        plan,
        complete=complete,
        connection=connection,
        data=subjects[0].data,
        command=command,
        title=title or (subjects[0].label if len(subjects) == 1 else "Comparison"),
    )


def _with_landmarks(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects, each with the weights of the first three."""
    landmarks = [(one.label, dict(one.model.named_parameters())) for one in subjects[:3]]
    return [dataclasses.replace(one, landmarks=landmarks) for one in subjects]


def measured_whole(methods: Sequence[str], plan: ProbePlan) -> frozenset[int]:
    """The positions of the subjects that get a density and a plane: all, or each method's first."""
    if not plan.first_seed_only:
        return frozenset(range(len(methods)))
    return frozenset(methods.index(method) for method in methods)


def measured_by_position(findings: Findings) -> dict[int, Measured]:
    """What each subject of these findings gave, as a `Session` that goes on from it takes it."""
    return {
        int(entry["id"].removeprefix("c")): Measured(
            entry,
            {name: a for name, a in findings.arrays.items() if f"_{entry['id']}_" in name},
        )
        for entry in findings.checkpoints
    }


class Session:
    """The measurements of some subjects in two halves, so that several sessions can share axes.

    Args:
        subjects: by their position in the whole comparison.
        plan: for all of them.
        whole: positions that get a density, slices and a plane.
        progress, command: as for `probe_all`.
        earlier: what an interrupted session measured, by position: it is gone on from.

    Raises:
        ValueError: no subject.
    """

    def __init__(
        self,
        subjects: Mapping[int, Subject],
        plan: ProbePlan,
        whole: frozenset[int],
        *,
        progress: Progress | None = None,
        command: str | None = None,
        earlier: Mapping[int, Measured] | None = None,
    ) -> None:
        if not subjects:
            raise ValueError("there is no model to probe")
        self.plan = plan
        self.complete = True
        self._subjects, self._whole = subjects, whole
        self._progress, self._command = progress, command
        self._earlier = earlier or {}
        self._records: dict[int, Record] = {}

    def measure_at_weights(self) -> float | None:
        """Loss, spectrum and sharpness; returns the range that the planes here ask for, if any."""
        half = self.plan.range
        with self._until_the_budget_is_spent():
            for position, subject in self._subjects.items():
                with _named(subject):
                    self._measure_point(position, subject)
            for position, record in self._records.items():
                if position in self._whole and planes.finds_range(record):
                    with _named(record.subject):
                        half = max(half or 0.0, planes.find_range(record))
        return half

    def measure_around(self, half: float | None) -> None:
        """Slices and planes, out to `half` units of directions that have no window of their own."""
        if not self.complete:
            return
        with self._until_the_budget_is_spent():
            for position, record in self._records.items():
                if position in self._whole:
                    with _named(record.subject):
                        planes.measure_around(record, half)

    def results(self) -> dict[int, Measured]:
        """What was measured, by position; a subject whose loss was not reached is left out."""
        return {
            position: Measured(self._finished(record), record.arrays)
            for position, record in self._records.items()
            if "loss" in record.entry
        }

    def _measure_point(self, position: int, subject: Subject) -> None:
        record = Record.of(f"c{position}", subject, self.plan, self._progress)
        self._records[position] = record
        planes.evaluated(record)  # refused at once where it cannot be
        earlier = self._earlier.get(position)
        if earlier is not None and earlier.entry.get("at_weights"):
            self._take_over(record, earlier)
            return
        try:
            measure_loss(record)
        except FloatingPointError as error:  # a damaged file may be why
            told = (subject.checkpoint.get("load_report") or {}).get("warnings") or []
            raise FloatingPointError("; ".join([str(error), *told])) from error
        whole = position in self._whole
        measure_spectrum(record, with_density=whole and bool(self.plan.density_runs))
        if self.plan.dynamics:
            measure_dynamics(record)
        if self.plan.per_layer:
            measure_layers(record)
        measure_sharpness(record)
        if self.plan.second_opinion:
            ask_second_opinion(record)
        record.entry["at_weights"] = True

    def _take_over(self, record: Record, earlier: Measured) -> None:
        """Goes on from what an interrupted session measured of a subject; ValueError if of another.

        Weights, data, precision and versions must be the same, and the loss the same number.
        """
        now, then = self._provenance(record), earlier.entry["provenance"]
        for name in ("checkpoint_sha256", "data_sha256", "num_terms", "dtype", "versions"):
            if now[name] != then[name]:
                raise ValueError(
                    f"the earlier result has {name} {then[name]}, now it is {now[name]}: measure "
                    "anew (--overwrite)"
                )
        loss = record.objective.value(record.theta)
        require_same_loss(
            earlier.entry["loss"], loss, "in this session", dtype=record.objective.dtype
        )
        record.entry.update(earlier.entry)
        record.arrays.update(earlier.arrays)
        record.warnings += earlier.entry["warnings"]
        record.costs.update(
            {stage: Cost(**cost) for stage, cost in earlier.entry.get("costs", {}).items()}
        )
        for part in ("line", "surface", "eigenvalue_map", "trajectory"):
            if record.entry.get(part) is None:
                record.entry.pop(part, None)

    @contextmanager
    def _until_the_budget_is_spent(self) -> Iterator[None]:
        try:
            yield
        except BudgetSpent:
            self.complete = False

    def _finished(self, record: Record) -> dict[str, Any]:
        """The checkpoint's entry of the findings document."""
        subject = record.subject
        checkpoint = dict(subject.checkpoint)
        return {
            "id": record.identifier,
            "path": checkpoint.get("path"),
            "label": subject.label,
            "method": subject.method,
            "seed": subject.seed,
            "gradient_norm": None,
            "eigenvalues": [],
            **dict.fromkeys(("trace", "density", "diagonal", "sampling", "self_check")),
            **dict.fromkeys(("dynamics", "layers", "second_opinion", "matrix_error")),
            "sharpness": {},
            **dict.fromkeys(("line", "surface", "eigenvalue_map", "trajectory")),
            "at_weights": False,
            **record.entry,
            "load_report": checkpoint.get("load_report"),
            "warnings": list(dict.fromkeys(record.warnings)),
            "costs": {stage: dataclasses.asdict(cost) for stage, cost in record.costs.items()},
            "provenance": self._provenance(record),
        }

    def _provenance(self, record: Record) -> dict[str, Any]:
        subject, objective, cost = record.subject, record.objective, record.cost
        return {
            "checkpoint_sha256": subject.checkpoint.get("sha256"),
            "data_sha256": subject.data.get("sha256"),
            "seed": self.plan.seed,
            "dtype": str(objective.dtype).removeprefix("torch."),
            "num_terms": objective.num_terms,
            "versions": {
                "loss-landscape-toolkit": __version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "command": self._command,
            "seconds": cost.seconds,
            "matvecs": cost.products,
            "gradients": cost.gradients,
            "forwards": cost.forwards,
        }


def assemble(
    results: Mapping[int, Measured],
    plan: ProbePlan,
    *,
    complete: bool,
    data: Mapping[str, Any],
    command: str | None,
    title: str,
    connection: Paths | None = None,
) -> Findings:
    """The findings of all subjects, in the order of their positions, with their comparison."""
    ordered = [results[position] for position in sorted(results)]
    entries = [measured.entry for measured in ordered]
    warnings = [] if complete else ["Partial result: it was stopped before the end."]
    arrays = {name: array for measured in ordered for name, array in measured.arrays.items()}
    comparison = compare_checkpoints(entries)
    if comparison is not None:
        warnings += comparison["warnings"]
    section = None
    if connection is not None:
        section = connection.section
        warnings += section["warnings"]
        arrays |= connection.arrays
    document = {
        "schema": 1,
        "kind": "probe",
        "complete": complete,
        "quick": plan.quick,
        "title": title,
        "command": command,
        "settings": plain(dataclasses.asdict(plan)),
        "data": dict(data) or None,
        "warnings": warnings,
        "checkpoints": entries,
        "connection": section,
        "comparison": comparison,
        "training": None,
    }
    return Findings(document, arrays)


@contextmanager
def _named(subject: Subject) -> Iterator[None]:
    """Says which subject an error is about."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"{subject.label}: {error}") from error
    except NoSecondDerivative as error:
        raise NoSecondDerivative(f"{subject.label}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{subject.label}: {error}") from error
    except RuntimeError as error:
        raise RuntimeError(f"{subject.label}: {error}") from error
