"""measure_layers: the curvature and the sharpness of each layer alone, all others held fixed."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from landscape.linalg import hutchinson_trace, lanczos
from landscape.sharpness import Spectrum, measure, parse

from .record import Record, objective_of
from .spectrum import matrix_of


def layers_of(names: Sequence[str]) -> dict[str, list[str]]:
    """The parameters of each layer, by the dotted name of the module that owns them, in order."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def measure_layers(record: Record) -> None:
    """For each layer the diagonal block of the matrix that its parameters span.

    lambda_max of a block is at most that of the whole matrix, and the blocks' traces add up to the
    whole's. The worst case moves the layer's parameters alone, in a ball of the plan's radius.
    """
    layers = layers_of(record.objective.space.names)
    found: list[dict[str, Any]] = []
    with record.stage("layers") as charge, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever there is to say was said of the whole
        for done, (name, parameters) in enumerate(layers.items()):
            record.tell("layers", done, len(layers))
            found.append({"name": name, **_measure_layer(record, parameters, charge)})
        record.tell("layers", len(layers), len(layers))
    record.entry["layers"] = found


def _measure_layer(record: Record, parameters: Sequence[str], charge: Any) -> Mapping[str, Any]:
    plan = record.plan
    exactly = [glob.escape(name) for name in parameters]
    objective = objective_of(record.subject, plan, record.batches, parameters=exactly)
    operator = matrix_of(plan)(objective, objective.theta)
    pairs = lanczos(operator, num_eigenpairs=1, tolerance=plan.tolerance, seed=plan.seed)
    charge(pairs.cost)
    trace = None
    if plan.trace_probes:
        trace = hutchinson_trace(
            operator, num_probes=plan.trace_probes, seed=plan.seed, eigenpairs=pairs
        )
        charge(trace.cost)
    spectrum = Spectrum(pairs, trace, None, matrix=plan.matrix)
    worst_case = parse("worst-case", defaults=plan.shared_options)
    sharpness = measure(worst_case, objective, objective.theta, seed=plan.seed, spectrum=spectrum)
    charge(sharpness.cost)
    return {
        "num_parameters": objective.num_parameters,
        "norm": float(torch.linalg.vector_norm(objective.theta.double())),
        "lambda_max": float(pairs.values[0]),
        "lambda_max_residual": float(pairs.residuals[0]),
        "lambda_max_confirmed": bool(pairs.confirmed[0]),
        "trace": None if trace is None else trace.value,
        "trace_standard_error": None if trace is None else trace.standard_error,
        "sharpness": sharpness.value,
        "sharpness_rho": sharpness.details.get("rho"),
        "sharpness_kind": sharpness.kind,
    }
