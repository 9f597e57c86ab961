"""measure_loss: loss and accuracy at the weights, on the probed data and on those beside them."""

from __future__ import annotations

import math

import torch

from landscape.estimate import Cost
from landscape.objective import Objective

from .record import Record


def measure_loss(record: Record) -> None:
    """Loss, accuracy, parameter norm; what does not move; Raises FloatingPointError for no loss."""
    objective, subject, plan = record.objective, record.subject, record.plan
    with record.stage("loss") as charge:
        here = objective.evaluate(record.theta)
        charge(Cost(forwards=1))
        if not math.isfinite(here.loss):
            raise FloatingPointError(f"the loss at the weights is {here.loss}: nothing to measure")
        record.entry.update(
            loss=here.loss,
            accuracy=here.accuracy,
            test_loss=None,
            test_accuracy=None,
            parameter_norm=float(torch.linalg.vector_norm(record.theta.double())),
            num_parameters=objective.num_parameters,
        )
        if subject.test_batches is not None:
            test = Objective(
                subject.model,
                subject.loss,
                subject.test_batches,
                dtype=objective.dtype,
                batch_norm=plan.batch_norm,
                fix_seeds=objective.fix_seeds,
                micro_batch=plan.micro_batch,
            )
            there = test.evaluate(test.theta)
            charge(Cost(forwards=1))
            record.entry.update(test_loss=there.loss, test_accuracy=there.accuracy)
    if plan.approximate:
        record.warnings.append(
            "Curvature is taken by central differences of gradients: every number that rests on a "
            "Hessian product is approximate."
        )
    for kind, names in (("unused", objective.unused), ("frozen", objective.frozen)):
        if names:
            record.warnings.append(
                f"{len(names)} parameters are {kind} ({', '.join(names[:5])}): "
                + ("their curvature is zero." if kind == "unused" else "they do not move.")
            )
    if plan.batch_norm == "batch":
        record.warnings.append(
            "Batch norm uses the statistics of each batch: numbers depend on how the data were "
            "split."
        )
