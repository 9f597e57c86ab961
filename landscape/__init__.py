"""What the loss of a network looks like around a point: curvature, surfaces, sharpness.

Works on any torch model, trained by anything. Each measurement carries its error and its cost.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Cost": "landscape.estimate",
    "Estimate": "landscape.estimate",
    "ParameterSpace": "landscape.parameters",
    "Objective": "landscape.objective",
    "Hessian": "landscape.curvature",
    "GaussNewton": "landscape.curvature",
    "Remainder": "landscape.curvature",
    "EmpiricalFisher": "landscape.curvature",
    "MonteCarloFisher": "landscape.curvature",
    "CentralDifference": "landscape.curvature",
    "SelfCheck": "landscape.self_check",
    "lanczos": "landscape.linalg",
    "power_iteration": "landscape.linalg",
    "hutchinson_trace": "landscape.linalg",
    "hutchpp_trace": "landscape.linalg",
    "xtrace": "landscape.linalg",
    "estimate_diagonal": "landscape.linalg",
    "slq_density": "landscape.linalg",
    "sampling_errors": "landscape.sampling",
    "gradient_covariance_trace": "landscape.gradient_noise",
    "batch_lambda_max": "landscape.gradient_noise",
    "gradient_alignment": "landscape.gradient_noise",
    "GridPoints": "landscape.surface",
    "scan_line": "landscape.surface",
    "scan_plane": "landscape.surface",
    "Recalibrated": "landscape.batch_statistics",
    "eigenvalue_map": "landscape.eigenvalue_map",
    "line_barrier": "landscape.connectivity",
    "path_barrier": "landscape.connectivity",
    "barrier_matrix": "landscape.connectivity",
    "train_curve": "landscape.connectivity",
    "match_weights": "landscape.alignment",
    "trajectory_plane": "landscape.trajectory",
    "grid_topology": "landscape.topology",
    "surface_topology": "landscape.topology",
    "CurvatureMonitor": "landscape.monitor",
    "ProbePlan": "landscape.plan",
    "probe": "landscape.probing",
    "Findings": "landscape.findings",
    "load_findings": "landscape.findings",
    "save_findings": "landscape.findings",
}

__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): reading a table or a result folder must not import torch.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
