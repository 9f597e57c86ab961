"""ParameterSpace: a model's parameters, named and shaped, as coordinates of one vector theta."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterSpace:
    """The trainable parameters of a model, or some of them, laid end to end as theta, shape (P,).

    A tied weight counts once, under its first name. Frozen parameters (`requires_grad` False) are
    not coordinates; they are listed.

    Attributes:
        names: one name a tensor, in the model's own order.
        shapes: the tensors' shapes.
        tied: every further name of a tensor, mapped to the name that counts.
        frozen: the names that the patterns admit and `requires_grad` leaves out.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    tied: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, patterns: str | Sequence[str] = "*") -> ParameterSpace:
        """The space of the parameters whose name matches one of the globs.

        Raises:
            ValueError: no trainable parameter matches.
        """
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        first_names: dict[int, str] = {}
        tied: dict[str, str] = {}
        matching: set[str] = set()
        unique: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first = first_names.setdefault(id(parameter), name)
            if first == name:
                unique[name] = parameter
            else:
                tied[name] = first
            if any(fnmatchcase(name, glob) for glob in globs):
                matching.add(first)
        chosen = {name: p for name, p in unique.items() if name in matching and p.requires_grad}
        if not chosen:
            listed = ", ".join(list(unique)[:5]) or "none at all"
            raise ValueError(
                f"no trainable parameter matches {', '.join(globs)} (the model has: {listed})"
            )
        return cls(
            names=tuple(chosen),
            shapes=tuple(p.shape for p in chosen.values()),
            tied={alias: first for alias, first in tied.items() if first in chosen},
            frozen=tuple(n for n, p in unique.items() if n in matching and not p.requires_grad),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """P."""
        return sum(self.sizes)

    def flatten(self, tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> Tensor:
        """The vector (P,) of these tensors: a copy, never a view of live weights.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        if isinstance(tensors, Mapping):
            missing = [name for name in self.names if name not in tensors]
            if missing:
                raise ValueError(f"no tensor for parameter {missing[0]!r}")
            pieces = [tensors[name] for name in self.names]
        else:
            pieces = list(tensors)
        for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True):
            if piece.shape != shape:
                raise ValueError(f"{name} has shape {tuple(piece.shape)}, expected {tuple(shape)}")
        return torch.cat([piece.detach().reshape(-1) for piece in pieces])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors that theta stands for: views of it, cut by one split.

        Raises:
            ValueError: theta has another shape than (P,).
        """
        if theta.shape != (self.size,):
            raise ValueError(
                f"expected a vector of {self.size} parameters, got {tuple(theta.shape)}"
            )
        # One split: its backward is one concatenation, where slices would each write a zero vector.
        pieces = torch.split(theta, list(self.sizes))
        return {
            name: piece.view(shape)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }
