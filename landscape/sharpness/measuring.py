"""measure: a sharpness by its name; parse: from the words "worst-case:rho=0.1" to name and options.

Imports no torch, so that a command line can check every word before it loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from landscape.sharpness import METRICS
from landscape.table import Entry, look_up

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.estimate import Estimate
    from landscape.objective import Objective

    from .spectrum import Spectrum


@dataclass(frozen=True)
class MetricSpec:
    """A metric and its options, as one word of a command line says them.

    Attributes:
        name: the entry of `METRICS`.
        options: those that were given; the others have the entry's defaults.
        label: the word in its one spelling, which names the result: "worst-case:rho=0.1".
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    def __post_init__(self) -> None:
        check_options(self.name, **self.options)
        if not self.label:
            object.__setattr__(self, "label", _label(self.name, self.options))


def parse(text: str, *, defaults: Mapping[str, Any] | None = None) -> MetricSpec:
    """The metric that a word stands for: NAME or NAME:option=value:option=value.

    >>> parse("worst-case:num-steps=40:rho=.1").label
    'worst-case:rho=0.1:num_steps=40'

    Args:
        text: a hyphen in an option's name is an underscore.
        defaults: options for every metric that has them and does not give them itself, as one
            `--rho` for all; they are not in the label.

    Raises:
        ValueError: an unknown name or option (the nearest is named), a value out of its range, an
            option given twice or without a value.
    """
    name, *words = text.strip().split(":")
    entry = look_up(METRICS, name, "metric")
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        option = key.strip().replace("-", "_")
        if not equals or not option:
            raise ValueError(f"expected option=value after {name}, got {word!r} in {text!r}")
        if option in given:
            raise ValueError(f"option {option} stands twice in {text!r}")
        given[option] = entry.option(option, name).parse(option, value.strip())
    shared = {key: value for key, value in (defaults or {}).items() if key in entry.options}
    return MetricSpec(name, {**shared, **given}, _label(name, given))


def measure(
    metric: str | MetricSpec,
    objective: Objective,
    theta: Tensor | None = None,
    *,
    seed: int = 0,
    spectrum: Spectrum | None = None,
) -> Estimate:
    """The sharpness of that name at theta, shape (P,): a value with its error, kind and cost.

    Args:
        metric: a word as `parse` reads it, or what it returned.
        objective: L.
        theta: default the model's own weights.
        seed: of whatever the metric draws; the same numbers on every device.
        spectrum: what is known of the Hessian at theta already. Parts that are missing are
            measured where the metric needs them, and charged to it.

    Raises:
        ValueError: unknown metric or option, or a value out of its range.
        FloatingPointError: the loss or the gradient at theta is not finite.
    """
    spec = parse(metric) if isinstance(metric, str) else metric
    function = METRICS[spec.name].load()
    theta = objective.theta if theta is None else theta
    result: Estimate = function(objective, theta, seed=seed, spectrum=spectrum, **spec.options)
    return result


def check_options(name: str, **options: Any) -> None:
    """Raises ValueError unless the metric has these options and their values are in range."""
    entry: Entry = look_up(METRICS, name, "metric")
    for option, value in options.items():
        entry.option(option, name).check(option, value)


def _label(name: str, options: Mapping[str, Any]) -> str:
    """NAME:option=value:..., options in the table's order, so that one metric has one label."""
    words = [f"{option}={options[option]}" for option in METRICS[name].options if option in options]
    return ":".join([name, *words])
