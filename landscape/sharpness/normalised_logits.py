"""NormalisedLogits: a classification loss that does not see how large the logits are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.loss_terms import class_dimension, is_cross_entropy
from landscape.objective import Objective, TwiceDifferentiable


class NormalisedLogits:
    """loss(z~, target) as a function of the logits z, K of them a term:

        z~ = (z - mean(z)) / ||z - mean(z)||,    mean and norm over the K classes of each term

    Unchanged when the logits of a term are multiplied by a > 0 or shifted by a constant, and with
    it when the last linear layer, bias included, is multiplied by a. A term whose logits are all
    equal, to within 8 eps of the largest (the mean of equal logits is rounded), has z~ = 0, where
    there is no derivative: it counts as 0. Cross-entropy of z~ lies within 1 of log K; dividing by
    the standard deviation instead would make z~ sqrt(K) longer, another loss.

    Args:
        loss: `loss(output, target)` with class indices, or torch's cross-entropy.

    Source: Andriushchenko, Croce, Müller, Hein and Flammarion 2023, "A modern look at the
    relationship between sharpness and generalization", logit normalisation as in their code (which
    divides by 1e-10 where the norm is smaller, and so is not invariant there).
    """

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss

    def __call__(self, output: Any, target: Any) -> Any:
        """The loss of the normalised output.

        Raises:
            ValueError: the output has no two logits a term to normalise.
        """
        dimension = self._class_dimension(output, target)
        centred = output - output.mean(dimension, keepdim=True)
        level = _is_level(output.detach(), centred.detach(), dimension)
        # The norm's own derivatives at 0 are nan, also where `where` does not choose them.
        uneven = torch.where(level, 1.0, centred)
        length = torch.linalg.vector_norm(uneven, dim=dimension, keepdim=True)
        return self.loss(torch.where(level, 0.0, uneven / length), target)

    def _class_dimension(self, output: Any, target: Any) -> int:
        if _takes_log_probabilities(self.loss):
            raise ValueError(
                "logits=normalised needs logits, and this loss takes log-probabilities: "
                "torch.nn.functional.cross_entropy is the same loss of them"
            )
        dimension = class_dimension(self.loss, output, target)
        if dimension is None and is_cross_entropy(self.loss) and output.ndim > 1:
            dimension = 1  # targets that are class probabilities
        if dimension is None or output.shape[dimension] < 2:
            raise ValueError(
                "logits=normalised needs a classifier with two or more logits for each target: "
                "class indices as targets, or torch's cross-entropy"
            )
        return dimension


def on_normalised_logits(objective: TwiceDifferentiable) -> Objective:
    """The same model, parameters and data, under `NormalisedLogits` of their loss.

    Raises:
        ValueError: the loss is not one of (output, target), so that it has no logits.
    """
    if not isinstance(objective, Objective) or not all(
        isinstance(batch, tuple) and len(batch) == 2 for batch in objective.batches
    ):
        raise ValueError(
            "logits=normalised needs batches of (inputs, targets) and loss(output, target): "
            "another loss does not say what its logits are"
        )
    normalised = copy.copy(objective)  # terms and reduction are those of the same targets
    normalised.loss = NormalisedLogits(objective.loss)
    return normalised


def _is_level(output: Tensor, centred: Tensor, dimension: int) -> Tensor:
    """Whether all logits of a term are equal, up to the rounding of their mean."""
    rounding = 8 * torch.finfo(output.dtype).eps * output.abs().amax(dimension, keepdim=True)
    return centred.abs().amax(dimension, keepdim=True) <= rounding


def _takes_log_probabilities(loss: Callable[..., Any]) -> bool:
    while isinstance(loss, partial):
        loss = loss.func
    return loss is functional.nll_loss or isinstance(loss, nn.NLLLoss)
