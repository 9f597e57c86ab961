"""Sharpness-aware optimizers: the table of rules by name, and how a name becomes an optimizer.

`VARIANTS` and `POLICIES` hold words, ranges and defaults; a rule's class, and with it torch, is
imported when it is built. So lists, help and every option error answer without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from landscape.table import Choice, Entry, Option, Ratio
from landscape.table import Range as Range  # for base.py, likewise
from landscape.table import look_up as look_up  # for schedules.py, which imports nothing outside

if TYPE_CHECKING:
    from sam_variants.aace import AACE
    from sam_variants.asam import ASAM
    from sam_variants.base import Counts, Evaluate, Evaluation, SharpnessAware
    from sam_variants.bsam import BSAM
    from sam_variants.eigensam import EigenSAM
    from sam_variants.erm import ERM
    from sam_variants.esam import ESAM
    from sam_variants.fsam import FSAM
    from sam_variants.gnp import GNP
    from sam_variants.gsam import GSAM
    from sam_variants.lesam import LESAM
    from sam_variants.looksam import AELookSAM, LookSAM
    from sam_variants.momentum import MomentumSAM
    from sam_variants.msam import MSAM
    from sam_variants.multistep import MultiStepSAM
    from sam_variants.policies import (
        AdaptiveThreshold,
        Always,
        Bernoulli,
        Coin,
        Every,
        Never,
        Policy,
        Tail,
    )
    from sam_variants.previous import PreviousSAM
    from sam_variants.rst import GRST, RST
    from sam_variants.sam import AESAM, SAM
    from sam_variants.samsps import SAMSPS
    from sam_variants.schedules import Schedule
    from sam_variants.sparse import SSAMD, SSAMF, FisherMaskSAM
    from sam_variants.tsam import TSAM
    from sam_variants.vasso import VaSSO
    from sam_variants.vector import ParameterVector

__all__ = [
    "AACE", "AELookSAM", "AESAM", "ASAM", "AdaptiveThreshold", "Always", "BSAM", "Bernoulli",
    "Coin", "Counts", "ERM", "ESAM", "EigenSAM", "Evaluate", "Evaluation", "Every", "FSAM",
    "FisherMaskSAM", "GNP", "GRST", "GSAM", "LESAM", "LookSAM", "MSAM", "MomentumSAM",
    "MultiStepSAM", "Never", "POLICIES", "ParameterVector", "Policy", "PreviousSAM", "RST",
    "SAM", "SAMSPS", "SSAMD", "SSAMF", "Schedule", "SharpnessAware", "Spec", "TSAM", "Tail",
    "VARIANTS", "VaSSO", "build", "parse", "parse_policy",
]  # fmt: skip

_LAZY = {
    "AACE": "aace", "AELookSAM": "looksam", "AESAM": "sam", "ASAM": "asam", "AdaptiveThreshold":
    "policies", "Always": "policies", "BSAM": "bsam", "Bernoulli": "policies", "Coin":
    "policies", "Counts": "base", "ERM": "erm", "ESAM": "esam", "EigenSAM": "eigensam",
    "Evaluate": "base", "Evaluation": "base", "Every": "policies", "FSAM": "fsam",
    "FisherMaskSAM": "sparse", "GNP": "gnp", "GRST": "rst", "GSAM": "gsam", "LESAM": "lesam",
    "LookSAM": "looksam", "MSAM": "msam", "MomentumSAM": "momentum", "MultiStepSAM":
    "multistep", "Never": "policies", "ParameterVector": "vector", "Policy": "policies",
    "PreviousSAM": "previous", "RST": "rst", "SAM": "sam", "SAMSPS": "samsps", "SSAMD":
    "sparse", "SSAMF": "sparse", "Schedule": "schedules", "SharpnessAware": "base", "TSAM":
    "tsam", "Tail": "policies", "VaSSO": "vasso",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclass(frozen=True)
class Rule(Entry):
    """A line of `VARIANTS`; its summary ends with the paper, "(Foret et al. 2010.01412)".

    Attributes:
        starts_clean: whether the first evaluation of a step is at home, of the training loss, so
            that a policy has a gradient to read.
    """

    starts_clean: bool = True

    @property
    def paper(self) -> str | None:
        """ "Foret et al. 2020, arXiv 2010.01412", the year of its first version; None: no paper."""
        found = re.search(r"\((?:([^()]*) )?((\d\d)\d\d\.\d{5})\)$", self.summary)
        if found is None:
            return None
        authors, number, year = found.groups()
        return f"{authors} 20{year}, arXiv {number}" if authors else f"arXiv {number}"


_RHO = Range(0, math.inf, 0.05)
_SCALE = Choice(("unit", "gradient"), "unit")
_PER = Choice(("all", "tensor"), "all")
_SIGNALS = Choice(("gradient-norm", "lambda-max", "max-sharpness", "trace"), "gradient-norm")
_LEVELS: dict[str, Option] = {
    "lambda1": Range(-math.inf, math.inf, -1.0, infinite=True),
    "lambda2": Range(-math.inf, math.inf, 1.0, infinite=True),
}
_ADAPTIVE: dict[str, Option] = {
    "signal": _SIGNALS,
    "delta": Range(0, 1, 0.9, open_high=True),
    **_LEVELS,
    "initial_variance": Range(0, math.inf, math.exp(-10.0)),
    "refresh_every": Range(1, math.inf, 50, integer=True),
}

_RANDOM: dict[str, Option] = {
    "probability": Range(0, 1, 0.5),
    "schedule": Choice(("constant", "piecewise", "linear", "trigonometric"), "constant"),
}
_SPARSE: dict[str, Option] = {
    "rho": _RHO,
    "sparsity": Range(0, 1, 0.5),
    "pattern": Ratio(),
    "refresh_every": Range(1, math.inf, 100, integer=True),
}

POLICIES: dict[str, Entry] = {
    "always": Entry("sam_variants.policies:Always", "every step"),
    "never": Entry("sam_variants.policies:Never", "no step: the base optimizer alone"),
    "every": Entry(
        "sam_variants.policies:Every",
        "every-K: steps 0, K, 2K, ...",
        options={"k": Range(1, math.inf, 5, integer=True)},
    ),
    "bernoulli": Entry(
        "sam_variants.policies:Bernoulli",
        "bernoulli-P: each step with probability P",
        options=_RANDOM,
    ),
    "tail": Entry(
        "sam_variants.policies:Tail",
        "tail-F: only the last share F of training",
        options={"fraction": Range(0, 1, 0.3)},
    ),
    "ae": Entry(
        "sam_variants.policies:AdaptiveThreshold",
        "where the signal is large for its recent history, oftener late (AE-SAM)",
        options=_ADAPTIVE,
    ),
    "coin": Entry(
        "sam_variants.policies:Coin",
        "AE-SAM's share of steps by chance alone: its control",
        options=_LEVELS,
    ),
}
"""Policies by the word that starts their name on the command line (`every-5`, `ae`)."""

_NUMBERS = {"every": "K", "bernoulli": "P", "tail": "F"}
"""Policies whose word ends with a number, that of their first option, and its letter there."""

VARIANTS: dict[str, Rule] = {
    "erm": Rule(
        "sam_variants.erm:ERM",
        "the base optimizer alone, one gradient a step",
        policy="never",
        cost="1",
    ),
    "sam": Rule(
        "sam_variants.sam:SAM",
        "gradient at w + rho g/|g| (Foret et al. 2010.01412)",
        options={"rho": _RHO, "scale": _SCALE},
        cost="2",
    ),
    "asam": Rule(
        "sam_variants.asam:ASAM",
        "SAM in a ball scaled by the weights' own size (Kwon et al. 2102.11600)",
        options={
            "rho": Range(0, math.inf, 0.5),
            "eta": Range(0, math.inf, 0.01),
            "adapt": Choice(("weights", "all"), "weights"),
        },
        cost="2",
    ),
    "looksam": Rule(
        "sam_variants.looksam:LookSAM",
        "SAM every k steps, its orthogonal part reused between (Liu et al. 2203.02714)",
        options={
            "rho": _RHO,
            "every": Range(1, math.inf, 5, integer=True),
            "alpha": Range(0, math.inf, 0.7),
            "per": _PER,
        },
        cost="1 + 1/every",
    ),
    "ae-sam": Rule(
        "sam_variants.sam:SAM",
        "SAM where the gradient is large for its recent history (Jiang et al. 2304.14647)",
        options={"rho": _RHO, "scale": _SCALE, **_ADAPTIVE},
        policy="ae",
        cost="1 + share",
    ),
    "ae-looksam": Rule(
        "sam_variants.looksam:LookSAM",
        "AE-SAM that reuses the orthogonal part between (Jiang et al. 2304.14647)",
        options={"rho": _RHO, "alpha": Range(0, math.inf, 0.8), "per": _PER, **_ADAPTIVE},
        policy="ae",
        cost="1 + share",
    ),
    "multistep-sam": Rule(
        "sam_variants.multistep:MultiStepSAM",
        "SAM by several ascent steps, their gradients averaged if asked (Kim et al. 2302.10181)",
        options={
            "rho": _RHO,
            "steps": Range(1, math.inf, 3, integer=True),
            "average": Choice(("none", "path", "path+clean"), "none"),
            "project": Choice((False, True), False),
        },
        cost="1 + steps",
    ),
    "rst": Rule(
        "sam_variants.rst:GRST",
        "SAM on steps that a scheduled coin chooses (Zhao et al. 2203.09962)",
        options={"rho": _RHO, **_RANDOM, "gamma": Range(0, math.inf, 1.0)},
        policy="bernoulli",
        cost="1 + share",
    ),
    "g-rst": Rule(
        "sam_variants.rst:GRST",
        "RST whose rare SAM gradients weigh more (Zhao et al. 2203.09962)",
        options={"rho": _RHO, **_RANDOM, "gamma": Range(0, math.inf, None, optional=True)},
        policy="bernoulli",
        cost="1 + share",
    ),
    "msam": Rule(
        "sam_variants.msam:MSAM",
        "SAM on each shard of the batch by itself, averaged (Behdin et al. 2302.09693)",
        options={"rho": _RHO, "shards": Range(1, math.inf, 4, integer=True)},
        cost="2",
    ),
    "tsam": Rule(
        "sam_variants.tsam:TSAM",
        "several random starts, weighted by exp(tilt loss) (Li et al. 2410.22656)",
        options={
            "rho": _RHO,
            "tilt": Range(0, math.inf, 1.0),
            "samples": Range(1, math.inf, 3, integer=True),
            "radius": Range(0, math.inf, None, optional=True),
            "noise": Choice(("sphere", "gaussian"), "sphere"),
            "delta": Range(0, math.inf, 0.0),
            "schedule": Choice(("constant", "rising", "falling"), "constant"),
        },
        starts_clean=False,
        cost="2 samples",
    ),
    "bsam": Rule(
        "sam_variants.bsam:BSAM",
        "max-sharpness and min-sharpness together (Deng et al. 2409.13173)",
        options={
            "rho": _RHO,
            "rho_min": Range(0, math.inf, 0.05),
            "match_norms": Choice((False, True), False),
        },
        cost="3",
    ),
    "f-sam": Rule(
        "sam_variants.fsam:FSAM",
        "ascends along the batch's noise, the full gradient removed (Li et al. 2403.12350)",
        options={
            "rho": Range(0, math.inf, 0.2),
            "sigma": Range(0, math.inf, 1.0),
            "decay": Range(0, 1, 0.9, open_high=True),
        },
        cost="2",
    ),
    "momentum-sam": Rule(
        "sam_variants.momentum:MomentumSAM",
        "the base's momentum as the perturbation, one gradient (Becker et al. 2401.12033)",
        options={"rho": Range(0, math.inf, 0.3)},
        starts_clean=False,
        cost="1",
    ),
    "ssam-f": Rule(
        "sam_variants.sparse:SSAMF",
        "SAM on the weights of largest Fisher information (Mi et al. 2210.05177)",
        options={**_SPARSE, "samples": Range(1, math.inf, 16, integer=True)},
        cost="2, and samples rows a refresh",
    ),
    "ssam-d": Rule(
        "sam_variants.sparse:SSAMD",
        "SAM on weights that drop and grow while training (Mi et al. 2210.05177)",
        options={**_SPARSE, "drop_rate": Range(0, 1, 0.5)},
        cost="2",
    ),
    "fisher-mask-sam": Rule(
        "sam_variants.sparse:FisherMaskSAM",
        "SAM on the weights of largest squared gradient (Zhong et al. 2210.05497)",
        options={
            "rho": _RHO,
            "keep": Range(0, 1, 0.1),
            "refresh_every": Range(1, math.inf, 1, integer=True),
        },
        cost="2",
    ),
    "esam": Rule(
        "sam_variants.esam:ESAM",
        "SAM by some of the weights on some of the rows (Du et al. 2110.03141)",
        options={
            "rho": _RHO,
            "beta": Range(0, 1, 0.6, open_low=True),
            "gamma": Range(0, 1, 0.5, open_low=True),
        },
        cost="1 + gamma + a forward",
    ),
    "adasam": Rule(
        "sam_variants.sam:SAM",
        "SAM's gradient fed to Adam with AMSGrad (Sun et al. 2303.00565)",
        options={"rho": _RHO, "scale": _SCALE},
        base="adam:amsgrad",
        cost="2",
    ),
    "aace": Rule(
        "sam_variants.aace:AACE",
        "perturbs towards the wrong classes' distribution (2406.14329)",
        options={
            "rho": Range(0, math.inf, 0.2),
            "scale": Choice(("gradient", "unit"), "gradient"),
        },
        starts_clean=False,
        cost="2",
    ),
    "previous-sam": Rule(
        "sam_variants.previous:PreviousSAM",
        "the last step's gradient as the perturbation, one gradient (2306.05651)",
        options={"rho": _RHO},
        starts_clean=False,
        cost="1",
    ),
    "gsam": Rule(
        "sam_variants.gsam:GSAM",
        "SAM, descending the surrogate gap too (Zhuang et al. 2203.08065)",
        options={"rho": _RHO, "alpha": Range(0, math.inf, 0.4)},
        cost="2",
    ),
    "vasso": Rule(
        "sam_variants.vasso:VaSSO",
        "SAM along a running average of gradients (Li and Giannakis 2309.15639)",
        options={"rho": _RHO, "theta": Range(0, 1, 0.4)},
        cost="2",
    ),
    "gnp": Rule(
        "sam_variants.gnp:GNP",
        "plain and SAM gradient mixed: a penalty on its norm (Zhao et al. 2202.03599)",
        options={"rho": _RHO, "alpha": Range(0, math.inf, 0.8)},
        cost="2",
    ),
    "le-sam": Rule(
        "sam_variants.lesam:LESAM",
        "SAM whose radius raises the loss by a fixed amount (2605.10183)",
        options={"sigma": Range(0, math.inf, 0.05), "rho_max": Range(0, math.inf, 0.1)},
        cost="2",
    ),
    "eigen-sam": Rule(
        "sam_variants.eigensam:EigenSAM",
        "SAM turned towards the Hessian's top eigenvector (Luo et al. 2501.12666)",
        options={
            "rho": _RHO,
            "alpha": Range(0, math.inf, 0.2),
            "refresh_every": Range(1, math.inf, 100, integer=True),
            "iterations": Range(1, math.inf, 5, integer=True),
        },
        cost="2, and 2 iterations a refresh",
    ),
    "sam-sps": Rule(
        "sam_variants.samsps:SAMSPS",
        "SAM with a stochastic Polyak step in place of the learning rate (2606.01827)",
        options={"rho": _RHO, "step_max": Range(0, math.inf, 1.0)},
        base="sgd:plain",
        cost="2",
    ),
}
"""Every rule by its name on the command line. A new rule is one file and one line here."""

COMMON: dict[str, Option] = {
    "total_steps": Range(1, math.inf, None, infinite=True, optional=True),
    "seed": Range(0, 2**63 - 1, 0, integer=True),
    "ascent": Choice(("global", "local"), "global"),
    "skip_nonfinite": Choice(("auto", False, True), "auto"),
}
"""Options of every rule in `build`; on the command line the run sets total_steps and seed."""


@dataclass(frozen=True)
class Spec:
    """A rule with the options that were given for it, and nothing that was not."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    when: str | None = None  # a policy's word

    @property
    def entry(self) -> Rule:
        """The rule's line of `VARIANTS`."""
        return look_up(VARIANTS, self.name, "variant")

    @property
    def label(self) -> str:
        """ "sam-rho=0.1-when=every-5": the name of a run; options in the table's order."""
        words = [f"{key}={self.options[key]}" for key in self.entry.options if key in self.options]
        words = [word.replace(":", "-") for word in words]  # it names a folder
        if self.when is not None:
            words.append(f"when={self.when}")
        return "-".join([self.name, *words])


def parse(text: str) -> Spec:
    """The Spec of `NAME[:option=value...]`, such as "sam:rho=0.1:when=every-5".

    Raises:
        ValueError: an unknown name or option (with the nearest), a value out of its range, an
            option given twice, or `when` for a rule that has its own policy.
    """
    name, colon, rest = text.strip().partition(":")
    words = re.split(r":(?=[^:=]*=)", rest) if colon else []  # a value may hold a colon: 2:4
    entry = look_up(VARIANTS, name, "variant")
    options: dict[str, Any] = {}
    when: str | None = None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"expected option=value after {name!r}, got {word!r}")
        if key in options or (key == "when" and when is not None):
            raise ValueError(f"{name} has the option {key} twice")
        if key == "when":
            _check_free_policy(name)
            parse_policy(value)
            when = value
        else:
            try:
                options[key] = entry.option(key, name).parse(key, value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    _check_one_cycle(options, when)
    return Spec(name, options, when)


def _check_one_cycle(options: Mapping[str, Any], when: object) -> None:
    if "every" in options and when is not None:
        raise ValueError("every and when both say which steps are perturbed: give one")


def parse_policy(word: str, *, signal: str | None = None, **options: Any) -> Policy:
    """The policy of a word: "ae", "every-5", "bernoulli-0.3", "tail-0.3", "coin", "always" ...

    Args:
        word: as above; the number after the dash is the policy's one option.
        signal: of "ae": "gradient-norm" (default), "lambda-max", "max-sharpness" or "trace".
        options: further options of the policy, by the names of `POLICIES`.

    Raises:
        ValueError: an unknown word or option (with the nearest), or a value out of its range.
    """
    name, dash, number = word.partition("-")
    entry: Entry = look_up(POLICIES, name, "policy")
    letter = _NUMBERS.get(name)
    if signal is not None:
        if "signal" not in entry.options:
            raise ValueError(f"only the policy 'ae' watches a signal, not {word!r}")
        options["signal"] = signal
    if letter is not None:
        key, option = next(iter(entry.options.items()))
        if key not in options:
            if not number:
                raise ValueError(f"{name} needs its number, as in {name}-{option.default}")
            options[key] = option.parse(f"{letter} in {name}-{letter}", number)
    elif dash:
        raise ValueError(f"unknown policy {word!r}; did you mean {name!r}?")
    for key, value in options.items():
        entry.option(key, name).check(key, value)
    built: Policy = entry.load()(**options)
    return built


def build(
    spec: Spec | str, base: Any, *, when: Policy | str | None = None, **options: Any
) -> SharpnessAware:
    """The optimizer of a name, a "name:option=value" or a Spec, over a base optimizer.

    Args:
        spec: which rule, possibly with options.
        base: the torch optimizer that takes the step; give it `named_parameters()` where a rule
            goes by names (asam).
        when: the policy, or its word, of a rule whose name does not fix one.
        options: the rule's options by the names of `VARIANTS[name].options`, and those of `COMMON`
            (total_steps, seed, ascent, skip_nonfinite).

    Raises:
        ValueError: an unknown name or option (with the nearest), a value out of its range, an
            option or `when` with one value in the spec and another here, `when` beside a fixed
            policy, no `total_steps` for a policy that needs the end, or a base that the rule cannot
            work with (its entry's `base` says which it wants).
    """
    if isinstance(spec, str):
        spec = parse(spec)
    entry, name = spec.entry, spec.name
    for key, value in spec.options.items():
        _check_given_once(name, key, value, options.get(key, value))
    if spec.when is not None:
        _check_given_once(name, "when", spec.when, spec.when if when is None else when)
        when = spec.when
    given = {**options, **spec.options}
    for key, value in given.items():
        option = look_up({**entry.options, **COMMON}, key, f"option of {name}")
        if not callable(value):  # a Schedule is checked by the constructor
            option.check(key, value)
    if when is not None:
        _check_free_policy(name)
    _check_one_cycle(given, when)
    if isinstance(when, str):
        when = parse_policy(when)
    rule_options: dict[str, Any] = {**entry.defaults(), **given}
    if entry.policy is not None:
        policy = POLICIES[entry.policy]
        when = policy.load()(
            **{key: rule_options.pop(key) for key in policy.options if key in rule_options}
        )
    if when is not None:
        rule_options["when"] = when
    if entry.base == "adam:amsgrad" and not getattr(base, "defaults", {}).get("amsgrad"):
        raise ValueError(
            f"{name} is SAM over Adam with AMSGrad, so it cannot use {type(base).__name__}; give "
            "it torch.optim.Adam(parameters, amsgrad=True), or use sam over a base of your choice"
        )
    built: SharpnessAware = entry.load()(base, **rule_options)
    return built


def _check_given_once(name: str, key: str, in_spec: object, beside: object) -> None:
    if in_spec != beside:
        raise ValueError(
            f"{name}: {key} is {in_spec!r} in the spec and {beside!r} beside it: give one of them"
        )


def _check_free_policy(name: str) -> None:
    policy = VARIANTS[name].policy
    if policy == "never":
        raise ValueError(f"{name} never perturbs, so it takes no when=")
    if policy is not None:
        raise ValueError(f"{name} has its own policy ({policy}), so it takes no when=")
