"""Curvature while training: signals for the adaptive threshold, lambda_max beside its edges.

Everything is measured by the `landscape` package on fixed training samples, at the weights of the
moment, in eval mode and without touching the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from landscape.curvature import Hessian
from landscape.edge import gradient_edge as gradient_edge
from landscape.edge import sam_edge as sam_edge
from landscape.estimate import Cost
from landscape.linalg import Eigenpairs, lanczos
from landscape.objective import Objective
from landscape.sharpness import Spectrum, measure

# A Hessian-vector product by double backward: a forward and a backward, and backward through both.
GRADIENTS_PER_PRODUCT = 3.0
SIGNAL_TOLERANCE = 1e-2  # relative; the threshold's own noise is far larger
SIGNAL_PROBES = 8  # of the trace; always the same ones, so that their error does not look like news
PROBE_TOLERANCE = 1e-3
SHARPNESS_RHO = 0.05
SHARPNESS = f"worst-case:rho={SHARPNESS_RHO}:num_steps=10:num_restarts=0"

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measurement:
    """One value of a signal and its price in gradients and forwards over the probe samples."""

    value: float
    gradients: float
    forwards: float


class CurvatureGauge:
    """Measures one scalar of the landscape at a model's weights of the moment.

        lambda-max      the largest eigenvalue of the Hessian, by Lanczos started from the
                        eigenvector of the last measurement
        trace           of the Hessian, by Hutchinson with the same probes each time
        max-sharpness   max over ||e|| <= rho of L(w + e) - L(w), to first order in rho: the rise
                        L(w + rho g/||g||) - L(w) after one step along the gradient, a lower bound

    Args:
        signal: one of the names above.
        model: measured in place, never changed.
        loss: mean loss of (outputs, targets), as it is trained.
        batches: fixed pairs (inputs, targets).
        rho: radius of max-sharpness, in parameter norm.
        tolerance: relative, of lambda-max.
        seed: of start vectors and probes.
    """

    def __init__(
        self,
        signal: str,
        model: nn.Module,
        loss: Loss,
        batches: list[tuple[Tensor, Tensor]],
        *,
        rho: float = 0.05,
        tolerance: float = SIGNAL_TOLERANCE,
        seed: int = 0,
    ) -> None:
        self.signal = signal
        self.rho = rho
        self.tolerance = tolerance
        self.seed = seed
        self.eigenvector: Tensor | None = None
        self.residual: float | None = None
        self._pairs: Eigenpairs | None = None
        self._model = model
        self.objective = Objective(model, loss, batches)

    @property
    def theta(self) -> Tensor:
        """The model's weights now, (P,), a copy."""
        return self.objective.space.flatten(dict(self._model.named_parameters()))

    def measure(self) -> Measurement:
        """The signal at the weights of the moment, and what it took.

        Raises:
            FloatingPointError: the loss, its gradient or a product is not finite there.
        """
        self.objective.refresh(self._model)  # running statistics have moved since
        theta = self.theta
        if self.signal == "lambda-max":
            value, cost = self._lambda_max(theta)
        else:
            word = {
                "trace": f"trace:num_probes={SIGNAL_PROBES}",
                "max-sharpness": f"sam:rho={self.rho!r}",
            }[self.signal]
            estimate = measure(word, self.objective, theta, seed=self.seed)
            value, cost = estimate.value, estimate.cost
        gradients = cost.gradients + GRADIENTS_PER_PRODUCT * cost.products
        return Measurement(value, gradients, cost.forwards)

    def _lambda_max(self, theta: Tensor) -> tuple[float, Cost]:
        pairs = lanczos(
            Hessian(self.objective, theta),
            num_eigenpairs=1,
            ends="top",
            tolerance=self.tolerance,
            seed=self.seed,
            start=self.eigenvector,
        )
        self._pairs = pairs
        self.eigenvector = pairs.vectors[:, 0].clone()
        self.residual = float(pairs.residuals[0])
        return float(pairs.values[0]), pairs.cost

    def flatness(self) -> dict[str, Any]:
        """The loss and the worst-case sharpness where lambda_max was just measured.

            sharpness = max over ||e|| <= rho of L(w + e) - L(w)    (a lower bound: `SHARPNESS`)

        It climbs from the gradient and from both signs of the eigenvector just found.
        """
        theta = self.theta
        spectrum = None if self._pairs is None else Spectrum(self._pairs)
        found = measure(SHARPNESS, self.objective, theta, seed=self.seed, spectrum=spectrum)
        return {
            "probe_loss": float(self.objective.value(theta)),
            "sharpness": found.value,
            "sharpness_rho": SHARPNESS_RHO,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"eigenvector": self.eigenvector}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vector = state["eigenvector"]
        self.eigenvector = None if vector is None else vector.to(self.objective.device)
