"""Synthetic findings with every part that the report can draw: shaped like a real comparison."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from landscape.comparing import compare_checkpoints
from landscape.findings import Findings
from landscape.topology import grid_topology

HOSTILE = (
    "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b><a href='javascript:1'>link"
    "</a>\u202edesrever\u202c\nnew line %{x} $x^2$ \\frac " + "x" * 10_000
)

LAYERS = (("conv1", 130, 0.7), ("conv2", 1880, 0.5), ("linear", 3200, 0.3))
SHAPES = {"erm": (46.0, 0.851), "sam": (14.0, 0.882), "ae-sam": (21.0, 0.868)}


def probe_findings(
    *,
    methods: tuple[str, ...] = ("erm", "sam", "ae-sam"),
    seeds: int = 3,
    surface: int = 25,
    surfaces: str = "first",
    connect: str = "line",
    names: dict[str, str] | None = None,
) -> Findings:
    """Checkpoints of `methods` x `seeds`; density and surface for the first seed, or for `all`.

    Paths run between the first seeds: straight ones, or trained ones for `connect` "bezier".
    """
    generator = np.random.default_rng(7)
    names = names or {}
    checkpoints: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for method in methods:
        base, test_accuracy = SHAPES.get(method, (30.0, 0.86))
        for seed in range(seeds):
            identifier = f"c{len(checkpoints)}"
            full = surfaces == "all" or seed == 0
            top = base * (1 + 0.08 * generator.normal())
            checkpoint = _checkpoint(
                generator, identifier, names.get(method, method), seed, top, test_accuracy
            )
            _line(arrays, identifier, top, checkpoint)
            checkpoint["density"] = _density(arrays, generator, identifier, top) if full else None
            checkpoint["surface"] = (
                _surface(arrays, identifier, top, surface, checkpoint["loss"]) if full else None
            )
            checkpoint["trajectory"] = _trajectory(arrays, generator, identifier) if full else None
            checkpoint["eigenvalue_map"] = _map(arrays, identifier, top) if full else None
            checkpoint["diagonal"] = _diagonal(arrays, generator, identifier, top) if full else None
            checkpoints.append(checkpoint)
    document = {
        "schema": 1,
        "kind": "probe",
        "complete": True,
        "quick": False,
        "title": "mnist1d · cnn1d",
        "command": "landscape-probe runs/demo --quick",
        "settings": {
            "eigenvalues": 3,
            "tolerance": 1e-3,
            "matrix": "hessian",
            "trace_probes": 16,
            "surface": surface,
            "connect": connect,
            "seed": 0,
        },
        "data": {
            "description": "mnist1d, 10 classes, 40 inputs",
            "split": "train",
            "num_samples": 1000,
            "num_samples_total": 4000,
            "num_terms": 1000,
            "sha256": "5f" * 32,
        },
        "warnings": [
            "Measured on 1,000 of 4,000 training samples: eigenvalues carry a sampling error.",
        ],
        "checkpoints": checkpoints,
        "connection": _connection(arrays, checkpoints[::seeds], connect),
        "comparison": compare_checkpoints(checkpoints),
        "training": None,
    }
    return Findings(document, arrays)


def training_findings(*, epochs: int = 30, seeds: int = 3) -> Findings:
    """Runs of three variants, one of them with a switching signal."""
    return Findings(
        {
            "schema": 1,
            "kind": "training",
            "complete": True,
            "quick": False,
            "title": "mnist1d · cnn1d",
            "command": "landscape-train --variants erm,sam,ae-sam --seeds 3",
            "settings": {"epochs": epochs, "lr": 0.05, "batch_size": 100, "threads": 1},
            "data": None,
            "warnings": [],
            "checkpoints": [],
            "comparison": None,
            "training": _training(epochs, seeds),
        }
    )


def crowded_findings(*, variants: int = 12, seeds: int = 2) -> Findings:
    """A training of more variants than a legend holds: v00, the reference, has the best tests."""
    findings = training_findings(epochs=4, seeds=seeds)
    training = findings.document["training"]
    model, entry = training["runs"][0], training["comparison"]["variants"][0]
    runs, entries = [], []
    for number in range(variants):
        name, worse = f"v{number:02d}", 0.01 * number
        for seed in range(seeds):
            history = [
                {**line, "test_accuracy": line["test_accuracy"] - worse + 0.001 * seed}
                for line in model["history"]
            ]
            runs.append({**model, "id": f"r{len(runs)}", "name": f"{name}-seed{seed}",
                         "variant": name, "seed": seed, "history": history})  # fmt: skip
        entries.append({
            **entry, "variant": name, "base": "Adam (amsgrad), lr 0.001" if number == 3 else "SGD",
            "sharpness": _summary([0.02 + worse] * seeds), "probe_loss": _summary([0.2] * seeds),
            "refresh_gradients": _summary([0.0] * seeds),
            "paired": {"sharpness": {"difference": worse, "interval": None}} if number else None,
        })  # fmt: skip
    comparison = {"reference": "v00", "num_test": 1000, "num_probe": 500, "sharpness_rho": 0.05,
                  "variants": entries}  # fmt: skip
    crowd = {**training, "runs": runs, "comparison": comparison}
    return Findings({**findings.document, "training": crowd})


def full_findings(**options: Any) -> Findings:
    """A probe together with the training that made its checkpoints."""
    findings = probe_findings(**options)
    document = {**findings.document, "training": _training(30, 3)}
    return Findings(document, findings.arrays)


def _checkpoint(
    generator: np.random.Generator,
    identifier: str,
    method: str,
    seed: int,
    top: float,
    test_accuracy: float,
) -> dict[str, Any]:
    noise = generator.normal()
    loss = 0.021 * (1 + 0.1 * noise)
    test_loss = 0.35 + 0.004 * top + 0.02 * generator.normal()
    trace = 4.1 * top * (1 + 0.03 * generator.normal())
    values = [top, 0.61 * top, 0.44 * top, -0.012 * top]
    cost = {"products": 0, "gradients": 1, "forwards": 1, "seconds": 0.2}
    return {
        "id": identifier,
        "path": f"runs/demo/{method}-seed{seed}/checkpoint.pt",
        "label": f"{method} seed {seed}",
        "method": method,
        "seed": seed,
        "loss": loss,
        "accuracy": 0.998 - 0.001 * seed,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy + 0.006 * generator.normal(),
        "gradient_norm": 0.0123 * (1 + 0.2 * abs(noise)),
        "parameter_norm": 21.4,
        "num_parameters": 5210,
        "eigenvalues": [
            {
                "value": value,
                "residual": abs(value) * 4e-4 + 1e-4,
                "converged": True,
                "confirmed": i != 2,
                "sampling_error": abs(value) * 0.06,
                "sampling_interval": [value - 0.12 * abs(value), value + 0.12 * abs(value)],
                "end": "bottom" if i == 3 else "top",
            }
            for i, value in enumerate(values)
        ],
        "trace": {
            "value": trace,
            "standard_error": 0.05 * trace,
            "num_matvecs": 16,
            "method": "hutchinson",
            "sampling_error": 0.04 * trace,
            "sampling_interval": [0.87 * trace, 1.13 * trace],
        },
        "sampling": {
            "num_groups": 40,
            "num_rows": 1000,
            "population": 4000,
            "seed": 0,
            "loss": {"standard_error": 0.1 * loss, "interval": [0.8 * loss, 1.2 * loss]},
            "gradient_norm": {
                "standard_error": 0.0011,
                "interval": [0.009, 0.014],
                "corrected": 0.0117,
            },
        },
        "self_check": {
            "operator": "Hessian",
            "approximate": False,
            "seed": 0,
            "passed": True,
            "symmetry": _check(1.2e-8, 3.5e-4),
            "determinism": _check(0.0, 1.2e-4),
            "difference": {
                "status": "skipped: kinks",
                "relative_error": None,
                "tolerance": None,
                "cost": cost,
            },
            "cost": cost,
        },
        "matrix_error": None,
        "dynamics": _dynamics(top, noise, edge=40.0),
        "costs": {
            "loss": {**cost, "gradients": 0},
            "self-check": {**cost, "products": 3, "gradients": 0, "forwards": 0},
            "eigenvalues": {**cost, "products": 71, "gradients": 0, "forwards": 0, "seconds": 2.4},
            "dynamics": {**cost, "products": 38.4, "gradients": 3, "forwards": 1.6},
            "sharpness": {**cost, "products": 40, "gradients": 61, "forwards": 113, "seconds": 9.1},
        },
        "sharpness": {
            "sam": {
                "value": 0.004 * top,
                "standard_error": None,
                "kind": "exact",
                "rho": 0.05,
                "cost": cost,
            },
            "worst-case:rho=0.1": {
                "value": 0.011 * top * (1 + 0.02 * noise),
                "standard_error": None,
                "kind": "lower bound",
                "rho": 0.1,
                "cost": {**cost, "gradients": 60, "forwards": 80},
                "spread": 0.0003,
            },
            "average-case": {
                "value": 2e-4 * top,
                "standard_error": 1e-5 * top,
                "kind": "estimate",
                "rho": 0.1,
                "cost": {**cost, "gradients": 0, "forwards": 32},
            },
        },
        "layers": [
            {
                "name": name,
                "num_parameters": size,
                "norm": 4.0 + i,
                "lambda_max": top * part,
                "lambda_max_residual": 4e-4 * top * part,
                "lambda_max_confirmed": name != "conv2",
                "trace": 3 * top * part,
                "trace_standard_error": 0.1 * top * part,
                "sharpness": 0.008 * top * part,
                "sharpness_rho": 0.05,
                "sharpness_kind": "lower bound",
            }
            for i, (name, size, part) in enumerate(LAYERS)
        ],
        "second_opinion": {
            "source": "PyHessian 0.1",
            "eigenvalues": [top * 1.0002, 0.61 * top, 0.44 * top * 0.9995],
            "trace": trace * 1.03,
            "trace_standard_error": 0.05 * trace,
            "difference": 5e-4,
            "agrees": True,
            "message": "eigenvalues agree within 0.05 %, trace within 0.4 standard errors",
        }
        if seed == 0
        else None,
        "load_report": {
            "format": "loss-landscape-toolkit/1",
            "matched": 8,
            "missing": [],
            "unexpected": [],
            "shapes": [],
            "casts": [],
            "prefixes_removed": [],
            "skipped": [],
        },
        "warnings": ["the gradient is not small: ‖g‖ = 0.012"] if top > 40 else [],
        "provenance": {
            "checkpoint_sha256": "ab" * 32,
            "data_sha256": "5f" * 32,
            "seed": 0,
            "dtype": "float32",
            "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
            "command": "landscape-probe runs/demo --quick",
            "seconds": 4.2 + seed,
            "matvecs": 210,
            "gradients": 61,
            "forwards": 282,
        },
    }


def _density(
    arrays: dict[str, np.ndarray], generator: np.random.Generator, identifier: str, top: float
) -> dict[str, Any]:
    runs, steps, width = 10, 15, 0.02 * top
    heads = np.linspace(-0.01 * top, top, steps)
    nodes = np.sort(heads[None] + 0.02 * top * generator.normal(size=(runs, steps)), axis=1)
    weights = np.exp(-np.abs(heads) / (0.06 * top))[None] * (
        1 + 0.2 * generator.uniform(size=(runs, steps))
    )
    weights /= weights.sum(axis=1, keepdims=True)
    grid = np.linspace(-0.1 * top, 1.1 * top, 400)
    kernels = np.exp(-0.5 * ((grid[:, None, None] - nodes[None]) / width) ** 2) / (
        width * math.sqrt(2 * math.pi)
    )
    by_run = (kernels * weights[None]).sum(axis=2)
    mean, error = by_run.mean(axis=1), by_run.std(axis=1, ddof=1) / math.sqrt(runs)
    arrays[f"density_{identifier}_grid"] = grid
    arrays[f"density_{identifier}_value"] = mean
    arrays[f"density_{identifier}_lower"] = mean - 2.26 * error
    arrays[f"density_{identifier}_upper"] = mean + 2.26 * error
    arrays[f"density_{identifier}_nodes"] = nodes
    arrays[f"density_{identifier}_weights"] = weights
    return {
        "num_runs": runs,
        "num_steps": steps,
        "kernel_width": width,
        "mass": 1.0,
        "mean": float((nodes * weights).sum(axis=1).mean()),
        "mean_standard_error": 0.003 * top,
        "near_zero_mass": 0.93,
        "near_zero_cut": 0.01 * top,
    }


def _line(
    arrays: dict[str, np.ndarray], identifier: str, top: float, checkpoint: dict[str, Any]
) -> None:
    t = np.linspace(-1, 1, 41)
    loss = checkpoint["loss"]
    rise = [np.log1p(0.5 * part * top * t**2 * (1 + 0.2 * t)) for part in (0.3, 1.0)]
    arrays[f"line_{identifier}_t"] = t
    arrays[f"line_{identifier}_loss"] = np.stack([loss + part for part in rise])
    arrays[f"line_{identifier}_accuracy"] = np.stack([1 / (1 + part) for part in rise])
    checkpoint["line"] = {"directions": ["filter 1", "v1"], "unit": "filter norms"}


def _surface(
    arrays: dict[str, np.ndarray], identifier: str, top: float, size: int, loss: float
) -> dict[str, Any]:
    x = np.linspace(-1, 1, size)
    y = np.linspace(-1, 1, size)
    across, along = np.meshgrid(x, y)
    quadratic = 0.5 * top * (0.35 * across**2 + 0.2 * along**2 + 0.1 * across * along)
    ripple = 0.15 * (1 - np.cos(5 * across + 2 * along)) * np.abs(across * along)
    z = loss + 2.5 * np.log1p(quadratic / 2) + ripple
    if identifier == "c0":
        # Two basins of their own beside the one in the middle.
        for dip, column, row in ((3.0, 0.6, 0.5), (2.4, -0.65, -0.55)):
            z -= dip * np.exp(-((across - column) ** 2 + (along - row) ** 2) / 0.03)
        z = np.maximum(z, 0.9 * loss)
        z[-1, -1] = np.nan
    arrays[f"surface_{identifier}_x"] = x
    arrays[f"surface_{identifier}_y"] = y
    arrays[f"surface_{identifier}_loss"] = z
    arrays[f"surface_{identifier}_accuracy"] = 1 / (1 + z)
    arrays[f"surface_{identifier}_evaluated"] = (np.indices(z.shape).sum(axis=0) % 2).astype(int)
    return {
        "center_loss": loss,
        "min": float(np.nanmin(z)),
        "max": float(np.nanmax(z)),
        "num_nonfinite": int(np.isnan(z).sum()),
        "interpolation_error": {
            "maximum": 0.012,
            "working_maximum": 0.036,
            "relative": 0.004,
            "num_held_out": 59,
        },
        "exact": False,
        "num_evaluated": 228,
        "num_points": z.size,
        "directions": ["filter-normalised 1", "filter-normalised 2"],
        "angle_degrees": 89.4,
        "norms": [20.9, 21.2],
        "parameter_norm": 21.4,
        "scale": "log-loss",
        "seed": 0,
        "unit": "norm of each filter",
        "points": [],
        "recalibrated": False,
        "topology": _topology(z, x, y),
    }


def _topology(z: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    found = grid_topology(z, x=x, y=y, error=0.036)
    depth = {pair.extremum: pair.persistence for pair in found.minimum_pairs}
    counts = {f"num_{kind}": len(getattr(found, kind)) for kind in ("minima", "saddles", "maxima")}
    kept = ("total_persistence", "relative_persistence", "value_range", "threshold")
    return {
        **counts,
        **{name: getattr(found, name) for name in (*kept, "num_dropped", "num_masked")},
        "minima": [
            {
                "x": point.x,
                "y": point.y,
                "loss": point.loss,
                "persistence": depth.get(point),
                "on_border": point.on_border,
            }
            for point in found.minima[:20]
        ],
    }


def _trajectory(
    arrays: dict[str, np.ndarray], generator: np.random.Generator, identifier: str
) -> dict[str, Any]:
    n = 12
    left = (1 - np.arange(n) / (n - 1)) ** 2
    points = np.stack([-0.85 * left, 0.7 * left * np.cos(3 * left)], axis=1)
    arrays[f"trajectory_{identifier}_coordinates"] = points
    arrays[f"trajectory_{identifier}_distances"] = 0.1 * left * generator.uniform(size=n)
    arrays[f"trajectory_{identifier}_radii"] = np.hypot(
        np.linalg.norm(points, axis=1), arrays[f"trajectory_{identifier}_distances"]
    )
    return {
        "names": [*(str(5 * i + 1) for i in range(n - 1)), "last"],
        "captured": [0.71, 0.2],
        "total_captured": 0.91,
        "exceeds_random_walk": False,
        "caution": "2 components capture 91.0% of the path; of a random walk with the same 11 step "
        "lengths in 5,210 dimensions they capture 90.3% (95 % of walks: 89.1% to 91.5%): the share "
        "alone does not show a path close to a plane",
        "random_walk": {"total": 0.903, "low": 0.891, "high": 0.915, "num_walks": 100},
    }


def _map(arrays: dict[str, np.ndarray], identifier: str, top: float) -> dict[str, Any]:
    axis = np.linspace(-1, 1, 7)
    across, along = np.meshgrid(axis, axis)
    largest = top * np.exp(0.4 * across - 0.8 * along**2)
    ratio = 0.012 + 0.5 * np.hypot(across, along) ** 2
    if identifier == "c0":
        ratio[0, 0] = largest[0, 0] = np.nan
    arrays[f"map_{identifier}_x"] = arrays[f"map_{identifier}_y"] = axis
    arrays[f"map_{identifier}_lambda_max"] = largest
    arrays[f"map_{identifier}_lambda_min"] = -ratio * largest
    arrays[f"map_{identifier}_ratio"] = ratio
    return {
        "num_points": ratio.size,
        "tolerance": 0.01,
        "max_ratio": float(np.nanmax(ratio)),
        "num_unconverged": 2,
    }


def _diagonal(
    arrays: dict[str, np.ndarray], generator: np.random.Generator, identifier: str, top: float
) -> dict[str, Any]:
    values = 1e-3 * top * generator.exponential(size=5210) - 2e-5 * top
    errors = np.full(5210, 4e-5 * top)
    arrays[f"diagonal_{identifier}_values"], arrays[f"diagonal_{identifier}_errors"] = (
        values,
        errors,
    )
    return {
        "num_probes": 32,
        "min": float(values.min()),
        "max": float(values.max()),
        "mean": float(values.mean()),
        "negative_share": float((values < 0).mean()),
        "median_standard_error": float(np.median(errors)),
    }


def _check(error: float, tolerance: float) -> dict[str, Any]:
    cost = {"products": 2, "gradients": 0, "forwards": 0, "seconds": 0.1}
    return {
        "status": "passed" if error <= tolerance else "failed",
        "relative_error": error,
        "tolerance": tolerance,
        "cost": cost,
    }


def _dynamics(top: float, noise: float, *, edge: float) -> dict[str, Any]:
    return {
        "curvature_along_gradient": 0.35 * top * (1 + 0.1 * noise),
        "cosine": 0.62,
        "gradient_norm": 0.0123 * (1 + 0.2 * abs(noise)),
        "lambda_max_ggn": 0.97 * top,
        "lambda_max_ggn_residual": 5e-4 * top,
        "lambda_max_remainder": 0.08 * top,
        "lambda_max_remainder_residual": 1e-4 * top,
        "gradient_noise": {
            "value": 3.1,
            "standard_error": None,
            "kind": "exact",
            "sampling_error": 0.41,
            "interval": [2.3, 3.9],
            "noise_scale": None if noise > 1 else 930.0,
            "num_groups": 1000,
        },
        "batch_lambda_max": {
            "value": 1.45 * top,
            "standard_error": 0.06 * top,
            "kind": "lower bound" if noise < 0 else "estimate",
            "interval": [1.31 * top, 1.59 * top],
            "batch_size": 100,
            "num_batches": 10,
        },
        "edge": edge,
        "skipped": {},
    }


def _connection(
    arrays: dict[str, np.ndarray], ends: list[dict[str, Any]], kind: str
) -> dict[str, Any] | None:
    """Paths between each two of these checkpoints, later ones with higher barriers."""
    if len(ends) < 2:
        return None
    t = np.linspace(0, 1, 25)
    is_curved = kind == "bezier"
    pairs: list[dict[str, Any]] = []
    for i, first in enumerate(ends):
        for second in ends[i + 1 :]:
            identifier, number = f"p{len(pairs)}", len(pairs)
            height = (0.02 if is_curved else 0.7) * (1 + number)
            rise = height * np.sin(np.pi * t) ** 2 * (1 + 0.3 * (t - 0.5))
            chord = (1 - t) * first["loss"] + t * second["loss"]
            loss = chord + rise
            arrays[f"path_{identifier}_t"] = t
            arrays[f"path_{identifier}_loss"] = loss
            arrays[f"path_{identifier}_accuracy"] = 1 / (1 + loss)
            found = float(rise.max())
            pairs.append(
                {
                    "id": identifier,
                    "first": first["id"],
                    "second": second["id"],
                    "height": found,
                    "where": float(t[rise.argmax()]),
                    "half_grid_height": (0.6 if number == 1 else 0.99) * found,
                    "kind": "lower bound",
                    "distance": 29.5 + number,
                    "length": 31.2 + number,
                    "num_nonfinite": 0,
                    "num_moved": 40 + number if is_curved else None,
                    "line_height": 0.7 * (1 + number) if is_curved else None,
                }
            )
    return {
        "kind": kind,
        "aligned": is_curved,
        "num_points": len(t),
        "training_steps": 200 if is_curved else None,
        "cost": {"products": 0, "gradients": 600 if is_curved else 0, "forwards": 75,
                 "seconds": 14.0},
        "warnings": [],
        "pairs": pairs,
    }  # fmt: skip


def _summary(values: list[float]) -> dict[str, Any]:
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = 4.303 * deviation / math.sqrt(len(values))
    return {"mean": mean, "standard_deviation": deviation, "interval": [mean - half, mean + half]}


def _training(epochs: int, seeds: int) -> dict[str, Any]:
    generator = np.random.default_rng(11)
    runs = []
    for variant, (top, best) in SHAPES.items():
        for seed in range(seeds):
            history, gradients = [], 0.0
            for epoch in range(1, epochs + 1):
                share = {"erm": 0.0, "sam": 1.0, "ae-sam": 0.46}[variant]
                gradients += 40 * (1 + share)
                done = epoch / epochs
                signal = 0.4 * (1 + 0.6 * generator.normal() ** 2) * (1 - 0.5 * done)
                edge = 2 / (0.05 * (1 - 0.9 * done))
                line: dict[str, Any] = {
                    "epoch": epoch,
                    "step": 40 * epoch,
                    "train_loss": 2.3 * math.exp(-5 * done) + 0.02 + 0.01 * generator.uniform(),
                    "train_accuracy": 1 - 0.9 * math.exp(-6 * done),
                    "test_loss": 2.3 * math.exp(-6 * done) + 0.35 + 0.2 * done,
                    "test_accuracy": best * (1 - 0.9 * math.exp(-7 * done))
                    + 0.004 * generator.normal(),
                    "gradients": gradients,
                    "forwards": gradients,
                    "perturbed_share": share + 0.02 * generator.normal() * (variant == "ae-sam"),
                    "skipped": 0,
                    "gradient_norm": 0.5,
                    "rho": 0.05,
                    "lr": 0.05 * (1 - 0.9 * done),
                    "seconds": 0.3 * epoch * (1 + share),
                    "signal": signal if variant == "ae-sam" else None,
                    "signal_mean": 0.45 if variant == "ae-sam" else None,
                    "signal_deviation": 0.1,
                    "threshold": 0.45 + 0.1 * (1 - 2 * done) if variant == "ae-sam" else None,
                    "lambda_max": top * (1 - math.exp(-4 * done)) * (1 + 0.1 * generator.normal()),
                    "edge": edge,
                    "sam_edge": 0.6 * edge if variant != "erm" else None,
                    "sam_edge_heuristic": True,
                }
                history.append(line)
            runs.append(
                {
                    "id": f"r{len(runs)}",
                    "name": f"{variant}-seed{seed}",
                    "variant": variant,
                    "seed": seed,
                    "history": history,
                }
            )
    variants = []
    for variant in SHAPES:
        last = [run["history"][-1] for run in runs if run["variant"] == variant]
        entry: dict[str, Any] = {"variant": variant, "seeds": list(range(seeds))}
        names = ("test_accuracy", "test_loss", "train_loss", "perturbed_share", "gradients")
        for name in (*names, "seconds", "lambda_max"):
            entry[name] = _summary([line[name] for line in last])
        entry["paired"] = {}
        if variant != "erm":
            entry["paired"] = {"test_accuracy": {"difference": 0.03, "interval": [0.012, 0.048]}}
        variants.append(entry)
    return {
        "runs": runs,
        "comparison": {"reference": "erm", "num_test": 1000, "variants": variants},
        "papers": {
            "sam": "Foret et al. 2021, arXiv 2010.01412",
            "ae-sam": "Jiang et al. 2023, arXiv 2304.14647",
        },
        "task": "mnist1d",
        "model": "cnn1d",
        "num_parameters": 5210,
    }
