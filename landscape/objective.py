"""Objective: the loss of a model on fixed data as a function of one flat parameter vector theta."""

from __future__ import annotations

import copy
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from .differentiability import (
    Differentiability,
    NoSecondDerivative,
    difference_of_gradients,
    differentiability,
    named_second_derivatives,
    refuse_once_differentiable,
)
from .loss_terms import count_terms, declared_reduction, judged, num_correct, reduction
from .parameters import ParameterSpace

_RESIDENT_BYTES = 1 << 30  # data above this stay where they are and move to the device by batch
_RETURN_TERMS = "return (loss, num_terms), the mean loss and its terms"


@dataclass(frozen=True)
class Evaluation:
    """The loss at one theta (nats for a log-likelihood) and the accuracy in [0, 1]."""

    loss: float
    accuracy: float | None


class TwiceDifferentiable(Protocol):
    """A function of theta, shape (P,), with what curvature and sharpness ask of an `Objective`."""

    theta: Tensor  # where it is looked at unless another point is given
    dtype: torch.dtype
    device: torch.device

    @property
    def num_parameters(self) -> int:
        """P."""

    def value(self, theta: Tensor) -> float:
        """L(theta)."""

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """L(theta) and its gradient, shape (P,)."""

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessian-vector product H(theta) v, shape (P,)."""


class Objective:
    """The mean loss over all terms of fixed data, as a function of theta, shape (P,).

        L(theta) = sum_b N_b L_b(theta) / sum_b N_b

    L_b is the loss of batch b and N_b the number of its loss terms (targets other than
    `ignore_index`, weighted by class where the loss is; elements of a regression), so the answer
    does not depend on how the data were split. A loss that sums is divided by N_b first; which of
    the two it does is found out by asking it about parts of each batch.

    The caller's model is never touched: evaluation runs on a copy that shares its tensors, in eval
    mode, through `functional_call` with cloned buffers. Weights, buffers, `.grad`, flags,
    `requires_grad` and the global random state are the same bits afterwards, after an exception
    too. Weight decay is not in L unless the loss has it.

    Args:
        model: any module; its weights at this moment become `theta`.
        loss: `loss(output, target)` for batches `(inputs, targets)`; `loss(model, batch)` for
            batches of any other form, where `model` is the callable bound to theta. A `(loss,
            num_terms)` pair may be returned in the second form.
        batches: taken once. `inputs` may be a tensor, a tuple (positional) or a dict (keywords).
        parameters: glob or globs: theta is these parameters, the others stay fixed.
        dtype: of the arithmetic; default the model's own.
        device: default the model's own.
        batch_norm: "eval" (running statistics) or "batch" (statistics of each batch as it is given;
            the answer then depends on the split).
        fix_seeds: a seed per batch from this number on, for models that draw random numbers.
        micro_batch: batches are cut into pieces of at most so many rows, for memory; the answer is
            the same where the rows of a batch do not depend on each other.

    Raises:
        ValueError: no data; micro_batch < 1, or beside the statistics of each batch; a batch whose
            loss changes when it is evaluated again; a loss that is neither a mean nor a sum over
            the rows of several batches, or nan in some of them alone, and does not say how many
            terms it is over; no parameter matches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        batches: Iterable[Any],
        *,
        parameters: str | Sequence[str] = "*",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_norm: str = "eval",
        fix_seeds: int | None = None,
        micro_batch: int | None = None,
    ) -> None:
        if batch_norm not in ("eval", "batch"):
            raise ValueError(f"batch_norm must be 'eval' or 'batch', got {batch_norm!r}")
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be >= 1, got {micro_batch}")
        if micro_batch is not None and batch_norm == "batch":
            raise ValueError(
                "micro_batch would change the statistics of each batch: batch norm 'eval'"
            )
        model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper prefixes every name
        self.space = ParameterSpace.of(model, parameters)
        own = dict(model.named_parameters())
        first = own[self.space.names[0]]
        self.dtype = dtype if dtype is not None else first.dtype
        self.device = torch.device(device) if device is not None else first.device
        self.loss = loss
        if isinstance(loss, nn.Module) and type(loss).__module__.startswith("torch.nn."):
            # Class weights compute where and in what precision we do. A user's own loss module is
            # left alone: it may hold the model.
            self.loss = copy.deepcopy(loss).to(self.device, self.dtype)
        self.fix_seeds = fix_seeds
        self.batch_norm = batch_norm
        self.theta = self.space.flatten(own).to(self.device, self.dtype)
        self.refresh(model)
        self._model = _twin(model)

        given = tuple(_detached(batch) for batch in batches)
        if not given:
            raise ValueError("the data hold no batch: nothing to measure the loss on")
        uncut: tuple[_Uncut, ...] = ()
        if micro_batch is not None:
            given, uncut = _cut(given, micro_batch)
        resident = sum(t.nbytes for batch in given for t in _tensors(batch)) <= _RESIDENT_BYTES
        self.batches = tuple(map(self._cast, given)) if resident else given
        self.reduction = "mean"
        self._terms: tuple[float, ...] = (1.0,) * len(self.batches)
        self._loss_differentiates = False
        self._is_number_somewhere = False
        self._check_determinism()
        self.reduction, self._terms = self._survey(uncut)
        self.unused, self._differentiability = self._read_graph()
        self._products_checked = False

    def over_rows(self, rows: Iterable[int]) -> Objective:
        """The mean loss over these rows of the data alone, counted from 0 through all batches.

        Model, parameters and theta stay what they are. Rows of one batch stay one batch: of its
        tensors those are cut that have as many rows as the batch. One forward pass over the rows.

        Raises:
            ValueError: no row, or one that the data do not have; no loss term among the rows,
            or a loss that does not say its terms and is nan on them alone.
        """
        wanted = sorted(set(rows))
        if not (wanted and 0 <= wanted[0] <= wanted[-1] < self.num_samples):
            got = f"{wanted[0]} to {wanted[-1]}" if wanted else "none"
            raise ValueError(f"rows must be some of 0 to {self.num_samples - 1}, got {got}")
        pieces, begin, first = [], 0, 0
        for batch in self.batches:
            size = _num_rows(batch)
            last = bisect_left(wanted, begin + size)
            if last > first:
                index = torch.tensor([row - begin for row in wanted[first:last]])
                pieces.append(_rows_of(batch, index, size))
            begin, first = begin + size, last
        part = copy.copy(self)
        part.batches, part._terms = tuple(pieces), (1.0,) * len(pieces)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever there is to say was said of the whole
            # A part may be too small to tell a mean from a sum: that stays as the whole told it.
            part._terms = part._survey(ask=False)[1]
        return part

    def on_statistics(self, statistics: Mapping[str, Tensor] | None) -> Objective:
        """The same objective with other statistics in its batch norms, over the same data.

        Running statistics by the names of their buffers; None: those of each batch as it is given.
        """
        other = copy.copy(self)
        if statistics is None:
            other.batch_norm = "batch"
        else:
            other._buffers = {**self._buffers, **{n: self._cast(s) for n, s in statistics.items()}}
        return other

    def refresh(self, model: nn.Module) -> None:
        """Takes what is not theta (buffers, parameters that do not move) as the model has it now.

        The constructor does; a model that trains on has new running statistics to be measured with.
        """
        chosen = set(self.space.names)
        self._constants = {
            name: self._cast(tensor.detach()).clone()
            for name, tensor in model.named_parameters()
            if name not in chosen
        }
        self._buffers = {name: self._cast(b.detach()).clone() for name, b in model.named_buffers()}

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.space.size

    @property
    def num_batches(self) -> int:
        return len(self.batches)

    @property
    def num_terms(self) -> float:
        """N, the number of loss terms of all batches."""
        return sum(self._terms)

    @property
    def num_samples(self) -> int:
        """The number of rows of all batches."""
        return sum(_num_rows(batch) for batch in self.batches)

    @property
    def uses_running_statistics(self) -> bool:
        """Whether a norm reads running statistics, which belong to the model's own weights."""
        return self.batch_norm == "eval" and any(
            getattr(module, "running_mean", None) is not None for module in self._model.modules()
        )

    @property
    def batch_norms(self) -> dict[str, _BatchNorm]:
        """The batch norms with running statistics, by name: the very modules that evaluate."""
        return {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        }

    @property
    def kinks(self) -> tuple[str, ...]:
        """The operations of the first batch's loss whose first derivative jumps (relu, max-pool).

        The second derivative of autograd does not see them, a difference of gradients does.
        """
        return self._differentiability.kinks

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parameters left out because they do not require a gradient."""
        return self.space.frozen

    def value(self, theta: Tensor) -> float:
        """L(theta), accumulated in float64."""
        return self.evaluate(theta).loss

    def evaluate(self, theta: Tensor) -> Evaluation:
        """L(theta) and the accuracy at theta, of one forward pass over the data.

        A non-finite loss is returned as it is.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.float64, device=self.device)
        counted = torch.zeros_like(right)
        with self._without_theta_graph(), self._guarded():
            weights = self.space.unflatten(self._own(theta).detach())
            for index, share, batch in self._weighted_batches():
                output, loss = self._run(weights, batch, index)
                total += share * loss.detach().double()
                score = None if output is None else num_correct(self.loss, output, batch[1])
                if score is not None:
                    right, counted = right + score[0], counted + score[1]
        return Evaluation(float(total), float(right / counted) if counted else None)

    def gradient(self, theta: Tensor) -> Tensor:
        """grad L(theta), shape (P,), summed over batches in float64."""
        return self.value_and_gradient(theta)[1]

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """L(theta) and its gradient, shape (P,), of one pass over the data."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)

        def batch_gradient(leaf: Tensor, loss: Tensor, share: float) -> Tensor:
            total.add_(loss.detach().double(), alpha=share)
            return _gradient(loss, leaf)

        gradient = self._sum_over_batches(theta, batch_gradient)
        return float(total), gradient

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessian-vector product H(theta) v, shape (P,), by double backward.

        Autograd does not see the kinks of ReLU and max-pooling: their second derivative counts as
        zero. Fused attention has no second derivative, so its plain form is used.

        Raises:
            ValueError: an operation has no second derivative. Autograd says so of its own; a
                backward marked `once_differentiable`, whose part it would take for zero, is found
                in the graph; the product through any other backward written by hand is set beside
                a difference of gradients once.
        """
        v = self._own(v)
        self.require_second_derivatives(theta)
        return self._product(theta, v)

    def require_second_derivatives(self, theta: Tensor | None = None) -> None:
        """Raises ValueError where double backward would be refused or silently incomplete.

        Asked once, of the first batch, at theta (P,), default the model's own weights. Free but for
        a backward of the user's own in the graph: then one product and four gradients of it.
        """
        refuse_once_differentiable(self._differentiability)
        if self._products_checked:
            return
        if self._differentiability.own_functions:
            self._compare_with_differences(self.theta if theta is None else theta)
        self._products_checked = True

    def _product(self, theta: Tensor, v: Tensor) -> Tensor:
        def product(leaf: Tensor, loss: Tensor, share: float) -> Tensor:
            return _batch_product(leaf, loss, v)

        with named_second_derivatives():
            return self._sum_over_batches(theta, product)

    def batch_not_finite(self, theta: Tensor, v: Tensor) -> int | None:
        """The first batch, counted from 0, with a product of its own that is not finite; or None.

        For the message of an error: one product, with a look at each batch.
        """
        v, finite = self._own(v), []

        def watched(leaf: Tensor, loss: Tensor, share: float) -> Tensor:
            part = _batch_product(leaf, loss, v)
            finite.append(bool(part.isfinite().all()))
            return part

        self._sum_over_batches(theta, watched)
        indices = [index for index, terms in enumerate(self._terms) if terms]
        return next((i for i, fine in zip(indices, finite, strict=True) if not fine), None)

    def batch_losses(
        self, theta: Tensor
    ) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor]]]:
        """Per batch: its share N_b / N, the model's output at theta, and output -> mean loss.

        The outputs hang on theta's graph: for curvatures that look inside the loss.

        Raises:
            ValueError: the batches are not pairs (inputs, targets), or an output is not a tensor.
        """
        for share, output, loss, _ in self.batch_outputs(theta):
            yield share, output, loss

    def batch_outputs(
        self, theta: Tensor
    ) -> Iterator[tuple[float, Tensor, Callable[[Tensor], Tensor], Any]]:
        """What `batch_losses` yields, and the batch's target on this device.

        Raises:
            ValueError: the batches are not pairs (inputs, targets), or an output is not a tensor.
        """
        with self._guarded():
            weights = self.space.unflatten(theta)
            for index, share, batch in self._weighted_batches():
                if not _is_pair(batch):
                    raise ValueError("needs batches of (inputs, targets) and loss(output, target)")
                output = self._output(weights, batch, index)
                yield share, output, self._mean_loss(batch[1], index), batch[1]

    def require_separate_rows(self, theta: Tensor) -> None:
        """Raises ValueError unless the model's output for a row is that row's alone.

        Every second row of the first batch is asked for again without the others (not where seeds
        are fixed: then the rows' draws differ). Batch norm on batch statistics couples rows.
        """
        with torch.no_grad(), self._guarded():
            weights = self.space.unflatten(self._own(theta))
            index, _, batch = next(self._weighted_batches())
            norms = [m for m in self._model.modules() if isinstance(m, _BatchNorm)]
            if any(self.batch_norm == "batch" or norm.running_mean is None for norm in norms):
                raise ValueError(
                    "batch norm on batch statistics couples the rows of a batch, so they have no "
                    "per-sample gradients: use batch_norm='eval' and running statistics"
                )
            size = _num_rows(batch)
            if size < 2 or self.fix_seeds is not None or not _is_pair(batch):
                return
            odd = torch.arange(1, size, 2)
            whole = self._output(weights, batch, index)
            part = self._output(weights, _rows_of(batch, odd, size), index)
            if len(whole) != size:
                return
            expected = whole[odd.to(self.device)]
            tolerance = 1e3 * torch.finfo(self.dtype).eps * float(whole.abs().max())
            if part.shape != expected.shape or bool(((part - expected).abs() > tolerance).any()):
                raise ValueError(
                    "the model couples the rows of a batch (its output for a row changes when "
                    "others are left out), so they have no per-sample gradients"
                )

    def _output(self, weights: Mapping[str, Tensor], batch: Any, index: int) -> Tensor:
        self._seed(index)
        output = self._call(weights).on(batch[0])
        if not isinstance(output, Tensor):
            raise ValueError(f"the model's output is a {type(output).__name__}, no tensor")
        return output

    # -- one batch ---------------------------------------------------------------------------

    def _run(self, weights: Mapping[str, Tensor], batch: Any, index: int) -> tuple[Any, Tensor]:
        """The model's output (None in the second form) and the mean loss of one batch."""
        self._seed(index)
        call = self._call(weights)
        output = None
        if _is_pair(batch):
            output = call.on(batch[0])
            loss = self.loss(output, batch[1])
        else:
            loss = self.loss(call, batch)
            if isinstance(loss, tuple):
                loss = loss[0]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the loss must return one number, got {shape}: use a mean or a sum")
        loss = loss.reshape(())
        return output, loss / self._terms[index] if self.reduction == "sum" else loss

    def _mean_loss(self, target: Any, index: int) -> Callable[[Tensor], Tensor]:
        terms = self._terms[index] if self.reduction == "sum" else 1.0
        return lambda output: self.loss(output, target) / terms

    def _call(self, weights: Mapping[str, Tensor]) -> BoundModel:
        buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        return BoundModel(self._model, {**weights, **self._constants, **buffers})

    def _sum_over_batches(
        self, theta: Tensor, term: Callable[[Tensor, Tensor, float], Tensor]
    ) -> Tensor:
        """sum_b share_b term_b, shape (P,): each term a vector made from the loss of one batch."""
        leaf = self._own(theta).detach().requires_grad_()
        total: Tensor | None = None
        with torch.enable_grad(), self._guarded():
            for index, share, batch in self._weighted_batches():
                _, loss = self._run(self.space.unflatten(leaf), batch, index)
                part = term(leaf, loss, share)
                if self.num_batches == 1:  # nothing to sum, nothing to round
                    return part
                if total is None:
                    total = torch.zeros_like(part, dtype=torch.float64)
                total.add_(part, alpha=share)
        assert total is not None
        return total.to(self.dtype)

    def _weighted_batches(self) -> Iterator[tuple[int, float, Any]]:
        """Index, share N_b / N and content of each batch; one without a term is left out."""
        for index, (terms, batch) in enumerate(zip(self._terms, self.batches, strict=True)):
            if terms:  # the mean loss over no term is 0 / 0
                yield index, terms / self.num_terms, self._cast(batch)

    # -- what is checked once ----------------------------------------------------------------

    def _check_determinism(self) -> None:
        weights = self.space.unflatten(self.theta)

        def twice() -> tuple[float, float]:
            with self._without_theta_graph(), self._guarded():
                batch = self._cast(self.batches[0])
                first, second = (self._run(weights, batch, 0)[1].detach() for _ in range(2))
                return float(first), float(second)

        try:
            first, second = twice()
        except RuntimeError as error:  # the loss, or the model, asks autograd for a derivative
            if "does not require grad" not in str(error):
                raise
            self._loss_differentiates = True
            first, second = twice()
        tolerance = 64 * torch.finfo(self.dtype).eps * abs(first)
        if abs(first - second) > tolerance:  # False for nan: a loss that is nan is so twice
            raise ValueError(
                f"the first batch has loss {first:.6g} and then {second:.6g}: the model draws "
                "random numbers in eval mode (dropout by function, noise, augmentation); "
                "remove them, or fix the seeds (--fix-seeds; fix_seeds=0)"
            )

    def _survey(
        self, uncut: Sequence[_Uncut] = (), *, ask: bool = True
    ) -> tuple[str, tuple[float, ...]]:
        """Whether the loss is a mean or a sum, and the terms of each batch: one forward pass.

        A loss(model, batch) that does not say its terms is asked of parts of every batch, in two
        more passes; one that says them is asked until a batch can tell, or not at all (`ask`).
        """
        counts: list[float] = []
        answers: list[str] = []
        untold: dict[int, float] = {}  # the losses that do not say their terms, by batch
        weights = self.space.unflatten(self.theta)
        with self._without_theta_graph(), self._guarded():
            for index, given in enumerate(self.batches):
                batch = self._cast(given)
                self._seed(index)
                call = self._call(weights)
                if _is_pair(batch):
                    output = call.on(batch[0])
                    counts.append(count_terms(self.loss, output, batch[1]))
                    answers.append(reduction(self.loss, output, batch[1]) or "unknown")
                    continue
                loss, terms, told = _custom_loss(self.loss(call, batch), batch)
                counts.append(terms)
                if not told:
                    untold[index] = loss
                if ask and not (told and set(answers) - {"unknown"}):
                    answer = self._ask(call, batch, loss, told)
                    answers.append("mean" if told and answer == "neither" else answer)
                else:
                    answers.append("unknown")
            for whole in uncut:
                if not untold.keys().isdisjoint(whole.pieces):
                    answer = self._ask_across(self._call(weights), self._cast(whole.spread))
                    for piece in whole.pieces:
                        answers[piece] = answer if answers[piece] == "unknown" else answers[piece]
                    answers.append(answer)
        self._refuse_uncounted(untold)
        found = set(answers) - {"unknown"}
        if self.num_batches > 1 and (len(found) > 1 or "neither" in found):
            raise ValueError(
                "the loss is neither the mean nor the sum over the terms of each batch, so several "
                "batches cannot be put together; give the data as one batch"
                + (f"; or {_RETURN_TERMS}" if untold else "")
            )
        if self.num_batches > 1 and any(answers[index] == "unknown" for index in untold):
            warnings.warn(
                "loss(model, batch) does not say how many terms its mean is over, and not every "
                "batch can be asked: batches are weighted by their rows; return (loss, num_terms) "
                "where that is wrong",
                stacklevel=4,
            )
        if not sum(counts) > 0:
            raise ValueError("the data hold no loss term (every target ignored, or empty batches)")
        decided = next(iter(found - {"neither"}), None)
        return decided or declared_reduction(self.loss) or "mean", tuple(counts)

    def _refuse_uncounted(self, untold: Mapping[int, float]) -> None:
        """Raises ValueError where some of these losses are nan and others are not.

        A mean over no term is nan; where all are, it is the weights that the loss is nan at.
        """
        empty = [index for index, loss in untold.items() if math.isnan(loss)]
        self._is_number_somewhere |= len(empty) < len(untold)
        if empty and self._is_number_somewhere:
            raise ValueError(
                f"the loss of {len(empty)} of {self.num_batches} batches or pieces is nan and that "
                "of others is not: a mean over no term (every target ignored), or inputs that are "
                f"not finite; {_RETURN_TERMS} (0 where there is none)"
            )

    def _ask(self, call: BoundModel, batch: Any, loss: float, told: bool) -> str:
        """What `reduction` says of a loss(model, batch), asked about two parts of the batch.

        Two cuts where the terms are not told: parts of one cut may hold as many terms a row by
        accident. "unknown" where parts cannot tell: one row, a model that couples or draws for its
        rows, a loss that does not take part of a batch.
        """
        size = _num_rows(batch)
        if size < 2 or self.batch_norm == "batch" or self.fix_seeds is not None:
            return "unknown"
        third = (size + 2) // 3
        answers = []
        for cut in (third,) if told else dict.fromkeys((third, min(2, size - 1))):
            ends = ((0, cut), (cut, size))
            parts = [_rows_of(batch, torch.arange(*end), size) for end in ends]
            try:
                found = [_custom_loss(self.loss(call, part), part) for part in parts]
            except Exception:  # the user's own code, on what it was not made for
                continue
            losses, counts = [part[0] for part in found], [part[1] for part in found]
            if not told and math.isfinite(loss) and any(map(math.isnan, losses)):
                return "neither"  # a part without a term
            answers.append(judged(loss, losses, counts, torch.finfo(self.dtype).eps) or "unknown")
        known = set(answers) - {"unknown"}
        return known.pop() if len(known) == 1 else "neither" if known else "unknown"

    def _ask_across(self, call: BoundModel, batch: Any) -> str:
        """`_ask` about rows from all over a batch that was cut: its pieces may be even inside."""
        try:
            loss, _, told = _custom_loss(self.loss(call, batch), batch)
        except Exception:  # the user's own code, on what it was not made for
            return "unknown"
        return self._ask(call, batch, loss, told)

    def _read_graph(self) -> tuple[tuple[str, ...], Differentiability]:
        """The parameters that the loss of the first batch does not depend on; what lies between.

        Raises:
            ValueError: the loss holds a derivative of a function that has but one.
        """
        leaves = {
            name: piece.detach().requires_grad_()
            for name, piece in self.space.unflatten(self.theta).items()
        }
        with torch.enable_grad(), self._guarded():
            index, _, batch = next(self._weighted_batches())
            _, loss = self._run(leaves, batch, index)
            if not loss.requires_grad:
                return self.space.names, Differentiability()
            found = differentiability(loss, leaves.values(), self._model)
            if found.differentiates_once_only:
                refuse_once_differentiable(found)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return tuple(n for n, g in zip(leaves, gradients, strict=True) if g is None), found

    def _compare_with_differences(self, theta: Tensor) -> None:
        """A product of the first batch beside a difference of its gradients, at two steps.

        Only a difference that has settled can contradict: across a kink it does not.
        """
        first = copy.copy(self)
        first.batches, first._terms = next(
            ((batch,), (terms,))
            for batch, terms in zip(self.batches, self._terms, strict=True)
            if terms
        )
        theta = self._own(theta).detach()
        generator = torch.Generator().manual_seed(0)
        v = self._own(torch.randn(theta.shape, generator=generator, dtype=torch.float64))
        product = first._product(theta, v)
        near, far = (
            difference_of_gradients(first.gradient, theta, v, steps=steps) for steps in (1.0, 2.0)
        )
        off, unsettled = (float((a - near).double().norm()) for a in (product, far))
        size = max(float(a.double().norm()) for a in (product, near))
        if off > 10 * unsettled and off > torch.finfo(self.dtype).eps ** 0.25 * size:
            names = ", ".join(self._differentiability.own_functions)
            raise NoSecondDerivative(
                f"no second derivative: through the backward of {names} autograd's Hessian product "
                f"is {off / size:.2g} (relative) off a difference of gradients; its backward "
                "detaches or is not the derivative of its forward; mend it, or take differences: "
                "`--approximate` (approximate=True), CentralDifference"
            )

    # -- the state guard ---------------------------------------------------------------------

    def _without_theta_graph(self) -> torch.autograd.grad_mode.set_grad_enabled:
        """No graph, unless the loss differentiates within itself (a physics-informed one)."""
        return torch.set_grad_enabled(self._loss_differentiates)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Eval mode, full precision, double-differentiable kernels; the random state put back."""
        with ExitStack() as stack:
            cuda = self.device.type == "cuda"
            devices = [self.device] if cuda else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.autocast(self.device.type, enabled=False))
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            if cuda:
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            stack.enter_context(_eval_mode(self._model, self.batch_norm))
            yield

    def _seed(self, index: int) -> None:
        if self.fix_seeds is not None:
            torch.manual_seed(self.fix_seeds + index)

    def _own(self, vector: Tensor) -> Tensor:
        return vector.to(self.device, self.dtype)

    def _cast(self, thing: Any) -> Any:
        """The same structure on this device, floating tensors in this dtype."""
        if isinstance(thing, Tensor):  # detached: a loss may mark its inputs by requires_grad_
            return thing.detach().to(self.device, self.dtype if thing.is_floating_point() else None)
        if isinstance(thing, Mapping):
            return {key: self._cast(value) for key, value in thing.items()}
        if isinstance(thing, tuple | list):
            return tuple(self._cast(value) for value in thing)
        return thing


class BoundModel:
    """The model bound to theta: what `loss(model, batch)` calls.

    `tensors` are its weights and buffers by name, for a loss that looks at them (weight decay).
    """

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.model = model
        self.tensors = dict(tensors)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return functional_call(self.model, self.tensors, args, keywords)

    def on(self, inputs: Any) -> Any:
        """The output for the inputs of a batch: a tensor, a tuple or a dict of arguments."""
        if isinstance(inputs, Mapping):
            return self(**inputs)
        return self(*inputs) if isinstance(inputs, tuple) else self(inputs)


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every parameter and buffer, so that flags can differ.

    A module that holds a tensor made by autograd cannot be copied: the model itself comes back, and
    `_eval_mode` restores its flags after every evaluation.
    """
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    try:
        return copy.deepcopy(model, dict(shared))
    except RuntimeError:
        culprit = next(
            (
                f"{name or 'the model'} ({type(module).__name__})"
                for name, module in model.named_modules()
                for value in vars(module).values()
                if isinstance(value, Tensor) and not value.is_leaf
            ),
            type(model).__name__,
        )
        warnings.warn(
            f"{culprit} holds a tensor made by autograd and cannot be copied; "
            "the model itself is used and its flags are restored after each evaluation",
            stacklevel=3,
        )
        return model


@contextmanager
def _eval_mode(model: nn.Module, batch_norm: str) -> Iterator[None]:
    """Eval mode; with batch_norm "batch" the norms use batch statistics and learn nothing."""
    modes = [(module, module.training) for module in model.modules()]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    tracking = [(norm, norm.track_running_stats) for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        if batch_norm == "batch":
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for norm, track in tracking:
            norm.track_running_stats = track


def _gradient(
    loss: Tensor, leaf: Tensor, *, along: Tensor | None = None, create_graph: bool = False
) -> Tensor:
    """d loss / d leaf, (P,), weighted by `along`; zeros where the loss does not depend on theta."""
    if not loss.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        loss, leaf, along, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return gradient


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _tensors(thing: Any) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, tuple | list):
        for value in thing:
            yield from _tensors(value)


def _detached(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.detach()
    if isinstance(thing, Mapping):
        return {key: _detached(value) for key, value in thing.items()}
    return tuple(_detached(v) for v in thing) if isinstance(thing, tuple | list) else thing


def _rows_of(thing: Any, index: Tensor, num_rows: int) -> Any:
    """The same structure with these rows alone of every tensor that has so many."""
    if isinstance(thing, Tensor):
        cut = thing.ndim > 0 and len(thing) == num_rows
        return thing[index.to(thing.device)] if cut else thing
    if isinstance(thing, Mapping):
        return {key: _rows_of(value, index, num_rows) for key, value in thing.items()}
    if isinstance(thing, tuple | list):
        return tuple(_rows_of(value, index, num_rows) for value in thing)
    return thing


def _batch_product(leaf: Tensor, loss: Tensor, v: Tensor) -> Tensor:
    """H_b v for the mean loss of one batch."""
    gradient = _gradient(loss, leaf, create_graph=True)
    if not gradient.requires_grad:  # the loss of this batch is linear in theta
        return torch.zeros_like(leaf)
    return _gradient(gradient, leaf, along=v)


def _custom_loss(answer: Any, batch: Any) -> tuple[float, float, bool]:
    """What loss(model, batch) returned: its value, its terms, and whether it said how many."""
    loss, terms = answer if isinstance(answer, tuple) else (answer, _num_rows(batch))
    value = float(loss.detach() if isinstance(loss, Tensor) else loss)
    return value, float(terms), isinstance(answer, tuple)


@dataclass(frozen=True)
class _Uncut:
    """A batch that was cut: the indices of its pieces, and rows from all over it, one piece's."""

    pieces: range
    spread: Any


def _cut(batches: Iterable[Any], size: int) -> tuple[tuple[Any, ...], tuple[_Uncut, ...]]:
    """Each batch's rows in their order, at most so many at a time; and what was cut."""
    pieces: list[Any] = []
    uncut = []
    for batch in batches:
        num_rows, first = _num_rows(batch), len(pieces)
        for begin in range(0, num_rows, size):
            index = torch.arange(begin, min(begin + size, num_rows))
            pieces.append(_rows_of(batch, index, num_rows))
        if num_rows > size > 1:
            spread = torch.arange(size) * (num_rows - 1) // (size - 1)
            indices = range(first, len(pieces))
            uncut.append(_Uncut(indices, _rows_of(batch, spread, num_rows)))
    return tuple(pieces), tuple(uncut)


def _num_rows(batch: Any) -> int:
    """The rows of a batch: the length of its target, or of its first tensor."""
    tensors = list(_tensors(batch[1] if _is_pair(batch) else batch))
    return len(tensors[0]) if tensors and tensors[0].ndim else 1
