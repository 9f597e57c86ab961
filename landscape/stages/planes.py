"""measure_around: slices, plane and eigenvalue map around the weights, as a plan directs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.batch_statistics import Recalibrated
from landscape.directions import (
    eigenvector_direction,
    filter_normalised,
    gradient_direction,
    layer_normalised,
    orthonormalise,
    plane_through,
    random_directions,
)
from landscape.eigenvalue_map import QUANTITIES, eigenvalue_map
from landscape.estimate import Cost
from landscape.objective import Objective
from landscape.surface import (
    GridPoints,
    Surface,
    automatic_range,
    num_passes,
    scan_line,
    scan_plane,
)
from landscape.topology import surface_topology
from landscape.trajectory import trajectory_plane

from .record import Record, Weights, plain
from .spectrum import find_eigenpairs

NUM_MINIMA = 20  # of a surface's minima, the deepest, that a result lists
MARGIN = 0.2  # of the window around the points that a plane goes through, each side
OWN_WINDOW = ("pca", "checkpoints")  # directions whose axes show given points

Window = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Plane:
    """Two directions through the weights, and the window that shows what the plane was made for.

    Attributes:
        first, second: shape (P,).
        unit: of one step along them.
        window: ((low, high), (low, high)) along the two; None: as far as the loss is worth showing.
        points: (label, x, y) of the points that it goes through.
    """

    first: Tensor
    second: Tensor
    unit: str
    window: Window | None = None
    points: tuple[tuple[str, float, float], ...] = ()


def finds_range(record: Record) -> bool:
    """Whether the length of the axes is to be found from the loss."""
    plan = record.plan
    return (
        plan.range is None
        and bool(plan.surface or plan.line or plan.eigenvalue_map)
        and plan.directions not in OWN_WINDOW
    )


def find_range(record: Record) -> float:
    """How far this subject's loss must be walked for it to rise to ten times itself."""
    if "range" in record.entry:  # measured before an interruption
        return float(record.entry["range"])
    half = 0.0
    plane, landscape = plane_of(record), evaluated(record)
    with record.stage("range") as charge:
        for direction in (plane.first, plane.second):
            try:
                found = automatic_range(landscape, direction)
            except ValueError as error:  # a loss that stays low, or high, all the way
                record.warnings.append(f"Range of the plane set to 1: {error}")
                half = max(half, 1.0)
                continue
            charge(found.cost)
            half = max(half, found.value)
    record.entry["range"] = half
    return half


def measure_around(record: Record, half: float | None) -> None:
    """Slices, plane and eigenvalue map: out to `half` units, or in the plane's own window."""
    plan = record.plan
    if not (plan.surface or plan.line or plan.eigenvalue_map):
        return
    if plan.directions == "checkpoints" and record.identifier != "c0":
        return  # one plane through all of them, on the first one's data
    plane = plane_of(record)
    window = plane.window
    if window is not None:
        _qualify_foreign_points(record)
    if window is None:
        if half is None:
            return
        window = ((-half, half), (-half, half))
    if record.entry.setdefault("window", plain(window)) != plain(window):
        raise ValueError(
            f"the earlier result has axes to {record.entry['window']}, the others here need "
            f"{plain(window)}: measure anew (--overwrite)"
        )
    if plan.line and "line" not in record.entry:
        _measure_slices(record, plane, window)
    if plan.surface and "surface" not in record.entry:
        _measure_plane(record, plane, window)
    if plan.eigenvalue_map and "eigenvalue_map" not in record.entry:
        _measure_eigenvalues(record, plane, window)


def _qualify_foreign_points(record: Record) -> None:
    """What is not the other checkpoints' own on a plane that goes through them."""
    if record.objective.uses_running_statistics and not record.plan.recalibrate:
        remedy = ": --batch-norm recalibrate re-estimates them at each point"
        record.warnings.append(
            "The plane goes through other checkpoints, and all of it is evaluated with this one's "
            f"running statistics{remedy if record.objective.batch_norms else ''}."
        )
    if (
        record.plan.directions == "checkpoints"
        and record.subject.data.get("noise_seed") is not None
    ):
        record.warnings.append(
            "The plane's loss is on this run's labels; the other runs drew their label noise anew."
        )


def evaluated(record: Record) -> Objective | Recalibrated:
    """What is evaluated away from the weights: with running statistics of each point, if asked."""
    return Recalibrated(record.objective) if record.plan.recalibrate else record.objective


def plane_of(record: Record) -> Plane:
    """The plane of the plan's directions through a subject's weights."""
    plan, objective, theta = record.plan, record.objective, record.theta
    if plan.directions in ("filter", "layer"):
        normalised = filter_normalised if plan.directions == "filter" else layer_normalised
        first, second = (
            normalised(objective.space, theta, model=record.subject.model, seed=seed)
            for seed in (2 * plan.seed, 2 * plan.seed + 1)
        )
        return Plane(first, second, f"norm of each {plan.directions}")
    if plan.directions == "pca":
        return _plane_of_trajectory(record)
    if plan.directions == "checkpoints":
        return _plane_through_landmarks(record)
    if plan.directions == "eigen":
        vectors = find_eigenpairs(record).at("top").vectors
        if vectors.shape[1] < 2:
            raise ValueError("directions 'eigen' need two eigenvectors, and there is one")
        first, second = (eigenvector_direction(vectors[:, i]) for i in (0, 1))
        return Plane(first, second, "parameter norm")
    drawn = random_directions(theta, num_directions=2, seed=plan.seed)
    if plan.directions == "gradient":
        drawn = orthonormalise(torch.stack([gradient_direction(objective, theta), drawn[0]]))
    return Plane(drawn[0], drawn[1], "parameter norm")


def _plane_of_trajectory(record: Record) -> Plane:
    trajectory = record.subject.trajectory
    if len(trajectory) < 2:
        raise ValueError(
            "directions 'pca' need two or more earlier checkpoints of the run "
            "(train with --save-every)"
        )
    names = [name for name, _ in trajectory]
    path = [_theta_of(record, *saved) for saved in trajectory] + [record.theta]
    found = trajectory_plane(path, seed=record.plan.seed)
    walk = found.random_walk
    record.entry["trajectory"] = {
        "names": [*names, record.subject.label],
        "captured": found.captured.tolist(),
        "total_captured": found.total_captured,
        "exceeds_random_walk": found.exceeds_random_walk,
        "caution": found.caution,
        "random_walk": {
            "total": walk.total,
            "low": walk.low,
            "high": walk.high,
            "num_walks": walk.num_walks,
        },
    }
    record.keep("trajectory", "coordinates", found.coordinates)
    record.keep("trajectory", "distances", found.distances)
    record.keep("trajectory", "radii", found.radii)
    across, up = found.window(margin=MARGIN)
    first, second = found.directions
    return Plane(first, second, "parameter norm", (across, up))


def _plane_through_landmarks(record: Record) -> Plane:
    """Through the weights and one or two others; with one, the second direction is random."""
    landmarks = record.subject.landmarks
    if len(landmarks) < 2:
        raise ValueError("directions 'checkpoints' need two or three checkpoints, got one")
    points = [_theta_of(record, *landmark) for landmark in landmarks[:3]]
    if len(points) == 2:
        step = points[1] - points[0]
        (aside,) = random_directions(points[0], num_directions=1, seed=record.plan.seed)
        points.append(points[0] + aside * torch.linalg.vector_norm(step))
    directions, coordinates = plane_through(*points)
    shown = coordinates[: len(landmarks)]
    (left, low), (right, high) = shown.amin(0).tolist(), shown.amax(0).tolist()
    extra = MARGIN * max(right - left, high - low)  # square, so that a line has a plane around it
    middle, side = (low + high) / 2, max(right - left, high - low) / 2 + extra
    window = ((left - extra, right + extra), (middle - side, middle + side))
    labels = [name for name, _ in landmarks[:3]]
    marked = tuple((name, *xy) for name, xy in zip(labels, shown.tolist(), strict=True))
    return Plane(directions[0], directions[1], "parameter norm", window, marked)


def _theta_of(record: Record, name: str, weights: Weights) -> Tensor:
    """Other weights as a point; ValueError where they differ in what does not move here."""
    space, own = record.objective.space, dict(record.subject.model.named_parameters())
    for fixed in own.keys() - set(space.names) - space.tied.keys():
        if fixed in weights and not weights[fixed].equal(own[fixed]):
            raise ValueError(
                f"{name} differs in {fixed}, which does not move (--params, or frozen): it is no "
                f"point of a plane of directions {record.plan.directions!r}"
            )
    return space.flatten(weights).to(record.theta)


def _axis(ends: tuple[float, float], num_points: int) -> Tensor:
    return torch.linspace(*ends, num_points, dtype=torch.float64)


def _measure_slices(record: Record, plane: Plane, window: Window) -> None:
    plan, landscape = record.plan, evaluated(record)
    t = _axis((min(low for low, _ in window), max(high for _, high in window)), plan.line)
    with record.stage("slices") as charge:
        lines = [
            scan_line(landscape, d, t=t, progress=record.telling("slices"))
            for d in (plane.first, plane.second)
        ]
        for line in lines:
            charge(line.cost)
    record.entry["line"] = {
        "directions": [f"{plan.directions} 1", f"{plan.directions} 2"],
        "unit": plane.unit,
        "norms": [line.norm for line in lines],
        "parameter_norm": lines[0].parameter_norm,
    }
    record.keep("line", "t", t)
    record.keep("line", "loss", torch.stack([line.loss for line in lines]))
    accuracies = [line.accuracy for line in lines if line.accuracy is not None]
    if len(accuracies) == len(lines):
        record.keep("line", "accuracy", torch.stack(accuracies))


def _measure_plane(record: Record, plane: Plane, window: Window) -> None:
    plan = record.plan
    x, y = (_axis(ends, plan.surface) for ends in window)
    fresh = GridPoints(x, y)
    with record.stage("surface") as charge, _kept(record, "points", fresh, charge) as points:
        surface = scan_plane(
            evaluated(record),
            plane.first,
            plane.second,
            x=x,
            y=y,
            exact=plan.exact,
            seed=plan.seed,
            known=points,
            progress=record.telling("surface"),
        )
        charge(surface.cost)
    _write_surface(record, plane, surface)
    if surface.num_nonfinite:
        record.warnings.append(
            f"{surface.num_nonfinite} of {surface.num_evaluated} surface points are not finite: "
            "they are left empty."
        )


@contextmanager
def _kept(
    record: Record, kind: str, fresh: GridPoints, charge: Callable[[Cost], None]
) -> Iterator[GridPoints]:
    """The points of an interrupted session, or fresh ones; kept again where this one is stopped."""
    prefix = f"{kind}_{record.identifier}_"
    earlier = {
        name.removeprefix(prefix): record.arrays.pop(name)
        for name in list(record.arrays)
        if name.startswith(prefix)
    }
    points = GridPoints.from_arrays(earlier) if earlier else fresh
    num_known = points.num_known
    try:
        yield points
    except BaseException:
        charge(Cost(forwards=num_passes(evaluated(record)) * (points.num_known - num_known)))
        for name, array in points.as_arrays().items():
            record.keep(kind, name, array)
        raise


def _write_surface(record: Record, plane: Plane, surface: Surface) -> None:
    error = surface.interpolation_error
    record.entry["surface"] = {
        "center_loss": surface.center_loss,
        "min": surface.min,
        "max": surface.max,
        "num_nonfinite": surface.num_nonfinite,
        "interpolation_error": None if error is None else plain(dataclasses.asdict(error)),
        "exact": surface.exact,
        "num_evaluated": surface.num_evaluated,
        "num_points": surface.num_points,
        "directions": record.plan.directions,
        "angle_degrees": surface.angle_degrees,
        "norms": list(surface.norms),
        "parameter_norm": surface.parameter_norm,
        "scale": surface.scale,
        "seed": surface.seed,
        "unit": plane.unit,
        "points": [{"label": label, "x": x, "y": y} for label, x, y in plane.points],
        "recalibrated": record.plan.recalibrate,
        "topology": _topology_of(surface),
    }
    record.keep("surface", "x", surface.x)
    record.keep("surface", "y", surface.y)
    record.keep("surface", "loss", surface.loss)
    if surface.accuracy is not None:
        record.keep("surface", "accuracy", surface.accuracy)
    record.keep("surface", "evaluated", surface.evaluated.int())


def _topology_of(surface: Surface) -> dict[str, Any]:
    found = surface_topology(surface)
    persistence = {pair.extremum: pair.persistence for pair in found.minimum_pairs}
    return {
        "num_minima": len(found.minima),
        "num_saddles": len(found.saddles),
        "num_maxima": len(found.maxima),
        "total_persistence": found.total_persistence,
        "relative_persistence": found.relative_persistence,
        "value_range": found.value_range,
        "threshold": found.threshold,
        "num_dropped": found.num_dropped,
        "num_masked": found.num_masked,
        "minima": [
            {
                "x": point.x,
                "y": point.y,
                "loss": point.loss,
                "persistence": persistence.get(point),
                "on_border": point.on_border,
            }
            for point in found.minima[:NUM_MINIMA]
        ],
    }


def _measure_eigenvalues(record: Record, plane: Plane, window: Window) -> None:
    plan = record.plan
    x, y = (_axis(ends, plan.eigenvalue_map) for ends in window)
    fresh = GridPoints(x, y, quantities=QUANTITIES)
    with record.stage("eigenvalue-map") as charge, _kept(record, "mapped", fresh, charge) as points:
        found = eigenvalue_map(
            record.objective,
            plane.first,
            plane.second,
            x=x,
            y=y,
            seed=plan.seed,
            known=points,
            progress=record.telling("eigenvalue map"),
        )
        charge(found.cost)
    finite = found.ratio[found.ratio.isfinite()]
    record.entry["eigenvalue_map"] = {
        "num_points": found.ratio.numel(),
        "tolerance": found.tolerance,
        "max_ratio": float(finite.max()) if len(finite) else None,
        "num_unconverged": int((~found.converged & found.lambda_max.isfinite()).sum()),
        "num_nonfinite": found.num_nonfinite,
        "recalibrated": False,
    }
    if plan.recalibrate:
        record.warnings.append(
            "The eigenvalue map uses the running statistics at the weights at every point, the "
            "plane those estimated at each."
        )
    record.keep("map", "x", x)
    record.keep("map", "y", y)
    record.keep("map", "lambda_max", found.lambda_max)
    record.keep("map", "lambda_min", found.lambda_min)
    record.keep("map", "ratio", found.ratio)
