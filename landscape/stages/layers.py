"""measure_layers: the curvature and the sharpness of each layer alone, all others held fixed."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from landscape.estimate import Cost
from landscape.linalg import hutchinson_trace, lanczos
from landscape.plan import ProbePlan
from landscape.sharpness import MetricSpec, Spectrum, measure, parse

from .record import Record, objective_of
from .spectrum import matrix_of

_NUM_OF_A_KIND = 3  # layers that a warning is said of by name
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?|\b(?:nan|inf)\b")


def layers_of(names: Sequence[str]) -> dict[str, list[str]]:
    """The parameters of each layer, by the dotted name of the module that owns them, in order."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def worst_case_of(plan: ProbePlan) -> MetricSpec:
    """The worst case of a layer: the plan's own, its first, or with the options of all measures.

    So that the layers' worst cases and the whole net's are at one radius.
    """
    named = (spec for spec in plan.specs if spec.name == "worst-case")
    return next(named, None) or parse("worst-case", defaults=plan.shared_options)


def measure_layers(record: Record) -> None:
    """For each layer the diagonal block of the matrix that its parameters span.

    lambda_max of a block is at most that of the whole matrix, and the blocks' traces add up to the
    whole's. The worst case moves the layer's parameters alone, in the ball of `worst_case_of`.
    """
    layers = layers_of(record.objective.space.names)
    found: list[dict[str, Any]] = []
    said: list[tuple[str, str]] = []  # layer, what qualifies its numbers
    with record.stage("layers") as charge:
        for done, (name, parameters) in enumerate(layers.items()):
            record.tell("layers", done, len(layers))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                numbers, sentences = _measure_layer(record, parameters, charge)
            found.append({"name": name, **numbers})
            said += [(name, told) for told in [*sentences, *(str(w.message) for w in caught)]]
        record.tell("layers", len(layers), len(layers))
    record.entry["layers"] = found
    record.warnings += few_of_a_kind(said)


def few_of_a_kind(said: Sequence[tuple[str, str]]) -> list[str]:
    """What was said of layers as "LAYER: sentence", at most three of one kind, one a layer.

    Sentences that differ in their numbers alone are of one kind. The last of a kind that was cut
    tells of how many more layers it is said.

    Args:
        said: the name of a layer and a sentence about it, in order.
    """
    kinds: dict[str, dict[str, str]] = {}
    for name, sentence in said:
        kinds.setdefault(_NUMBER.sub("#", sentence), {}).setdefault(name, sentence)
    told: list[str] = []
    for by_layer in kinds.values():
        shown = [f"{name}: {sentence}" for name, sentence in by_layer.items()][:_NUM_OF_A_KIND]
        num_left = len(by_layer) - len(shown)
        if num_left:
            shown[-1] += f" (and so of {num_left} more layers)"
        told += shown
    return told


def _measure_layer(
    record: Record, parameters: Sequence[str], charge: Callable[[Cost], None]
) -> tuple[dict[str, Any], list[str]]:
    """A layer's numbers, and the sentences that qualify them."""
    plan = record.plan
    exactly = [glob.escape(name) for name in parameters]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there is to say of the data was said of the whole
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
    sharpness = measure(
        worst_case_of(plan), objective, objective.theta, seed=plan.seed, spectrum=spectrum
    )
    charge(sharpness.cost)
    value, residual = float(pairs.values[0]), float(pairs.residuals[0])
    sentences = [f"worst-case: {told}" for told in sharpness.details.get("warnings", ())]
    if not bool(pairs.converged[0]):
        sentences.insert(
            0,
            f"lambda_max {value:.4g} is not converged (residual {residual:.2g}): a larger "
            "eigenvalue may exist",
        )
    return {
        "num_parameters": objective.num_parameters,
        "norm": float(torch.linalg.vector_norm(objective.theta.double())),
        "lambda_max": value,
        "lambda_max_residual": residual,
        "lambda_max_confirmed": bool(pairs.confirmed[0]),
        "trace": None if trace is None else trace.value,
        "trace_standard_error": None if trace is None else trace.standard_error,
        "sharpness": sharpness.value,
        "sharpness_rho": sharpness.details.get("rho"),
        "sharpness_kind": sharpness.kind,
    }, sentences
