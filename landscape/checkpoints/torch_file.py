"""Files of torch.save: our own checkpoints, state dicts and their wrappers, Lightning's .ckpt."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Checkpoint
from .choosing import choose_weights
from .files import ReadOptions, check_is_whole
from .own_checkpoint import is_own, own_checkpoint
from .tensors import checked
from .torch_content import load_content

_LIGHTNING = "pytorch-lightning_version"


def read_torch_file(path: Path, options: ReadOptions) -> Checkpoint | None:
    """A checkpoint of ours or a state dict, plain or inside a wrapper.

    Raises:
        CheckpointError: damaged, too large, or it holds other things than tensors and plain values.
        StateKeyError: it has several state dicts.
    """
    if path.is_dir():
        return None
    check_is_whole(path)
    content = load_content(path, options)
    value = content.value
    if is_own(value):
        return own_checkpoint(path, content, options)
    choice = choose_weights(path, value, options.state_key)
    is_lightning = isinstance(value, dict) and dict.__contains__(value, _LIGHTNING)
    return Checkpoint(
        path=str(path),
        format="Lightning checkpoint" if is_lightning else "state dict",
        weights=checked(path, choice.weights, held_bytes=content.num_bytes),
        sha256=content.sha256,
        state_key=choice.state_key,
        candidates=choice.candidates,
        skipped=choice.skipped,
        warnings=content.warnings,
    )
