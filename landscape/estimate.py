"""Cost and Estimate: what every measurement carries besides its value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a result took. Costs of parts add up to the cost of the whole.

    Attributes:
        products: matrix-vector products over the whole probe data.
        gradients: forward and backward passes over the whole probe data.
        forwards: forward passes without a backward over the whole probe data.
        seconds: wall time.
    """

    products: float = 0.0
    gradients: float = 0.0
    forwards: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.products + other.products,
            self.gradients + other.gradients,
            self.forwards + other.forwards,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Estimate:
    """A measured number with its error, what kind of number it is, and its cost.

    Attributes:
        value: the number, in the units that the measuring function states.
        standard_error: of the value, same units; None where the method has none.
        kind: "exact" (up to rounding), "estimate" (unbiased or consistent, with an error),
            "lower bound" or "upper bound".
        cost: what it took.
        details: whatever else the method states about this number (radius, restarts, spread).
    """

    value: float
    standard_error: float | None
    kind: str
    cost: Cost
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def num_matvecs(self) -> int:
        """Matrix-vector products spent: `cost.products`."""
        return round(self.cost.products)
