"""ProbePlan: what is measured on a checkpoint, with which budgets. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .sharpness import MetricSpec, parse

MATRICES = ("hessian", "ggn", "remainder", "fisher", "mc-fisher")
SEMIDEFINITE = ("ggn", "fisher", "mc-fisher")  # their bottom end is a crowd at zero
TRACE_METHODS = ("hutchinson", "hutchpp", "xtrace")
CONNECTIONS = ("line", "bezier")
# What is measured unless told otherwise: at one radius and cheap; the others go by name.
DEFAULT_METRICS = (
    *("gradient-norm", "lambda-max", "trace"),
    *("sam", "worst-case", "min-sharpness", "average-case"),
)
DIRECTIONS = ("filter", "layer", "random", "eigen", "gradient", "pca", "checkpoints")


@dataclass(frozen=True)
class ProbePlan:
    """What is measured, with which budgets. The defaults are those of `landscape-probe`.

    Attributes:
        eigenvalues: pairs at each end asked for; 0 for none.
        ends: "top", "bottom" or "both".
        tolerance: relative, of each eigenvalue's residual.
        matrix: whose spectrum: "hessian", "ggn" (generalised Gauss-Newton), "remainder" (their
            difference), "fisher" (empirical) or "mc-fisher" (labels drawn from the model).
        approximate: the Hessian's products by central differences of the gradient, and marked so.
        across_kinks: such differences across the kinks of ReLU and max-pooling too.
        trace_probes: matrix-vector products of the trace; 0 for none.
        trace_method: "hutchinson" (with known eigenpairs deflated), "hutchpp" or "xtrace".
        sampling: standard errors over the data of loss, gradient norm, eigenvalues and trace.
        diagonal_probes: products of the estimate of the diagonal; 0 for none.
        density_runs, density_steps: Lanczos runs and steps of the spectral density; 0 runs: none.
        surface: points of each axis of the plane; 0 for none.
        range: half-length of the axes in units of the directions; None: chosen for all together.
        directions: of the plane: one of `DIRECTIONS`. "pca": of each subject's trajectory;
            "checkpoints": through the first three subjects.
        exact: evaluate every point of the plane; None: interpolate where that saves time.
        line: points of each one-dimensional slice, along the plane's directions; 0 for none.
        recalibrate: batch norm's statistics re-estimated at each point of slices, planes and paths.
        eigenvalue_map: points of each axis of a map of lambda_max and |lambda_min| / lambda_max
            over the plane; 0 for none.
        per_layer: lambda_max, trace and worst case of each layer alone.
        dynamics: curvature along the gradient, its cosine with the top eigenvector, the largest
            eigenvalues of the Gauss-Newton part and of the remainder, and the gradient noise.
        noise_batch_size: samples of the batches whose lambda_max is part of that; None: the
            recipe's, else 100.
        connect: "line" or "bezier": the barrier between each two subjects; None: none.
        align: units permuted to the first subject's order before two are connected.
        metrics: sharpness measures, each "NAME" or "NAME:option=value:...".
        rho: radius of the measures that have one and whose word gives none; None: their own.
        search_steps, search_restarts: of the searches of worst-case and min-sharpness; None: their
            own.
        parameters: glob or globs of the parameters that move.
        second_opinion: PyHessian's eigenvalues and trace beside ours.
        first_seed_only: density and plane for the first checkpoint of each method alone.
        seed: of every random draw.
        dtype: "float32", "float64", or None for the model's own.
        batch_norm: "eval" or "batch".
        micro_batch: rows of a batch that are evaluated at a time; None: all of them.
        fix_seeds: seed the model's own random numbers by batch, from `seed` on.
        quick: said in the report.
    """

    eigenvalues: int = 5
    ends: str = "both"
    tolerance: float = 1e-3
    matrix: str = "hessian"
    approximate: bool = False
    across_kinks: bool = False
    trace_probes: int = 64
    trace_method: str = "hutchinson"
    sampling: bool = True
    diagonal_probes: int = 0
    density_runs: int = 10
    density_steps: int = 40
    surface: int = 51
    range: float | None = None
    directions: str = "filter"
    exact: bool | None = None
    line: int = 101
    recalibrate: bool = False
    eigenvalue_map: int = 0
    per_layer: bool = False
    dynamics: bool = False
    noise_batch_size: int | None = None
    connect: str | None = None
    align: bool = False
    metrics: tuple[str, ...] = DEFAULT_METRICS
    rho: float | None = None
    search_steps: int | None = None
    search_restarts: int | None = None
    parameters: tuple[str, ...] = ("*",)
    second_opinion: bool = False
    first_seed_only: bool = False
    seed: int = 0
    dtype: str | None = None
    batch_norm: str = "eval"
    micro_batch: int | None = None
    fix_seeds: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("ends", ("top", "bottom", "both")),
            ("matrix", MATRICES),
            ("trace_method", TRACE_METHODS),
            ("connect", (None, *CONNECTIONS)),
            ("directions", DIRECTIONS),
            ("dtype", (None, "float32", "float64")),
            ("batch_norm", ("eval", "batch")),
        ):
            if getattr(self, name) not in allowed:
                listed = ", ".join(str(word) for word in allowed if word)
                raise ValueError(f"{name} must be one of {listed}, got {getattr(self, name)!r}")
        for name in (
            *("surface", "line", "eigenvalue_map"),
            *("trace_probes", "density_runs", "diagonal_probes"),
        ):
            if getattr(self, name) == 1 or getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or at least 2, got {getattr(self, name)}")
        if self.directions == "eigen" and (self.eigenvalues < 2 or self.ends == "bottom"):
            raise ValueError("directions 'eigen' need two eigenvalues at the top end")
        if self.approximate and self.matrix != "hessian":
            raise ValueError(
                "central differences give products of the Hessian alone: matrix hessian"
            )
        if self.across_kinks and not self.approximate:
            raise ValueError("across_kinks is said of central differences: set approximate too")
        if self.trace_method != "hutchinson" and 0 < self.trace_probes < 4:
            raise ValueError(
                f"trace_method {self.trace_method} needs 0 or at least 4 trace_probes, "
                f"got {self.trace_probes}"
            )
        if self.range is not None and self.directions in ("pca", "checkpoints"):
            raise ValueError(f"directions {self.directions} show their own points: leave range out")
        if self.align and self.connect is None:
            raise ValueError("align belongs to connect: give connect line or bezier")
        _ = self.specs

    @property
    def shared_options(self) -> dict[str, float]:
        """The options that this plan gives to every measure which has them."""
        shared = {
            "rho": self.rho,
            "num_steps": self.search_steps,
            "num_restarts": self.search_restarts,
        }
        return {name: value for name, value in shared.items() if value is not None}

    @property
    def specs(self) -> list[MetricSpec]:
        """The sharpness measures with their options, this plan's radius and searches among them."""
        return [parse(word, defaults=self.shared_options) for word in self.metrics]

    @classmethod
    def quick_look(cls, **changes: Any) -> ProbePlan:
        """Small budgets: seconds a checkpoint on a small net. The report says that it is quick."""
        quick = cls(
            eigenvalues=3,
            ends="top",
            trace_probes=16,
            density_steps=15,
            surface=13,
            exact=True,
            line=41,
            search_steps=10,
            search_restarts=1,
            first_seed_only=True,
            quick=True,
        )
        return dataclasses.replace(quick, **changes)
