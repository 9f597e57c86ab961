"""How often a loss can be differentiated, read off autograd's graph: kinks, lost derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

# Operations whose first derivative jumps, by the name of their node: autograd takes the second
# derivative to be zero there. Those whose first derivative is continuous (ELU, Huber) are not here.
# fmt: off
_KINKS = frozenset((
    "Relu", "LeakyRelu", "PreluKernel", "RreluWithNoise", "Threshold", "Hardtanh", "Hardsigmoid",
    "Hardswish", "Hardshrink", "Softshrink", "Abs", "Maximum", "Minimum", "Fmax", "Fmin", "Max",
    "Min", "Amax", "Amin", "Aminmax", "Clamp", "ClampMin", "ClampMax", "Sort", "Topk", "Kthvalue",
    "Median", "Nanmedian",
))
_POOLING = ("MaxPool", "AdaptiveMaxPool", "FractionalMaxPool", "MkldnnMaxPool")
# The same as modules, for a model whose graph hides them behind a function of its own.
_KINKED_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Threshold, nn.Hardtanh, nn.Hardsigmoid,
    nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.SELU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
)
# fmt: on
_ERROR = "torch::autograd::Error"  # what once_differentiable leaves in the graph of a gradient
_MARKED = once_differentiable(lambda ctx: None).__code__  # its wrapper's own, whatever it wraps
_WITHOUT_SECOND_DERIVATIVE = ("derivative for", "ouble backward", "ifferentiate twice")
_REMEDY = (
    "give it a backward that autograd can differentiate, or, for the Hessian alone, take "
    "differences of gradients: `--approximate` (approximate=True of a plan), CentralDifference"
)


class NoSecondDerivative(ValueError):
    """An operation of the loss or the model has no second derivative."""


@dataclass(frozen=True)
class Differentiability:
    """What lies between a loss and theta.

    Attributes:
        kinks: operations whose first derivative jumps (relu, max-pooling), which double backward
            does not see.
        once_differentiable: functions marked so: double backward leaves out what goes through them,
            without a word, when it is asked for the gradient in theta alone.
        own_functions: other functions with a backward written by hand, which may detach too.
        differentiates_once_only: the loss itself holds a derivative of a function that has but one:
            already its gradient leaves something out.
    """

    kinks: tuple[str, ...] = ()
    once_differentiable: tuple[str, ...] = ()
    own_functions: tuple[str, ...] = ()
    differentiates_once_only: bool = False


def differentiability(
    loss: Tensor, leaves: Iterable[Tensor], model: nn.Module | None = None
) -> Differentiability:
    """What lies between a loss, shape (), and the leaves that it is differentiated by.

    With `model`, kinks inside functions that the graph does not look into are told by the types of
    its modules.
    """
    nodes, severed = _between(loss, list(leaves))
    kinks, marked, own = dict[str, None](), dict[str, None](), dict[str, None]()
    for node in nodes:
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            if _is_marked(function.backward):
                marked[function.__name__] = None
            elif not function.__module__.startswith("torch."):
                own[function.__name__] = None
        elif _is_kink(node):
            kinks[node.name().split("Backward")[0]] = None
    if model is not None and (marked or own):
        for name, module in model.named_modules():
            if isinstance(module, _KINKED_MODULES):
                kinks[f"{name} ({type(module).__name__})".strip()] = None
    return Differentiability(tuple(kinks), tuple(marked), tuple(own), severed)


def refuse_once_differentiable(found: Differentiability) -> None:
    """Raises ValueError where double backward would leave something out."""
    if found.once_differentiable:
        names = ", ".join(found.once_differentiable)
        raise NoSecondDerivative(
            f"no second derivative: the backward of {names} is marked once_differentiable, and "
            f"autograd would count what goes through it as zero; {_REMEDY}"
        )
    if found.differentiates_once_only:
        raise NoSecondDerivative(
            "the loss differentiates a function marked once_differentiable, and autograd would "
            "count its second derivative as zero; give it a backward that can be differentiated"
        )


@contextmanager
def named_second_derivatives() -> Iterator[None]:
    """Turns autograd's own refusals of a second derivative into one clear ValueError."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().split("\n")[0]
        if not any(word in said for word in _WITHOUT_SECOND_DERIVATIVE):
            raise
        raise NoSecondDerivative(f"no second derivative: {said.rstrip('.')}; {_REMEDY}") from error


def difference_of_gradients(
    gradient: Callable[[Tensor], Tensor], theta: Tensor, v: Tensor, *, steps: float = 1.0
) -> Tensor:
    """H v, shape (P,), by a central difference: wrong by O(h^2) and by the gradient's rounding / h.

        H v ~ ||v|| (g(theta + h u) - g(theta - h u)) / 2h,   u = v / ||v||,
        h = steps eps^(1/3) (1 + ||theta||),                  eps of theta's dtype

    Zeros for v = 0. Two gradients.
    """
    length = float(torch.linalg.vector_norm(v.double()))
    if length == 0:
        return torch.zeros_like(v)
    scale = 1 + float(torch.linalg.vector_norm(theta.double()))
    h = steps * torch.finfo(theta.dtype).eps ** (1 / 3) * scale
    offset = (h / length) * v
    difference = gradient(theta + offset).double() - gradient(theta - offset).double()
    product: Tensor = difference * (length / (2 * h))
    return product.to(theta.dtype)


def _is_kink(node: Any) -> bool:
    operation = node.name().split("Backward")[0]
    if operation == "Elu":  # slopes alpha input_scale and 1 at zero, times scale: SELU's differ
        return bool(node._saved_alpha * node._saved_input_scale != 1)
    if operation == "LinalgVectorNorm":
        return node._saved_ord in (1, float("inf"), float("-inf"))
    return operation in _KINKS or operation.startswith(_POOLING)


def _is_marked(backward: Any) -> bool:
    while backward is not None:
        if getattr(backward, "__code__", None) is _MARKED:
            return True
        backward = getattr(backward, "__wrapped__", None)  # behind another decorator
    return False


def _between(loss: Tensor, leaves: list[Tensor]) -> tuple[list[Any], bool]:
    """The nodes on a path from the loss to a leaf, and whether some path ends in an error node."""
    if loss.grad_fn is None:
        return [], False
    users: dict[Any, list[Any]] = {loss.grad_fn: []}
    stack: list[Any] = [loss.grad_fn]
    severed = False
    while stack:
        node = stack.pop()
        severed |= node.name() == _ERROR
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in users:
                users[following] = []
                stack.append(following)
            users[following].append(node)
    ends = [get_gradient_edge(leaf).node for leaf in leaves if leaf.requires_grad]
    found = dict.fromkeys(end for end in ends if end in users)
    stack = list(found)
    while stack:
        for user in users[stack.pop()]:
            if user not in found:
                found[user] = None
                stack.append(user)
    return list(found), severed
