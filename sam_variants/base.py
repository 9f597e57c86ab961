"""SharpnessAware: a base optimizer whose rule may ask for gradients elsewhere, and the way home."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from sam_variants import COMMON, VARIANTS, Range, parse_policy
from sam_variants.policies import Always, Policy
from sam_variants.schedules import Schedule, schedule
from sam_variants.vector import TINY, Factor, ParameterVector, is_dtensor, placed_like

T = TypeVar("T", Tensor, ParameterVector)

LOOP = """\
    for request in optimizer.passes(num_rows=len(inputs)):
        criterion = wrong_class_divergence if request.ascent else cross_entropy
        with evaluating(model, request):  # both names from sam_variants.training
            losses = criterion(model(inputs[request.rows]), targets[request.rows], reduction="none")
            if request.gradient:
                losses.mean().backward()
        request.loss = losses.detach() if request.per_sample else losses.detach().mean()
    optimizer.step()"""
"""The recipe of every message about a loop: it serves every rule as it stands."""

ALL_ROWS = slice(None)


class Evaluate:
    """A rule's request for one evaluation of the loss: the whole vocabulary of rules.

    Attributes:
        offset: where, relative to the weights at home; None is at home. The driver moves the
            weights there before the loop's body runs, and forgets the vector.
        rows: which rows of the effective batch, as a slice or a tensor of indices; micro-batches
            are cut after this selection.
        gradient: run the backward pass too, of the mean loss over these rows.
        per_sample: report one loss a row, shape (rows,), instead of their mean.
        ascent: evaluate the rule's ascent loss instead of the training loss (AACE alone).
        sync: average the gradient over data-parallel workers.

    The driver adds:
        first: whether this is the first evaluation of the step, the only one that moves running
            statistics.
        num_rows: how many rows are asked for; None where nobody told the batch's size.
    The loop answers with:
        loss: the detached loss, a 0-dim tensor or number, or (rows,) where `per_sample`.

    What would make the evaluation another one (some rows, the ascent loss, an unsynced gradient) is
    noted in `unread` until the loop looks at it, so that a loop which never does is told.
    """

    def __init__(
        self,
        offset: ParameterVector | None = None,
        *,
        rows: slice | Tensor = ALL_ROWS,
        gradient: bool = True,
        per_sample: bool = False,
        ascent: bool = False,
        sync: bool = True,
    ) -> None:
        self.offset = offset
        self.gradient = gradient
        self.per_sample = per_sample
        self.first = False
        self.num_rows: int | None = None
        self.loss: Tensor | float | None = None
        self._rows = rows
        self._ascent = ascent
        self._sync = sync
        unusual = {"rows": not self.all_rows, "ascent": ascent, "sync": not sync}
        self.unread = {name for name, asked in unusual.items() if asked}

    def __repr__(self) -> str:
        asked = {"rows": self._rows, "gradient": self.gradient, "per_sample": self.per_sample}
        asked |= {"ascent": self._ascent, "sync": self._sync, "first": self.first}
        return f"Evaluate({', '.join(f'{name}={value}' for name, value in asked.items())})"

    @property
    def rows(self) -> slice | Tensor:
        self.unread.discard("rows")
        return self._rows

    @rows.setter
    def rows(self, rows: slice | Tensor) -> None:
        self._rows = rows
        if not self.all_rows:
            self.unread.add("rows")

    @property
    def ascent(self) -> bool:
        self.unread.discard("ascent")
        return self._ascent

    @property
    def sync(self) -> bool:
        self.unread.discard("sync")
        return self._sync

    @property
    def all_rows(self) -> bool:
        """Whether the request is for the batch as it is."""
        return isinstance(self._rows, slice) and self._rows == ALL_ROWS


class Evaluation:
    """The answer to a request: the loss, and the gradient with its norm.

    Attributes:
        loss: 0-dim, or (rows,) where the request said `per_sample`; detached.
        gradient: of the mean loss over the rows, unscaled, the rule's own to change; None where
            the request asked for none, or after `take`.
    """

    def __init__(self, loss: Tensor, gradient: ParameterVector | None) -> None:
        self.loss = loss
        self.gradient = gradient
        self._norm: Tensor | None = None

    @property
    def norm(self) -> Tensor:
        """||gradient|| over all groups, 0-dim float64, computed once; kept after `take`."""
        if self._norm is None:
            if self.gradient is None:
                raise RuntimeError("the evaluation has no gradient, or lost it before its norm")
            self._norm = self.gradient.norm()
        return self._norm

    def take(self) -> ParameterVector:
        """The gradient, which the evaluation forgets, so that its memory ends with its last use."""
        if self.gradient is None:
            raise RuntimeError("the evaluation has no gradient, or it was taken already")
        gradient, self.gradient = self.gradient, None
        return gradient


_UNUSUAL = {
    "rows": "some rows of the batch",
    "ascent": "its ascent loss",
    "sync": "a gradient of this worker alone",
}

Descent = Generator[Evaluate, Evaluation, ParameterVector]
"""What a rule is: it yields requests, receives evaluations, returns the gradient to descend."""


class Common(TypedDict, total=False):
    """What every rule's constructor takes beside its own options."""

    when: Policy | str | None  # or its word; default: every step is perturbed
    total_steps: float | None  # the end that schedules run to; inf where `progress` is assigned
    seed: int  # of the rule's own random choices
    ascent: str  # "global" or "local": how data-parallel workers perturb
    skip_nonfinite: bool | str  # give up a step at the first loss or gradient that is not finite


@dataclass(frozen=True)
class Counts:
    """What a run has spent, in full-batch units (rows / batch), and what it has done.

    Attributes:
        gradients, forwards: evaluations with and without a backward pass, as really run.
        steps: base steps taken.
        perturbed: those of them that evaluated away from home, as the policy let them.
        skipped: steps given up for a loss or a gradient that is not finite.
        refresh_gradients, refresh_forwards: the cost of masks, eigenvectors and signals.
    """

    gradients: float = 0.0
    forwards: float = 0.0
    steps: int = 0
    perturbed: int = 0
    skipped: int = 0
    refresh_gradients: float = 0.0
    refresh_forwards: float = 0.0

    @property
    def total(self) -> float:
        """All of it in gradients, a forward being a third of one."""
        forwards = self.forwards + self.refresh_forwards
        return self.gradients + self.refresh_gradients + forwards / 3.0


@dataclass(frozen=True)
class StepFacts:
    """What is known of the last step, for metrics; tensors stay on their device.

    Attributes:
        perturbed: whether the policy let the rule perturb, and it did: a first step that has
            nothing to go along yet (momentum-sam, previous-sam) did not.
        gradient_norm: ||g|| of the clean evaluation, 0-dim; None for rules without one.
        rho: the radius of the step; None for rules without one.
        signal, mean, deviation, threshold: of the policy's decision; None without a signal.
    """

    perturbed: bool
    gradient_norm: Tensor | None
    rho: float | None
    signal: float | None = None
    mean: float | None = None
    deviation: float | None = None
    threshold: float | None = None


@dataclass(eq=False)
class _Cycle:
    """One step in the making: from passes() to step()."""

    parameters: list[Tensor]
    devices: list[torch.device]  # those with random generators of their own
    policy_before: dict[str, Any]
    draws_before: Tensor
    num_rows: int | None
    scale: float | None
    phase: str = "running"  # then "ready", "skipped" or "left"
    num_evaluations: int = 0
    losses: list[tuple[Tensor, float]] = field(default_factory=list)  # with their share of the rows
    perturbed: bool = False
    left_home: bool = False
    gradient_norm: Tensor | None = None
    refreshing: bool = False
    staged: dict[str, Any] = field(default_factory=dict)
    rng_before: list[Tensor] = field(default_factory=list)
    rng_after: list[Tensor] = field(default_factory=list)
    rng_of_rows: dict[tuple[Any, Any, Any], list[Tensor]] = field(default_factory=dict)
    is_new_part: bool = False  # of the batch: the pass at hand is the first over its rows

    @property
    def loss(self) -> Tensor | None:
        """The mean of what `losses` holds, each weighed by its rows."""
        if len(self.losses) <= 1:
            return self.losses[0][0] if self.losses else None
        total = sum(share for _, share in self.losses)
        return torch.stack([loss * (share / total) for loss, share in self.losses]).sum()


class SharpnessAware(Optimizer, ABC):
    """A rule over a base optimizer: the rule says which gradient, the base takes the step.

    A subclass writes `descent`, a generator that yields `Evaluate` requests and returns the
    gradient for the base. `passes` drives it, and is the only driver; `step(closure)` is a loop
    over it.

    What holds for every rule: weights are home, bit for bit, after the loop, after an exception in
    it, and before anything that reads them (`passes`, `step`, `state_dict`, `zero_grad`,
    `come_home`). Every pass sees the same random numbers (dropout), and the step leaves the
    generators as after its first pass. A step that is not finished, or skipped, leaves no trace in
    the averages, the policy or the draws. `param_groups`, `state` and `defaults` are the base's
    own, so schedulers, clipping and GradScaler work as on the base.

    Args of every rule:
        when: the policy, or its word ("every-5"); default Always.
        total_steps: steps of the whole run, for schedules and policies that need the end; inf says
            that `progress` will be assigned before each step.
        seed: of the rule's and the policy's random choices; one generator of their own.
        ascent: over data-parallel workers, "global": the perturbation comes from the averaged
            gradient; "local": from each worker's own, without communication. One process: the same.
        skip_nonfinite: True, False or "auto" (default). A pass whose loss or gradient is not finite
            ends the step: the base does not move, averages, policy and draws stay as before it,
            `.grad` is NaN, and `counts.skipped` goes up; on several workers they agree. "auto"
            looks where that waits for nobody, in one process with its weights on the CPU; a loss
            scale (`passes(scale=...)`) looks always.

    Raises:
        TypeError: base is no optimizer, needs a closure (LBFGS), or is SharpnessAware itself.
        ValueError: an option out of its range; a base that maximises; a policy that reads the
            gradient for a rule without a clean evaluation; no total_steps where the schedule needs
            an end; ascent="local" for a rule that keeps or mixes in the clean gradient, or over
            sharded parameters.
    """

    name: ClassVar[str]
    starts_clean: ClassVar[bool] = True  # the first evaluation is at home, of the training loss
    keeps_clean_gradient: ClassVar[bool] = False  # beyond building an offset from it
    moves_weights: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ()  # names of what the rule keeps between steps
    scheduled: ClassVar[tuple[str, ...]] = ("rho",)  # options that may be a Schedule

    base: Optimizer
    policy: Policy

    def __init__(
        self,
        base: Optimizer,
        *,
        options: Mapping[str, Any],
        when: Policy | str | None = None,
        total_steps: float | None = None,
        seed: int = 0,
        ascent: str = "global",
        skip_nonfinite: bool | str = "auto",
    ) -> None:
        _check_base(base)
        COMMON["total_steps"].check("total_steps", total_steps)
        COMMON["seed"].check("seed", seed)
        COMMON["ascent"].check("ascent", ascent)
        COMMON["skip_nonfinite"].check("skip_nonfinite", skip_nonfinite)
        self.base = base
        # Not Optimizer.__init__: groups and state are the base's. This sets up the hooks alone.
        super().__setstate__({})
        self._warned_capturable_if_run_uncaptured = True
        self.policy = Always() if when is None else _policy(when)
        self.total_steps = total_steps
        self.skip_nonfinite = skip_nonfinite
        self._progress: float | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._ascent_scope = ascent
        self._counts = Counts()
        self._memory: dict[str, Any] = dict.fromkeys(self.remembers)
        self._cycle: _Cycle | None = None
        self._in_closure = False
        self._away = False
        self._home: ParameterVector | None = None  # the spare buffer, kept from step to step
        self.last: StepFacts | None = None
        self._option_names = tuple(options)
        for option, value in options.items():
            setattr(self, option, self._checked(option, value))
        self._check_composition()
        self._warn_of_half_precision()

    @abstractmethod
    def descent(self) -> Descent:
        """Yields requests, receives evaluations, returns the gradient that the base descends.

        The returned vector becomes `.grad`: it must share no tensor with what the rule remembers.
        """

    # What a rule may use

    def perturbs(self, clean: Evaluation | None = None) -> bool:
        """The policy's decision for this step, given the evaluation at home where there is one."""
        cycle = self._running()

        def signal() -> float:
            if clean is None:
                raise RuntimeError(f"{self.name} has no clean gradient for the policy's signal")
            return float(self.averaged(clean.norm.square()))

        if clean is not None:
            cycle.gradient_norm = clean.norm
        cycle.perturbed = self.policy.decide(
            step=self._counts.steps,
            progress=self.progress,
            signal=signal,
            draw=lambda: float(torch.rand((), generator=self._generator, dtype=torch.float64)),
        )
        return cycle.perturbed

    def times_rho(self, factor: Factor) -> Factor | list[Factor]:
        """rho * factor for `ParameterVector.mul`: one number, or one a slot where groups differ."""
        own = [self._rho_of(group) for group in self.param_groups]
        if all(rho == own[0] for rho in own):
            return own[0] * factor
        products = [rho * factor for rho in own]
        return [
            product
            for product, group in zip(products, self.param_groups, strict=True)
            for _ in group["params"]
        ]

    def rho_hat(self, vector: ParameterVector, norm: Tensor | None = None) -> ParameterVector:
        """rho hat(x) = rho x / (||x|| + 1e-12), a group's own rho in its part: a new vector.

        Args:
            vector: x.
            norm: ||x||, where it is known.
        """
        return vector.mul(self._rho_over_norm(vector, norm))

    def rho_hat_(self, vector: ParameterVector, norm: Tensor | None = None) -> ParameterVector:
        """`rho_hat` in the vector's own tensors, which are used up."""
        return vector.mul_(self._rho_over_norm(vector, norm))

    def _rho_over_norm(self, vector: ParameterVector, norm: Tensor | None) -> Factor | list[Factor]:
        return self.times_rho(1.0 / ((vector.norm() if norm is None else norm) + TINY))

    def without_still_groups(self, vector: ParameterVector) -> ParameterVector:
        """The vector without the slots of groups whose own rho is 0: these are not perturbed."""
        still = [group.get("rho") == 0.0 for group in self.param_groups for _ in group["params"]]
        pairs = zip(vector, still, strict=True)
        return ParameterVector(None if alone else tensor for tensor, alone in pairs)

    def nothing(self) -> ParameterVector:
        """The start of a sum: each slot takes the first tensor that is added to it."""
        return ParameterVector([None] * len(self.parameters))

    def recall(self, name: str) -> Any:
        """What was remembered under a name of `remembers`, not to be changed; None at first.

        A vector has None in the slots of parameters that are frozen by now: they take no part in
        directions and norms, and no base may move them.
        """
        value = self._memory[name]
        if not isinstance(value, ParameterVector):
            return value
        pairs = zip(value, self.parameters, strict=True)
        return ParameterVector(tensor if p.requires_grad else None for tensor, p in pairs)

    def remember(self, **values: Any) -> None:
        """Keeps values (vectors, tensors, plain numbers) from this step on, once it is taken.

        A step that ends early (an exception, a gradient that is not finite) forgets them.
        """
        for name in values:
            if name not in self.remembers:
                raise KeyError(f"{type(self).__name__}.remembers does not list {name!r}")
        self._running().staged.update(values)

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """Counts the evaluations asked for inside as a refresh, apart from the ordinary step."""
        cycle = self._running()
        cycle.refreshing = True
        try:
            yield
        finally:
            cycle.refreshing = False

    @property
    def num_workers(self) -> int:
        """Processes that train together; 1 without torch.distributed."""
        return _world_size()

    @property
    def num_rows(self) -> int:
        """Rows of the batch; RuntimeError with the recipe where the caller has not told."""
        cycle = self._running()
        if cycle.num_rows is None:
            raise RuntimeError(self._needs_rows())
        return cycle.num_rows

    @property
    def generator(self) -> torch.Generator:
        """The one source of the rule's random choices: on the CPU, saved, equal on all ranks."""
        return self._generator

    @property
    def synced(self) -> bool:
        """`sync` of an evaluation that only builds an offset: False under a local ascent."""
        return self._ascent_scope == "global" or _world_size() == 1

    def averaged(self, value: T) -> T:
        """The mean of an unsynced value over the workers; the value itself when it was synced.

        An unsynced gradient may build an offset and nothing else: signals, loss weights and
        returned gradients go through here, or replicas drift apart.
        """
        return value if self.synced else self.over_workers(value)

    def over_workers(self, value: T) -> T:
        """The mean of a value over all workers, synced or not: of losses, say, which no pass syncs.

        What weighs gradients or decides must be the same on every replica. One process: the value;
        a sharded tensor is one value of all workers already.
        """
        if _world_size() == 1:
            return value
        if isinstance(value, ParameterVector):
            return self._vector_over_workers(value)
        shared = value.clone()
        _average_(shared)
        return shared

    def _vector_over_workers(self, vector: ParameterVector) -> ParameterVector:
        # A worker without a gradient for a slot takes part with zeros, or the reductions of one
        # would meet another's of other slots; where nobody has one, nobody reduces.
        slots = list(zip(vector, self.parameters, strict=True))
        present = torch.tensor([float(t is not None) for t, _ in slots], device=slots[0][1].device)
        torch.distributed.all_reduce(present)
        shared: list[Tensor | None] = []
        for (tensor, parameter), found in zip(slots, present.tolist(), strict=True):
            if found and tensor is None:
                tensor = torch.zeros_like(parameter, requires_grad=False)
            if tensor is not None and not is_dtensor(tensor):
                _average_(tensor)
            shared.append(tensor)
        return ParameterVector(shared)

    def uniforms(self, count: int) -> Tensor:
        """`count` uniform numbers in [0, 1) from the rule's generator: float64, (count,), CPU."""
        return torch.rand(count, generator=self._generator, dtype=torch.float64)

    def normals(self) -> ParameterVector:
        """A standard normal vector from the rule's generator, equal on all ranks.

        Slot by slot in order, each drawn as a float64 tensor of the parameter's whole shape on the
        CPU, then cast; None where a parameter is frozen. A DTensor keeps its own shard of the draw.
        """
        drawn: list[Tensor | None] = []
        for parameter in self.parameters:
            if not parameter.requires_grad:
                drawn.append(None)
                continue
            whole = torch.randn(parameter.shape, generator=self._generator, dtype=torch.float64)
            drawn.append(placed_like(whole, parameter))
        return ParameterVector(drawn)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in order: the slots of every vector."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def names(self) -> list[str | None]:
        """Their names, where the base was built from `named_parameters()`; else None."""
        return [
            name
            for group in self.param_groups
            for name in group.get("param_names", [None] * len(group["params"]))
        ]

    # What the trainer and the user see

    @property
    def counts(self) -> Counts:
        """What was spent and done so far."""
        return self._counts

    def charge(self, *, gradients: float = 0.0, forwards: float = 0.0) -> None:
        """Adds the cost of a measurement for this run, in full-batch units, to the refreshes."""
        self._count(refresh_gradients=gradients, refresh_forwards=forwards)

    @property
    def progress(self) -> float:
        """Share of the budget spent, in [0, 1]: as assigned, else steps / total_steps (else 0)."""
        if self._progress is not None:
            return self._progress
        if self.total_steps is None:
            return 0.0
        if self.total_steps == float("inf"):
            raise RuntimeError(
                "total_steps=inf says that progress is assigned: set optimizer.progress to the "
                "share of the budget spent before each step"
            )
        return min(self._counts.steps / self.total_steps, 1.0)

    @progress.setter
    def progress(self, share: float | None) -> None:
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"progress must be in [0, 1], got {share!r}")
        self._progress = share

    def passes(
        self, *, num_rows: int | None = None, scale: float | None = None
    ) -> Iterator[Evaluate]:
        """The evaluations of one step, one after the other, for a loop that runs them.

        Before each one the driver clears `.grad`, sets the random generators back and moves the
        weights; the body evaluates as the request says (`sam_variants.training.evaluating` does all
        but the loss), runs backward where `request.gradient`, and sets `request.loss`. Afterwards
        the gradient to descend is in `.grad`, weights are home, and the caller clips and steps.

        Args:
            num_rows: rows of the effective batch; needed by rules that name rows.
            scale: the loss scale of a GradScaler (`scaler.get_scale()`). The loop's losses are
                multiplied by it before backward; the driver divides the gradients in between, ends
                the step at the first that is not finite (the scaler then skips it; counted in
                `counts.skipped`), and hands over the last one scaled, for `scaler.unscale_`.

        Raises:
            ValueError: num_rows < 1, or a scale that is not positive.
            RuntimeError: called on a wrapper of the optimizer; from the loop: no loss was set, no
                gradient arrived, the body evaluated something else than the request says, or the
                weights were sent home while it ran.
        """
        if "base" not in vars(self):
            # Lightning's wrapper has this class for isinstance: what is set here would be its own.
            raise RuntimeError(
                "passes() was called on a wrapper around the optimizer: call it on the optimizer "
                "itself (under Lightning self.optimizers().optimizer), and step() on the wrapper"
            )
        if num_rows is not None and num_rows < 1:
            raise ValueError(f"num_rows must be >= 1, got {num_rows}")
        if scale is not None and not 0.0 < scale < float("inf"):
            raise ValueError(f"scale must be a positive number, got {scale}")
        self._leave()
        parameters = self.parameters
        cycle = _Cycle(
            parameters=parameters,
            devices=_accelerators(parameters),
            policy_before=self.policy.state_dict(),
            draws_before=self._generator.get_state(),
            num_rows=num_rows,
            scale=None if scale is None else float(scale),
        )
        self._cycle = cycle
        return self._drive(cycle)

    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Takes the base's step: after a finished loop over `passes`, or with a closure that is it.

        Args:
            closure: called once for each evaluation, with the request (`def closure(request)`, or
                `batch_closure`), or without an argument (zero_grad, loss, backward, return loss:
                the LBFGS convention) for rules whose requests say nothing but where. After a
                finished loop, a closure without an argument is a hook that must return None: the
                optimizers of Lightning give one, whose hooks clip and log before the step.

        Returns:
            The mean training loss of the batch's rows, each in the first evaluation that it took
            part in (mSAM goes shard by shard), detached.

        Raises:
            RuntimeError: no loop has just ended; a closure without an argument for a rule that
                asks for rows, losses per row or the ascent loss; or one that evaluates the loss
                although a loop has just done so.
        """
        if closure is not None and self._waits() and not _takes_request(closure):
            self._run_hook(closure)
        elif closure is not None:
            self._run(closure)
        cycle = self._cycle
        if cycle is None or not self._waits():
            self._leave()
            raise RuntimeError(
                f"{type(self).__name__}.step() needs the gradient of a finished loop over "
                f"passes(), or a closure:\n{LOOP}\nor optimizer.step("
                "sam_variants.training.batch_closure(model, criterion, inputs, targets))"
            )
        if cycle.phase == "ready":
            self.base.step()  # where it raises, the step is still open and leaves no trace
            self._commit(cycle)
        self._cycle = None
        return cycle.loss

    def come_home(self) -> None:
        """Moves the weights back, bit for bit, and gives up a loop that is still open.

        Needed only after a loop over `passes` was left while its iterator stayed in a variable; at
        home it changes nothing.
        """
        if self._cycle is not None and self._cycle.phase == "running":
            self._leave()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears `.grad`; outside a closure of `step`, goes home and gives up an open step."""
        if not self._in_closure:
            self._leave()
        self.base.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base; what the rule remembers has no entry for it yet."""
        self._leave()
        _check_minimises({**self.defaults, **param_group})
        if "rho" in param_group:
            self._checked("rho", param_group["rho"])
        self.base.add_param_group(param_group)
        missing = len(self.parameters)
        for name, value in self._memory.items():
            if isinstance(value, ParameterVector):
                gap = [None] * (missing - len(value))
                self._memory[name] = ParameterVector([*value, *gap])

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict with the rule's state under "rule": plain types and tensors.

        Weights go home first. Between a finished loop and its step it is the state before the loop.
        """
        self.come_home()
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        policy, draws = self._settled()
        base = self.base.state_dict()
        groups = [{key: _plain(value) for key, value in g.items()} for g in base["param_groups"]]
        state: dict[str, Any] = {
            **base,
            "param_groups": groups,  # with their own schedules of rho as plain data
            "rule": {
                "rule": type(self).__name__,
                "options": {name: _plain(getattr(self, name)) for name in self._option_names},
                "counts": dict(vars(self._counts)),
                "progress": self._progress,
                "policy": {**policy, "settings": self.policy.settings()},
                "generator": draws,
                "memory": {name: _plain(value) for name, value in self._memory.items()},
            },
        }
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`, of the same rule over the same parameters.

        As with torch's groups, options of the state take the place of the constructor's; where they
        differ a UserWarning names them.

        Raises:
            ValueError: the state is another rule's, policy's or base's, or of a policy with other
                settings; its options do not fit this run (total_steps, ascent); or a key is missing
                or foreign. Nothing is changed then.
        """
        self._leave()
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        if "rule" not in state_dict:
            raise ValueError("the saved state has no 'rule': it is a base optimizer's own")
        rule = state_dict.pop("rule")
        self._check_rule_state(rule)
        policy = dict(rule["policy"])
        settings = policy.pop("settings", None)
        if policy.get("policy") == self.policy.word:  # else the policy itself says what is wrong
            self._check_settings(settings)
        groups = [_with_schedule(group) for group in state_dict.get("param_groups", [])]
        kept = self.policy.state_dict()
        kept_options = {name: getattr(self, name) for name in self._option_names}
        self.policy.load_state_dict(policy)
        try:
            for name, value in rule["options"].items():
                setattr(self, name, schedule(value) if isinstance(value, dict) else value)
            self._check_composition()
            self._load_base({**state_dict, "param_groups": groups})
        except Exception:
            self.policy.load_state_dict(kept)
            for name, value in kept_options.items():
                setattr(self, name, value)
            raise
        self._counts = Counts(**rule["counts"])
        if self.total_steps == float("inf"):  # else steps / total_steps says it, until assigned
            self._progress = rule["progress"]
        self._generator.set_state(rule["generator"].cpu())
        self._memory = {name: self._alive(value) for name, value in rule["memory"].items()}
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)
        self._warn_of_replaced(kept_options)  # last: as an error it finds the state whole

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base's own list."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base's own; the rule's tensors live beside it."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The base's own."""
        return self.base.defaults

    def __repr__(self) -> str:
        options = [f"{name}={getattr(self, name)!r}" for name in self._option_names]
        options += [f"when={self.policy.word}"]
        return f"{type(self).__name__}({', '.join(options)}) over {self.base!r}"

    def __getstate__(self) -> dict[str, Any]:
        policy, draws = self._settled()
        kept = {
            name: value
            for name, value in vars(self).items()
            # Hooks and a scheduler's wrapper of step belong to this object, as in torch.
            if name not in ("_cycle", "_generator", "step") and not name.startswith("_optimizer_")
        }
        kept["_home"] = self._home if self._away else None
        return {**kept, "_in_closure": False, "_saved_policy": policy, "_saved_draws": draws}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        policy, draws = state.pop("_saved_policy"), state.pop("_saved_draws")
        super().__setstate__(state)
        self._cycle = None
        self._generator = torch.Generator()
        self._generator.set_state(draws)
        self.policy.load_state_dict(policy)
        self._go_home()  # a copy made in the middle of a loop holds the moved weights

    # The driver

    def _drive(self, cycle: _Cycle) -> Iterator[Evaluate]:
        rule = self.descent()
        answer: Evaluation | None = None
        try:
            while True:
                try:
                    with torch.no_grad():
                        request = next(rule) if answer is None else rule.send(answer)
                except StopIteration as end:
                    descent = end.value
                    break
                answer = None
                self._prepare(cycle, request)
                yield request
                if self._cycle is not cycle or cycle.phase != "running":
                    raise RuntimeError(
                        "the weights were sent home inside the loop over passes(): zero_grad(), "
                        "step(), state_dict(), come_home() or another passes() was called before "
                        "it ended. The driver clears gradients itself; call these after the loop"
                    )
                answer = self._collect(cycle, request)
                if answer is None:
                    return
            self._finish(cycle, descent)
        finally:
            rule.close()
            if self._cycle is cycle and cycle.phase == "running":
                self._leave()

    def _prepare(self, cycle: _Cycle, request: Evaluate) -> None:
        request.first = cycle.num_evaluations == 0
        request.num_rows = self._rows_of(cycle, request)
        if _world_size() == 1:
            request.unread.discard("sync")  # alone, a gradient is everybody's anyway
        if request.first:
            cycle.rng_before = _random_states(cycle.devices)
            if isinstance(request._rows, slice):
                rows = request._rows
                cycle.rng_of_rows[rows.start, rows.stop, rows.step] = cycle.rng_before
        else:
            _set_random_states(cycle.devices, self._random_states_for(cycle, request))
        for parameter in cycle.parameters:
            parameter.grad = None
        offset, request.offset = request.offset, None
        if offset is None:
            self._go_home()
        else:
            self._go_to(offset, cycle.parameters)
            cycle.left_home |= not cycle.refreshing

    def _random_states_for(self, cycle: _Cycle, request: Evaluate) -> list[Tensor]:
        """Where the generators stand for a later pass: as for these rows before, or going on.

        All passes over the same rows draw the same; a part of the batch that was not evaluated yet
        (mSAM's next shard) draws its own, as it would within the whole batch.
        """
        rows = request._rows
        if request.all_rows or not isinstance(rows, slice) or cycle.refreshing:
            return cycle.rng_before
        key = (rows.start, rows.stop, rows.step)
        cycle.is_new_part = key not in cycle.rng_of_rows
        if cycle.is_new_part:
            cycle.rng_of_rows[key] = cycle.rng_after
        return cycle.rng_of_rows[key]

    def _collect(self, cycle: _Cycle, request: Evaluate) -> Evaluation | None:
        """The evaluation that the loop's body made; None where it is found not finite."""
        if request.loss is None:
            raise RuntimeError(f"the loop must set request.loss = loss.detach():\n{LOOP}")
        self._check_obeyed(cycle, request)
        loss = request.loss.detach() if isinstance(request.loss, Tensor) else None
        loss = torch.tensor(float(request.loss)) if loss is None else loss
        if request.per_sample and (loss.ndim != 1 or request.num_rows not in (None, loss.shape[0])):
            raise RuntimeError(
                f"the request asked for one loss a row, shape ({request.num_rows},), and the loop "
                f"set a loss of shape {tuple(loss.shape)}: where request.per_sample, set request."
                'loss to criterion(..., reduction="none").detach() and run backward on its mean, '
                f"as here, or let sam_variants.training.batch_closure answer:\n{LOOP}"
            )
        if not request.per_sample and loss.numel() != 1:
            raise RuntimeError(f"request.loss must be one number, got shape {tuple(loss.shape)}")
        share = 1.0
        if not request.all_rows and request.num_rows is not None and cycle.num_rows is not None:
            share = request.num_rows / cycle.num_rows
        seen = sum(rows for _, rows in cycle.losses)
        if not request.ascent and (not cycle.losses or (cycle.is_new_part and seen < 1.0)):
            cycle.losses.append((loss.mean(), share))
        if request.first or cycle.is_new_part:
            cycle.rng_after = _random_states(cycle.devices)
            cycle.is_new_part = False
        cycle.num_evaluations += 1
        kind = "gradients" if request.gradient else "forwards"
        self._count(**{f"refresh_{kind}" if cycle.refreshing else kind: share})
        evaluation = Evaluation(
            loss, _taken_gradient(cycle.parameters) if request.gradient else None
        )
        if cycle.scale is not None and evaluation.gradient is not None:
            evaluation.gradient.mul_(1.0 / cycle.scale)
        if self._looks(cycle) and not self._is_finite(evaluation):
            self._skip(cycle, evaluation.gradient)
            return None
        return evaluation

    def _check_obeyed(self, cycle: _Cycle, request: Evaluate) -> None:
        """Raises where the body evaluated something else: its step would be another algorithm."""
        ignored = min(request.unread, default=None)
        if ignored is not None:
            raise RuntimeError(
                f"{self.name} asked for {_UNUSUAL[ignored]}, but the loop never looked at "
                f"request.{ignored}, so it evaluated something else. Let sam_variants.training."
                "batch_closure(model, criterion, inputs, targets) answer the requests, or write "
                f"the loop so that it serves every rule:\n{LOOP}"
            )
        if not request.gradient and any(p.grad is not None for p in cycle.parameters):
            raise RuntimeError(
                f"{self.name} asked for the loss alone, but the loop ran backward too: run it "
                f"only where request.gradient:\n{LOOP}"
            )

    def _looks(self, cycle: _Cycle) -> bool:
        if self.skip_nonfinite == "auto":
            alone = not cycle.devices and _world_size() == 1
            return alone or cycle.scale is not None
        return bool(self.skip_nonfinite) or cycle.scale is not None

    def _is_finite(self, evaluation: Evaluation) -> bool:
        """Whether the loss and the gradient are finite, on every worker: or they would part ways.

        The gradient by its norm, which most rules want anyway and which costs no more.
        """
        finite = torch.isfinite(evaluation.loss).all()
        if evaluation.gradient is not None:
            finite = torch.isfinite(evaluation.norm).logical_and(finite.to(evaluation.norm.device))
        if _world_size() > 1:
            device = self.param_groups[0]["params"][0].device  # where collectives work
            share = finite.to(device, torch.float32)
            _average_(share)
            return float(share) == 1.0
        return bool(finite)

    def _finish(self, cycle: _Cycle, descent: ParameterVector) -> None:
        if not isinstance(descent, ParameterVector) or len(descent) != len(cycle.parameters):
            raise TypeError(
                f"{self.name} must return a ParameterVector of all slots, got {descent!r}"
            )
        # Finite passes may still mix to something that is not.
        mixed = Evaluation(torch.zeros(()), descent)
        if self._looks(cycle) and not self._is_finite(mixed):
            self._skip(cycle, descent)
            return
        self._go_home()
        self._leave_random_states(cycle)
        if cycle.scale is not None:
            descent.mul_(cycle.scale)
        for parameter, gradient in zip(cycle.parameters, descent, strict=True):
            if parameter.grad is not gradient:  # a rule's last pass often left it there already
                parameter.grad = gradient
        cycle.phase = "ready"

    def _skip(self, cycle: _Cycle, gradient: ParameterVector | None) -> None:
        self._leave()
        nan = float("nan")
        for slot, parameter in enumerate(cycle.parameters):
            # What a scaler looks at to skip the step. The gradient itself may be finite: the loss
            # was not, or another worker's gradient.
            if gradient is not None:
                found = gradient.tensors[slot]
                parameter.grad = None if found is None else found.fill_(nan)
            elif parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, nan)
        if not cycle.losses:  # the ascent loss came first
            cycle.losses.append((torch.tensor(nan), 1.0))
        self._count(skipped=1)
        cycle.phase = "skipped"
        self._cycle = cycle

    def _commit(self, cycle: _Cycle) -> None:
        self._memory.update(cycle.staged)
        rho = getattr(self, "rho", None)
        perturbed = cycle.perturbed and cycle.left_home
        self.last = StepFacts(
            perturbed=perturbed,
            gradient_norm=cycle.gradient_norm,
            rho=None if rho is None else self._now(rho),
            **self.policy.facts(),
        )
        self._count(steps=1, perturbed=int(perturbed))

    def _leave(self) -> None:
        """Home, and as if the open step had not begun (what it cost stays counted)."""
        self._go_home()
        cycle, self._cycle = self._cycle, None
        if cycle is None or cycle.phase == "skipped":
            return
        if cycle.phase == "running":
            self._leave_random_states(cycle)
        cycle.phase = "left"
        self.policy.load_state_dict(cycle.policy_before)
        self._generator.set_state(cycle.draws_before)

    def _leave_random_states(self, cycle: _Cycle) -> None:
        if cycle.rng_after:
            _set_random_states(cycle.devices, cycle.rng_after)

    def _waits(self) -> bool:
        """Whether a loop has ended and its gradient lies in `.grad` for step()."""
        return self._cycle is not None and self._cycle.phase in ("ready", "skipped")

    def _run_hook(self, hook: Callable[[], Any]) -> None:
        if hook() is not None:
            self._leave()
            raise RuntimeError(
                "step() got a closure that returns a loss, and a loop over passes() has just ended "
                "too: one of them makes the step (zero_grad() gives the loop up)"
            )

    def _run(self, closure: Callable[..., Any]) -> None:
        takes_request = _takes_request(closure)
        requests = self.passes(num_rows=getattr(closure, "num_rows", None))
        self._in_closure = True
        try:
            for request in requests:
                if takes_request:
                    loss = closure(request)
                else:
                    if request.unread or request.per_sample or not request.gradient:
                        raise RuntimeError(self._needs_request(request))
                    with torch.enable_grad():
                        loss = closure()
                if loss is None:
                    raise RuntimeError("the closure must return the loss")
                request.loss = loss
        finally:
            self._in_closure = False
            requests.close()  # type: ignore[attr-defined]

    def _needs_rows(self) -> str:
        return (
            f"{self.name} asks for parts of the batch, so it must know the batch: pass num_rows to "
            "passes(), or a closure that takes the request and has num_rows, such as "
            f"sam_variants.training.batch_closure(model, criterion, inputs, targets):\n{LOOP}"
        )

    def _needs_request(self, request: Evaluate) -> str:
        asked = [_UNUSUAL[name] for name in sorted(request.unread)]
        asked += ["one loss a row"] if request.per_sample else []
        asked += [] if request.gradient else ["a loss without its gradient"]
        return (
            f"{self.name} asks for {' and '.join(asked)}, which a closure without an argument "
            "cannot know: give step() one that takes the request and has num_rows, such as "
            f"sam_variants.training.batch_closure(model, criterion, inputs, targets), or write the "
            f"loop:\n{LOOP}"
        )

    # The way out and home

    def _go_to(self, offset: ParameterVector, parameters: list[Tensor]) -> None:
        weights = ParameterVector(p if p.requires_grad else None for p in parameters)
        if len(offset) != len(weights):
            raise ValueError(f"an offset of {len(offset)} slots for {len(weights)} parameters")
        with torch.no_grad():
            if self._away and self._home is not None:
                weights.copy_(self._home)
            else:
                if self._home is None or not _same_kind(self._home, weights):
                    self._home = weights.map(torch.empty_like)
                self._home.copy_(weights)
                self._away = True
            weights.add_(offset)
        torch.clear_autocast_cache()  # it may hold casts of the weights where they were

    def _go_home(self) -> None:
        if self._away and self._home is not None:
            pairs = zip(self.parameters, self._home, strict=True)
            with torch.no_grad():
                moved = ParameterVector(None if kept is None else p for p, kept in pairs)
                moved.copy_(self._home)
            self._away = False
            torch.clear_autocast_cache()

    # State

    def _settled(self) -> tuple[dict[str, Any], Tensor]:
        """The policy's state and the generator's, without a step that is still open."""
        cycle = self._cycle
        if cycle is not None and cycle.phase in ("running", "ready"):
            return cycle.policy_before, cycle.draws_before
        return self.policy.state_dict(), self._generator.get_state()

    def _load_base(self, state: dict[str, Any]) -> None:
        kept = {"state": self.base.state, "param_groups": self.base.param_groups}
        try:
            self.base.load_state_dict(state)
            # An older torch's groups lack newer options, which the base has filled in by now.
            for group in self.base.param_groups:
                missing = sorted(set(self.base.defaults) - set(group))
                if missing:
                    raise KeyError(", ".join(missing))
        except KeyError as error:
            self.base.__setstate__(kept)
            raise ValueError(
                f"the saved state is of another base optimizer: {type(self.base).__name__} does "
                f"not find its {error.args[0]!r} there; build the rule over the base it was saved "
                "with"
            ) from error

    def _warn_of_replaced(self, given: Mapping[str, Any]) -> None:
        differing = [
            f"{name}={getattr(self, name)!r} (given here: {value!r})"
            for name, value in given.items()
            if getattr(self, name) != value
        ]
        if differing:
            warnings.warn(
                f"the saved options take the place of the constructor's: {', '.join(differing)}; "
                "set them after load_state_dict to change them on the way",
                stacklevel=3,
            )

    def _check_settings(self, saved: Mapping[str, Any] | None) -> None:
        mine = self.policy.settings()
        if saved is None:
            raise ValueError("rule state: missing the policy's settings")
        if dict(saved) != mine:
            differing = sorted(k for k in {*saved, *mine} if saved.get(k) != mine.get(k))
            words = [f"{key}={saved.get(key)!r} (here {mine.get(key)!r})" for key in differing]
            raise ValueError(f"the saved policy {self.policy.word!r} has {', '.join(words)}")

    def _check_rule_state(self, rule: Mapping[str, Any]) -> None:
        expected = {"rule", "options", "counts", "progress", "policy", "generator", "memory"}
        _check_keys("rule state", rule, expected)
        if rule["rule"] != type(self).__name__:
            raise ValueError(
                f"the saved state is {rule['rule']}'s, this optimizer is {type(self).__name__}"
            )
        _check_keys("rule options", rule["options"], set(self._option_names))
        _check_keys("counts", rule["counts"], set(vars(self._counts)))
        _check_keys("rule memory", rule["memory"], set(self.remembers))
        for name, value in rule["memory"].items():
            if isinstance(value, dict) and len(value["vector"]) != len(self.parameters):
                raise ValueError(
                    f"the saved {name!r} has {len(value['vector'])} tensors, this optimizer has "
                    f"{len(self.parameters)} parameters"
                )

    def _alive(self, value: Any) -> Any:
        """What `_plain` saved, on the parameters' devices again."""
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return ParameterVector(
                None if tensor is None else tensor.to(parameter.device, copy=True)
                for tensor, parameter in zip(value["vector"], self.parameters, strict=True)
            )
        return value

    def _count(self, **spent: float) -> None:
        now = self._counts
        self._counts = replace(now, **{name: getattr(now, name) + n for name, n in spent.items()})

    # Checks and small answers

    def _checked(self, option: str, value: Any) -> Any:
        entry = VARIANTS.get(self.name)
        if entry is not None:
            moves = isinstance(value, Schedule) and option in self.scheduled
            values = [value(0.0), value(1.0)] if moves else [value]
            allowed = entry.option(option, self.name)
            for one in values:
                allowed.check(option, one)
            if isinstance(allowed, Range) and not moves and value is not None:
                return int(value) if allowed.integer else float(value)  # 3.0 and numpy's numbers
        return value

    def _check_composition(self) -> None:
        rule = type(self).__name__
        if self.policy.has_signal and not self.starts_clean:
            raise ValueError(
                f"{rule} has no clean evaluation, so the policy {self.policy.word!r} has no "
                "gradient to read; use every-K, bernoulli-P, tail-F or coin"
            )
        changing = [
            f"{name}={value!r}"
            for name in self._option_names
            if _runs_over_training(name, value := getattr(self, name))
        ]
        changing += [
            f"a group's rho={group['rho']!r}"
            for group in self.param_groups
            if isinstance(group.get("rho"), Schedule) and not group["rho"].is_constant
        ]
        if self.policy.needs_end:
            changing.append(f"the policy {self.policy.word!r}")
        if changing and self.total_steps is None:
            raise ValueError(
                f"{rule} needs total_steps, because {', '.join(changing)} runs over the training; "
                "pass total_steps=..., or total_steps=inf and assign optimizer.progress before "
                "each step"
            )
        if self._ascent_scope == "local" and self.keeps_clean_gradient:
            raise ValueError(
                f"{rule} keeps the clean gradient, which ascent='local' leaves different on every "
                "worker; use ascent='global'"
            )
        if self._ascent_scope == "local" and any(map(is_dtensor, self.parameters)):
            raise ValueError(
                f"{rule} over sharded parameters (DTensor, as FSDP2 makes them) cannot take "
                "ascent='local': a gradient of one worker alone exists for its shard only after "
                "the workers' sum; use ascent='global', or DistributedDataParallel"
            )
        for group in self.param_groups:
            if "rho" in group:
                self._checked("rho", group["rho"])

    def _warn_of_half_precision(self) -> None:
        half = {p.dtype for p in self.parameters} & {torch.float16, torch.bfloat16}
        if half and self.moves_weights:
            warnings.warn(
                f"weights in {', '.join(sorted(map(str, half)))} are too coarse to follow a small "
                "offset; keep them in float32 and compute under torch.autocast",
                stacklevel=4,
            )

    def _running(self) -> _Cycle:
        if self._cycle is None or self._cycle.phase != "running":
            raise RuntimeError("only a rule inside a step may ask this")
        return self._cycle

    def _rows_of(self, cycle: _Cycle, request: Evaluate) -> int | None:
        if request.all_rows:
            return cycle.num_rows
        if isinstance(request._rows, Tensor):
            if request._rows.dtype == torch.bool or request._rows.ndim != 1:
                raise TypeError("rows is a slice or a 1-dim tensor of indices, no mask")
            if cycle.num_rows is None:
                raise RuntimeError(self._needs_rows())
            return request._rows.shape[0]
        if cycle.num_rows is None:
            raise RuntimeError(self._needs_rows())
        return len(range(*request._rows.indices(cycle.num_rows)))

    def _rho_of(self, group: Mapping[str, Any]) -> float:
        own = group.get("rho")
        return self._now(vars(self)["rho"] if own is None else own)

    def _now(self, value: float | Schedule) -> float:
        return value(self.progress) if isinstance(value, Schedule) else value


def _policy(when: Policy | str) -> Policy:
    if isinstance(when, str):
        return parse_policy(when)
    if not isinstance(when, Policy):
        raise TypeError(f"when must be a policy or its word, such as 'every-5', got {when!r}")
    return when


def _check_base(base: Any) -> None:
    if not isinstance(base, Optimizer):
        raise TypeError(f"base must be a torch optimizer, got {type(base).__name__}")
    if isinstance(base, SharpnessAware):
        raise TypeError("base is sharpness-aware itself: give the rule the optimizer inside it")
    if isinstance(base, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the loss itself, so it cannot be the base of a rule")
    for group in base.param_groups:
        _check_minimises(group)


def _check_minimises(group: Mapping[str, Any]) -> None:
    if group.get("maximize"):
        raise ValueError(
            "the base has maximize=True: a rule climbs to the worst nearby point to descend from "
            "there, so it minimises; build the base without it and negate the loss"
        )


def _check_keys(what: str, found: Mapping[str, Any], expected: set[str]) -> None:
    missing, foreign = expected - set(found), set(found) - expected
    if missing or foreign:
        raise ValueError(f"{what}: missing {sorted(missing)}, unknown {sorted(foreign)}")


def _runs_over_training(option: str, value: Any) -> bool:
    """Whether an option changes with progress: a Schedule, or the word for one."""
    if isinstance(value, Schedule):
        return not value.is_constant
    return option == "schedule" and value != "constant"


def _with_schedule(group: dict[str, Any]) -> dict[str, Any]:
    """A saved group, its own schedule of rho alive again."""
    if isinstance(group.get("rho"), dict):
        return {**group, "rho": schedule(group["rho"])}
    return group


def _plain(value: Any) -> Any:
    if isinstance(value, ParameterVector):
        return {"vector": list(value)}
    return value.to_dict() if isinstance(value, Schedule) else value


def _takes_request(closure: Callable[..., Any]) -> bool:
    if hasattr(closure, "num_rows"):
        return True
    return any(
        parameter.name == "request"
        or (
            parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        )
        for parameter in inspect.signature(closure).parameters.values()
    )


def _taken_gradient(parameters: Sequence[Tensor]) -> ParameterVector:
    """The `.grad` of every parameter, not copied; `.grad` is cleared before the next pass."""
    taken: list[Tensor | None] = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            if gradient.is_sparse:
                raise RuntimeError("sparse gradients are not supported: use sparse=False")
            if gradient._is_view():
                # Somebody's buffer (DDP's gradient_as_bucket_view), which the next pass fills.
                gradient = gradient.clone()
            elif gradient.requires_grad:
                gradient = gradient.detach()
        taken.append(gradient)
    if all(gradient is None for gradient in taken):
        raise RuntimeError(
            "no parameter has a gradient: the loop runs loss.backward() where "
            f"request.gradient, and leaves .grad as it is:\n{LOOP}"
        )
    return ParameterVector(taken)


def _same_kind(home: ParameterVector, weights: ParameterVector) -> bool:
    return len(home) == len(weights) and all(
        (kept is None) == (weight is None)
        and (
            kept is None
            or weight is None
            or (kept.dtype == weight.dtype and kept.device == weight.device)
        )
        for kept, weight in zip(home, weights, strict=True)
    )


def _accelerators(parameters: Sequence[Tensor]) -> list[torch.device]:
    devices = {parameter.device for parameter in parameters}
    return sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)


def _random_states(devices: Sequence[torch.device]) -> list[Tensor]:
    states = [torch.get_rng_state()]
    states += [torch.get_device_module(device).get_rng_state(device) for device in devices]
    return states


def _set_random_states(devices: Sequence[torch.device], states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in zip(devices, states[1:], strict=True):
        torch.get_device_module(device).set_rng_state(state, device)


def _world_size() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def _average_(tensor: Tensor) -> None:
    torch.distributed.all_reduce(tensor)
    tensor.div_(_world_size())
