"""What a loss is a mean of: how many terms a batch holds, and whether the loss sums or averages."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CROSS_ENTROPY = (functional.cross_entropy, functional.nll_loss)
_CROSS_ENTROPY_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)
_BINARY = (functional.binary_cross_entropy_with_logits,)
_BINARY_MODULES = (nn.BCEWithLogitsLoss,)


def setting(loss: Callable[..., Any], name: str, default: Any = None) -> Any:
    """The value of a setting of the loss: an attribute of a module, a keyword of a partial."""
    while isinstance(loss, partial):
        if name in loss.keywords:
            return loss.keywords[name]
        loss = loss.func
    return getattr(loss, name, default) if isinstance(loss, nn.Module) else default


def is_cross_entropy(loss: Callable[..., Any]) -> bool:
    """Whether the loss is torch's cross-entropy or negative log-likelihood."""
    return _is(loss, _CROSS_ENTROPY, _CROSS_ENTROPY_MODULES)


def _is(loss: Any, functions: tuple[Any, ...], modules: tuple[type, ...]) -> bool:
    while isinstance(loss, partial):
        loss = loss.func
    return loss in functions if not isinstance(loss, nn.Module) else isinstance(loss, modules)


def class_dimension(loss: Callable[..., Any], output: Any, target: Any) -> int | None:
    """The dimension of the output that runs over classes; None where targets are no class indices.

    Outputs (B, C, ...) with targets (B, ...) are torch's convention; outputs (..., C) with targets
    (...) are a language model's, whose loss is the user's own function.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    if target.is_floating_point() or target.ndim != output.ndim - 1:
        return None
    channels_first = output.shape[:1] + output.shape[2:] == target.shape
    channels_last = output.shape[:-1] == target.shape
    if channels_first and (is_cross_entropy(loss) or not channels_last):
        return 1
    return output.ndim - 1 if channels_last else None


def count_terms(loss: Callable[..., Any], output: Any, target: Any) -> float:
    """The number N_b of loss terms in a batch: what the mean loss of the batch is divided by.

    Class indices: the targets other than `ignore_index`, weighted by the class weights where the
    loss has them (that is the denominator of torch's weighted mean). Class probabilities: the rows.
    Anything else of equal shapes: the elements. What cannot be told: the rows of the target.
    """
    if not isinstance(target, Tensor):
        return float(len(target)) if hasattr(target, "__len__") else 1.0
    if class_dimension(loss, output, target) is not None:
        ignored = setting(loss, "ignore_index", -100)
        counted = target[target != ignored]
        weight = setting(loss, "weight")
        if weight is not None and is_cross_entropy(loss):
            return float(weight.to(counted.device)[counted].double().sum())
        return float(counted.numel())
    if is_cross_entropy(loss) and isinstance(output, Tensor) and output.ndim > 1:
        return float(output.numel() // output.shape[1])
    if isinstance(output, Tensor) and output.shape == target.shape:
        return float(target.numel())
    return float(len(target)) if target.ndim else 1.0


def declared_reduction(loss: Callable[..., Any]) -> str | None:
    """The loss's own word, "mean" or "sum": a module's attribute, a partial's keyword."""
    word = setting(loss, "reduction")
    return word if word in ("mean", "sum") else None


def reduction(loss: Callable[..., Any], output: Any, target: Any) -> str | None:
    """Whether the loss of a batch is the "mean" or the "sum" over its terms, or "neither".

    It is asked, not believed: the loss of some rows and of the others must make up the loss of all,
    as a mean weighted by `count_terms` or as a sum. A batch of one row is set beside itself. None
    where no cut can tell: no rows, a loss of zero or not finite, a part without a term.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
        return None
    if output.ndim == 0 or target.ndim == 0 or len(output) != len(target) or len(target) == 0:
        return None
    output = output.detach()
    if len(target) == 1:
        output, target = torch.cat([output, output]), torch.cat([target, target])
    size = len(target)
    for cut in dict.fromkeys([(size + 2) // 3, size - 1, 1]):
        answer = _asked(loss, output, target, cut)
        if answer is not None:
            return answer
    return None


def _asked(loss: Callable[..., Any], output: Tensor, target: Tensor, cut: int) -> str | None:
    parts = [(output[:cut], target[:cut]), (output[cut:], target[cut:])]
    counts = [count_terms(loss, *part) for part in parts]
    with torch.no_grad():
        whole = float(loss(output, target))
        losses = [float(loss(*part)) for part in parts]
    return judged(whole, losses, counts, torch.finfo(output.dtype).eps)


def judged(whole: float, losses: list[float], counts: list[float], eps: float) -> str | None:
    """What the losses of all parts of a batch, with their terms, make of the loss of the whole."""
    size = sum(map(abs, [whole, *losses]))
    if min(counts) == 0 or size == 0 or not math.isfinite(size):
        return None
    mean = sum(n * value for n, value in zip(counts, losses, strict=True)) / sum(counts)
    tolerance = 1e3 * eps * size
    if abs(mean - whole) <= tolerance:
        return "mean"
    return "sum" if abs(sum(losses) - whole) <= tolerance else "neither"


def num_correct(loss: Callable[..., Any], output: Any, target: Any) -> tuple[Tensor, int] | None:
    """How many predictions are right, of how many; None where right has no meaning."""
    dimension = class_dimension(loss, output, target)
    if dimension is not None:
        counted = target != setting(loss, "ignore_index", -100)
        right = (output.argmax(dimension) == target) & counted
        return right.sum(), int(counted.sum())
    if _is(loss, _BINARY, _BINARY_MODULES) and output.shape == target.shape:
        return ((output > 0) == (target > 0.5)).sum(), target.numel()
    return None
