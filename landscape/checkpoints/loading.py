"""load_weights: a checkpoint's weights into a model, all of them or none."""

from __future__ import annotations

import fnmatch
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .checkpoint import Checkpoint, LoadReport
from .errors import CheckpointError, listed, shown
from .names import match_names
from .tensors import is_finite, scale_warning

# AveragedModel's count of the models in its mean, beside `module.*`.
_NUM_AVERAGED = "n_averaged"
_BATCHES = "num_batches_tracked"


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    allow_nonfinite: bool = False,
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Copies the checkpoint's weights into the model, all of them or none.

    Strict, but for what cannot change a number: entries that the model has tied to one another need
    be in the file once; counts of batches (`num_batches_tracked`), which files from before torch
    0.4.1 lack, stay as they are; buffers that the model computes itself and does not save are
    skipped.

    Args:
        model: takes the weights; of any device and dtype.
        checkpoint: from `read_checkpoint`.
        allow_nonfinite: weights that are nan or inf are let in.
        allow_missing: globs of the model's names that may be missing from the file; they keep the
            model's own, random values, and the report warns of each.

    Returns:
        LoadReport: what was matched, changed and left.

    Raises:
        CheckpointError: an entry is missing, unexpected, of another shape or kind of number; two
            names become one when a wrapper's prefix is removed; two entries differ which the model
            has tied. Its `report` holds all the names. The model is as it was.
        FloatingPointError: a weight is not finite and `allow_nonfinite` is False. Likewise.
    """
    own = _own_entries(model)
    matched, removed = match_names(checkpoint.path, checkpoint.weights, own)
    weights = {target: checkpoint.weights[name] for name, target in matched.items()}
    tied = _tied(model, own)
    kept = _Missing.of(model, own, weights, tied, allow_missing)
    unexpected, computed = _unexpected(model, checkpoint, matched)
    report = LoadReport(
        format=checkpoint.format,
        matched=len(weights),
        missing=kept.refused,
        unexpected=unexpected,
        shapes=[
            f"{name}: {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}"
            for name, tensor in weights.items()
            if tensor.shape != own[name].shape
        ],
        casts=[
            f"{name}: {_type(tensor)} to {_type(own[name])}"
            for name, tensor in weights.items()
            if tensor.dtype != own[name].dtype
        ],
        prefixes_removed=removed,
        skipped=[*checkpoint.skipped, *computed],
        state_key=checkpoint.state_key,
        candidates=list(checkpoint.candidates),
        tied=[" = ".join(names) for names in tied],
        warnings=[*checkpoint.warnings],
    )
    _refuse_misfits(checkpoint, own, weights, tied, report)
    _refuse_nonfinite(checkpoint, own, weights, allow_nonfinite)
    scales = [scale_warning(name, w) for name, w in weights.items() if w.is_floating_point()]
    _copy(model, own, weights, checkpoint)
    return replace(
        report,
        missing=[*kept.allowed, *kept.counts],
        warnings=[*report.warnings, *kept.warnings, *(text for text in scales if text)],
    )


def _own_entries(model: nn.Module) -> dict[str, Tensor]:
    entries = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    unready = [
        name for name, tensor in entries.items() if is_lazy(tensor) or tensor.device.type == "meta"
    ]
    if unready:
        raise CheckpointError(
            f"the model has parameters without numbers yet ({listed(unready)}); run it once on an "
            "input, or build it on a device"
        )
    return entries


def _tied(model: nn.Module, own: Collection[str]) -> list[list[str]]:
    """The names of each entry that has more than one."""
    names: dict[int, list[str]] = defaultdict(list)
    parameters = model.named_parameters(remove_duplicate=False)
    for name, tensor in chain(parameters, model.named_buffers(remove_duplicate=False)):
        if name in own:
            names[id(tensor)].append(name)
    return [each for each in names.values() if len(each) > 1]


@dataclass(frozen=True)
class _Missing:
    """The model's entries that the file lacks: refused, allowed, and counts of batches."""

    refused: list[str]
    allowed: list[str]
    counts: list[str]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        own: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        tied: Sequence[Sequence[str]],
        allow: Sequence[str],
    ) -> _Missing:
        given = {name for names in tied if any(n in weights for n in names) for name in names}
        absent = [name for name in own if name not in weights and name not in given]
        counters = {
            f"{name}.{_BATCHES}" if name else _BATCHES
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
        }
        counts = [name for name in absent if name in counters]
        allowed = [
            name
            for name in absent
            if name not in counters and any(fnmatch.fnmatchcase(name, glob) for glob in allow)
        ]
        refused = [name for name in absent if name not in {*counts, *allowed}]
        return cls(refused, allowed, counts)

    @property
    def warnings(self) -> list[str]:
        if not self.allowed:
            return []
        return [
            f"{len(self.allowed)} entries are not in the file and keep the random values that the "
            f"model began with, as --allow-missing says: {listed(self.allowed)}"
        ]


def _unexpected(
    model: nn.Module, checkpoint: Checkpoint, matched: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The file's entries that the model lacks, and those of them that it computes by itself."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    rest = [name for name in checkpoint.weights if name not in matched]
    places, _ = match_names(checkpoint.path, rest, buffers)
    computed = [
        name
        for name in rest
        if (name in places and _same(buffers[places[name]], checkpoint.weights[name]))
        or (name == _NUM_AVERAGED and checkpoint.weights[name].dim() == 0)
    ]
    return [name for name in rest if name not in computed], computed


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.cpu(), second.to(first.dtype))


def _refuse_misfits(
    checkpoint: Checkpoint,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    tied: Sequence[Sequence[str]],
    report: LoadReport,
) -> None:
    kinds = [
        f"{name}: {_type(weights[name])} into {_type(own[name])}"
        for name in weights
        if weights[name].shape == own[name].shape and not _can_be_cast(weights[name], own[name])
    ]
    apart = [" and ".join(names) for names in tied if _differ(names, weights, own)]
    problems = [
        f"{len(names)} {problem} ({listed(names)})"
        for problem, names in (
            ("missing", report.missing),
            ("unexpected", report.unexpected),
            ("of another shape", report.shapes),
            ("of another kind of number", kinds),
            ("tied in the model and different in the file", apart),
        )
        if names
    ]
    if not problems and weights:
        return
    advice = "give the model that this checkpoint was saved from"
    if weights and report.missing and len(problems) == 1:
        advice += "; --allow-missing GLOB lets the missing ones keep the model's own random values"
    elif weights and report.unexpected and len(problems) == 1:
        advice += "; --state-key NAME takes the entries NAME.* alone"
    error = CheckpointError(
        f"{checkpoint.path} does not fit the model: "
        f"{', '.join(problems) or 'no name in common'}; {advice}"
    )
    error.report = report
    raise error


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _can_be_cast(tensor: Tensor, own: Tensor) -> bool:
    """Whether a cast keeps the meaning: between floats, or between integers that it leaves equal.

    Integers in place of floats are quantised weights, whose scale is somewhere else.
    """
    if tensor.is_floating_point() or own.is_floating_point():
        return tensor.is_floating_point() == own.is_floating_point()
    if own.is_complex():
        return False
    return tensor.dtype == own.dtype or torch.equal(tensor.to(own.dtype).to(tensor.dtype), tensor)


def _differ(names: Sequence[str], weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    given = [weights[name].to(own[name].dtype) for name in names if name in weights]
    return any(not torch.equal(given[0], each) for each in given[1:])


def _refuse_nonfinite(
    checkpoint: Checkpoint,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    allow_nonfinite: bool,
) -> None:
    if allow_nonfinite:
        return
    nonfinite = [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point()
        and not is_finite(tensor.to(own[name].dtype))
        and not _same(own[name], tensor)  # a mask of -inf, which the model also begins with
    ]
    if nonfinite:
        raise FloatingPointError(
            f"{checkpoint.path}: {len(nonfinite)} tensors hold nan or inf ({listed(nonfinite)}); "
            "take an earlier checkpoint"
        )


def _copy(
    model: nn.Module,
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    """Sets the weights; where a module's own loading fails half-way, the old ones are put back.

    For as long as it takes, the old ones are held beside the new.
    """
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    state = {**model.state_dict(), **weights}
    try:
        model.load_state_dict(state)
    except Exception as error:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(before[name])
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = shown(lines[-1].strip())
        raise CheckpointError(
            f"{checkpoint.path}: the model does not take its own entries ({reason})"
        ) from error
