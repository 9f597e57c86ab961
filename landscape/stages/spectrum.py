"""measure_spectrum: eigenvalues, trace, diagonal and density of a plan's curvature matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from landscape.curvature import (
    CentralDifference,
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    MonteCarloFisher,
    Remainder,
)
from landscape.estimate import Cost, Estimate
from landscape.linalg import (
    Eigenpairs,
    SpectralDensity,
    SymmetricOperator,
    estimate_diagonal,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    slq_density,
    xtrace,
)
from landscape.objective import Objective
from landscape.plan import ProbePlan
from landscape.sampling import SamplingErrors, sampling_errors
from landscape.self_check import self_check
from landscape.sharpness import Spectrum

from .record import Record, plain

Matrix = Callable[[Objective, Tensor], SymmetricOperator]

NEAR_ZERO = 1e-2  # of the largest node: what counts as the bulk at zero
SAMPLING_GROUPS = 40
SAMPLING_PROBES = 16  # of the trace, at most

_MATRICES: dict[str, Matrix] = {
    "hessian": Hessian,
    "ggn": GaussNewton,
    "remainder": Remainder,
    "fisher": EmpiricalFisher,
}


def matrix_of(plan: ProbePlan) -> Matrix:
    """What builds the plan's curvature matrix from an objective and a theta."""
    if plan.approximate:
        return partial(CentralDifference, across_kinks=plan.across_kinks)
    if plan.matrix == "mc-fisher":
        return partial(MonteCarloFisher, seed=plan.seed)
    return _MATRICES[plan.matrix]


def measure_spectrum(record: Record, *, with_density: bool) -> None:
    """Whatever the plan wants of the spectrum, and what later stages share of it."""
    plan = record.plan
    if not (plan.eigenvalues or plan.trace_probes or plan.diagonal_probes or with_density):
        _measure_sampling(record, None, None)
        return
    operator = matrix_of(plan)(record.objective, record.theta)
    _check_operator(record, operator)
    pairs = _find_eigenpairs(record, operator) if plan.eigenvalues else None
    if pairs is not None:
        _write_eigenpairs(record, pairs)
    trace = _estimate_trace(record, operator, pairs) if plan.trace_probes else None
    _measure_sampling(record, pairs, trace)
    if plan.diagonal_probes:
        _estimate_diagonal(record, operator, pairs)
    density = _measure_density(record, operator) if with_density else None
    record.spectrum = Spectrum(pairs, trace, density, matrix=plan.matrix)


def find_eigenpairs(record: Record) -> Eigenpairs:
    """The plan's eigenpairs, searched again where an interrupted session took them with it."""
    pairs: Eigenpairs | None = record.spectrum.eigenpairs
    if pairs is None:
        operator = matrix_of(record.plan)(record.objective, record.theta)
        pairs = _find_eigenpairs(record, operator)
        record.spectrum = dataclasses.replace(record.spectrum, eigenpairs=pairs)
    return pairs


def no_sampling_because(plan: ProbePlan, *, num_rows: int, population: int | None) -> str | None:
    """Why there is no sampling error to give; None where there is.

    Args:
        plan: what is measured.
        num_rows: that are probed.
        population: rows of the whole that these are a part of; None: not known.
    """
    if not plan.sampling:
        return "not asked for"
    if population is None:
        return "how many samples there are in all is not known"
    if population <= num_rows:
        return "all samples were probed"
    if num_rows < SAMPLING_GROUPS:
        return f"it needs {SAMPLING_GROUPS} rows"
    if plan.batch_norm == "batch":
        return "batch statistics couple the rows of a batch"
    if plan.matrix == "mc-fisher":
        return "labels are drawn for the whole sample at once"
    return None


def _check_operator(record: Record, operator: SymmetricOperator) -> None:
    with record.stage("self-check") as charge:
        checked = self_check(operator, record.objective, seed=record.plan.seed)
        charge(checked.cost)
        record.entry["self_check"] = _without_costs(plain(checked.as_dict()))
        if not checked.passed:
            record.warnings.append(
                f"The curvature operator failed its self-check ({checked.summary()}): do not quote "
                "its spectrum."
            )
        if isinstance(operator, CentralDifference):
            probe = operator.theta / (operator.theta.double().norm() or 1.0)
            error = operator.error_of(probe.to(operator.dtype))
            charge(Cost(gradients=4))
            record.entry["matrix_error"] = error
            record.warnings.append(
                "Products are central differences of gradients, approximate: along theta two step "
                f"lengths differ by {error:.1e} of the product."
            )


def _without_costs(checked: dict[str, Any]) -> dict[str, Any]:
    """What was found, without the seconds it took: they stand in the stage's cost."""
    return {
        key: _without_costs(value) if isinstance(value, dict) else value
        for key, value in checked.items()
        if key != "cost"
    }


def _find_eigenpairs(record: Record, operator: SymmetricOperator) -> Eigenpairs:
    plan = record.plan
    with record.stage("eigenvalues") as charge:
        pairs = lanczos(
            operator,
            num_eigenpairs=plan.eigenvalues,
            ends=plan.ends,  # type: ignore[arg-type]
            tolerance=plan.tolerance,
            seed=plan.seed,
            progress=record.telling("eigenvalues"),
        )
        charge(pairs.cost)
    return pairs


def _write_eigenpairs(record: Record, pairs: Eigenpairs) -> None:
    record.entry["eigenvalues"] = [
        {
            "value": float(pairs.values[i]),
            "residual": float(pairs.residuals[i]),
            "converged": bool(pairs.converged[i]),
            "confirmed": bool(pairs.confirmed[i]),
            "sampling_error": None,
            "sampling_interval": None,
            "end": pairs.ends[i],
        }
        for i in range(len(pairs))
    ]
    if not bool(pairs.converged.all()):
        record.warnings.append("Not every eigenvalue converged: see the residuals.")
    elif not pairs.complete:
        record.warnings.append(
            "Completeness is not confirmed: an eigenvalue may be missing from the list."
        )


def _estimate_trace(
    record: Record, operator: SymmetricOperator, pairs: Eigenpairs | None
) -> Estimate:
    plan = record.plan
    with record.stage("trace") as charge:
        if plan.trace_method == "hutchinson":
            trace = hutchinson_trace(
                operator,
                num_probes=plan.trace_probes,
                seed=plan.seed,
                eigenpairs=pairs,
                progress=record.telling("trace"),
            )
        else:
            method = hutchpp_trace if plan.trace_method == "hutchpp" else xtrace
            trace = method(
                operator,
                num_products=plan.trace_probes,
                seed=plan.seed,
                progress=record.telling("trace"),
            )
        charge(trace.cost)
    record.entry["trace"] = {
        "value": trace.value,
        "standard_error": trace.standard_error,
        "num_matvecs": trace.num_matvecs,
        "method": plan.trace_method,
        "sampling_error": None,
        "sampling_interval": None,
    }
    return trace


def _measure_sampling(record: Record, pairs: Eigenpairs | None, trace: Estimate | None) -> None:
    """What it costs that the probed rows are a part of the data: errors over the data."""
    plan, objective, entry = record.plan, record.objective, record.entry
    population = record.subject.data.get("num_samples_total")
    reason = no_sampling_because(plan, num_rows=objective.num_samples, population=population)
    if reason is None:
        with record.stage("sampling") as charge:
            try:
                found = sampling_errors(
                    objective,
                    record.theta,
                    vectors=None if pairs is None else pairs.vectors,
                    num_trace_probes=0 if plan.quick else min(plan.trace_probes, SAMPLING_PROBES),
                    num_groups=SAMPLING_GROUPS,
                    population=population,
                    matrix=matrix_of(plan),
                    seed=plan.seed,
                    progress=record.telling("sampling error"),
                )
            except ValueError as error:
                reason = str(error)
            else:
                charge(found.cost)
    if reason is not None:
        entry["sampling"], entry["sampling_skipped"] = None, reason
        return
    if pairs is not None:
        for told, estimate in zip(entry["eigenvalues"], found.eigenvalues, strict=True):
            told["sampling_error"] = estimate.standard_error
            told["sampling_interval"] = estimate.details["interval"]
    if trace is not None and found.trace is not None:
        entry["trace"]["sampling_error"] = found.trace.standard_error
        entry["trace"]["sampling_interval"] = _interval_around(trace, found)
    entry["sampling"] = {
        "num_groups": found.num_groups,
        "num_rows": found.num_rows,
        "population": found.population,
        "seed": found.seed,
        "loss": _with_interval(found.loss),
        "gradient_norm": {
            **_with_interval(found.gradient_norm),
            "corrected": found.gradient_norm.details["corrected"],
        },
    }


def _interval_around(trace: Estimate, found: SamplingErrors) -> list[float]:
    """The 95 % interval over data and probes around the trace that was measured.

    The error over the data comes from probes of its own; the interval joins it to the error of the
    trace that stands in the result, with the degrees of freedom of Welch and Satterthwaite.
    """
    assert found.trace is not None
    parts = [
        (found.trace.standard_error or 0.0, found.num_groups - 1),
        (trace.standard_error or 0.0, max(trace.num_matvecs - 1, 1)),
    ]
    both = math.hypot(*(error for error, _ in parts))
    freedom = both**4 / sum(error**4 / degrees for error, degrees in parts) if both else 1.0
    half_width = float(stdtrit(freedom, 0.975)) * both
    return [trace.value - half_width, trace.value + half_width]


def _with_interval(estimate: Estimate) -> dict[str, Any]:
    return {
        "standard_error": estimate.standard_error,
        "interval": estimate.details["interval"],
    }


def _estimate_diagonal(
    record: Record, operator: SymmetricOperator, pairs: Eigenpairs | None
) -> None:
    plan = record.plan
    with record.stage("diagonal") as charge:
        found = estimate_diagonal(
            operator,
            num_probes=plan.diagonal_probes,
            seed=plan.seed,
            eigenpairs=pairs,
            progress=record.telling("diagonal"),
        )
        charge(found.cost)
    values = found.values.double()
    record.entry["diagonal"] = {
        "num_probes": found.num_probes,
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "negative_share": float((values < 0).double().mean()),
        "median_standard_error": float(found.standard_errors.double().median()),
    }
    record.keep("diagonal", "values", values)
    record.keep("diagonal", "errors", found.standard_errors)


def _measure_density(record: Record, operator: SymmetricOperator) -> SpectralDensity:
    plan = record.plan
    with record.stage("density") as charge:
        density = slq_density(
            operator,
            num_runs=plan.density_runs,
            num_steps=plan.density_steps,
            seed=plan.seed,
            progress=record.telling("density"),
        )
        charge(density.cost)
    # Of the zero matrix everything lies at zero, and a window needs some width to show it.
    cut = NEAR_ZERO * float(density.nodes.abs().max()) or torch.finfo(operator.dtype).tiny
    bulk = density.mass_between(-cut, cut)
    record.entry["density"] = {
        "num_runs": plan.density_runs,
        "num_steps": density.nodes.shape[1],
        "kernel_width": density.kernel_width,
        "mass": density.mass,
        "mean": density.mean,
        "mean_standard_error": density.mean_standard_error,
        "near_zero_mass": bulk.value,
        "near_zero_standard_error": bulk.standard_error,
        "near_zero_cut": cut,
    }
    record.keep("density", "grid", density.grid)
    record.keep("density", "value", density.density)
    if density.band is not None:
        record.keep("density", "lower", density.band[0])
        record.keep("density", "upper", density.band[1])
    record.keep("density", "nodes", density.nodes)
    record.keep("density", "weights", density.weights)
    return density
