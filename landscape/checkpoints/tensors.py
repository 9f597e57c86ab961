"""Tensors from a file: which are ordinary weights, and whether their numbers look like weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import CheckpointError, shown

# A flipped bit in the exponent of a float32 multiplies a weight by 2^32 or more; trained weights
# stay within some thousand times their median.
_OUTLIER = 1e5
_SMALLEST_SCALE = 1e-3
_SAMPLED = 100_000


def checked(
    path: Path, weights: Mapping[str, Tensor], *, held_bytes: int | None = None
) -> dict[str, Tensor]:
    """The weights as plain tensors, none of them larger than its memory.

    Args:
        path: the file, for the message.
        weights: name to tensor, as they were unpickled.
        held_bytes: bytes of the file, which the tensors' memory cannot exceed.

    Raises:
        CheckpointError: an entry is no ordinary tensor, or claims more elements than it has memory
            for.
    """
    plain = {}
    storages: dict[int, int] = {}
    for name, tensor in weights.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            raise CheckpointError(
                f"{path}: {shown(name)} is a {type(tensor).__name__}, not a plain tensor; save "
                "whole tensors"
            )
        # A file can hang attributes on a tensor that hide its methods; a view of it has none.
        view = Tensor.detach(tensor)
        problem = _unusable(view)
        if problem is not None:
            raise CheckpointError(f"{path}: {shown(name)} is {problem}")
        storage = view.untyped_storage()
        if view.numel() * view.element_size() > storage.nbytes():
            raise CheckpointError(
                f"{path}: {shown(name)} has shape {tuple(view.shape)} and holds "
                f"{storage.nbytes()} bytes: a view that repeats its numbers; save "
                "tensor.contiguous()"
            )
        storages[storage.data_ptr()] = storage.nbytes()
        plain[name] = view
    if held_bytes is not None and sum(storages.values()) > held_bytes:
        raise CheckpointError(
            f"{path}: its tensors claim {sum(storages.values())} bytes and the file holds "
            f"{held_bytes}: not written by torch.save"
        )
    return plain


def _unusable(tensor: Tensor) -> str | None:
    """What makes a tensor useless as a weight; None where nothing does."""
    if tensor.device.type == "meta":
        return "a meta tensor, which has a shape and no numbers; save the weights themselves"
    if tensor.is_quantized:
        return "quantized, and a loss of it has no gradient; save the weights it was made from"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout}); save tensor.to_dense()"
    if tensor.is_complex():
        return f"complex ({tensor.dtype}), and curvature is measured along real parameters"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device}; save tensor.cpu()"
    if tensor.is_floating_point():
        try:
            torch.empty(1, dtype=tensor.dtype).to(torch.float32)
        except RuntimeError:  # packed types, several numbers in one byte
            return f"of the type {tensor.dtype}, which cannot be cast"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is nan or inf, without a copy of the tensor."""
    low, high = _extremes(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def scale_warning(name: str, tensor: Tensor) -> str | None:
    """A sentence where one element is out of all proportion to the rest, as after a flipped bit.

        max |w| > 1e5 max(median |w|, 1e-3)

    the median over the elements that are not zero, of at most 100,000 of them.
    """
    if tensor.numel() < 2:
        return None
    peak = float(torch.stack(_extremes(tensor)).abs().max())
    step = max(1, tensor.numel() // _SAMPLED)
    sample = tensor.reshape(-1)[::step].to(torch.float64).abs()
    sample = sample[sample > 0]
    typical = float(sample.median()) if sample.numel() else 0.0
    if peak <= _OUTLIER * max(typical, _SMALLEST_SCALE):
        return None
    return (
        f"{shown(name)} reaches {peak:.3g} where half of its elements (not counting zeros) are "
        f"below {typical:.3g}: the file may be damaged (compare it with another copy)"
    )


def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    if tensor.numel() == 0:
        return torch.zeros(()), torch.zeros(())
    if tensor.element_size() == 1:  # float8 has no reductions
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    return low, high
