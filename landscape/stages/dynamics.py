"""measure_dynamics: what the curvature at the weights means for the steps that led there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from landscape.curvature import GaussNewton, Remainder
from landscape.gradient_noise import (
    batch_lambda_max,
    gradient_alignment,
    gradient_covariance_trace,
)
from landscape.linalg import lanczos

from .record import Record, plain_estimate

ROW_BY_ROW = 1000  # up to so many rows the gradient noise is exact over the probe data
NOISE_GROUPS = 200  # above
BATCH_SIZE = 100  # where nobody says what the training used
FACTS = ("", "_residual", "_converged", "_confirmed")  # what is said of an eigenvalue


def measure_dynamics(record: Record) -> None:
    """Alignment of gradient and curvature, the two parts of the Hessian, and gradient noise.

    What cannot be measured here (a loss without outputs to split at, rows that are not independent)
    is left out under `skipped`, with the reason.
    """
    objective, theta, plan = record.objective, record.theta, record.plan
    found: dict[str, Any] = {
        **dict.fromkeys(("curvature_along_gradient", "cosine", "gradient_norm")),
        **{f"lambda_max_{part}{of}": None for part in ("ggn", "remainder") for of in FACTS},
        **dict.fromkeys(("gradient_noise", "batch_lambda_max")),
        "edge": record.subject.training.get("edge"),
    }
    skipped: dict[str, str] = {}

    def attempt(name: str, measurement: Callable[[], None]) -> None:
        try:
            measurement()
        except ValueError as error:
            skipped[name] = str(error)

    with record.stage("dynamics") as charge:

        def alignment() -> None:
            pairs = record.spectrum.eigenpairs if plan.matrix == "hessian" else None
            top = None
            if pairs is not None and "top" in pairs.ends:
                top = pairs.at("top").vectors[:, 0]
            aligned = gradient_alignment(objective, theta, top_vector=top)
            charge(aligned.cost)
            found["curvature_along_gradient"] = aligned.curvature
            found["cosine"] = aligned.cosine
            found["gradient_norm"] = aligned.gradient_norm

        def part(name: str, matrix: type[GaussNewton] | type[Remainder]) -> None:
            pairs = lanczos(
                matrix(objective, theta),
                num_eigenpairs=1,
                tolerance=plan.tolerance,
                seed=plan.seed,
                progress=record.telling(f"lambda_max of the {name}"),
            )
            charge(pairs.cost)
            found[f"lambda_max_{name}"] = float(pairs.values[0])
            found[f"lambda_max_{name}_residual"] = float(pairs.residuals[0])
            found[f"lambda_max_{name}_converged"] = bool(pairs.converged[0])
            found[f"lambda_max_{name}_confirmed"] = bool(pairs.confirmed[0])

        def noise() -> None:
            estimate = gradient_covariance_trace(
                objective,
                theta,
                num_groups=None if objective.num_samples <= ROW_BY_ROW else NOISE_GROUPS,
                seed=plan.seed,
                progress=record.telling("gradient noise"),
            )
            charge(estimate.cost)
            found["gradient_noise"] = plain_estimate(estimate)

        def batches() -> None:
            wanted = plan.noise_batch_size or record.subject.training.get("batch_size")
            num_rows = objective.num_samples
            estimate = batch_lambda_max(
                objective,
                theta,
                batch_size=min(wanted or BATCH_SIZE, num_rows),
                seed=plan.seed,
                progress=record.telling("lambda_max of batches"),
            )
            charge(dataclasses.replace(estimate.cost))
            found["batch_lambda_max"] = {**plain_estimate(estimate), "wanted": wanted}
            if wanted and wanted > num_rows:
                record.warnings.append(
                    f"λmax of batches: {wanted} samples were wanted and only {num_rows} are "
                    "probed, so that each batch is all of them: this is λmax of the probed data, "
                    "and that of a batch from more data is another number."
                )

        attempt("alignment", alignment)
        attempt("lambda_max_ggn", lambda: part("ggn", GaussNewton))
        attempt("lambda_max_remainder", lambda: part("remainder", Remainder))
        attempt("gradient_noise", noise)
        attempt("batch_lambda_max", batches)
    record.entry["dynamics"] = {**found, "skipped": skipped}
