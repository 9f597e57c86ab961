"""Policies: when a perturbed step is worth its price. Plain numbers, no torch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from sam_variants import POLICIES
from sam_variants.schedules import Constant, Cosine, Linear, Piecewise, Schedule
from sam_variants.schedules import schedule as as_schedule

GEOMETRY_SIGNALS = ("lambda-max", "max-sharpness", "trace")
"""Signals that somebody else measures and hands to `AdaptiveThreshold.observe`."""


class Policy(ABC):
    """Decides, step by step, whether the rule perturbs or hands the plain gradient to the base.

    A decision is a function of the step, of progress, of one scalar signal and of one shared random
    generator, so that every rank of a parallel run decides the same. What a policy keeps between
    steps is listed in `memory`: it is saved, restored, and taken back when a step is skipped.
    """

    word: ClassVar[str]
    memory: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def decide(
        self,
        *,
        step: int,
        progress: float,
        signal: Callable[[], float],
        draw: Callable[[], float],
    ) -> bool:
        """Whether this step is perturbed.

        Args:
            step: base steps taken so far, 0 at the first.
            progress: share of the budget spent, in [0, 1].
            signal: the squared norm of the clean gradient; called only by policies that use it,
                since reading it waits for an accelerator.
            draw: a uniform number in [0, 1) from the optimizer's own generator.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({settings})"

    @property
    def has_signal(self) -> bool:
        """Whether the decision follows a signal of the landscape at home."""
        return False

    @property
    def needs_gradient(self) -> bool:
        """Whether `signal` is called, which takes a clean evaluation."""
        return False

    @property
    def needs_draw(self) -> bool:
        """Whether `draw` is called, so that each seed perturbs other steps."""
        return False

    @property
    def needs_end(self) -> bool:
        """Whether the decision depends on progress, which takes `total_steps`."""
        return False

    def wants_measurement(self, step: int) -> bool:
        """Whether a geometry signal is due before this step: measure it and call `observe`."""
        return False

    def observe(self, value: float) -> None:
        """Takes a new measurement of the geometry signal (of the policies that have one)."""
        raise ValueError(f"the policy {self.word!r} watches no signal that is measured outside")

    def facts(self) -> dict[str, float | None]:
        """signal, mean, deviation and threshold of the last decision; None without a signal."""
        return {"signal": None, "mean": None, "deviation": None, "threshold": None}

    def settings(self) -> dict[str, Any]:
        """What the policy was built with, in plain types: a resumed run must have the same."""
        plain = {
            name: value.to_dict() if isinstance(value, Schedule) else value
            for name, value in vars(self).items()
            if name not in self.memory
        }
        return {k: v for k, v in plain.items() if isinstance(v, (bool, int, float, str, dict))}

    def state_dict(self) -> dict[str, Any]:
        """What the policy remembers, in plain types."""
        return {"policy": self.word, **{name: getattr(self, name) for name in self.memory}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`.

        Raises:
            ValueError: a key is missing or foreign, or the state is another policy's.
        """
        if state.get("policy") != self.word:
            raise ValueError(
                f"the saved policy is {state.get('policy')!r}, this optimizer has {self.word!r}"
            )
        if set(state) != {"policy", *self.memory}:
            raise ValueError(f"the saved policy has the keys {sorted(state)}, not {self.memory}")
        for name in self.memory:
            setattr(self, name, state[name])


class Always(Policy):
    """Every step is perturbed."""

    word = "always"

    def decide(self, **_: Any) -> bool:
        return True


class Never(Policy):
    """No step is perturbed: the base optimizer alone."""

    word = "never"

    def decide(self, **_: Any) -> bool:
        return False


class Every(Policy):
    """Steps 0, k, 2k, ... are perturbed."""

    word = "every"

    def __init__(self, k: int) -> None:
        POLICIES["every"].options["k"].check("k", k)
        self.k = k

    def decide(self, *, step: int, **_: Any) -> bool:
        return step % self.k == 0


class Bernoulli(Policy):
    """A step is perturbed with probability p(progress), by a draw of the shared generator.

        constant       p = a
        piecewise      p = a up to the middle of training, 1 - a after
        linear         p = 2 a progress, at most 1
        trigonometric  p = 1/2 + 1/2 cos(pi progress)

    The families of RST (2203.09962; their parameters are unconfirmed).

    Args:
        probability: a, in [0, 1] (the trigonometric family does not use it); or p itself, as a
            Schedule, its word or its dict.
        schedule: the family, of a number.

    Raises:
        ValueError: a or the family is out of range, or there is a family beside a Schedule.
    """

    word = "bernoulli"

    def __init__(
        self,
        probability: float | Schedule | str | dict[str, Any] = 0.5,
        schedule: str = "constant",
    ) -> None:
        options = POLICIES["bernoulli"].options
        options["schedule"].check("schedule", schedule)
        self.schedule = schedule
        if isinstance(probability, (int, float)):
            options["probability"].check("probability", probability)
            self.probability = _FAMILIES[schedule](probability)
        elif schedule == "constant":
            self.probability = as_schedule(probability)
        else:
            raise ValueError(f"probability must be a number for schedule={schedule!r}")

    def probability_at(self, progress: float) -> float:
        """p, in [0, 1]."""
        return min(max(self.probability(progress), 0.0), 1.0)

    @property
    def needs_draw(self) -> bool:
        return True

    @property
    def needs_end(self) -> bool:
        # By its word too, so that a sweep over `probability` asks for the same at every value.
        return self.schedule != "constant" or not self.probability.is_constant

    def decide(self, *, progress: float, draw: Callable[[], float], **_: Any) -> bool:
        return draw() < self.probability_at(progress)


_FAMILIES: dict[str, Callable[[float], Schedule]] = {
    "constant": Constant,
    "piecewise": lambda a: Piecewise(a, 1.0 - a),
    "linear": lambda a: Linear(0.0, 2.0 * a),
    "trigonometric": lambda _: Cosine(1.0, 0.0),
}


class Tail(Policy):
    """Only the last part of training is perturbed: progress >= 1 - fraction (temperon's claim)."""

    word = "tail"

    def __init__(self, fraction: float) -> None:
        POLICIES["tail"].options["fraction"].check("fraction", fraction)
        self.fraction = fraction

    @property
    def needs_end(self) -> bool:
        return 0.0 < self.fraction < 1.0

    def decide(self, *, progress: float, **_: Any) -> bool:
        # 1e-9: 1 - fraction and step / total round either way, and a step must not be lost to that.
        return self.fraction > 0.0 and progress + 1e-9 >= 1.0 - self.fraction


class Coin(Policy):
    """Bernoulli with p = 1 - Phi(c): AE-SAM's share of perturbed steps at every time, no geometry.

        c(progress) = progress lambda1 + (1 - progress) lambda2

    The control that every comparison with AE-SAM should hold.
    """

    word = "coin"

    def __init__(self, lambda1: float = -1.0, lambda2: float = 1.0) -> None:
        self.level = _level("coin", lambda1, lambda2)

    @property
    def needs_draw(self) -> bool:
        return True

    @property
    def needs_end(self) -> bool:
        return not self.level.is_constant

    def decide(self, *, progress: float, draw: Callable[[], float], **_: Any) -> bool:
        # 1 - Phi(c) = erfc(c / sqrt(2)) / 2, exact in the tails and at infinity.
        return draw() < 0.5 * math.erfc(self.level(progress) / math.sqrt(2.0))


class AdaptiveThreshold(Policy):
    """Perturbs where a signal of the landscape is large for its own recent history.

        mu <- delta mu + (1 - delta) G,    s2 <- delta s2 + (1 - delta) (G - mu)^2  (the new mu)
        c = progress lambda1 + (1 - progress) lambda2
        perturb  iff  G >= mu + c sqrt(s2)

    AE-SAM (2304.14647, rule 2.2 of variants.md; defaults unconfirmed). With lambda2 > lambda1 the
    threshold falls, so that perturbed steps come more often late.

    Args:
        signal: "gradient-norm": G is the squared norm of the batch gradient, free at every step,
            mu starts at 0 and s2 at `initial_variance`. "lambda-max", "max-sharpness", "trace": G
            is measured outside every `refresh_every` steps and comes by `observe`. Mean and
            variance then move with new measurements only, and the decision is held between them (a
            held value fed at every step drives the variance to 0, and the sign of c alone decides);
            mu starts at the first measurement, s2 at 0, and the first 5 measurements only warm up:
            no step is perturbed before the sixth.
        delta: memory of the averages, in [0, 1).
        lambda1, lambda2: c at the end and at the start of training, in deviations; -inf perturbs
            every step, +inf none.
        initial_variance: s2 before the first step (units of G^2; matters where G is small).
        refresh_every: steps between measurements of a geometry signal.

    A signal that is not finite decides nothing: the averages stay, and the step is not perturbed (a
    held decision stays held).
    """

    word = "ae"
    memory = (
        "mean",
        "variance",
        "num_observed",
        "fresh",
        "measured_at",
        "held",
        "value",
        "threshold",
    )
    WARM_UP: ClassVar[int] = 5

    def __init__(
        self,
        *,
        signal: str = "gradient-norm",
        delta: float = 0.9,
        lambda1: float = -1.0,
        lambda2: float = 1.0,
        initial_variance: float = math.exp(-10.0),
        refresh_every: int = 50,
    ) -> None:
        options = POLICIES["ae"].options
        options["signal"].check("signal", signal)
        options["delta"].check("delta", delta)
        options["initial_variance"].check("initial_variance", initial_variance)
        options["refresh_every"].check("refresh_every", refresh_every)
        self.signal = signal
        self.delta = delta
        self.level = _level("ae", lambda1, lambda2)
        self.refresh_every = refresh_every
        self.mean = 0.0
        self.variance = 0.0 if self.is_geometry else initial_variance
        self.num_observed = 0
        self.fresh = False  # a measurement that no decision has used yet
        self.measured_at: int | None = None  # the step that the last measurement decided on
        self.held = False  # the decision until the next measurement
        self.value: float | None = None
        self.threshold: float | None = None

    @property
    def is_geometry(self) -> bool:
        """Whether the signal is measured outside and arrives by `observe`."""
        return self.signal in GEOMETRY_SIGNALS

    @property
    def has_signal(self) -> bool:
        return True

    @property
    def needs_gradient(self) -> bool:
        return not self.is_geometry

    @property
    def needs_end(self) -> bool:
        return not self.level.is_constant

    def wants_measurement(self, step: int) -> bool:
        if not self.is_geometry or self.fresh:
            return False
        return self.measured_at is None or step >= self.measured_at + self.refresh_every

    def observe(self, value: float) -> None:
        """Takes a new measurement of the geometry signal; the next decision rests on it.

        Raises:
            ValueError: the signal is the gradient norm, which the optimizer reads itself.
        """
        if not self.is_geometry:
            raise ValueError("the signal 'gradient-norm' is read at every step, not observed")
        self._update(float(value))
        self.fresh = True

    def decide(self, *, step: int, progress: float, signal: Callable[[], float], **_: Any) -> bool:
        if not self.is_geometry:
            self._update(signal())
            return self._exceeds(progress)
        if self.num_observed == 0 and not self.fresh:
            raise RuntimeError(
                f"the signal {self.signal!r} is measured outside the optimizer: while "
                "policy.wants_measurement(step), call policy.observe(value) before the step"
            )
        if self.fresh:
            self.fresh, self.measured_at = False, step
            if self.value is not None and math.isfinite(self.value):
                self.held = self._exceeds(progress) and self.num_observed > self.WARM_UP
        return self.held

    def facts(self) -> dict[str, float | None]:
        return {
            "signal": self.value,
            "mean": self.mean,
            "deviation": math.sqrt(self.variance),
            "threshold": self.threshold,
        }

    def _update(self, value: float) -> None:
        self.value = value
        if not math.isfinite(value):
            return
        if self.is_geometry and self.num_observed == 0:
            self.mean = value
        else:
            self.mean = self.delta * self.mean + (1.0 - self.delta) * value
        deviation = value - self.mean  # from the mean just updated: the paper's order
        self.variance = self.delta * self.variance + (1.0 - self.delta) * deviation * deviation
        self.num_observed += 1

    def _exceeds(self, progress: float) -> bool:
        level = self.level(progress)
        # inf * 0 is no number: an infinite level is an infinite threshold, whatever the deviation.
        width = level if math.isinf(level) else level * math.sqrt(self.variance)
        self.threshold = self.mean + width
        value = self.value
        return value is not None and math.isfinite(value) and value >= self.threshold


def _level(policy: str, lambda1: float, lambda2: float) -> Schedule:
    options = POLICIES[policy].options
    options["lambda1"].check("lambda1", lambda1)
    options["lambda2"].check("lambda2", lambda2)
    if lambda1 == lambda2:
        return Constant(lambda1)
    return Linear(start=lambda2, end=lambda1)
