"""Sparse SAM: the ascent moves only the weights of a mask (SSAM-F, SSAM-D, Fisher-mask SAM)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_variants.base import Common, Descent, Evaluate, Evaluation, SharpnessAware
from sam_variants.masks import (
    Block,
    highest,
    mask_of,
    pattern_runs,
    regrown,
    single_run,
    spread,
    whole_tensors,
)
from sam_variants.schedules import Schedule
from sam_variants.vector import TINY, ParameterVector, is_dtensor


class SparseSAM(SharpnessAware):
    """SAM whose perturbation is masked; a subclass says how the mask is chosen.

        g = grad L(w),   eps = M * rho g / (||g|| + 1e-12),   q = grad L(w + eps)

    M is a vector of 0 and 1, 1 where a weight is perturbed. The norm is the full gradient's, so
    ||eps|| = rho ||M g|| / ||g||: strictly shorter than rho unless M keeps all of g. The mask is
    chosen at the first perturbed step, again at the first perturbed step `refresh_every` or more
    steps later, and whenever parameters joined, were frozen or thawed. It is remembered as bools,
    one byte a weight, and is the same on every rank.

    Two gradients a perturbed step: the descent gradient is dense, and nothing is saved without
    sparse kernels.
    """

    remembers = ("mask", "refreshed_at", "trained")
    rho: float | Schedule
    refresh_every: int

    def descent(self) -> Descent:
        clean = yield Evaluate(sync=self.synced)
        if not self.perturbs(clean):
            return self.averaged(clean.take())
        mask = self.recall("mask")
        if self._is_due(mask):
            mask = yield from self.new_mask(clean)
            trained = [p.requires_grad for p in self.parameters]
            self.remember(mask=mask, refreshed_at=self.counts.steps, trained=trained)
        worst = yield Evaluate(offset=self.ascent(clean, mask))
        return worst.take()

    @abstractmethod
    def new_mask(self, clean: Evaluation) -> Descent:
        """The mask of this and the coming steps, equal on all ranks; may ask for evaluations."""

    def ascent(self, clean: Evaluation, mask: ParameterVector) -> ParameterVector:
        """eps, in the clean gradient's own tensors."""
        offset = clean.take().mul_(self.times_rho(1.0 / (clean.norm + TINY)))
        # A float tensor times a bool one needs no cast of the mask, which would be a spare buffer.
        pairs = zip(mask, offset, strict=True)
        return offset.mul_(ParameterVector(None if e is None else m for m, e in pairs))

    def _is_due(self, mask: ParameterVector | None) -> bool:
        if not self._fits(mask):
            return True
        return bool(self.counts.steps >= self.recall("refreshed_at") + self.refresh_every)

    def _fits(self, mask: ParameterVector | None) -> bool:
        """Whether there is a mask, and for exactly the parameters that are trained now."""
        trained = [p.requires_grad for p in self.parameters]
        return mask is not None and self.recall("trained") == trained

    def _trainable(self) -> list[int]:
        return [slot for slot, p in enumerate(self.parameters) if p.requires_grad]

    def _whole_gradient(self, clean: Evaluation) -> list[Tensor]:
        """g of the whole batch, equal on all ranks: whole tensors, 0 where there is none."""
        gradient = clean.gradient
        assert gradient is not None
        if not self.synced:
            gradient = self.averaged(gradient.clone())
        return whole_tensors(gradient, self.parameters)


class Sparsity(Common, total=False):
    """What the constructors of SSAM-F and SSAM-D take beside an option of their own."""

    rho: float | Schedule
    sparsity: float
    pattern: str | None
    refresh_every: int


class SSAM(SparseSAM):
    """Sparse SAM (2210.05177) of a given sparsity, over all weights or by a pattern "N:M"."""

    sparsity: float
    pattern: str | None

    def __init__(
        self,
        base: Optimizer,
        *,
        own: Mapping[str, Any],
        rho: float | Schedule = 0.05,
        sparsity: float = 0.5,
        pattern: str | None = None,
        refresh_every: int = 100,
        **common: Unpack[Common],
    ) -> None:
        options = {
            "rho": rho,
            "sparsity": sparsity,
            "pattern": pattern,
            "refresh_every": refresh_every,
            **own,
        }
        super().__init__(base, options=options, **common)

    def _blocks(self) -> list[Block]:
        """Which weights compete: all for the share that is kept, or N of every M beside another."""
        parameters, trainable = self.parameters, self._trainable()
        if self.pattern is None:
            sizes = [p.numel() for p in parameters]
            return single_run(sizes, trainable, keep=1.0 - self.sparsity)
        kept, of = map(int, self.pattern.split(":"))
        matrices = [slot for slot in trainable if parameters[slot].ndim >= 2]
        return pattern_runs([p.shape for p in parameters], matrices, keep=kept, of=of)


class SSAMF(SSAM):
    """SSAM-F: sparse SAM on the weights of largest Fisher information (Mi et al., 2210.05177).

        F = sum_{i < N} (grad l_i(w))^2,  elementwise, one row of the current batch at a time
        M = 1 on the round((1 - sparsity) D) largest F of all D weights (ties: the lower index)
        eps = M * rho g / (||g|| + 1e-12),    q = grad L(w + eps)

    With `pattern` "N:M" (2306.17504) M keeps the N largest F of every M consecutive weights
    instead: a tensor of two or more dimensions is seen as (shape[0], -1), its rows cut in runs of M
    (the last may be shorter, and keeps at most N); tensors of fewer dimensions are perturbed whole.

    The authors' code begins with an empty mask and refreshes it every few epochs on its own draw of
    rows in training mode; for N:M it sees convolutions transposed, so its runs go along the output
    channel, ours along the input. Here the first perturbed step has a mask, the rows are the
    batch's first, norm layers run on their running statistics for a single row, and the count is
    exact under ties.

    Two gradients a perturbed step; a refresh costs min(samples, B) / B of one, as so many small
    passes. Over several workers each squares its own rows' gradients and the scores are averaged.

    Args:
        base: the optimizer that descends.
        rho: radius, >= 0, or a Schedule of it.
        sparsity: share of weights that stay unperturbed, in [0, 1]; unused with a pattern.
        pattern: "N:M" with 1 <= N <= M, or None.
        refresh_every: steps from one mask to the next, >= 1.
        samples: N, rows that a refresh looks at, >= 1; at most the batch.

    Raises:
        ValueError: an option out of its range; sharded parameters (DTensors), whose gradients are
            averaged over the workers before anybody sees them: no row's own gradient exists.
    """

    name = "ssam-f"
    samples: int

    def __init__(self, base: Optimizer, *, samples: int = 16, **others: Unpack[Sparsity]) -> None:
        super().__init__(base, own={"samples": samples}, **others)
        self._refuse_shards()

    def new_mask(self, clean: Evaluation) -> Descent:
        self._refuse_shards()  # the model may have been sharded since
        fisher = yield from self._fisher()
        scores = whole_tensors(self.over_workers(fisher), self.parameters)
        blocks = self._blocks()
        chosen = [(block, highest(block.runs(scores), block.places)) for block in blocks]
        return mask_of(chosen, self.parameters)

    def _fisher(self) -> Descent:
        """F over this worker's rows, 0 where a row has no gradient."""
        total = ParameterVector(_zeros(p) if p.requires_grad else None for p in self.parameters)
        with self.refreshing():
            for row in range(min(self.samples, self.num_rows)):
                # Unsynced: the square of a gradient averaged over workers is no row's.
                alone = yield Evaluate(rows=slice(row, row + 1), sync=False)
                gradient = alone.take().map(_wide)
                total.add_(gradient.mul_(gradient))
        return total

    def _refuse_shards(self) -> None:
        if any(is_dtensor(parameter) for parameter in self.parameters):
            raise ValueError(
                "ssam-f squares the gradients of single rows, and sharded parameters (FSDP2, "
                "DTensor) only ever show gradients averaged over the workers; use ssam-d or "
                "fisher-mask-sam"
            )


class SSAMD(SSAM):
    """SSAM-D: sparse SAM on weights that drop out and grow in while training (2210.05177).

        K = round((1 - sparsity) D);  M starts as K weights at random
        refresh:  f = (drop_rate / 2) (1 + cos(pi progress)),   n = min(K - round(K (1 - f)), D - K)
                  of the K active weights, the K - n of largest |g| stay
                  of the D - K others, n at random join (none that was dropped just now)
        eps = M * rho g / (||g|| + 1e-12),    q = grad L(w + eps)

    so that the count never changes and the mask is static at the end (f = 0). The first mask is
    refreshed at once. With `pattern` "N:M" every run of M weights (as in SSAM-F) drops and grows
    for itself. The random numbers are D uniforms a choice, in the order of the weights.

    The authors' code counts K in floats and refreshes every few epochs; what grows may be chosen
    otherwise there, random is its default.

    Two gradients a perturbed step, none for a refresh.

    Args:
        base: the optimizer that descends.
        rho: radius, >= 0, or a Schedule of it.
        sparsity: share of weights that stay unperturbed, in [0, 1]; unused with a pattern.
        pattern: "N:M" with 1 <= N <= M, or None.
        refresh_every: steps from one refresh to the next, >= 1.
        drop_rate: f at the start, in [0, 1]; f stays there without total_steps (or progress).

    Raises:
        ValueError: an option out of its range.
    """

    name = "ssam-d"
    drop_rate: float

    def __init__(
        self, base: Optimizer, *, drop_rate: float = 0.5, **others: Unpack[Sparsity]
    ) -> None:
        super().__init__(base, own={"drop_rate": drop_rate}, **others)

    def new_mask(self, clean: Evaluation) -> Descent:
        yield from ()  # the clean gradient and the generator say it all
        parameters, blocks = self.parameters, self._blocks()
        mask = self.recall("mask")
        if not self._fits(mask):
            mask = self._first_mask(blocks)
        active = whole_tensors(mask, parameters)
        gradient = self._whole_gradient(clean)
        draw = self._draw()
        dropped = self.drop_rate / 2.0 * (1.0 + math.cos(math.pi * self.progress))
        chosen = []
        for block in blocks:
            kept = round(block.places * (1.0 - dropped))
            runs = regrown(
                block.runs(active),
                block.runs(gradient).abs_(),
                block.runs(draw),
                num_active=block.places,
                num_changed=min(block.places - kept, block.length - block.places),
            )
            chosen.append((block, runs))
        return mask_of(chosen, parameters)

    def _first_mask(self, blocks: list[Block]) -> ParameterVector:
        draw = self._draw()
        chosen = [(block, highest(block.runs(draw), block.places)) for block in blocks]
        return mask_of(chosen, self.parameters)

    def _draw(self) -> list[Tensor]:
        """A uniform number for each weight, in their order."""
        size = sum(self.parameters[slot].numel() for slot in self._trainable())
        return spread(self.uniforms(size), self.parameters)


class FisherMaskSAM(SparseSAM):
    """FSAM, the Fisher mask: SAM on the weights of largest squared gradient (2210.05497).

        M = 1 on the round(keep D') largest g^2 of the D' weights that compete (ties: lower index)
        eps = M * rho g / (||g|| + 1e-12),    q = grad L(w + eps)

    Outside the competition, and always perturbed, are biases, norm layers and embeddings: tensors
    whose name contains "bias" or "embed", and those of fewer than two dimensions (the one thing
    that can be told where the base was built without names).

    The squared gradient is the batch's, as in the authors' code; the paper's formula averages
    squared gradients over samples (unconfirmed). Their code begins with an empty mask and refreshes
    at every step by default. Not the Fisher SAM of 2206.04920, nor F-SAM (`f-sam`).

    Two gradients a perturbed step, none for a refresh.

    Args:
        base: the optimizer that descends; built from `named_parameters()` it knows the names.
        rho: radius, >= 0, or a Schedule of it.
        keep: share of the competing weights that are perturbed, in [0, 1].
        refresh_every: steps from one mask to the next, >= 1.

    Raises:
        ValueError: an option out of its range.
    """

    name = "fisher-mask-sam"
    keep: float

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: float | Schedule = 0.05,
        keep: float = 0.1,
        refresh_every: int = 1,
        **common: Unpack[Common],
    ) -> None:
        options = {"rho": rho, "keep": keep, "refresh_every": refresh_every}
        super().__init__(base, options=options, **common)

    def new_mask(self, clean: Evaluation) -> Descent:
        yield from ()  # the clean gradient says it all
        parameters = self.parameters
        competing = [slot for slot in self._trainable() if not self._is_always_on(slot)]
        blocks = single_run([p.numel() for p in parameters], competing, keep=self.keep)
        gradient = self._whole_gradient(clean)
        # |g| ranks as g^2 does, and no square underflows.
        chosen = [(block, highest(block.runs(gradient).abs_(), block.places)) for block in blocks]
        return mask_of(chosen, parameters)

    def _is_always_on(self, slot: int) -> bool:
        name = (self.names[slot] or "").lower()
        return "bias" in name or "embed" in name or self.parameters[slot].ndim < 2


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=_wide_dtype(parameter))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor))


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32: squares of small half-precision numbers are 0."""
    return torch.promote_types(tensor.dtype, torch.float32)
