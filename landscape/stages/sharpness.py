"""measure_sharpness: the plan's sharpness measures, and PyHessian's numbers beside ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from landscape.estimate import Cost
from landscape.second_opinion import ask_pyhessian
from landscape.sharpness import Spectrum, measure

from .record import Record, plain, plain_estimate


def measure_sharpness(record: Record) -> None:
    """Every measure of the plan, and the gradient's length, which qualifies all of them."""
    found: dict[str, Any] = {}
    specs = record.plan.specs
    with record.stage("sharpness") as charge:
        for done, spec in enumerate(specs):
            record.tell("sharpness", done, len(specs))
            estimate = measure(
                spec,
                record.objective,
                record.theta,
                seed=record.plan.seed,
                spectrum=record.spectrum,
            )
            charge(estimate.cost)
            found[spec.label] = plain_estimate(estimate)
            record.warnings += map(str, estimate.details.get("warnings", ()))
        record.tell("sharpness", len(specs), len(specs))
        record.entry["sharpness"] = found
        if "gradient-norm" in found:
            record.entry["gradient_norm"] = found["gradient-norm"]["value"]
        else:
            gradient = record.objective.gradient(record.theta).double()
            record.entry["gradient_norm"] = float(torch.linalg.vector_norm(gradient))
            charge(Cost(gradients=1))


def ask_second_opinion(record: Record) -> None:
    """The eigenvalues and the trace by PyHessian, which gets the model, the loss and the data.

    Where it measures another function or another matrix its numbers are kept, nothing is compared,
    and the message says why.
    """
    reason = incomparable_because(record)
    known = record.spectrum if reason is None else Spectrum()
    with record.stage("second-opinion"):
        opinion = ask_pyhessian(
            record.subject.model,
            record.subject.loss,
            record.batches,
            eigenpairs=known.eigenpairs,
            trace=known.trace,
            parameters=record.plan.parameters,
            num_terms=record.objective.num_terms,
            seed=record.plan.seed,
        )
    if reason is not None:
        opinion = dataclasses.replace(opinion, message=f"{opinion.message}. Not compared: {reason}")
    record.entry["second_opinion"] = plain(dataclasses.asdict(opinion))
    if opinion.agrees is False:
        record.warnings.append(f"Second opinion: {opinion.message}")


def incomparable_because(record: Record) -> str | None:
    """Why PyHessian's numbers say nothing about ours; None where they do.

    It knows the Hessian by double backward alone, in the model's own precision and eval mode.
    """
    plan, objective = record.plan, record.objective
    own = {parameter.dtype for parameter in record.subject.model.parameters()}
    if plan.matrix != "hessian":
        return f"PyHessian knows the Hessian alone, and the matrix here is {plan.matrix}"
    if plan.approximate:
        return "PyHessian differentiates twice, and products here are differences of gradients"
    if plan.batch_norm == "batch" and objective.batch_norms:
        return "PyHessian uses running statistics, and batch norm here those of each batch"
    if plan.fix_seeds:
        return "PyHessian does not seed the random numbers that the model draws for each batch"
    if own != {objective.dtype}:
        named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in own))
        here = str(objective.dtype).removeprefix("torch.")
        return f"PyHessian computes in the model's {named}, and numbers here are in {here}"
    return None
