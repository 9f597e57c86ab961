"""A batch through model and loss before anything long: what does not fit is told at once."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.objective import BoundModel
from sam_variants.tasks.user_code import users_place

from .foreign import described, is_pair
from .losses import Loss

_CLASSES = ("cross-entropy", "nll")  # of labels
_ELEMENTS = ("mse", "bce")  # of targets shaped like the outputs
_IGNORED = -100  # torch's ignore_index
_LOG_PROBABILITIES = 1e-2  # how far their sum may be from one


def check_batches(
    model: nn.Module, loss: Loss, batches: Sequence[Any], *, model_word: str, data: str
) -> None:
    """Evaluates one batch of each form in eval mode as `Objective` would, and looks at all targets.

    Batches of one form have the same dtypes, and shapes but for the number of rows. The model, its
    flags and the random state stay as they were; what the user's code prints goes to stderr.

    Args:
        model: with its weights, on its device.
        loss: of `build_loss`.
        batches: all of them; targets of a loss of ours are checked in each.
        model_word, data: how messages call the model and the data.

    Raises:
        ValueError: model or loss fail on a batch (names the user's line); outputs or targets that
            the loss cannot take; a loss that is no single number, or that does not hang on the
            weights.
    """
    forms: dict[str, list[int]] = {}
    for index, batch in enumerate(batches):
        forms.setdefault(_form(batch), []).append(index)
    with _kept(model):
        for alike in forms.values():
            _check_form(model, loss, {i: batches[i] for i in alike}, model_word, data)


def _check_form(
    model: nn.Module, loss: Loss, alike: Mapping[int, Any], model_word: str, data: str
) -> None:
    """The first of these batches through model and loss; the targets of all of them."""
    batch = _on_device(next(iter(alike.values())), model)
    name = f"loss {loss.word} ({loss.place})" if loss.place else f"loss {loss.word}"
    bound = BoundModel(model, _leaves(model))
    if not is_pair(batch):
        if loss.place is None:
            raise ValueError(
                f"{data}: batches are {described(batch)}, not (inputs, targets), which --loss "
                f"{loss.word} takes; give a function of yours, called as loss(model, batch)"
            )
        with _told(f"{name} fails on a batch {described(batch)}"):
            value = loss.function(bound, batch)
    else:
        with _told(f"model {model_word} fails on inputs {described(batch[0])} of {data}"):
            output = bound.on(batch[0])
        if loss.place is None:
            _check_fit(loss.word, output, alike, model_word, data)
        with _told(f"{name} fails on a batch {described(batch)}"):
            value = loss.function(output, batch[1])
    _check_value(value, name, pairs=is_pair(batch))


def _check_value(value: Any, name: str, *, pairs: bool) -> None:
    terms: Any = 1
    if isinstance(value, tuple) and len(value) == 2 and not pairs:
        value, terms = value
        number = terms.item() if isinstance(terms, Tensor) and terms.numel() == 1 else terms
        if not isinstance(number, (int, float)) or not math.isfinite(number) or number < 0:
            raise ValueError(f"{name} returned {terms!r} as its number of terms")
    if not isinstance(value, Tensor) or value.numel() != 1:
        more = " (or a tuple of it and its number of terms)" if not pairs else ""
        raise ValueError(
            f"{name} returned {described(value)}; expected a tensor of one number{more}: take the "
            "mean or the sum"
        )
    if not value.requires_grad:
        raise ValueError(
            f"{name} does not hang on the model's weights: something on the way detaches it "
            "(.item(), .detach(), torch.no_grad, argmax)"
        )


def _check_fit(
    word: str, output: Any, alike: Mapping[int, Any], model_word: str, data: str
) -> None:
    """What the losses of ours ask of outputs and targets."""
    if not isinstance(output, Tensor):
        raise ValueError(
            f"model {model_word} returns {described(output)}, and --loss {word} takes one tensor: "
            "give a function of yours as --loss that picks, loss(output, target)"
        )
    for index, (_, targets) in alike.items():
        where = f"{data}: batch {index}"
        if not isinstance(targets, Tensor):
            raise ValueError(
                f"{where}: targets are {described(targets)}; --loss {word} takes one tensor"
            )
        if word in _CLASSES:
            _check_labels(word, output, targets, where)
        elif word in _ELEMENTS:
            _check_elements(word, output, targets, where)
    if word == "nll":
        sums = output.detach().double().exp().sum(min(1, output.ndim - 1))
        if bool(((sums - 1).abs() > _LOG_PROBABILITIES).any()):
            raise ValueError(
                f"the outputs of model {model_word} are no log-probabilities, which --loss nll "
                "takes (their exponentials do not sum to 1): of logits it is --loss cross-entropy"
            )


def _check_labels(word: str, output: Tensor, targets: Tensor, where: str) -> None:
    form = f"targets are {described(targets)}, outputs {described(output)}"
    if output.ndim < 2:
        raise ValueError(f"{where}: {form}; --loss {word} takes outputs (n, classes, ...)")
    if targets.is_floating_point():
        if word == "cross-entropy" and targets.shape[1:] == output.shape[1:]:
            return  # probabilities of classes
        raise ValueError(
            f"{where}: {form}; --loss {word} takes class labels, whole numbers (int64); for "
            "numbers there is --loss mse"
        )
    if targets.shape[1:] != output.shape[2:]:
        raise ValueError(
            f"{where}: {form}; --loss {word} takes labels (n, ...) for outputs (n, classes, ...)"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"{where}: {form}; --loss {word} takes labels of dtype int64")
    num_classes = output.shape[1]
    wrong = targets[(targets != _IGNORED) & ((targets < 0) | (targets >= num_classes))]
    if wrong.numel():
        raise ValueError(
            f"{where}: label {int(wrong[0])} is out of range: the model has {num_classes} classes, "
            f"0 to {num_classes - 1} ({_IGNORED}: ignored)"
        )


def _check_elements(word: str, output: Tensor, targets: Tensor, where: str) -> None:
    form = f"targets are {described(targets)}, outputs {described(output)}"
    if targets.shape[1:] != output.shape[1:]:
        raise ValueError(f"{where}: {form}; --loss {word} takes targets of the outputs' shape")
    if not targets.is_floating_point():
        raise ValueError(f"{where}: {form}; --loss {word} takes floating targets")
    if word == "bce" and bool(((targets < 0) | (targets > 1)).any()):
        raise ValueError(f"{where}: a target is outside [0, 1], which --loss bce takes")


def _form(batch: Any) -> str:
    """Dtypes, and shapes without the number of rows, of every tensor of the structure."""
    if isinstance(batch, Tensor):
        return f"{tuple(batch.shape[1:])} {batch.dtype}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_form(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(map(_form, batch)) + ")"
    return type(batch).__name__


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Prints of the block go to stderr; what it raises is one line, with the user's own place."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        place = users_place(error)
        at = f" at {place}" if place else ""
        message = " ".join(str(error).split())
        raise ValueError(f"{what}{at}: {type(error).__name__}: {message}") from error


@contextlib.contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients; flags and random state are put back."""
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), None)
    devices = [parameter.device] if parameter is not None and parameter.is_cuda else []
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _leaves(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name, apart from the model's own: a forward may write into buffers."""
    weights = {
        name: p.detach().requires_grad_(p.requires_grad) for name, p in model.named_parameters()
    }
    return {**weights, **{name: b.detach().clone() for name, b in model.named_buffers()}}


def _on_device(thing: Any, model: nn.Module) -> Any:
    """The same structure where the model is, floating tensors in its dtype, as in `Objective`."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return thing
    if isinstance(thing, Tensor):
        return thing.to(parameter.device, parameter.dtype if thing.is_floating_point() else None)
    if isinstance(thing, Mapping):
        return {key: _on_device(value, model) for key, value in thing.items()}
    if isinstance(thing, (tuple, list)):
        return tuple(_on_device(value, model) for value in thing)
    return thing
