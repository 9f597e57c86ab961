"""Directions: vectors of parameter space worth walking along, shape (P,), and how two of them lie.

Every random direction is cut from one Gaussian vector that is drawn in float32 by a generator on
the CPU, so that a seed names the same direction on every device and in every dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from .parameters import ParameterSpace

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class _HasGradient(Protocol):
    @property
    def theta(self) -> Tensor: ...

    def gradient(self, theta: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DirectionReport:
    """How directions lie and how long they are: filter normalisation keeps neither.

    Attributes:
        norms: Euclidean norm of each direction.
        parameter_norm: Euclidean norm of theta; a step t along direction i moves theta by
            t norms[i], which is the share t norms[i] / parameter_norm of it.
        angle_degrees: between the first two directions, in [0, 180]; None for a single one.
    """

    norms: tuple[float, ...]
    parameter_norm: float
    angle_degrees: float | None


def report_directions(directions: Sequence[Tensor], theta: Tensor) -> DirectionReport:
    """The norms of the directions, the norm of theta and the angle between the first two.

    Raises:
        ValueError: no direction; a direction of another shape than theta, not finite, or zero.
    """
    if not len(directions):
        raise ValueError("needs at least one direction")
    for number, direction in enumerate(directions, start=1):
        check_direction(direction, theta, f"direction {number}")
    units = [direction.double() / _norm(direction) for direction in directions]
    angle = None
    if len(units) > 1:
        # Half-angle form: acos loses every digit near 0 and 180 degrees.
        difference, total = _norm(units[0] - units[1]), _norm(units[0] + units[1])
        angle = math.degrees(2.0 * math.atan2(difference, total))
    return DirectionReport(tuple(map(_norm, directions)), _norm(theta), angle)


def check_direction(direction: Tensor, theta: Tensor, name: str = "direction") -> None:
    """Raises ValueError unless the direction has theta's shape, is finite, and is not zero."""
    if direction.shape != theta.shape:
        raise ValueError(
            f"{name} must have shape {tuple(theta.shape)} like theta, got {tuple(direction.shape)}"
        )
    if not bool(torch.isfinite(direction).all()):
        raise ValueError(f"{name} holds numbers that are not finite")
    if not bool(direction.any()):
        raise ValueError(f"{name} is zero: it leads nowhere")


def random_directions(theta: Tensor, *, num_directions: int = 2, seed: int) -> Tensor:
    """Orthonormal directions, shape (num_directions, P), uniform over all such sets.

    Gaussian vectors made orthonormal: the law does not change under any rotation of parameter
    space. In theta's dtype and on its device.

    Raises:
        ValueError: num_directions < 1 or > P.
    """
    if not 1 <= num_directions <= theta.numel():
        raise ValueError(
            f"num_directions must be in [1, {theta.numel()}] (the number of parameters), "
            f"got {num_directions}"
        )
    draws = _gaussian(num_directions * theta.numel(), seed).view(num_directions, -1)
    return orthonormalise(draws.to(theta.device, torch.float64)).to(theta.dtype)


def orthonormalise(vectors: Tensor) -> Tensor:
    """The rows made orthonormal in order by Gram-Schmidt, shape (n, P), in the rows' dtype.

        q_i = r_i / ||r_i||,     r_i = v_i - sum_{j < i} q_j <q_j, v_i>

    Each projection is on a *unit* vector and runs twice in float64; against vectors that are not
    normalised, "orthogonal" directions with |cos| = 0.998 have been published.

    Raises:
        ValueError: a row is zero, not finite, or lies in the span of the rows before it.
    """
    basis = vectors.new_zeros(vectors.shape, dtype=torch.float64)
    for number, vector in enumerate(vectors.double()):
        length = _norm(vector)
        if not (length > 0 and math.isfinite(length)):
            raise ValueError(f"vector {number} is zero or not finite")
        rest = vector / length
        for _ in range(2):
            rest = rest - basis[:number].T @ (basis[:number] @ rest)
        length = _norm(rest)
        if length < 64 * torch.finfo(vectors.dtype).eps:
            raise ValueError(f"vector {number} lies in the span of the vectors before it")
        basis[number] = rest / length
    return basis.to(vectors.dtype)


def filter_normalised(
    space: ParameterSpace,
    theta: Tensor,
    *,
    model: nn.Module,
    seed: int,
    vectors: str = "zero",
) -> Tensor:
    """A Gaussian direction whose every filter has the norm of the network's filter, shape (P,).

        d_f = g_f ||theta_f|| / ||g_f||     for every filter f          (Li et al. 2018, section 4)

    A filter is what makes one output: a row of a linear layer, of an embedding or of any other
    weight of two or more dimensions; an output channel of a convolution (depthwise ones too); for a
    transposed convolution an output channel within its group, which lies along dimension 1. A
    filter of norm zero gives zero. Two such directions are neither orthogonal nor of equal norm:
    `report_directions` says how they lie.

    Args:
        space: names and shapes of theta.
        theta: the weights whose filters give the norms, shape (P,).
        model: tells which parameters belong to transposed convolutions and to norm layers.
        seed: of the Gaussian vector; equal to that of `layer_normalised` for the same seed.
        vectors: for biases, parameters of norm layers and everything else of at most one dimension:
            "zero" leaves them where they are; "scaled" makes each a vector with the norm of the
            network's (never element by element, which would copy the weights up to sign).

    Raises:
        ValueError: the model lacks a parameter of the space; unknown `vectors`; the direction is
            zero because no filter has a norm.
    """
    return _normalised(space, theta, filter_blocks(space, model), seed, vectors)


def layer_normalised(
    space: ParameterSpace,
    theta: Tensor,
    *,
    model: nn.Module,
    seed: int,
    vectors: str = "zero",
) -> Tensor:
    """A Gaussian direction whose every weight tensor has the norm of the network's, shape (P,).

        d_l = g_l ||theta_l|| / ||g_l||     for every weight tensor l

    Coarser than `filter_normalised`, and another direction; arguments and errors are the same.
    """
    blocks = {
        name: None if block is None else (1, 1, 1, size)
        for (name, block), size in zip(
            filter_blocks(space, model).items(), space.sizes, strict=True
        )
    }
    return _normalised(space, theta, blocks, seed, vectors)


Block = tuple[int, int, int, int]


def filter_blocks(space: ParameterSpace, model: nn.Module) -> dict[str, Block | None]:
    """How each parameter falls into filters: the shape (a, b, c, d) to view it in, or None.

    In that view filter (i, j) is the block [i, :, j, :]. None marks biases, parameters of norm
    layers and everything else of at most one dimension, which have no filters.

    Raises:
        ValueError: the model lacks a parameter of the space, or has it in another shape.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper prefixes every name
    own = dict(model.named_parameters(remove_duplicate=False))
    blocks: dict[str, Block | None] = {}
    for name, shape in zip(space.names, space.shapes, strict=True):
        if name not in own or own[name].shape != shape:
            raise ValueError(f"the model has no parameter {name!r} of shape {tuple(shape)}")
        blocks[name] = _block(name, shape, _owner(model, name))
    return blocks


def gradient_direction(objective: _HasGradient, theta: Tensor | None = None) -> Tensor:
    """The gradient at theta (default: the model's own weights) as a unit vector, shape (P,).

    Raises:
        ValueError: the gradient is zero or not finite.
    """
    gradient = objective.gradient(objective.theta if theta is None else theta)
    length = _norm(gradient)
    if not (length > 0 and math.isfinite(length)):
        raise ValueError(f"the gradient has norm {length:g}: it gives no direction")
    return gradient / length


def eigenvector_direction(vector: Tensor) -> Tensor:
    """An eigenvector as a unit vector with a fixed sign, shape (P,).

    A solver returns v or -v as chance has it. Here the component of largest magnitude (the first
    of equals) is positive, so that the same eigenvector always gives the same axis.

    Raises:
        ValueError: not a vector, zero, or not finite.
    """
    if vector.dim() != 1:
        raise ValueError(f"an eigenvector must have shape (P,), got {tuple(vector.shape)}")
    length = _norm(vector)
    if not (length > 0 and math.isfinite(length)):
        raise ValueError(f"the eigenvector has norm {length:g}: it gives no direction")
    largest = vector[vector.abs().argmax()]
    return vector / (length if largest > 0 else -length)


def between(start: Tensor, end: Tensor) -> Tensor:
    """end - start, shape (P,): along it from `start`, 0 is `start` and 1 is `end`.

    Raises:
        ValueError: the two have other shapes, are equal, or are not finite.
    """
    if start.shape != end.shape:
        raise ValueError(
            f"the two points have shapes {tuple(start.shape)} and {tuple(end.shape)}: "
            "they are no points of one parameter space"
        )
    direction = end - start
    check_direction(direction, start, "the direction between the two points")
    return direction


class PointsOnPlane(NamedTuple):
    """The plane through three points, and where on it they lie.

    Point i is center + coordinates[i] @ directions.
    """

    directions: Tensor  # (2, P), orthonormal, in the points' dtype
    coordinates: Tensor  # (3, 2) float64, in parameter norm: of center (0, 0), second and third


def plane_through(center: Tensor, second: Tensor, third: Tensor) -> PointsOnPlane:
    """Orthonormal directions of the plane through three points, each (P,), and its coordinates.

        u = second - center,  v = third - center;    d1 = u / ||u||,  d2 ~ v - <v, d1> d1

    so that the second point lies at (||u||, 0) and the third at (<v, d1>, h) with h > 0. Distances
    and angles on the plane are those of parameter space, as they would not be along u and v.

    Raises:
        ValueError: other shapes, numbers that are not finite; two points that are the same, or
            three on one line, up to the rounding of their numbers.

    Source: T. Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs"
        (2018), figure 1.
    """
    points = {"center": center, "second": second, "third": third}
    for name, point in points.items():
        if point.dim() != 1 or point.shape != center.shape:
            raise ValueError(
                f"{name} has shape {tuple(point.shape)}, center {tuple(center.shape)}: "
                "they are no points of one parameter space"
            )
        if not bool(torch.isfinite(point).all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    # What is as short as the rounding of the points themselves has no direction.
    rounding = 8 * torch.finfo(center.dtype).eps * max(map(_norm, points.values()))
    u, v = (point.double() - center.double() for point in (second, third))
    sides = {"center and second": _norm(u), "center and third": _norm(v)}
    sides["second and third"] = _norm(v - u)
    for names, length in sides.items():
        if length <= rounding:
            raise ValueError(
                f"{names} are the same point up to rounding ({length:.3g} apart): "
                "two points span a line, not a plane"
            )
    first = u / sides["center and second"]
    rest = v
    for _ in range(2):  # the second pass removes what rounding left of the first direction
        rest = rest - (first @ rest) * first
    height = _norm(rest)
    # The smallest distance of a point from the line through the other two.
    flatness = height * sides["center and second"] / max(sides.values())
    if flatness <= rounding:
        raise ValueError(
            f"the three points lie on one line up to rounding (one is {flatness:.3g} off the line "
            "through the others): they span no plane"
        )
    coordinates = torch.tensor(
        [[0.0, 0.0], [sides["center and second"], 0.0], [float(first @ v), height]],
        dtype=torch.float64,
    )
    directions = torch.stack([first, rest / height]).to(center.dtype)
    return PointsOnPlane(directions, coordinates)


def _normalised(
    space: ParameterSpace,
    theta: Tensor,
    blocks: dict[str, Block | None],
    seed: int,
    vectors: str,
) -> Tensor:
    if vectors not in ("zero", "scaled"):
        raise ValueError(f"vectors must be 'zero' or 'scaled', got {vectors!r}")
    raw = _gaussian(space.size, seed).to(theta.device, theta.dtype)
    pieces = {}
    draws = space.unflatten(raw)
    for name, weight in space.unflatten(theta).items():
        block = blocks[name]
        if block is None and vectors == "zero":
            pieces[name] = torch.zeros_like(weight)
            continue
        view = block or (1, 1, 1, weight.numel())
        pieces[name] = _with_norms_of(weight.view(view), draws[name].view(view)).view(weight.shape)
    direction = space.flatten(pieces)
    if not bool(direction.any()):
        raise ValueError(
            "the direction is zero: no filter of these parameters has a norm "
            "(vectors='scaled' moves biases and other vectors too)"
        )
    return direction


def _with_norms_of(weight: Tensor, draw: Tensor) -> Tensor:
    """The draw, each block [i, :, j, :] scaled to the norm of the weight's block."""
    target = weight.double().pow(2).sum((1, 3), keepdim=True).sqrt()
    own = draw.double().pow(2).sum((1, 3), keepdim=True).sqrt()
    scale = torch.where(own > 0, target / own, torch.zeros_like(own))
    return (draw.double() * scale).to(weight.dtype)


def _block(name: str, shape: torch.Size, owner: nn.Module) -> Block | None:
    leaf = name.rpartition(".")[2]
    if len(shape) < 2 or leaf.startswith("bias") or isinstance(owner, _NORMS):
        return None
    size = math.prod(shape)
    if isinstance(owner, _ConvTransposeNd) and len(shape) >= 3:
        # weight (in, out / groups, ...): the inputs of one group share that group's outputs.
        groups = owner.groups if shape[0] % owner.groups == 0 else 1
        return (groups, shape[0] // groups, shape[1], size // (shape[0] * shape[1]))
    return (shape[0], 1, 1, size // shape[0])


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The layer that a parameter belongs to; of a parametrised weight the layer that has it."""
    path = name.rpartition(".")[0]
    return model.get_submodule(path.partition("parametrizations.")[0].rstrip("."))


def _gaussian(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
