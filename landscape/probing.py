"""probe: every measurement of a plan on one or more trained models, as Findings."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import __version__
from .comparing import compare_checkpoints
from .curvature import GaussNewton, Hessian
from .directions import (
    eigenvector_direction,
    filter_normalised,
    gradient_direction,
    layer_normalised,
    random_directions,
)
from .estimate import Cost, Estimate
from .findings import Findings
from .linalg import SymmetricOperator, hutchinson_trace, lanczos, slq_density
from .objective import Objective
from .plan import ProbePlan
from .second_opinion import ask_pyhessian
from .sharpness import Spectrum, measure
from .surface import automatic_range, scan_line, scan_plane

MATRICES = {"hessian": Hessian, "ggn": GaussNewton}
NEAR_ZERO = 1e-2  # of lambda_max: what counts as the bulk at zero

Progress = Callable[[str, int, int | None], object]  # (what, done, total)


class BudgetSpent(Exception):
    """Raised by a progress callback to end the probe; what is measured by then is kept."""


@dataclass(frozen=True)
class Subject:
    """One trained model with its data, and what is known about it.

    Attributes:
        model, loss, batches: as `Objective` takes them.
        label: what it is called in tables.
        method: subjects of one method are its seeds.
        test_batches: data to set against; loss and accuracy alone are measured on them.
        data: description of the probed data for the report (plain values).
        checkpoint: path, sha256 and load report of where the weights came from (plain values).
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
    whole = measured_whole([subject.method for subject in subjects], plan)
    session = Session(dict(enumerate(subjects)), plan, whole, progress=progress, command=command)
    session.measure_around(session.measure_at_weights())
    return assemble(
        session.results(),
        plan,
        complete=session.complete,
        data=subjects[0].data,
        command=command,
        title=title or (subjects[0].label if len(subjects) == 1 else "Comparison"),
    )


def measured_whole(methods: Sequence[str], plan: ProbePlan) -> frozenset[int]:
    """The positions of the subjects that get a density and a plane: all, or each method's first."""
    if not plan.first_seed_only:
        return frozenset(range(len(methods)))
    return frozenset(methods.index(method) for method in methods)


class Session:
    """The measurements of some subjects in two halves, so that several sessions can share axes.

    Args:
        subjects: by their position in the whole comparison.
        plan: for all of them.
        whole: positions that get a density, slices and a plane.
        progress, command: as for `probe_all`.

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
    ) -> None:
        if not subjects:
            raise ValueError("there is no model to probe")
        self.plan = plan
        self.complete = True
        self._probes = {
            position: _Probe(
                f"c{position}",
                subject,
                plan,
                whole=position in whole,
                progress=progress,
                command=command,
            )
            for position, subject in subjects.items()
        }

    def measure_at_weights(self) -> float | None:
        """Loss, spectrum and sharpness; returns the range that the planes here ask for, if any."""
        probes = list(self._probes.values())
        try:
            for one in probes:
                one.measure_point()
            if self.plan.range is not None or not (self.plan.surface or self.plan.line):
                return self.plan.range
            return max((one.find_range() for one in probes if one.whole), default=None)
        except BudgetSpent:
            self.complete = False
            return None

    def measure_around(self, half: float | None) -> None:
        """Slices and planes out to `half` units of the directions; None: nothing."""
        if half is None or not self.complete:
            return
        try:
            for one in self._probes.values():
                one.measure_around(half)
        except BudgetSpent:
            self.complete = False

    def results(self) -> dict[int, Measured]:
        """What was measured, by position; a subject whose loss was not reached is left out."""
        return {
            position: Measured(one.finish(), one.arrays)
            for position, one in self._probes.items()
            if one.has_point
        }


def assemble(
    results: Mapping[int, Measured],
    plan: ProbePlan,
    *,
    complete: bool,
    data: Mapping[str, Any],
    command: str | None,
    title: str,
) -> Findings:
    """The findings of all subjects, in the order of their positions, with their comparison."""
    ordered = [results[position] for position in sorted(results)]
    entries = [measured.entry for measured in ordered]
    warnings = [] if complete else ["Partial result: it was stopped before the end."]
    document = {
        "schema": 1,
        "kind": "probe",
        "complete": complete,
        "quick": plan.quick,
        "title": title,
        "command": command,
        "settings": _plain(dataclasses.asdict(plan)),
        "data": dict(data) or None,
        "warnings": warnings,
        "checkpoints": entries,
        "comparison": compare_checkpoints(entries),
        "training": None,
    }
    arrays = {name: array for measured in ordered for name, array in measured.arrays.items()}
    return Findings(document, arrays)


class _Probe:
    """The measurements of one subject, in two halves: at its weights, and around them."""

    def __init__(
        self,
        identifier: str,
        subject: Subject,
        plan: ProbePlan,
        *,
        whole: bool,
        progress: Progress | None,
        command: str | None,
    ) -> None:
        self.identifier, self.subject, self.plan, self.whole = identifier, subject, plan, whole
        self._progress, self._command = progress, command
        self.entry: dict[str, Any] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.warnings: list[str] = []
        self.cost = Cost()
        self.has_point = False
        self.spectrum = Spectrum()
        self.batches = tuple(subject.batches)  # once: PyHessian gets the same raw batches

    # -- at the weights ------------------------------------------------------------------------

    def measure_point(self) -> None:
        """Loss, gradient, spectrum and sharpness."""
        begin = time.perf_counter()
        plan, subject = self.plan, self.subject
        with self._named():
            self.objective = Objective(
                subject.model,
                subject.loss,
                self.batches,
                parameters=plan.parameters,
                dtype=getattr(torch, plan.dtype) if plan.dtype else None,
                batch_norm=plan.batch_norm,
                fix_seeds=plan.seed if plan.fix_seeds else None,
            )
            self.theta = self.objective.theta
            self._measure_loss()
            self.has_point = True
            self._measure_spectrum()
            self._measure_sharpness()
            if plan.second_opinion:
                self._ask_second_opinion()
        self.cost += Cost(seconds=time.perf_counter() - begin)

    def _measure_loss(self) -> None:
        objective, theta = self.objective, self.theta
        here = objective.evaluate(theta)
        if not math.isfinite(here.loss):
            raise FloatingPointError(f"the loss at the weights is {here.loss}: nothing to measure")
        self.entry.update(
            loss=here.loss,
            accuracy=here.accuracy,
            test_loss=None,
            test_accuracy=None,
            parameter_norm=float(torch.linalg.vector_norm(theta.double())),
            num_parameters=objective.num_parameters,
        )
        self.cost += Cost(forwards=1)
        if self.subject.test_batches is not None:
            test = Objective(
                self.subject.model,
                self.subject.loss,
                self.subject.test_batches,
                dtype=objective.dtype,
                batch_norm=self.plan.batch_norm,
                fix_seeds=objective.fix_seeds,
            )
            there = test.evaluate(test.theta)
            self.entry.update(test_loss=there.loss, test_accuracy=there.accuracy)
        for kind, names in (("unused", objective.unused), ("frozen", objective.frozen)):
            if names:
                self.warnings.append(
                    f"{len(names)} parameters are {kind} ({', '.join(names[:5])}): "
                    + ("their curvature is zero." if kind == "unused" else "they do not move.")
                )
        if self.plan.batch_norm == "batch":
            self.warnings.append(
                "Batch norm uses the statistics of each batch: numbers depend on how the data "
                "were split."
            )

    def _measure_spectrum(self) -> None:
        plan = self.plan
        matrix = MATRICES[plan.matrix](self.objective)
        pairs = trace = density = None
        if plan.eigenvalues:
            pairs = lanczos(
                matrix,
                num_eigenpairs=plan.eigenvalues,
                ends=plan.ends,  # type: ignore[arg-type]
                tolerance=plan.tolerance,
                seed=plan.seed,
                progress=self._stage("eigenvalues"),
            )
            self.cost += dataclasses.replace(pairs.cost, seconds=0.0)  # wall time is added once
            self.entry["eigenvalues"] = [
                {
                    "value": float(pairs.values[i]),
                    "residual": float(pairs.residuals[i]),
                    "converged": bool(pairs.converged[i]),
                    "confirmed": bool(pairs.confirmed[i]),
                    "sampling_error": None,
                    "end": pairs.ends[i],
                }
                for i in range(len(pairs))
            ]
            if not bool(pairs.converged.all()):
                self.warnings.append("Not every eigenvalue converged: see the residuals.")
            elif not pairs.complete:
                self.warnings.append(
                    "Completeness is not confirmed: an eigenvalue may be missing from the list."
                )
        if plan.trace_probes:
            trace = hutchinson_trace(
                matrix,
                num_probes=plan.trace_probes,
                seed=plan.seed,
                eigenpairs=pairs,
                progress=self._stage("trace"),
            )
            self.cost += dataclasses.replace(trace.cost, seconds=0.0)
            self.entry["trace"] = {
                "value": trace.value,
                "standard_error": trace.standard_error,
                "num_matvecs": trace.num_matvecs,
            }
        if plan.density_runs and self.whole:
            density = self._measure_density(matrix)
        self.spectrum = Spectrum(pairs, trace, density, matrix=plan.matrix)

    def _measure_density(self, matrix: SymmetricOperator) -> Any:
        density = slq_density(
            matrix,
            num_runs=self.plan.density_runs,
            num_steps=self.plan.density_steps,
            seed=self.plan.seed,
            progress=self._stage("density"),
        )
        self.cost += dataclasses.replace(density.cost, seconds=0.0)
        largest = float(density.nodes.abs().max())
        cut = NEAR_ZERO * largest
        bulk = density.mass_between(-cut, cut)
        self.entry["density"] = {
            "num_runs": self.plan.density_runs,
            "num_steps": density.nodes.shape[1],
            "kernel_width": density.kernel_width,
            "mass": density.mass,
            "mean": density.mean,
            "mean_standard_error": density.mean_standard_error,
            "near_zero_mass": bulk.value,
            "near_zero_standard_error": bulk.standard_error,
            "near_zero_cut": cut,
        }
        self._keep("density", "grid", density.grid)
        self._keep("density", "value", density.density)
        if density.band is not None:
            self._keep("density", "lower", density.band[0])
            self._keep("density", "upper", density.band[1])
        self._keep("density", "nodes", density.nodes)
        self._keep("density", "weights", density.weights)
        return density

    def _measure_sharpness(self) -> None:
        found: dict[str, Any] = {}
        specs = self.plan.specs
        for done, spec in enumerate(specs):
            self._tell("sharpness", done, len(specs))
            estimate = measure(
                spec, self.objective, self.theta, seed=self.plan.seed, spectrum=self.spectrum
            )
            self.cost += dataclasses.replace(estimate.cost, seconds=0.0)
            found[spec.label] = _estimate(estimate)
            self.warnings += map(str, estimate.details.get("warnings", ()))
        self._tell("sharpness", len(specs), len(specs))
        self.entry["sharpness"] = found
        if "gradient-norm" in found:
            self.entry["gradient_norm"] = found["gradient-norm"]["value"]
        else:
            gradient = self.objective.gradient(self.theta).double()
            self.entry["gradient_norm"] = float(torch.linalg.vector_norm(gradient))
            self.cost += Cost(gradients=1)

    def _ask_second_opinion(self) -> None:
        self._tell("second opinion", 0, None)
        # PyHessian knows the Hessian alone: beside a Gauss-Newton matrix nothing is compared.
        known = self.spectrum if self.plan.matrix == "hessian" else Spectrum()
        opinion = ask_pyhessian(
            self.subject.model,
            self.subject.loss,
            self.batches,
            eigenpairs=known.eigenpairs,
            trace=known.trace,
            parameters=self.plan.parameters,
            num_terms=self.objective.num_terms,
            seed=self.plan.seed,
        )
        self.entry["second_opinion"] = _plain(dataclasses.asdict(opinion))
        if opinion.agrees is False:
            self.warnings.append(f"Second opinion: {opinion.message}")

    # -- around the weights --------------------------------------------------------------------

    def find_range(self) -> float:
        """How far this subject's loss must be walked for it to rise to ten times itself."""
        half = 0.0
        with self._named():
            for direction in self._axes():
                try:
                    found = automatic_range(self.objective, direction)
                except ValueError as error:  # a loss that stays low, or high, all the way
                    self.warnings.append(f"Range of the plane set to 1: {error}")
                    half = max(half, 1.0)
                    continue
                self.cost += found.cost
                half = max(half, found.value)
        return half

    def measure_around(self, half: float | None) -> None:
        """The slices and the plane, out to `half` units of the directions."""
        plan = self.plan
        if not self.whole or half is None or not (plan.surface or plan.line):
            return
        with self._named():
            first, second = self._axes()
            if plan.line:
                t = torch.linspace(-half, half, plan.line, dtype=torch.float64)
                lines = [
                    scan_line(self.objective, d, t=t, progress=self._stage("slices"))
                    for d in (first, second)
                ]
                for line in lines:
                    self.cost += line.cost
                self.entry["line"] = {
                    "directions": [f"{plan.directions} 1", f"{plan.directions} 2"],
                    "unit": self._unit(),
                    "norms": [line.norm for line in lines],
                    "parameter_norm": lines[0].parameter_norm,
                }
                self._keep("line", "t", t)
                self._keep("line", "loss", torch.stack([line.loss for line in lines]))
                accuracies = [line.accuracy for line in lines]
                if all(a is not None for a in accuracies):
                    self._keep(
                        "line", "accuracy", torch.stack([a for a in accuracies if a is not None])
                    )
            if plan.surface:
                self._measure_plane(first, second, half)

    def _measure_plane(self, first: Tensor, second: Tensor, half: float) -> None:
        plan = self.plan
        axis = torch.linspace(-half, half, plan.surface, dtype=torch.float64)
        surface = scan_plane(
            self.objective,
            first,
            second,
            x=axis,
            y=axis,
            exact=plan.exact,
            seed=plan.seed,
            progress=self._stage("surface"),
        )
        self.cost += surface.cost
        error = surface.interpolation_error
        self.entry["surface"] = {
            "center_loss": surface.center_loss,
            "min": surface.min,
            "max": surface.max,
            "num_nonfinite": surface.num_nonfinite,
            "interpolation_error": None if error is None else _plain(dataclasses.asdict(error)),
            "exact": surface.exact,
            "num_evaluated": surface.num_evaluated,
            "num_points": surface.num_points,
            "directions": plan.directions,
            "angle_degrees": surface.angle_degrees,
            "norms": list(surface.norms),
            "parameter_norm": surface.parameter_norm,
            "scale": surface.scale,
            "seed": surface.seed,
            "unit": self._unit(),
        }
        if surface.num_nonfinite:
            self.warnings.append(
                f"{surface.num_nonfinite} of {surface.num_evaluated} surface points are not "
                "finite: they are left empty."
            )
        self._keep("surface", "x", surface.x)
        self._keep("surface", "y", surface.y)
        self._keep("surface", "loss", surface.loss)
        if surface.accuracy is not None:
            self._keep("surface", "accuracy", surface.accuracy)
        self._keep("surface", "evaluated", surface.evaluated.int())

    def _axes(self) -> tuple[Tensor, Tensor]:
        plan, objective, theta = self.plan, self.objective, self.theta
        if plan.directions in ("filter", "layer"):
            normalised = filter_normalised if plan.directions == "filter" else layer_normalised
            first, second = (
                normalised(objective.space, theta, model=self.subject.model, seed=seed)
                for seed in (2 * plan.seed, 2 * plan.seed + 1)
            )
            return first, second
        if plan.directions == "eigen":
            assert self.spectrum.eigenpairs is not None
            vectors = self.spectrum.eigenpairs.at("top").vectors
            if vectors.shape[1] < 2:
                raise ValueError("directions 'eigen' need two eigenvectors, and there is one")
            return eigenvector_direction(vectors[:, 0]), eigenvector_direction(vectors[:, 1])
        drawn = random_directions(theta, num_directions=2, seed=plan.seed)
        if plan.directions == "random":
            return drawn[0], drawn[1]
        gradient = gradient_direction(objective, theta)
        rest = drawn[0] - gradient * (gradient @ drawn[0])
        return gradient, rest / torch.linalg.vector_norm(rest)

    def _unit(self) -> str:
        if self.plan.directions in ("filter", "layer"):
            return f"norm of each {self.plan.directions}"
        return "parameter norm"

    # -- results -------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """The checkpoint's entry of the findings document."""
        subject, objective = self.subject, self.objective
        checkpoint = dict(subject.checkpoint)
        return {
            "id": self.identifier,
            "path": checkpoint.get("path"),
            "label": subject.label,
            "method": subject.method,
            "seed": subject.seed,
            "gradient_norm": None,
            "eigenvalues": [],
            "trace": None,
            "density": None,
            "sharpness": {},
            "line": None,
            "surface": None,
            "layers": None,
            "second_opinion": None,
            **self.entry,
            "load_report": checkpoint.get("load_report"),
            "warnings": self.warnings,
            "provenance": {
                "checkpoint_sha256": checkpoint.get("sha256"),
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
                "seconds": self.cost.seconds,
                "matvecs": self.cost.products,
                "gradients": self.cost.gradients,
                "forwards": self.cost.forwards,
            },
        }

    def _keep(self, kind: str, name: str, values: Tensor) -> None:
        array = values.detach().cpu().numpy()
        whole = np.issubdtype(array.dtype, np.integer)
        self.arrays[f"{kind}_{self.identifier}_{name}"] = array.astype(
            np.int32 if whole else np.float64
        )

    def _tell(self, what: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(f"{self.subject.label}: {what}", done, total)

    def _stage(self, what: str) -> Callable[[int, int | None], None]:
        return lambda done, total: self._tell(what, done, total)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Says which subject an error is about."""
        try:
            yield
        except (ValueError, FloatingPointError, RuntimeError) as error:
            raise type(error)(f"{self.subject.label}: {error}") from error


def _estimate(estimate: Estimate) -> dict[str, Any]:
    details = {key: value for key, value in estimate.details.items() if key != "warnings"}
    plain: dict[str, Any] = _plain(
        {
            **details,
            "value": estimate.value,
            "standard_error": estimate.standard_error,
            "kind": estimate.kind,
            "rho": estimate.details.get("rho"),
            "cost": dataclasses.asdict(estimate.cost),
        }
    )
    return plain


def _plain(value: Any) -> Any:
    """The same with tensors and tuples as lists, so that it can stand in a JSON file."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
