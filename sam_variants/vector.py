"""ParameterVector: a list of parameter-shaped tensors with the arithmetic of one vector."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Factor = float | Tensor
"""What scales a vector: a number, or a 0-dim tensor that stays on its device."""

TINY = 1e-12
"""c in hat(x) = x / (||x|| + c), the same in every rule (variants.md, section 16)."""


class ParameterVector:
    """One vector of R^D, cut into the tensors of an optimizer's parameters, in their order.

    A slot is None where a parameter has no gradient; it counts as zero and stays None, so that the
    base optimizer skips that parameter as it would without us (a zero would be decayed and would
    move the momentum). Every operation is one foreach call over the local shards, so a DTensor
    costs what its shard costs; `dot` and `norm` add one collective for each mesh.

    Methods whose name ends with an underscore change this vector's tensors, the others return new
    ones. Norms and dot products are 0-dim float64 tensors on the vectors' device: nothing here
    waits for an accelerator.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        self.tensors: tuple[Tensor | None, ...] = tuple(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.tensors)

    def __repr__(self) -> str:
        missing = sum(tensor is None for tensor in self.tensors)
        size = sum(tensor.numel() for tensor in self.tensors if tensor is not None)
        return f"ParameterVector({len(self)} tensors, {missing} of them None, {size} numbers)"

    def clone(self) -> ParameterVector:
        """A copy that shares nothing."""
        return ParameterVector(None if t is None else t.clone() for t in self.tensors)

    def map(self, function: Callable[[Tensor], Tensor]) -> ParameterVector:
        """The vector of function(tensor), slot by slot."""
        return ParameterVector(None if t is None else function(t) for t in self.tensors)

    # Arithmetic

    def mul(self, factor: Factor | Sequence[Factor] | ParameterVector) -> ParameterVector:
        """factor * self; the factor a number, one number a slot, or a vector (elementwise)."""
        mine = self._present()
        if isinstance(factor, ParameterVector):
            self._same_slots(factor)
            return self._wrap(torch._foreach_mul(_shards(mine), _shards(factor._present())))
        if isinstance(factor, Sequence):
            pairs = zip(mine, self._chosen(factor), strict=True)
            return self._wrap([_shard(tensor).mul(value) for tensor, value in pairs])
        return self._wrap(torch._foreach_mul(_shards(mine), _matching(factor, mine)))

    def mul_(self, factor: Factor | Sequence[Factor] | ParameterVector) -> ParameterVector:
        """self <- factor * self, as `mul`; returns self."""
        mine = _shards(self._present())
        if not mine:
            return self
        if isinstance(factor, ParameterVector):
            self._same_slots(factor)
            torch._foreach_mul_(mine, _shards(factor._present()))
        elif isinstance(factor, Sequence):
            for shard, value in zip(mine, self._chosen(factor), strict=True):
                shard.mul_(value)
        else:
            torch._foreach_mul_(mine, _matching(factor, mine))
        return self

    def add_(self, other: ParameterVector, factor: Factor = 1.0) -> ParameterVector:
        """self <- self + factor * other; a None here takes the other's tensor; returns self."""
        self._same_length(other)
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        filled = False
        for here, there in zip(self.tensors, other.tensors, strict=True):
            if here is None and there is not None:
                filled = True
            elif here is not None and there is not None:
                mine.append(here)
                theirs.append(there)
        if mine:
            if isinstance(factor, Tensor):
                torch._foreach_add_(_shards(mine), torch._foreach_mul(_shards(theirs), factor))
            else:
                torch._foreach_add_(_shards(mine), _shards(theirs), alpha=factor)
        if filled:
            self.tensors = tuple(
                there * factor if here is None and there is not None else here
                for here, there in zip(self.tensors, other.tensors, strict=True)
            )
        return self

    def add(self, other: ParameterVector, factor: Factor = 1.0) -> ParameterVector:
        """self + factor * other."""
        return self.clone().add_(other, factor)

    def sub(self, other: ParameterVector) -> ParameterVector:
        """self - other."""
        return self.clone().add_(other, -1.0)

    def copy_(self, other: ParameterVector) -> ParameterVector:
        """self <- other, bit for bit; both have the same slots filled."""
        self._same_slots(other)
        mine = self._present()
        if mine:
            torch._foreach_copy_(_shards(mine), _shards(other._present()))
        return self

    # Lengths and angles

    def norm(self) -> Tensor:
        """||self||, 0-dim float64: a norm a tensor, then their squares summed in float64."""
        mine = self._present()
        if not mine:
            return torch.zeros((), dtype=torch.float64)
        half = any(t.dtype in (torch.float16, torch.bfloat16) for t in mine)
        norms = torch._foreach_norm(_shards(mine), 2, torch.float32 if half else None)
        if _any_dtensor(mine):
            return _total(mine, [n.to(_wide(n)).square() for n in norms]).sqrt()
        length: Tensor = torch.linalg.vector_norm(_stacked(norms), dtype=_wide(norms[0]))
        return length

    def dot(self, other: ParameterVector) -> Tensor:
        """<self, other>, 0-dim float64; products in the tensors' dtype, their sum in float64."""
        pairs = self._pairs(other)
        if not pairs:
            return torch.zeros((), dtype=torch.float64)
        return _total([here for here, _ in pairs], [_inner(*pair) for pair in pairs])

    def dots(self, other: ParameterVector) -> list[Tensor]:
        """<self_i, other_i> of every slot, float64 (0 where either is None)."""
        self._same_length(other)
        return [
            torch.zeros((), dtype=torch.float64)
            if here is None or there is None
            else _total([here], [_inner(here, there)])
            for here, there in zip(self.tensors, other.tensors, strict=True)
        ]

    def orthogonal_to_(self, other: ParameterVector) -> ParameterVector:
        """self <- self - (<self, other> / <other, other>) other, as it is where the other is 0."""
        return self.add_(other, -_share(self.dot(other), other.dot(other)))

    def orthogonal_by_slot_to_(self, other: ParameterVector) -> ParameterVector:
        """`orthogonal_to_`, each slot to the other's slot by itself."""
        pairs = zip(self.dots(other), other.dots(other), strict=True)
        return self.add_(other.mul([_share(along, square) for along, square in pairs]), -1.0)

    # Slots

    def _present(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor is not None]

    def _pairs(self, other: ParameterVector) -> list[tuple[Tensor, Tensor]]:
        self._same_length(other)
        return [
            (here, there)
            for here, there in zip(self.tensors, other.tensors, strict=True)
            if here is not None and there is not None
        ]

    def _chosen(self, factors: Sequence[Factor]) -> list[Factor]:
        if len(factors) != len(self):
            raise ValueError(f"expected {len(self)} factors, one a slot, got {len(factors)}")
        return [f for f, t in zip(factors, self.tensors, strict=True) if t is not None]

    def _same_length(self, other: ParameterVector) -> None:
        if len(self) != len(other):
            raise ValueError(f"vectors of {len(self)} and {len(other)} tensors do not combine")

    def _same_slots(self, other: ParameterVector) -> None:
        self._same_length(other)
        for here, there in zip(self.tensors, other.tensors, strict=True):
            if (here is None) != (there is None):
                raise ValueError("the vectors have gaps (None) in different places")

    def _wrap(self, shards: Sequence[Tensor]) -> ParameterVector:
        if len(shards) == len(self) and not _any_dtensor(self._present()):
            return ParameterVector(shards)
        rest = iter(shards)
        return ParameterVector(None if t is None else _like(next(rest), t) for t in self.tensors)


def _share(along: Tensor, square: Tensor) -> Tensor:
    """along / square, and 0 where the square is 0."""
    positive = square > 0.0
    return torch.where(positive, along / torch.where(positive, square, 1.0), 0.0)


def placed_like(whole: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, equal on all ranks, in the dtype, on the device and in the shards of another.

    Nothing is communicated: each rank cuts its own shard.
    """
    placed = whole.to(device=model.device, dtype=model.dtype)
    if not is_dtensor(model):
        return placed
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = model
    return distribute_tensor(placed, sharded.device_mesh, sharded.placements, src_data_rank=None)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every rank: a collective for a DTensor, any other as it is."""
    if not is_dtensor(tensor):
        return tensor
    sharded: Any = tensor
    whole: Tensor = sharded.full_tensor()
    return whole


def _dtensor() -> Any:
    # Importing the module costs as much as torch itself; where nobody did, there is no DTensor.
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def is_dtensor(tensor: Tensor) -> bool:
    kind = _dtensor()
    return kind is not None and isinstance(tensor, kind)


def _any_dtensor(tensors: Sequence[Tensor]) -> bool:
    kind = _dtensor()
    # The set of types first: a look at each tensor would cost as much as the arithmetic.
    return kind is not None and any(issubclass(one, kind) for one in set(map(type, tensors)))


def _shard(tensor: Any) -> Tensor:
    shard: Tensor = tensor.to_local() if is_dtensor(tensor) else tensor
    return shard


def _shards(tensors: list[Tensor]) -> list[Tensor]:
    return [_shard(tensor) for tensor in tensors] if _any_dtensor(tensors) else tensors


def _like(shard: Tensor, model: Any) -> Tensor:
    if not is_dtensor(model):
        return shard
    whole: Tensor = _dtensor().from_local(
        shard,
        model.device_mesh,
        model.placements,
        run_check=False,
        shape=model.shape,
        stride=model.stride(),
    )
    return whole


def _matching(factor: Factor, tensors: Sequence[Tensor]) -> Factor:
    # A 0-dim factor of another dtype gives the same product but leaves the fast kernel: 375 against
    # 138 us on 149 tensors. Narrower than float32 it could overflow, so it stays wide there.
    if isinstance(factor, Tensor):
        dtypes = {tensor.dtype for tensor in tensors}
        if len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}:
            return factor.to(dtypes.pop())
    return factor


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # mps has no float64


def _inner(here: Tensor, there: Tensor) -> Tensor:
    here, there = _shard(here), _shard(there)
    return torch.sum(here * there, dtype=_wide(here))


def _stacked(values: Sequence[Tensor]) -> Tensor:
    device = values[0].device
    return torch.stack([value.to(device) for value in values])


def _total(tensors: Sequence[Any], values: Sequence[Tensor]) -> Tensor:
    """The sum of the values, each a share of its tensor's sum over the tensor's mesh.

    A value is partial along the mesh dimensions that its tensor is sharded on and the same along
    the others, whatever the sizes of the shards, so one all-reduce a mesh completes the sum.
    """
    plain = [v for t, v in zip(tensors, values, strict=True) if not is_dtensor(t)]
    meshes: dict[Any, list[Tensor]] = {}
    for tensor, value in zip(tensors, values, strict=True):
        if is_dtensor(tensor):
            sharded = tuple(placement.is_shard() for placement in tensor.placements)
            meshes.setdefault((tensor.device_mesh, sharded), []).append(value)
    sums = [_stacked(plain).sum()] if plain else []
    if meshes:
        from torch.distributed.tensor import DTensor, Partial, Replicate

        for (mesh, sharded), parts in meshes.items():
            placements = [Partial() if cut else Replicate() for cut in sharded]
            share = DTensor.from_local(_stacked(parts).sum(), mesh, placements, run_check=False)
            sums.append(share.full_tensor())
    return sums[0] if len(sums) == 1 else _stacked(sums).sum()
