"""The memory that a call holds at its fullest, of its tensors and of the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Held:
    """The memory of one call at its fullest.

    Attributes:
        size: bytes of the tensors that it made and had not let go: the same on every device and in
            every run. What a kernel keeps to itself (a convolution's scratch) is not in it.
        resident: bytes of the whole process; None where they cannot be read.
    """

    size: float
    resident: float | None


def working_set(call: Callable[[], object]) -> Held:
    """The memory that a call holds at its fullest."""
    with _Storages() as storages:
        call()
    return Held(float(storages.size), storages.resident)


def resident_bytes() -> float | None:
    """Bytes of this process that are in memory now; None where the system does not say (Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation makes until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0
        self.resident: float | None = None
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._follow((args, kwargs), counted=False)  # what comes from outside was there before
        result = func(*args, **(kwargs or {}))
        self._follow(result, counted=True)
        self._living = {
            key: (storage, size)
            for key, (storage, size) in self._living.items()
            if not storage.expired()  # type: ignore[no-untyped-call]
        }
        self.size = max(self.size, sum(size for _, size in self._living.values()))
        resident = resident_bytes()
        if resident is not None:
            self.resident = max(self.resident or 0.0, resident)
        return result

    def _follow(self, tensors: Any, *, counted: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                size = storage.nbytes() if counted else 0
                weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._living.setdefault(storage._cdata, (weak, size))


@dataclass(frozen=True)
class Bounds:
    """What is to be expected, and the most that it can be; the same where it is fixed."""

    typical: float
    most: float

    def __add__(self, other: Bounds) -> Bounds:
        return Bounds(self.typical + other.typical, self.most + other.most)
