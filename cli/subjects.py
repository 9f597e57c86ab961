"""From checkpoint files to what `probe_all` takes: weights in their models, data, losses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoints import (
    MAX_GIGABYTES,
    Checkpoint,
    CheckpointError,
    LoadReport,
    StateKeyError,
    load_weights,
    read_checkpoint,
)
from landscape.checkpoints.names import bare
from landscape.differentiability import NoSecondDerivative
from landscape.probing import Subject
from sam_variants import VARIANTS
from sam_variants.tasks import (
    CODE,
    Split,
    Task,
    Word,
    build_model,
    build_task,
    parse_model,
    parse_task,
)
from sam_variants.tasks.user_code import users_place
from sam_variants.training.evaluation import fixed_rows

from .arguments import BAD_INPUT, NUMERICAL, USAGE, CommandError, OutOfMemory
from .dry_batch import check_batches
from .foreign import (
    ProbeData,
    first_rows,
    foreign_model,
    literal,
    probe_data,
    stand_in_task,
    strict_task,
)
from .losses import Loss, build_loss, is_code

_TEST_BATCH = 2000


@dataclass(frozen=True)
class Request:
    """How the checkpoints are to be read and which data they are set against.

    Attributes:
        model, data: words of MODELS and TASKS; None: what the checkpoint's recipe says.
        model_args: options of the model.
        split: "train" or "test": what is probed.
        max_samples: at most so many of its samples, always the same ones; None: all.
        batch_size: samples of a batch.
        seed: of the choice of samples.
        device: torch device.
        data_dir, allow_code: as `build_task` takes them.
        allow_nonfinite: weights that are nan or inf are let in.
        with_trajectory: the run's earlier weights come along.
        landmarks: checkpoints whose weights come along, the first among those probed.
        state_key, trust_pickle, max_gigabytes: as `read_checkpoint` takes them.
        allow_missing: globs of names that a checkpoint may lack.
        micro_batch: rows that go through the model at a time; None: a batch's.
        loss: a word of LOSSES; None: the task's own, with the recipe's label smoothing.
        data_args: what the data's factory is called with, as texts.
    """

    model: str | None
    model_args: Mapping[str, str]
    data: str | None
    split: str
    max_samples: int | None
    batch_size: int
    seed: int
    device: str
    data_dir: str | None
    allow_code: bool
    allow_nonfinite: bool
    with_trajectory: bool = False
    landmarks: Sequence[Path] = ()
    state_key: str | None = None
    trust_pickle: bool = False
    max_gigabytes: float = MAX_GIGABYTES
    allow_missing: Sequence[str] = ()
    micro_batch: int | None = None
    loss: str | None = None
    data_args: Mapping[str, str] = field(default_factory=dict)


def check_device(name: str) -> None:
    """Refuses a device that cannot be used; CommandError with exit code 2."""
    from sam_variants.training.failures import DeviceError
    from sam_variants.training.trainer import usable_device

    try:
        usable_device(name)
    except DeviceError as error:
        raise CommandError(USAGE, str(error)) from error


def check_comparable(checkpoints: Sequence[Checkpoint], request: Request) -> None:
    """Refuses checkpoints whose numbers would not compare; CommandError with exit code 2."""
    seen: dict[str, str] = {}
    for checkpoint in checkpoints:
        if checkpoint.sha256 in seen:
            first = seen[checkpoint.sha256]
            raise CommandError(
                USAGE, f"{first} and {checkpoint.path} hold the same bytes: name one of them"
            )
        seen[checkpoint.sha256] = checkpoint.path
    data = {_Words.of(checkpoint, request).data: checkpoint.path for checkpoint in checkpoints}
    if len(data) > 1:
        first, second = list(data.values())[:2]
        raise CommandError(
            USAGE,
            f"{first} and {second} were trained on different data or losses, so their numbers "
            "do not compare: probe them apart",
        )


def build_subjects(
    checkpoints: Sequence[Checkpoint], methods: Sequence[str], request: Request
) -> list[Subject]:
    """One subject a checkpoint, each of its method and with its data.

    Raises:
        CommandError: exit code 2 where an option is missing or wrong, 3 where a file, user code or
            data are bad, 4 where weights are not finite.
    """
    words = [_Words.of(checkpoint, request) for checkpoint in checkpoints]
    probed: dict[int | None, _Probed] = {}
    for word in words:
        if word.noise_seed not in probed:
            probed[word.noise_seed] = _probed(word, request)
    landmarks = [
        (label, _weights_of(checkpoint, words[0], probed[words[0].noise_seed], request))
        for label, checkpoint in _labelled(request.landmarks, request)
    ]
    return [
        _subject(checkpoint, method, word, probed[word.noise_seed], request, landmarks)
        for checkpoint, method, word in zip(checkpoints, methods, words, strict=True)
    ]


def _labelled(paths: Sequence[Path], request: Request) -> list[tuple[str, Checkpoint]]:
    checkpoints = read_all(paths, request)
    return [
        (_label(method, checkpoint), checkpoint)
        for method, checkpoint in zip(methods_of(checkpoints), checkpoints, strict=True)
    ]


def _label(method: str, checkpoint: Checkpoint) -> str:
    seed = (checkpoint.run or {}).get("seed")
    return method if seed is None else f"{method} seed {seed}"


@dataclass(frozen=True)
class _Words:
    """The words that rebuild a checkpoint's model and data.

    Runs of one study share their data but for the label noise, which each seed draws anew.
    """

    model: str
    task: str
    task_options: tuple[tuple[str, Any], ...]
    noise_seed: int | None
    label_smoothing: float

    @property
    def data(self) -> tuple[Any, ...]:
        return self.task, self.task_options, self.label_smoothing

    @classmethod
    def of(cls, checkpoint: Checkpoint, request: Request) -> _Words:
        recipe = checkpoint.recipe or {}
        model = request.model or recipe.get("model")
        task = request.data or recipe.get("task")
        for word, option, meant in ((model, "--model", "network"), (task, "--data", "data")):
            if word is None:
                refuse_colliding_names(checkpoint)
                raise CommandError(
                    USAGE,
                    f"{checkpoint.path} is a plain state dict and does not say which {meant} it "
                    f"belongs to: give {option} (`--list` shows the names; a function of yours is "
                    "package.module:factory)",
                )
        if not request.allow_code:
            _refuse_code(checkpoint, "--model", None if request.model else parse_model(str(model)))
            _refuse_code(checkpoint, "--data", None if request.data else parse_task(str(task)))
        names = ("data_seed", "test_size", "label_noise", "validation", "data_dir")
        options = {} if request.data else {n: recipe[n] for n in names if recipe.get(n) is not None}
        if request.data_dir is not None:
            options["data_dir"] = request.data_dir
        seed = (checkpoint.run or {}).get("seed")
        return cls(
            model=str(model),
            task=str(task),
            task_options=tuple(options.items()),
            noise_seed=seed if options.get("label_noise") else None,
            # A loss that was asked for is that loss alone.
            label_smoothing=0.0 if request.loss else float(recipe.get("label_smoothing", 0.0)),
        )


def _refuse_code(checkpoint: Checkpoint, option: str, word: Word | None) -> None:
    """A file must not choose the code that reads it: the user says the word, or that it may."""
    if word is not None and word.key in CODE:
        raise CommandError(
            BAD_INPUT,
            f"{checkpoint.path} asks for the code {word.argument}: give {option} "
            f"{word.argument} yourself, or --allow-code, if you trust the file",
        )


def refuse_colliding_names(checkpoint: Checkpoint) -> None:
    """What no model could take is told before anyone is asked for the model."""
    taken: dict[tuple[str, ...], str] = {}
    for name in checkpoint.weights:
        other = taken.setdefault(bare(name), name)
        if other != name:
            raise CommandError(
                BAD_INPUT,
                f"{checkpoint.path}: two keys become one without their prefixes: {other}, {name}",
            )


def read_all(paths: Sequence[Path], request: Request) -> list[Checkpoint]:
    """The checkpoints in these files and folders.

    Raises:
        CommandError: exit code 2 where a choice is left to make, 3 where one cannot be read.
    """
    try:
        return [
            read_checkpoint(
                path,
                state_key=request.state_key,
                trust_pickle=request.trust_pickle,
                max_gigabytes=request.max_gigabytes,
            )
            for path in paths
        ]
    except StateKeyError as error:
        raise CommandError(USAGE, str(error)) from error
    except (CheckpointError, OSError) as error:
        raise CommandError(BAD_INPUT, str(error)) from error


@contextlib.contextmanager
def numerical_errors() -> Iterator[None]:
    """Turns what a measurement raises into the command's errors.

    Exit code 4, or 3 for bad data and for what the user's own code raises, with its line.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise OutOfMemory from error
        if isinstance(error, (FloatingPointError, NoSecondDerivative)):
            raise CommandError(NUMERICAL, str(error)) from error
        if isinstance(error, ValueError):
            raise CommandError(BAD_INPUT, str(error)) from error
        place = users_place(error)
        if place is not None:  # the user's own model or loss, on a later batch or other weights
            raise CommandError(
                BAD_INPUT, f"your code failed at {place}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(error, RuntimeError):
            raise
        message = str(error).strip().splitlines() or [type(error).__name__]  # what torch says
        raise CommandError(NUMERICAL, f"torch could not compute this: {message[0]}") from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, in the user's own code too, whose errors are told by their line."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        error = error.__cause__
    return False


def methods_of(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """The method of each checkpoint: those of one method are its seeds, and no two share one.

    It is the run's label (the file's name where there is no run), with the file's name where it is
    another than checkpoint.pt, and the study's folder where there are several studies.
    """
    places = [_place(checkpoint) for checkpoint in checkpoints]
    several = len({study for study, _ in places}) > 1
    return [f"{study}/{label}" if several else label for study, label in places]


def _place(checkpoint: Checkpoint) -> tuple[str, str]:
    """The folder of the study, and the method's label in it."""
    path = Path(checkpoint.path)
    label = (checkpoint.run or {}).get("label")
    if label is None:
        return str(path.parent), path.stem
    in_trajectory = path.parent.name == "trajectory"
    run = path.parent.parent if in_trajectory else path.parent
    if path.name == "checkpoint.pt":
        return str(run.parent), str(label)
    return str(run.parent), f"{label} {'epoch ' if in_trajectory else ''}{path.stem}"


def training_section(checkpoints: Sequence[Checkpoint]) -> dict[str, Any] | None:
    """How the checkpoints were trained, for the report: their histories, and their comparison."""
    own = [checkpoint for checkpoint in checkpoints if checkpoint.run and checkpoint.history]
    if not own:
        return None
    runs = [
        {
            "id": f"r{index}",
            "name": Path(checkpoint.path).parent.name,
            "variant": (checkpoint.run or {}).get("label"),
            "seed": (checkpoint.run or {}).get("seed"),
            "history": checkpoint.history,
        }
        for index, checkpoint in enumerate(own)
    ]
    studies = {Path(checkpoint.path).parent.parent for checkpoint in own}
    recipe = own[0].recipe or {}
    trained = [checkpoint.run or {} for checkpoint in own]
    rules = {str(run.get("label")): VARIANTS.get(str(run.get("variant"))) for run in trained}
    return {
        "runs": runs,
        "comparison": _comparison(studies.pop()) if len(studies) == 1 else None,
        "papers": {
            label: rule.paper
            for label, rule in rules.items()
            if rule is not None and rule.paper is not None
        },
        "task": recipe.get("task"),
        "model": recipe.get("model"),
        "num_parameters": own[0].history[-1].get("num_parameters"),
    }


def _comparison(folder: Path) -> dict[str, Any] | None:
    """The study's comparison.json; a folder without a readable one has none."""
    try:
        content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@dataclass(frozen=True)
class _Probed:
    """The data that are probed, and the loss that is measured on them.

    Attributes:
        batches: of the split that was asked for, a part of its samples.
        num_samples, num_samples_total: in the batches, and in the whole split.
        num_terms: of the loss; None where only the measurement tells.
        test_batches: beside training data, where there are test data.
        split: "train", "test", or None where there is one data set alone.
        source: how messages call the data.
        description, sha256: for the result.
        loss: as `Objective` takes it; its words for the result.
        task: the data as a task; None for data of another form.
        foreign: the loss where it is not the task's own: then a batch is tried first.
    """

    batches: Sequence[Any]
    num_samples: int
    num_samples_total: int
    num_terms: int | None
    test_batches: Sequence[Any] | None
    split: str | None
    source: str
    description: str
    sha256: str
    loss: Callable[..., Any]
    loss_words: str
    task: Task | None
    foreign: Loss | None = None


def _probed(words: _Words, request: Request) -> _Probed:
    own_code = request.data is not None and is_code(request.data)
    try:
        loss = None
        if request.loss is not None:
            loss = build_loss(request.loss, allow_code=request.allow_code)
        if own_code and loss is not None:
            data = probe_data(
                words.task, request.data_args, allow_code=request.allow_code, seed=request.seed
            )
            if isinstance(data, ProbeData):
                return _of_foreign(data, loss, request)
            return _of_task(data, loss, words, request)
        if own_code and request.data_args:
            task = strict_task(words.task, request.data_args, allow_code=request.allow_code)
        else:
            task = build_task(
                words.task,
                noise_seed=words.noise_seed,
                allow_code=request.allow_code,
                **dict(words.task_options),
            )
        return _of_task(task, loss, words, request)
    except (ValueError, OSError) as error:
        hint = "; with --loss any other form will do" if own_code and not request.loss else ""
        raise CommandError(BAD_INPUT, f"{error}{hint}") from error


def _of_task(task: Task, loss: Loss | None, words: _Words, request: Request) -> _Probed:
    split = getattr(task, request.split)
    rows = fixed_rows(request.max_samples or len(split), len(split), seed=request.seed)
    chosen = Split(split.inputs[rows], split.targets[rows])
    noise = "" if words.noise_seed is None else "; each seed has its own draw of the noise"
    smoothing = f", label smoothing {words.label_smoothing:g}" if words.label_smoothing else ""
    probed = _Probed(
        batches=chosen.batches(request.batch_size),
        num_samples=len(chosen),
        num_samples_total=len(split),
        num_terms=chosen.targets.numel(),
        test_batches=task.test.batches(_TEST_BATCH) if request.split == "train" else None,
        split=request.split,
        source=f"task {task.name}",
        description=f"{task.description}{noise}",
        sha256=task.sha256,
        loss=partial(task.loss, label_smoothing=words.label_smoothing),
        loss_words=f"mean cross-entropy in nats{smoothing}; weight decay is not in it",
        task=task,
    )
    if loss is None or loss.word == "cross-entropy":  # the task's own
        return probed
    return replace(
        probed, loss=loss.function, loss_words=loss.description, num_terms=None, foreign=loss
    )


def _of_foreign(data: ProbeData, loss: Loss, request: Request) -> _Probed:
    if request.split == "test" and "test" not in data.sets:
        raise CommandError(
            USAGE,
            f"{data.source} returned one data set and no test data: leave --split out, or return "
            "(training, test)",
        )
    split = request.split if "test" in data.sets else None
    chosen = data.sets[split or ""].choose(
        request.max_samples, batch_size=request.batch_size, seed=request.seed
    )
    test = None
    if split == "train":
        test = data.sets["test"].choose(None, batch_size=_TEST_BATCH, seed=request.seed).batches
    return _Probed(
        batches=chosen.batches,
        num_samples=chosen.num_rows,
        num_samples_total=chosen.num_rows_total,
        num_terms=None,
        test_batches=test,
        split=split,
        source=data.source,
        description=f"{data.source}, batches as {chosen.described}",
        sha256=chosen.sha256,
        loss=loss.function,
        loss_words=loss.description,
        task=None,
        foreign=loss,
    )


def _network(words: _Words, probed: _Probed, request: Request) -> nn.Module:
    """The network without the checkpoint's weights; raises as `build_model`."""
    arguments: dict[str, Any] = dict(request.model_args)
    word = parse_model(words.model)
    if word.key in CODE or word.key.startswith("timm:"):  # the others read texts by their tables
        arguments = {name: literal(text) for name, text in arguments.items()}
    if word.key in CODE and probed.foreign is not None:
        arguments = {**word.options, **arguments}
        return foreign_model(word.argument, arguments, allow_code=request.allow_code)
    every = [*probed.batches, *(probed.test_batches or ())]
    task = probed.task or stand_in_task(every, probed.source)
    model: nn.Module = build_model(
        words.model, task, seed=0, allow_code=request.allow_code, **arguments
    )
    return model


def _loaded(
    checkpoint: Checkpoint, words: _Words, probed: _Probed, request: Request
) -> tuple[nn.Module, LoadReport]:
    """The network with the checkpoint's weights, and what became of each of them."""
    try:
        model = _network(words, probed, request)
        report = load_weights(
            model,
            checkpoint,
            allow_nonfinite=request.allow_nonfinite,
            allow_missing=request.allow_missing,
        )
        return model, report
    except FloatingPointError as error:
        raise CommandError(NUMERICAL, str(error)) from error
    except (ValueError, OSError) as error:
        raise CommandError(BAD_INPUT, str(error)) from error


def _weights_of(
    checkpoint: Checkpoint, words: _Words, probed: _Probed, request: Request
) -> dict[str, Tensor]:
    model, _ = _loaded(checkpoint, words, probed, request)
    return dict(model.named_parameters())


def _trajectory(
    checkpoint: Checkpoint, words: _Words, probed: _Probed, request: Request
) -> list[tuple[str, dict[str, Tensor]]]:
    """The run's saved weights before these, by epoch."""
    path = Path(checkpoint.path)
    own = path.parent.name == "trajectory"
    folder = path.parent if own else path.parent / "trajectory"
    files = sorted(folder.glob("*.pt"))
    earlier = [file for file in files if not own or file.name < path.name]
    found = [
        (str(int(file.stem)) if file.stem.isdigit() else file.stem, saved)
        for file in earlier
        for saved in read_all([file], request)
        if not _same_weights(saved, checkpoint)
    ]
    if len(found) < 2:
        raise CommandError(
            USAGE,
            f"{checkpoint.path}: --directions pca needs two or more earlier checkpoints of the run "
            f"in {folder}, found {len(found)}: train with --save-every",
        )
    return [(epoch, _weights_of(saved, words, probed, request)) for epoch, saved in found]


def _same_weights(first: Checkpoint, second: Checkpoint) -> bool:
    """Whether two files hold the same numbers, as the last epoch's and the final one do."""
    return first.weights.keys() == second.weights.keys() and all(
        tensor.equal(second.weights[name]) for name, tensor in first.weights.items()
    )


def _training_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the training used, as far as the file says."""
    used = {"batch_size": (checkpoint.recipe or {}).get("batch_size")}
    if checkpoint.history:
        used["edge"] = checkpoint.history[-1].get("edge")
    return {name: value for name, value in used.items() if value is not None}


def _subject(
    checkpoint: Checkpoint,
    method: str,
    words: _Words,
    probed: _Probed,
    request: Request,
    landmarks: Sequence[tuple[str, dict[str, Tensor]]],
) -> Subject:
    model, report = _loaded(checkpoint, words, probed, request)
    model.to(request.device)
    if probed.foreign is not None:
        try:
            check_batches(
                model,
                probed.foreign,
                [
                    first_rows(batch, request.micro_batch)
                    for batch in [*probed.batches, *(probed.test_batches or ())]
                ],
                model_word=words.model,
                data=probed.source,
            )
        except ValueError as error:
            if _is_out_of_memory(error):
                raise OutOfMemory from error
            raise CommandError(BAD_INPUT, str(error)) from error
    trajectory = _trajectory(checkpoint, words, probed, request) if request.with_trajectory else []
    return Subject(
        model=model,
        loss=probed.loss,
        batches=probed.batches,
        label=_label(method, checkpoint),
        method=method,
        seed=(checkpoint.run or {}).get("seed"),
        test_batches=probed.test_batches,
        data={
            "description": probed.description,
            "split": probed.split,
            "num_samples": probed.num_samples,
            "num_samples_total": probed.num_samples_total,
            "num_terms": probed.num_terms,
            "noise_seed": words.noise_seed,
            "sha256": probed.sha256,
            "loss": probed.loss_words,
        },
        checkpoint={
            "path": checkpoint.path,
            "sha256": checkpoint.sha256,
            "load_report": report.to_dict(),
        },
        training=_training_of(checkpoint),
        trajectory=trajectory,
        landmarks=landmarks,
    )
