"""Topology of a surface: its minima, saddles and maxima, which of them are deep, and how they join.

The level sets of a grid: a point belongs to the sublevel set of c when its value is at most c. Of
equal values the one with the smaller index (row by row) comes first, so that no two are equal.
Points of a sublevel set are neighbours along the eight directions, points of its complement along
four: no other choice of pairs lets a curve separate the two (Rosenfeld 1970). Outside the window,
and where a value is not finite, the loss counts as higher than everywhere else: a point on the
border can be a minimum, never a maximum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .estimate import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from .surface import Surface

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class CriticalPoint:
    """A minimum, saddle or maximum, at grid point (row, column): loss[row, column] at (x, y)."""

    row: int
    column: int
    x: float  # in units of the direction
    y: float
    loss: float
    on_border: bool  # the window ends here: a minimum may be lower outside


@dataclass(frozen=True)
class PersistencePair:
    """A minimum and the saddle where its basin joins a deeper one; or a maximum and its saddle."""

    extremum: CriticalPoint
    saddle: CriticalPoint
    persistence: float  # |loss(saddle) - loss(extremum)|: how far one must climb to leave it


@dataclass(frozen=True)
class MergeNode:
    """A node of the merge tree: a minimum (leaf) or a saddle where two subtrees become one."""

    point: CriticalPoint
    parent: int | None  # index of the node above; None for the root of a connected piece
    children: tuple[int, ...]  # none, or the indices of two


@dataclass(frozen=True)
class Topology:
    """The critical points of a surface that neither interpolation nor rounding can have made.

    Pairs of persistence <= `threshold` are left out of everything but `num_dropped`. A pair of the
    surface has a pair of the true grid values within `threshold` in persistence, as long as the
    working maximum of the interpolation error and the bound of rounding hold (stability:
    Cohen-Steiner et al. 2007). What is narrower than a grid step is seen by neither.
    """

    minima: tuple[CriticalPoint, ...]  # lowest of each connected piece, then by persistence
    saddles: tuple[CriticalPoint, ...]  # of minima then of maxima; n basins joining at one: n - 1
    maxima: tuple[CriticalPoint, ...]  # by persistence
    minimum_pairs: tuple[PersistencePair, ...]  # by persistence; the essential minima have none
    maximum_pairs: tuple[PersistencePair, ...]
    merge_tree: tuple[MergeNode, ...]  # children before parents
    num_essential: int  # connected pieces, each with a minimum that joins no deeper one; 1 mostly
    total_persistence: float  # sum over minimum_pairs, units of the loss
    relative_persistence: float | None  # over value_range; 0 for one basin; None: it is rounding
    value_range: float  # largest - smallest finite loss
    threshold: float  # units of the loss
    num_dropped: int  # pairs of either kind, those between equal values not counted
    num_masked: int  # grid points that are not finite
    cost: Cost

    @property
    def euler_characteristic(self) -> int:
        """Minima - saddles + maxima: 1 on a window without masked points."""
        return len(self.minima) - len(self.saddles) + len(self.maxima)


def surface_topology(surface: Surface) -> Topology:
    """The topology of a scanned surface; pairs that the error of two points can make are dropped.

        threshold = 2 (interpolation error + rounding)

    The *working* maximum of the interpolation error, because a pair is safe only from an error that
    no grid point exceeds; 0 where every point was evaluated. The rounding is the surface's own.
    """
    error = surface.interpolation_error
    return grid_topology(
        surface.loss,
        x=surface.x,
        y=surface.y,
        error=0.0 if error is None else error.working_maximum,
        rounding=surface.rounding,
    )


def grid_topology(
    loss: Tensor | Floats | Sequence[Sequence[float]],
    *,
    x: Tensor | Floats | Sequence[float] | None = None,
    y: Tensor | Floats | Sequence[float] | None = None,
    error: float = 0.0,
    rounding: float = 0.0,
) -> Topology:
    """Minima, saddles, maxima, 0-dimensional persistence and merge tree of values on a grid.

    Points enter in order of their value; each joins the components of its neighbours that are
    already there (union-find). A component is born at a minimum, and where two meet the one with
    the higher minimum dies (the elder rule): minimum and meeting point are a pair, of persistence
    their difference. The lowest minimum never dies: the essential class, kept apart. Maxima are the
    minima of -loss, with the four neighbours, where the outside is the lowest of all.

        minima - saddles + maxima = 1         (no masked points; a saddle counts once per pair)

    Args:
        loss: shape (ny, nx), rows along y; points that are not finite are masked.
        x, y: coordinates of columns (nx,) and rows (ny,); default their indices.
        error: the largest error of a value, rounding apart.
        rounding: its largest rounding. Pairs of persistence <= 2 (error + rounding) are dropped;
            there is no relative persistence where all values lie within 2 rounding.

    Raises:
        ValueError: not a matrix; coordinates of another length; no finite value; error or
            rounding < 0.

    Source: H. Edelsbrunner and J. Harer, "Computational Topology" (2010), chapter VII.
    """
    begin = time.perf_counter()
    values = np.asarray(loss, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"the grid must have shape (ny, nx), got {values.shape}")
    if not (error >= 0 and math.isfinite(error)):
        raise ValueError(f"error must be >= 0, got {error}")
    if not (rounding >= 0 and math.isfinite(rounding)):
        raise ValueError(f"rounding must be >= 0, got {rounding}")
    columns, rows = _axis(x, values.shape[1], "x"), _axis(y, values.shape[0], "y")
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no value of the grid is finite: it has no topology")
    threshold = 2.0 * (error + rounding)

    def point(index: int) -> CriticalPoint:
        row, column = divmod(index, values.shape[1])
        border = row in (0, values.shape[0] - 1) or column in (0, values.shape[1] - 1)
        x_here, y_here = float(columns[column]), float(rows[row])
        return CriticalPoint(row, column, x_here, y_here, float(values[row, column]), border)

    def pairs(deaths: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
        gap = [abs(values.flat[death] - values.flat[birth]) for birth, death in deaths]
        kept = [pair for pair, size in zip(deaths, gap, strict=True) if size > threshold]
        return kept, sum(bool(0 < size <= threshold) for size in gap)

    order = np.argsort(values, axis=None, kind="stable")
    order = order[finite.ravel()[order]]
    basins = _merge(order, finite, _EIGHT, outside=False)
    peaks = _merge(order[::-1], finite, _FOUR, outside=True)
    low, num_low = pairs([(m.younger, m.at) for m in basins.merges])
    high, num_high = pairs([(m.younger, m.at) for m in peaks.merges])
    minimum_pairs, maximum_pairs = (
        tuple(
            sorted(
                (
                    PersistencePair(a, b, abs(b.loss - a.loss))
                    for a, b in ((point(birth), point(death)) for birth, death in kept)
                ),
                key=lambda pair: -pair.persistence,
            )
        )
        for kept in (low, high)
    )
    total = math.fsum(pair.persistence for pair in minimum_pairs)
    value_range = float(np.ptp(values[finite]))
    return Topology(
        minima=(*map(point, basins.essential), *(pair.extremum for pair in minimum_pairs)),
        saddles=tuple(pair.saddle for pair in (*minimum_pairs, *maximum_pairs)),
        maxima=tuple(pair.extremum for pair in maximum_pairs),
        minimum_pairs=minimum_pairs,
        maximum_pairs=maximum_pairs,
        merge_tree=_tree(basins, {birth for birth, _ in low}, point),
        num_essential=len(basins.essential),
        total_persistence=total,
        relative_persistence=total / value_range if value_range > 2.0 * rounding else None,
        value_range=value_range,
        threshold=threshold,
        num_dropped=num_low + num_high,
        num_masked=int((~finite).sum()),
        cost=Cost(seconds=time.perf_counter() - begin),
    )


_FOUR = ((-1, 0), (0, -1), (0, 1), (1, 0))
_EIGHT = (*_FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class _Merge:
    younger: int  # the minimum whose component dies
    elder: int  # the minimum of the component it joins
    at: int  # the grid point where they meet


@dataclass(frozen=True)
class _Basins:
    merges: list[_Merge]  # in order of the value where they meet
    essential: list[int]  # minima that never die, lowest first


def _merge(
    order: Indices, finite: Bools, neighbours: Sequence[tuple[int, int]], *, outside: bool
) -> _Basins:
    """Every merge of two components while the points enter in this order, by union-find.

    With `outside` a component older than all others lies around the window and on masked points.
    """
    num_rows, num_columns = finite.shape
    rank = np.full(finite.size + 1, -1, dtype=np.intp)
    rank[order] = np.arange(order.size)
    world = finite.size  # the union-find's name for what lies outside
    parent = list(range(finite.size + 1))
    entered = [False] * finite.size
    unmasked = finite.ravel().tolist()
    merges: list[_Merge] = []

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for at in order.tolist():
        row, column = divmod(at, num_columns)
        entered[at] = True
        for down, right in neighbours:
            r, c = row + down, column + right
            beside = r * num_columns + c
            if not (0 <= r < num_rows and 0 <= c < num_columns and unmasked[beside]):
                if not outside:
                    continue
                beside = world
            elif not entered[beside]:
                continue
            here, there = root(at), root(beside)
            if here == there:
                continue
            # The root of a component is its first point; rank -1 makes the outside the eldest.
            elder, younger = sorted((here, there), key=rank.__getitem__)
            parent[younger] = elder
            if younger != at:  # a point that joins as it enters founded nothing
                merges.append(_Merge(younger, elder, at))
    return _Basins(merges, [index for index in order.tolist() if parent[index] == index])


def _tree(basins: _Basins, kept: set[int], point: Any) -> tuple[MergeNode, ...]:
    """The merge tree of the essential minima and the kept ones, leaves first.

    A kept minimum dies into an elder one, which is deeper and dies higher: it is kept too.
    """
    leaves = [*basins.essential, *(m.younger for m in basins.merges if m.younger in kept)]
    node_points = list(leaves)
    top = {minimum: number for number, minimum in enumerate(leaves)}
    parent: dict[int, int] = {}
    children: dict[int, tuple[int, int]] = {}
    for merge in basins.merges:
        if merge.younger not in kept:
            continue
        number = len(node_points)
        node_points.append(merge.at)
        children[number] = (top[merge.elder], top[merge.younger])
        parent[top[merge.elder]] = parent[top[merge.younger]] = number
        top[merge.elder] = number
    return tuple(
        MergeNode(point(index), parent.get(number), children.get(number, ()))
        for number, index in enumerate(node_points)
    )


def _axis(values: Any, size: int, name: str) -> Floats:
    if values is None:
        return np.arange(size, dtype=np.float64)
    axis = np.asarray(values, dtype=np.float64)
    if axis.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},) like the grid, got {axis.shape}")
    return axis
