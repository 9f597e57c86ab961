"""Budget: what ends a run, and how much of it is spent. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Epochs, steps, gradients or seconds; `progress` is the share of it that is spent.

    Every schedule of a run (learning rate, radius, thresholds) is a function of progress alone, so
    it ends where the budget ends, whatever the budget counts. The last step may pass the end of a
    budget in gradients or seconds: a step is never cut.

    Attributes:
        kind: "epochs", "max_steps", "max_gradients" or "max_seconds".
        size: how many.
        steps_per_epoch: optimizer steps in one pass over the training data.
    """

    kind: str
    size: float
    steps_per_epoch: int

    @property
    def total_steps(self) -> int | None:
        """The number of steps where it is known in advance."""
        if self.kind == "epochs":
            return max(1, math.ceil(self.size * self.steps_per_epoch - 1e-9))
        return int(self.size) if self.kind == "max_steps" else None

    def progress(self, *, steps: int, gradients: float, seconds: float) -> float:
        """The share spent, in [0, 1]."""
        if self.total_steps is not None:
            spent = steps / self.total_steps
        else:
            spent = (gradients if self.kind == "max_gradients" else seconds) / self.size
        return min(1.0, spent)
