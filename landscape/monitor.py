"""CurvatureMonitor: lambda_max beside the edges of stability, measured in one's own loop."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .curvature import Hessian
from .edge import gradient_edge, sam_edge
from .estimate import Cost
from .linalg import lanczos
from .objective import Objective


@dataclass(frozen=True)
class CurvatureRecord:
    """The curvature at the weights of one step, all of it on the objective's data.

    Attributes:
        step: updates made before.
        loss: L there; cross-entropy's curvature dies as it goes to 0.
        gradient_norm: ||g||, loss / parameter.
        lambda_max: largest eigenvalue of the Hessian, loss / parameter^2.
        residual: an eigenvalue lies within it of lambda_max.
        converged, confirmed: of the eigenpair, as in `Eigenpairs`; a lambda_max that is not both is
            a lower bound.
        edge: the lambda_max above which SGD diverges on a quadratic (`edge.gradient_edge`): 2/lr
            corrected for momentum and decay; None without a learning rate, or `edge_skipped`.
        sam_edge: the same for SAM (`edge.sam_edge`); None without rho.
        sam_edge_heuristic: whether `sam_edge` is that of normalised SAM, which is exact for
            full-batch gradient descent without momentum alone.
        edge_skipped: why there is no edge where an optimizer was given, or None.
        cost: of the measurement.
    """

    step: int
    loss: float
    gradient_norm: float
    lambda_max: float
    residual: float
    converged: bool
    confirmed: bool
    edge: float | None
    sam_edge: float | None
    sam_edge_heuristic: bool
    edge_skipped: str | None
    cost: Cost


class CurvatureMonitor:
    """Measures lambda_max of the Hessian every so many steps, with 2/lr and the edge of SAM.

    It measures at the weights that the objective's model has at the moment (an optimizer changes
    them in place), in eval mode with the running statistics of the moment, and changes no bit of
    the training: no weight, gradient, flag or random number. Lanczos starts from the eigenvector of
    the last measurement, which saves products where it has turned little; `confirmed` rests on a
    search from a fresh random vector all the same, another one each time.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> x, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)  # L = 5 w^2, lambda_max = 10
    >>> loss = torch.nn.functional.mse_loss
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    >>> monitor = CurvatureMonitor(Objective(model, loss, [(x, y)]), every=2)
    >>> for _ in range(4):
    ...     record = monitor(optimizer)  # None on the second and the fourth step
    ...     optimizer.zero_grad()
    ...     loss(model(x), y).backward()
    ...     optimizer.step()
    >>> [(r.step, round(r.lambda_max, 4), r.edge, r.confirmed) for r in monitor.records]
    [(0, 10.0, 30.0, True), (2, 10.0, 30.0, True)]

    Args:
        objective: L; some hundred to some thousand fixed training samples serve.
        every: steps between two measurements.
        tolerance: relative residual of lambda_max.
        max_products: budget of one measurement; default that of `lanczos`.
        seed: of the random vectors.

    Attributes:
        records: what was measured, in order.

    Raises:
        ValueError: every < 1.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        every: int = 100,
        tolerance: float = 1e-3,
        max_products: int | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        self.every, self.tolerance, self.seed = every, tolerance, seed
        self.max_products = max_products
        self.records: list[CurvatureRecord] = []
        self._objective = copy.copy(objective)  # `refresh` below must not change the caller's
        self._num_calls = 0
        self._eigenvector: Tensor | None = None

    def __call__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        rho: float | None = None,
        normalised: bool = True,
        step: int | None = None,
    ) -> CurvatureRecord | None:
        """Counts a step; on each `every`-th measures, keeps and returns the record, else None.

        Called before the update, so that `step` counts the updates made: the first call measures.

        Args:
            optimizer: whose learning rate, momentum and decay make the edge, or one that wraps it
                as `base` or `base_optimizer`. Only torch.optim.SGD has an edge.
            lr, momentum, weight_decay: of SGD with heavy-ball momentum, instead of an optimizer.
            rho: radius of SAM now; None: no edge of SAM.
            normalised: SAM's offset is rho g/||g||; False: rho g.
            step: number of the step, where the loop has one; default the calls before this one.

        Raises:
            ValueError: both an optimizer and lr are given, or rho without either; lr < 0; rho < 0.
            FloatingPointError: the loss, its gradient or a product is not finite; the message names
                the step. What was measured before stays.
        """
        if optimizer is not None and lr is not None:
            raise ValueError("give the optimizer or lr, not both")
        if rho is not None and optimizer is None and lr is None:
            raise ValueError("the edge of SAM needs the optimizer or lr beside rho")
        for name, value in (("lr", lr), ("rho", rho)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be >= 0, got {value}")
        step = self._num_calls if step is None else step
        self._num_calls += 1
        if step % self.every:
            return None
        edge, skipped = None, None
        if optimizer is not None:
            edge, skipped = _edge_of(optimizer)
        elif lr:
            edge = gradient_edge(lr, momentum=momentum, weight_decay=weight_decay)
        elif lr == 0:
            skipped = "the learning rate is 0"
        record = self._measure(step, edge, skipped, rho, normalised)
        self.records.append(record)
        return record

    def table(self) -> list[dict[str, Any]]:
        """One row a measurement, plain numbers by name: for pandas."""
        rows = []
        for record in self.records:
            row = dict(vars(record))
            cost = row.pop("cost")
            rows.append({**row, "products": cost.products, "seconds": cost.seconds})
        return rows

    def plot(self) -> Any:
        """lambda_max with its edges over the steps, and the loss, as a plotly figure."""
        from .notebook import curvature_figure

        return curvature_figure(self.table())

    def _measure(
        self,
        step: int,
        edge: float | None,
        skipped: str | None,
        rho: float | None,
        normalised: bool,
    ) -> CurvatureRecord:
        begun = time.perf_counter()
        objective = self._objective
        # The objective evaluates a copy of the modules that shares the caller's own tensors.
        objective.refresh(objective._model)
        theta = objective.space.flatten(dict(objective._model.named_parameters()))
        try:
            loss, gradient = objective.value_and_gradient(theta)
            norm = float(gradient.double().norm())
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FloatingPointError(f"the loss is {loss:.4g}, its gradient's norm {norm:.4g}")
            pairs = lanczos(
                Hessian(objective, theta),
                num_eigenpairs=1,
                tolerance=self.tolerance,
                max_products=self.max_products,
                seed=self.seed + len(self.records),
                start=self._eigenvector,
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"no curvature at step {step}: {error}") from error
        self._eigenvector = pairs.vectors[:, 0].clone()
        perturbed = None
        if edge is not None and rho is not None:
            perturbed = sam_edge(edge, rho=rho, gradient_norm=norm if normalised else None)
        return CurvatureRecord(
            step=step,
            loss=loss,
            gradient_norm=norm,
            lambda_max=float(pairs.values[0]),
            residual=float(pairs.residuals[0]),
            converged=bool(pairs.converged[0]),
            confirmed=bool(pairs.confirmed[0]),
            edge=edge,
            sam_edge=perturbed,
            sam_edge_heuristic=perturbed is not None and normalised,
            edge_skipped=skipped,
            cost=Cost(pairs.cost.products, 1.0, 0.0, time.perf_counter() - begun),
        )


def _edge_of(optimizer: torch.optim.Optimizer) -> tuple[float | None, str | None]:
    """The optimizer's edge, or why it has none.

    Groups of one learning rate and momentum have one edge; the largest of their decays counts.
    """
    base: Any = optimizer
    while not isinstance(base, torch.optim.SGD):
        inner = getattr(base, "base", None) or getattr(base, "base_optimizer", None)
        if inner is None:
            return None, f"{type(base).__name__} has no edge in lambda_max of the Hessian"
        base = inner
    groups = base.param_groups
    names = ("lr", "momentum", "nesterov", "dampening")
    different = [name for name in names if len({float(group[name]) for group in groups}) > 1]
    if different:
        return None, f"the parameter groups differ in {' and '.join(different)}"
    lr, momentum, nesterov, dampening = (float(groups[0][name]) for name in names)
    if lr == 0:
        return None, "the learning rate is 0"
    edge = gradient_edge(
        lr,
        momentum=momentum,
        weight_decay=max(float(group["weight_decay"]) for group in groups),
        nesterov=bool(nesterov),
        dampening=dampening,
    )
    return edge, None
