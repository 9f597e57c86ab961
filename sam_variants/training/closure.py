"""batch_closure and evaluating: how a model answers the requests of a sharpness-aware rule."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from sam_variants.base import Evaluate

Loss = Callable[[Any, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module, request: Evaluate) -> Iterator[None]:
    """Puts a model in the state that a request asks for, and back.

    Running statistics move in the first evaluation of a step only: later ones normalise with the
    batch's own statistics and learn nothing. For batch norm that is `track_running_stats=False`
    (eval mode would be another function; momentum 0 still counts batches and lets inf in); instance
    norm ignores that flag, so its buffers are put back. A request of a single row runs norm layers
    with running statistics in eval mode, where one row has a meaning. No graph is built where the
    request wants no gradient, and gradients of data-parallel models stay unsynced where
    `request.sync` is False. Sharded modules (FSDP2) drop the whole weights that a forward gathered.

    Args:
        model: the module, or a DistributedDataParallel around it.
        request: from `SharpnessAware.passes`.

    Raises:
        ValueError: over several processes, an unsynced gradient (ascent="local", and the single
            rows of ssam-f) of a DistributedDataParallel with static_graph=True, or of a module
            without `no_sync`.
    """
    one_row = request.num_rows == 1 and not request.all_rows
    layers = [] if request.first and not one_row else list(_layers_with_statistics(model))
    flags = [(layer, layer.training, layer.track_running_stats) for layer in layers]
    buffers: list[tuple[Tensor, Tensor]] = []
    with ExitStack() as context:
        if not request.sync:
            context.enter_context(_alone(model))
        context.enter_context(torch.set_grad_enabled(request.gradient))
        try:
            for layer in layers:
                if one_row:
                    layer.training = False
                elif isinstance(layer, _BatchNorm):
                    layer.track_running_stats = False
                else:
                    buffers += [(b, b.clone()) for b in layer.buffers(recurse=False)]
            yield
        finally:
            for layer, training, tracking in flags:
                layer.training, layer.track_running_stats = training, tracking
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)
            _reshard(model)


class BatchClosure:
    """A batch with the model and the loss, answering a rule's requests; see `batch_closure`.

    A subclass may compute outputs in its own way (`outputs`) and look at them (`watch`).
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Any,
        targets: Any,
        *,
        micro_batch_size: int | None,
        ascent_loss: Loss,
    ) -> None:
        self.model = model
        self.loss = loss
        self.inputs = inputs
        self.targets = targets
        self.micro_batch_size = micro_batch_size
        self.ascent_loss = ascent_loss
        self.num_rows = _num_rows(inputs)

    def __call__(self, request: Evaluate) -> Tensor:
        """Runs the evaluation; returns the mean loss, or (rows,) losses where `per_sample`.

        The gradient of the mean lies in `.grad` afterwards where the request wants one.
        """
        loss = self.ascent_loss if request.ascent else self.loss
        inputs, targets = _select(self.inputs, request.rows), _select(self.targets, request.rows)
        num_rows = _num_rows(inputs)
        parts: list[Tensor] = []
        with evaluating(self.model, request):
            for rows in _pieces(num_rows, self.micro_batch_size or num_rows):
                share = (rows.stop - rows.start) / num_rows
                last = rows.stop == num_rows
                with ExitStack() as context:
                    if not last and request.sync:
                        context.enter_context(_unsynced(self.model))  # reduce once a request
                    target = _select(targets, rows)
                    output = self.outputs(_select(inputs, rows))
                    mean = loss(output, target)
                    if request.gradient:
                        torch.autograd.backward(mean if share == 1.0 else mean * share)
                self.watch(request, output.detach(), target)
                if request.per_sample:
                    parts.append(_losses_by_row(loss, output.detach(), target))
                else:
                    parts.append(mean.detach() * share)
        return torch.cat(parts) if request.per_sample else torch.stack(parts).sum()

    def outputs(self, inputs: Any) -> Tensor:
        """The model's answer to rows of the batch."""
        output: Tensor = self.model(inputs)
        return output

    def watch(self, request: Evaluate, outputs: Tensor, targets: Tensor) -> None:
        """Sees the outputs of each piece of an evaluation; here nothing is done with them."""


def batch_closure(
    model: nn.Module,
    loss: Loss,
    inputs: Any,
    targets: Any,
    *,
    micro_batch_size: int | None = None,
    ascent_loss: Loss | None = None,
) -> BatchClosure:
    """The closure for `SharpnessAware.step` on one batch: serves every request of every rule.

        optimizer.step(batch_closure(model, torch.nn.functional.cross_entropy, inputs, targets))

    Args:
        model: called as model(inputs).
        loss: loss(outputs, targets) -> the mean over rows, 0-dim. For losses per row it is called
            with reduction="none" where it takes that, else row by row under vmap.
        inputs: rows first; a tensor, or a tuple, list or dict of such.
        targets: rows first, likewise.
        micro_batch_size: most rows run at once, in parts of like sizes; gradients of the parts add
            up to the whole's (batch norm then sees each part for itself) where the loss is the mean
            over rows. With class weights or ignore_index it divides by a weight that differs from
            part to part, so the sum is another, and nan where a part is ignored throughout: there
            divide by the rows, as in cross_entropy(..., reduction="sum") / len(targets). Default:
            all.
        ascent_loss: for requests with `ascent` (AACE alone); default `wrong_class_divergence`.

    Returns:
        A callable `closure(request) -> loss` with `.num_rows`.

    Raises:
        ValueError: micro_batch_size < 1, no rows, or inputs and targets of different lengths.
    """
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be >= 1, got {micro_batch_size}")
    num_rows, num_targets = _num_rows(inputs), _num_rows(targets)
    if num_rows != num_targets or num_rows < 1:
        raise ValueError(f"inputs and targets have {num_rows} and {num_targets} rows")
    return BatchClosure(
        model,
        loss,
        inputs,
        targets,
        micro_batch_size=micro_batch_size,
        ascent_loss=wrong_class_divergence if ascent_loss is None else ascent_loss,
    )


def wrong_class_divergence(outputs: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """KL(q || softmax(z)), mean over rows, in nats: AACE's ascent loss (2406.14329).

        q_y = 0,    q_j = p_j / (1 - p_y)  for j != y,    p = softmax(z),    q without gradient

    Args:
        outputs: z, logits, (rows, classes).
        targets: y, class indices, (rows,).
        reduction: "mean", or "none" for one number a row, (rows,).

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be one of mean, none, got {reduction!r}")
    log_p = torch.log_softmax(outputs, dim=-1)
    with torch.no_grad():
        hidden = torch.zeros_like(outputs).scatter_(-1, targets.unsqueeze(-1), -torch.inf)
        log_q = torch.log_softmax(outputs + hidden, dim=-1)  # -inf at the right class
        q = log_q.exp()
        log_q = torch.where(q > 0.0, log_q, 0.0)
    divergences = (q * (log_q - log_p)).sum(dim=-1)
    return divergences if reduction == "none" else divergences.mean()


def _layers_with_statistics(model: nn.Module) -> Iterator[_NormBase]:
    for module in model.modules():
        if isinstance(module, (_BatchNorm, _InstanceNorm)) and module.running_mean is not None:
            yield module


def _unsynced(model: nn.Module) -> AbstractContextManager[Any]:
    """No reduction where it can be put off; where not, gradients add up to the same."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if no_sync is None or _is_static(model) else no_sync()


def _alone(model: nn.Module) -> AbstractContextManager[Any]:
    """No reduction at all: what a perturbation of each worker's own needs."""
    no_sync = getattr(model, "no_sync", None)
    if no_sync is None and _is_parallel():
        raise ValueError(
            "the rule asks for a gradient of this worker alone, and "
            f"{type(model).__name__} has no no_sync(): give evaluating() or batch_closure() the "
            "DistributedDataParallel itself"
        )
    if _is_static(model) and _is_parallel():
        raise ValueError(
            "the rule asks for a gradient of this worker alone, and "
            "DistributedDataParallel(static_graph=True) has none to give: it learns the graph from "
            "a synced backward pass; build it without static_graph"
        )
    return nullcontext() if no_sync is None else no_sync()


def _is_parallel() -> bool:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return started and distributed.get_world_size() > 1


def _is_static(model: nn.Module) -> bool:
    return getattr(model, "static_graph", False) is True


def _reshard(model: nn.Module) -> None:
    # After a forward without a backward pass the root keeps the whole weights it gathered, and the
    # next forward would take them for current, though the optimizer has moved the shards since.
    sharding = sys.modules.get("torch.distributed.fsdp")  # where nobody imported it, none is
    kind = getattr(sharding, "FSDPModule", None)
    if kind is not None:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()


def _select(tree: Any, rows: slice | Tensor) -> Any:
    if isinstance(tree, dict):
        return {key: _select(value, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_select(value, rows) for value in tree)
    return tree if isinstance(rows, slice) and rows == slice(None) else tree[rows]


def _pieces(num_rows: int, size: int) -> Iterator[slice]:
    """Runs of at most `size` rows, as equal as can be: batch norm cannot use a last one of 1."""
    count = -(-num_rows // size)
    ends = [num_rows * i // count for i in range(count + 1)]
    yield from map(slice, ends, ends[1:])


def _num_rows(tree: Any) -> int:
    while isinstance(tree, (dict, tuple, list)):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return len(tree)


@torch.no_grad()
def _losses_by_row(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """One loss a row, shape (rows,)."""
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", None) == "mean":
        vars(loss)["reduction"] = "none"  # put back below: the module is the caller's
        try:
            return _by_row(loss(outputs, targets), len(outputs))
        finally:
            vars(loss)["reduction"] = "mean"
    if "reduction" in inspect.signature(loss).parameters:
        return _by_row(loss(outputs, targets, reduction="none"), len(outputs))  # type: ignore[call-arg]
    by_row: Tensor = torch.vmap(lambda z, y: loss(z.unsqueeze(0), y.unsqueeze(0)))(outputs, targets)
    return by_row


def _by_row(losses: Tensor, num_rows: int) -> Tensor:
    return losses.reshape(num_rows, -1).mean(dim=1)
