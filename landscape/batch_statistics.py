"""Recalibrated: an objective whose batch norms get their statistics anew wherever it is looked at.

Running statistics belong to the weights they were measured with. Elsewhere on a plane or a path
they are those of other activations, and the loss shows that mismatch beside the landscape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .objective import Evaluation, Objective


class Recalibrated:
    """L(theta) with batch norm's running statistics estimated at every theta from the same data.

        mean_c = (1/n) sum_i a_ic,      var_c = 1/(n - 1) sum_i (a_ic - mean_c)^2

    a_ic are the n values (samples times positions) of channel c that a norm is given over all
    batches, while each batch is normalised by its own statistics, as in training; all else is in
    eval mode (no dropout). Every value counts once: batches weigh as much as they have samples, and
    the differences between their means are part of the variance. So the statistics of norms that no
    other norm stands before do not depend on how the data were split; those behind another norm do,
    as in training, through the batch statistics of that one (a batch cut by `micro_batch` is so
    many batches here). With one batch they are what `torch.optim.swa_utils.update_bn` leaves.

    The loss is then evaluated with these statistics in eval mode: two passes over the data. At the
    model's own weights it differs from the objective's, whose running statistics are a moving
    average over the training; that is expected, and the centre of a surface is this loss.

    The caller's model, its buffers and its flags stay the same bits. For `scan_line`, `scan_plane`,
    `automatic_range` and `path_barrier`; it has no gradient: a curve is trained on the statistics
    of each batch (batch_norm="batch"), as Garipov et al. 2018 do, and measured on this.

    Args:
        objective: over a model that has batch norms with running statistics, which it reads.

    Raises:
        ValueError: there are none, or the objective does not read them; when it is evaluated: a
            batch that gives a norm one value a channel.
    """

    num_passes = 2  # over the data, for each evaluation

    def __init__(self, objective: Objective) -> None:
        if objective.batch_norm != "eval":
            raise ValueError(
                "the objective takes batch norm's statistics from each batch "
                f"(batch_norm={objective.batch_norm!r}): no running ones are there to recalibrate"
            )
        if not objective.batch_norms:
            raise ValueError(
                "the model has no batch norm with running statistics: nothing to recalibrate"
            )
        self.objective = objective

    @property
    def theta(self) -> Tensor:
        """The model's own weights, shape (P,)."""
        return self.objective.theta

    def evaluate(self, theta: Tensor) -> Evaluation:
        """The loss and the accuracy at theta, shape (P,), with the statistics of theta."""
        return self.objective.on_statistics(self.statistics(theta)).evaluate(theta)

    def statistics(self, theta: Tensor) -> dict[str, Tensor]:
        """Means and variances at theta by the names of the buffers, each (channels,) float64.

        A norm that the loss does not use is left out. One pass over the data.
        """
        norms = self.objective.batch_norms
        moments = {name: _Moments() for name in norms}
        with _watched(norms, lambda name, values: moments[name].add(name, values)):
            self.objective.on_statistics(None).evaluate(theta)
        found: dict[str, Tensor] = {}
        for name, moment in moments.items():
            if moment.num_values:
                prefix = f"{name}." if name else ""
                found[f"{prefix}running_mean"] = moment.mean
                found[f"{prefix}running_var"] = moment.squares / (moment.num_values - 1)
        return found


class _Moments:
    """Mean and sum of squared deviations of each channel's values, merged batch by batch.

        mean <- mean + d n_b / n,      squares <- squares + squares_b + d^2 (n - n_b) n_b / n

    with d = mean_b - mean and n the number of values with the batch's own n_b: of sums of squares
    the digits would cancel where the mean is large (Chan, Golub and LeVeque 1983, eq. 2.1).
    """

    def __init__(self) -> None:
        self.num_values = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, name: str, values: Tensor) -> None:
        """Takes the values of one batch, shape (rows, channels, positions...)."""
        values = values.detach()
        num_values = values.numel() // values.shape[1]
        if num_values < 2:
            raise ValueError(
                f"batch norm {name!r} gets one value a channel from a batch, which has no variance "
                "to normalise by: give batches of two or more rows"
            )
        others = [axis for axis in range(values.ndim) if axis != 1]
        mean = values.mean(others, keepdim=True, dtype=torch.float64)
        squares = (values - mean.to(values.dtype)).square_().sum(others, dtype=torch.float64)
        self.num_values += num_values
        share = num_values / self.num_values
        apart = mean.flatten() - self.mean
        self.mean = self.mean + apart * share
        self.squares = self.squares + squares + apart**2 * (self.num_values - num_values) * share


@contextmanager
def _watched(norms: dict[str, _BatchNorm], watch: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Tells `watch` the name and the input of each norm that runs."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            watch(name, args[0] if args else keywords["input"])

        return hook

    handles = [
        norm.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, norm in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
