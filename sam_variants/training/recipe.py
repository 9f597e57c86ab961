"""Recipe: everything that decides a training's numbers, in plain types.

The same dataclass is the run folder's `config.toml`, the header of every checkpoint, the provenance
of every measurement and the output of `--print-config`. The allowed range of each number stands
here once; the command line and the TOML file are checked against the same objects. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from landscape.table import Choice, Option, Range, WordOr, unknown
from sam_variants import POLICIES, VARIANTS, Spec, parse, parse_policy
from sam_variants.tasks import (
    DATA_SEED,
    LABEL_NOISE,
    TEST_SIZE,
    VALIDATION,
    parse_model,
    parse_task,
)
from sam_variants.training.bases import Base, base_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sam_variants.base import SharpnessAware

inf = math.inf
BUDGETS = ("epochs", "max_steps", "max_gradients", "max_seconds")
DEFAULT_EPOCHS = 60.0
DEFAULT_LR = {"sgd": 0.1, "adamw": 1e-3}
DEFAULT_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 1e-2}
ALL = "all"  # as a variant: every rule that the rest of the recipe lets run


def _of(kind: Option, help_: str, group: str) -> Any:
    return field(default=kind.default, metadata={"kind": kind, "help": help_, "group": group})


def _number(
    low: float, high: float, default: float | int | None, help_: str, group: str, **options: Any
) -> Any:
    return _of(Range(low, high, default, optional=default is None, **options), help_, group)


def _count(low: int, default: int | None, help_: str, group: str) -> Any:
    return _number(low, inf, default, help_, group, integer=True)


def _choice(choices: tuple[str, ...], default: str, help_: str, group: str) -> Any:
    return _of(Choice(choices, default), help_, group)


def _text(default: Any, help_: str, group: str) -> Any:
    return field(default=default, metadata={"kind": None, "help": help_, "group": group})


@dataclass(frozen=True)
class Recipe:
    """One training study: some variants, each with some seeds, on one task with one model.

    Budgets exclude each other; with none given `epochs` is 60. `lr` and `weight_decay` without a
    number are those of the optimizer: 0.1 and 5e-4 for SGD, 1e-3 and 1e-2 for AdamW. After
    construction all of these are numbers, so that two equal studies have equal recipes.

    Raises:
        ValueError: a number out of range (the message says the range), a wrong type, an unknown
            variant, task, model or policy (with the nearest name), two budgets.
    """

    variants: tuple[str, ...] = _text(
        ("erm", "sam", "ae-sam"),
        "rules, each NAME[:option=value...]; all: every one that the other options let run",
        "what is trained",
    )
    when: str | None = _text(
        None,
        "when to perturb: ae, every-K, bernoulli-P, tail-F, coin; for each rule that takes one",
        "what is trained",
    )
    switch_signal: str | None = _text(
        None,
        "what the adaptive threshold watches: gradient-norm, lambda-max, max-sharpness, trace",
        "what is trained",
    )
    task: str = _text("mnist1d", "data set (--list tasks)", "what is trained")
    model: str = _text("cnn1d", "network (--list models)", "what is trained")
    data_seed: int = _of(DATA_SEED, "seed of data and split", "data")
    data_dir: str | None = _text(None, "folder with the task's files", "data")
    test_size: int | None = _of(TEST_SIZE, "test samples, generated where the task can", "data")
    label_noise: float = _of(LABEL_NOISE, "share of training labels made random", "data")
    validation: float = _of(
        VALIDATION, "share of the training data held out to choose best.pt", "data"
    )
    optimizer: str = _choice(
        ("sgd", "adamw"),
        "sgd",
        "base optimizer; adasam steps with Adam (amsgrad), sam-sps with SGD without momentum",
        "optimization",
    )
    lr: float = _number(
        0, inf, None, "learning rate (default 0.1 for sgd, 0.001 for adamw)", "optimization",
        open_low=True,
    )  # fmt: skip
    adam_lr: float = _number(
        0, inf, 1e-3, "learning rate of rules that bring their own Adam, where --optimizer is sgd",
        "optimization", open_low=True,
    )  # fmt: skip
    momentum: float = _number(
        0, 1, 0.9, "heavy-ball momentum of sgd", "optimization", open_high=True
    )
    weight_decay: float = _number(
        0, inf, None, "decay, outside the perturbation (default 5e-4 for sgd, 0.01 for adamw)",
        "optimization",
    )  # fmt: skip
    label_smoothing: float = _number(
        0, 1, 0.0, "of the training loss", "optimization", open_high=True
    )
    schedule: str = _choice(
        ("cosine", "constant", "step"), "cosine", "learning rate over the budget", "optimization"
    )
    warmup: float = _number(
        0, 1, 0.0, "share of the budget with a rising learning rate", "optimization",
        open_high=True,
    )  # fmt: skip
    batch_size: int = _count(1, 128, "samples a step", "optimization")
    accumulate: int = _count(1, 1, "pieces a batch is computed in, to save memory", "optimization")
    clip: float | None = _number(
        0, inf, None, "largest norm of the final gradient", "optimization", open_low=True
    )
    precision: str = _choice(
        ("float32", "bf16", "float64"),
        "float32",
        "of the arithmetic; bf16 is autocast over float32 weights",
        "optimization",
    )
    epochs: float = _number(
        0, inf, None, f"passes over the training data (default {DEFAULT_EPOCHS:g})", "budget",
        open_low=True,
    )  # fmt: skip
    max_steps: int | None = _count(1, None, "budget in optimizer steps", "budget")
    max_gradients: float | None = _number(
        0, inf, None, "budget in batch gradients; a forward is a third of one", "budget",
        open_low=True,
    )  # fmt: skip
    max_seconds: float | None = _number(
        0, inf, None, "budget in seconds of training a run; not reproducible", "budget",
        open_low=True,
    )  # fmt: skip
    seed: int = _count(0, 0, "of the first run: weights, batch order and the rule's draws", "runs")
    seeds: int = _count(1, 1, "runs of each variant, from --seed on", "runs")
    probe_every: str | int = _of(
        WordOr(("end", "never"), Range(1, inf, 1, integer=True)),
        "measure lambda_max every that many epochs; at the end also sharpness and the loss beside "
        "it, on the same training samples. end: only then",
        "measuring and saving",
    )
    save_every: int | None = _count(
        1, None, "keep the weights every that many epochs", "measuring and saving"
    )
    threads: str | int = _of(
        WordOr(("auto",), Range(1, 1024, 1, integer=True)),
        "torch threads of a run; auto: 1 below a million parameters",
        "runs",
    )
    device: str = _text("cpu", "torch device", "runs")

    def __post_init__(self) -> None:
        self._settle()
        for item in fields(self):
            value, kind = getattr(self, item.name), item.metadata["kind"]
            if kind is not None:
                kind.check(item.name, value)
                object.__setattr__(self, item.name, _plain_number(kind, value))
            elif kind is None and item.name != "variants" and not _is_text(item, value):
                raise ValueError(f"{item.name} must be a text, got {value!r}")
        self._expand_all()
        self._check_names()

    def _settle(self) -> None:
        """Fills in the numbers that depend on other fields."""
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"{budgets[0]} and {budgets[1]} exclude each other: give one budget")
        settled: dict[str, Any] = {"variants": tuple(self.variants)}
        if not budgets:
            settled["epochs"] = DEFAULT_EPOCHS
        if self.lr is None:
            settled["lr"] = DEFAULT_LR.get(self.optimizer, 0.1)
        if self.weight_decay is None:
            settled["weight_decay"] = DEFAULT_WEIGHT_DECAY.get(self.optimizer, 0.0)
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def _expand_all(self) -> None:
        every = [name for name in VARIANTS if self._refusal(Spec(name)) is None]
        named = [name for word in self.variants for name in (every if word == ALL else (word,))]
        object.__setattr__(self, "variants", tuple(named))

    def _check_names(self) -> None:
        if not self.variants or not all(isinstance(word, str) for word in self.variants):
            raise ValueError(f"variants must be a list of texts, got {self.variants!r}")
        parse_task(self.task)
        parse_model(self.model)
        names = [run.name for run in self.runs]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(f"two variants are the same training, {name}: leave one out")
        for spec in self.specs:
            self._check_spec(spec)

    def _check_spec(self, spec: Spec) -> None:
        """What no option's own range can say: how the rule fits the rest of the recipe."""
        if (reason := self._refusal(spec)) is not None:
            raise ValueError(f"{spec.name}: {reason}")
        if spec.when == "ae" and not spec.entry.starts_clean:
            raise ValueError(
                f"{spec.name} has no clean gradient, so when=ae has nothing to watch; give it "
                "every-K, bernoulli-P, tail-F or coin"
            )

    def _refusal(self, spec: Spec) -> str | None:
        """Why a rule cannot run under the other options; None where it can."""
        options = {**spec.entry.defaults(), **spec.options}
        if options.get("shards", 1) > self.batch_size:
            return (
                f"shards must be a whole number in [1, {self.batch_size}], the batch size, got "
                f"{options['shards']}"
            )
        if spec.name == "momentum-sam" and self.optimizer == "sgd" and self.momentum == 0:
            return "momentum must be a number in (0, 1), along which it perturbs, got 0"
        return None

    @property
    def left_out(self) -> dict[str, str]:
        """The rules that `all` leaves out under the other options, each with the reason."""
        reasons = {name: self._refusal(Spec(name)) for name in VARIANTS}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @property
    def passed_over(self) -> tuple[str, ...]:
        """The labels of variants that `when` does not reach, since they have nothing to watch."""
        given = [parse(word) for word in self.variants]
        return tuple(spec.label for spec in given if _is_free(spec) and self._is_blind(spec))

    def base(self, spec: Spec) -> Base:
        """The optimizer under a rule: this recipe's, or the one that the rule's entry names."""
        return base_of(
            spec.entry.base,
            optimizer=self.optimizer,
            lr=self.lr,
            adam_lr=self.adam_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The variants with `when` and `switch_signal` worked in, where a rule takes them.

        Raises:
            ValueError: an unknown name, or `when` or `switch_signal` that no variant can take.
        """
        given = [parse(word) for word in self.variants]
        specs = given
        if self.when is not None:
            parse_policy(self.when)
            specs = [self._with_policy(spec) for spec in specs]
            if specs == given:
                raise ValueError(
                    f"when = {self.when!r}: every variant has its own policy, or none that fits"
                )
        if self.switch_signal is not None:
            POLICIES["ae"].options["signal"].check("switch_signal", self.switch_signal)
            if not any("ae" in (spec.entry.policy, spec.when) for spec in specs):
                raise ValueError(
                    f"switch_signal = {self.switch_signal!r}: no variant has the adaptive "
                    "threshold; give ae-sam, or when = 'ae'"
                )
            specs = [self._with_signal(spec) for spec in specs]
        return tuple(specs)

    def _with_policy(self, spec: Spec) -> Spec:
        reached = _is_free(spec) and not self._is_blind(spec)
        return replace(spec, when=self.when) if reached else spec

    def _is_blind(self, spec: Spec) -> bool:
        return self.when == "ae" and not spec.entry.starts_clean

    def _with_signal(self, spec: Spec) -> Spec:
        if spec.entry.policy != "ae" or "signal" in spec.options:
            return spec
        return replace(spec, options={**spec.options, "signal": self.switch_signal})

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, seed by seed within each variant."""
        return tuple(
            Run(spec=spec, seed=seed, signal=self.switch_signal)
            for spec in self.specs
            for seed in range(self.seed, self.seed + self.seeds)
        )

    @property
    def budget(self) -> tuple[str, float]:
        """Which budget ends the run, and its size."""
        for name in BUDGETS:
            if (size := getattr(self, name)) is not None:
                return name, float(size)
        raise AssertionError("a recipe always has a budget")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, one key a field, None left out: what `from_dict` takes."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe of those values; the rest are defaults.

        Raises:
            ValueError: an unknown key (with the nearest name), or as the constructor.
        """
        names = [item.name for item in fields(cls)]
        for key in values:
            if key not in names:
                raise ValueError(unknown(key, names, "recipe key"))
        return cls(**values)

    def to_toml(self) -> str:
        """The text of config.toml."""
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits, the same for the same numbers: where the data lie is left out."""
        values = {name: v for name, v in self.to_dict().items() if name != "data_dir"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """'lr: 0.1 -> 0.2' for each field that the other recipe, as a dict, has otherwise.

        The first number is the other's. `data_dir` may differ: the data's hash is compared.
        """
        mine = self.to_dict()
        return [
            f"{key}: {other.get(key, 'not set')} -> {mine.get(key, 'not set')}"
            for key in dict.fromkeys([*mine, *other])
            if key != "data_dir" and mine.get(key) != other.get(key)
        ]


@dataclass(frozen=True)
class Run:
    """One training: a variant and a seed.

    Attributes:
        spec: the rule, its options and the word of its policy.
        seed: of weights, batch order and the rule's draws.
        signal: what an adaptive threshold given as a policy's word watches; None: its default.
    """

    spec: Spec
    seed: int
    signal: str | None = None

    @property
    def label(self) -> str:
        """The variant with the options that were given: the same for all seeds."""
        return self.spec.label

    @property
    def name(self) -> str:
        """VARIANT[-option=value...]-seedN: the run's folder."""
        return f"{self.label}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for the checkpoint."""
        return {
            "name": self.name,
            "label": self.label,
            "variant": self.spec.name,
            "options": dict(self.spec.options),
            "when": self.spec.when,
            "seed": self.seed,
        }

    def optimizer(self, base: Optimizer, *, total_steps: float) -> SharpnessAware:
        """The rule over its base optimizer."""
        from sam_variants import build

        when = self.spec.when
        signal = self.signal if when == "ae" else None
        return build(
            replace(self.spec, when=None),
            base,
            when=None if when is None else parse_policy(when, signal=signal),
            total_steps=total_steps,
            seed=self.seed,
        )


def recipe_options() -> dict[str, tuple[Option | None, Any, str, str]]:
    """Each field of a recipe: its range or choice (None for texts), default, help line, group."""
    return {
        item.name: (
            item.metadata["kind"],
            item.default,
            item.metadata["help"],
            item.metadata["group"],
        )
        for item in fields(Recipe)
    }


def _is_free(spec: Spec) -> bool:
    """Whether neither the rule's name nor its options say when it perturbs."""
    return spec.entry.policy is None and spec.when is None


def _plain_number(kind: Option, value: Any) -> Any:
    """1 and 1.0 made one: whole numbers where the kind says so."""
    number = kind.number if isinstance(kind, WordOr) else kind
    if not isinstance(number, Range) or value is None or isinstance(value, str):
        return value
    return int(value) if number.integer else float(value)


def _is_text(item: Field[Any], value: Any) -> bool:
    return (isinstance(value, str) and value != "") or (value is None and item.default is None)
