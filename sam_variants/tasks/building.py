"""build_task and build_model: from a word of a table to data, and to a module with its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import (
    DATA_SEED,
    LABEL_NOISE,
    MODELS,
    TASKS,
    TEST_SIZE,
    VALIDATION,
    Word,
    check_options,
    parse_model,
    parse_task,
)
from .splitting import noisy_labels, stratified_split
from .task import Request, Split, Task, hash_arrays


def build_task(
    name: str,
    *,
    data_seed: int = 0,
    test_size: int | None = None,
    label_noise: float = 0.0,
    noise_seed: int | None = None,
    validation: float = 0.0,
    data_dir: str | Path | None = None,
    allow_code: bool = False,
) -> Task:
    """The task that a word names, with its splits, noise and hash: a function of these alone.

    Generation and splits depend on `data_seed` and on no training seed, so that all runs of a
    comparison share one data set; the noise has a seed of its own, which a trainer sets to the
    run's, so that an interval over seeds covers the draw of the noise too.

    Args:
        name: a word of TASKS, options behind colons: `mnist1d`, `cifar10:cutout=16`, `npz:FILE`.
        data_seed: >= 0.
        test_size: test samples; None: the task's own. Only mnist1d can draw more than it has.
        label_noise: share of the training labels drawn anew, uniformly over all classes, the true
            one included. Test labels are never touched.
        noise_seed: of the label noise; None: data_seed.
        validation: share of the training data, taken out after the noise: it carries the noise.
            Stratified over the classes; of a text, its last windows.
        data_dir: folder of downloaded data (cifar10, cifar100).
        allow_code: whether a `FILE.py:factory` may be run.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an unknown name, a setting out of its range, or data that cannot serve.
    """
    word = parse_task(name)
    DATA_SEED.check("data_seed", data_seed)
    TEST_SIZE.check("test_size", test_size)
    LABEL_NOISE.check("label_noise", label_noise)
    DATA_SEED.check("noise_seed", noise_seed or 0)
    VALIDATION.check("validation", validation)
    entry = TASKS[word.key]
    options = check_options(entry, f"task {word.key}", word.options)
    request = Request(
        name=name,
        argument=word.argument,
        data_seed=int(data_seed),
        test_size=None if test_size is None else int(test_size),
        data_dir=data_dir,
        allow_code=allow_code,
    )
    task: Task = entry.load()(request, **entry.fixed, **options)
    if request.test_size is not None:
        if request.test_size > len(task.test):
            raise ValueError(
                f"test_size {request.test_size} is more than the {len(task.test)} test samples "
                f"of {name}; only mnist1d draws more"
            )
        task = replace(task, test=task.test.first(request.test_size))
    if label_noise:
        task = _with_noise(
            task, label_noise, request.data_seed if noise_seed is None else noise_seed
        )
    if validation:
        task = _with_validation(task, validation, request.data_seed)
    num_validation = 0 if task.validation is None else len(task.validation)
    sizes = f"{len(task.train):,} training" + (
        f", {num_validation:,} validation" if num_validation else ""
    )
    description = f"{task.description}; {sizes} and {len(task.test):,} test samples"
    return replace(task, description=description, sha256=hash_arrays(task))


def _with_noise(task: Task, share: float, seed: int) -> Task:
    if task.kind != "classification":
        raise ValueError(f"label_noise needs class labels; {task.name} is a {task.kind} task")
    labels = noisy_labels(task.train.targets.numpy(), share, task.num_classes, seed=seed)
    return replace(
        task,
        train=Split(task.train.inputs, torch.from_numpy(labels)),
        description=f"{task.description}, label noise {share:g}",
    )


def _with_validation(task: Task, share: float, seed: int) -> Task:
    num = len(task.train)
    num_validation = round(share * num)
    if not 0 < num_validation < num:
        raise ValueError(
            f"validation {share:g} of {num} training samples leaves {num - num_validation} for "
            f"training and {num_validation} for validation"
        )
    inputs, targets = task.train.inputs, task.train.targets
    if task.kind == "language":
        # By position: windows drawn at random would have their neighbours in the training data.
        cut = num - num_validation
        train, held_out = Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:])
    else:
        first, second = stratified_split(targets.numpy(), num_validation, seed=seed)
        train = Split(inputs[first], targets[first])
        held_out = Split(inputs[second], targets[second])
    return replace(task, train=train, validation=held_out)


def build_model(
    name: str, task: Task, *, seed: int, allow_code: bool = False, **model_args: Any
) -> nn.Module:
    """The model that a word names, for the task's shape, in train mode on the CPU.

    The initial weights are a function of `seed` alone (of the CPU's generator, whatever the device
    they go to); the global random numbers stay where they were.

    Args:
        name: a word of MODELS, options behind colons: `mlp:hidden=50`, `timm:NAME`, or a factory.
        task: gives input_shape and num_classes.
        seed: of the weights, >= 0.
        allow_code: whether a `FILE.py:factory` may be run.
        model_args: options of the model's entry; those of a factory or of timm are passed on.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown name or option, a task whose samples the model cannot take, or user
            code that fails.
    """
    word = parse_model(name)
    if seed != int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number in [0, 2^63), got {seed!r}")
    clash = sorted(set(word.options) & set(model_args))
    if clash:
        raise ValueError(f"model {name!r} and the model arguments both give {clash[0]}")
    generator = torch.default_generator
    state = generator.get_state()
    try:
        # Not torch.manual_seed: that would seed the accelerators' generators as well.
        generator.manual_seed(int(seed))
        with torch.device("cpu"):
            model = _construct(word, task, allow_code, {**word.options, **model_args})
    finally:
        generator.set_state(state)
    return model


def _construct(word: Word, task: Task, allow_code: bool, given: dict[str, Any]) -> nn.Module:
    entry = MODELS[word.key]
    builder = entry.load()
    if word.key.startswith("timm:"):
        model = builder(task, word.argument, **given)
    elif word.argument:
        model = builder(word.argument, allow_code=allow_code, **given)
    else:
        options = check_options(entry, f"model {word.key}", given)
        return builder(task, **entry.fixed, **options)  # type: ignore[no-any-return]
    dry_run(model, task, word.argument)
    return model  # type: ignore[no-any-return]


def dry_run(model: nn.Module, task: Task, name: str) -> None:
    """Sends two training samples through the model, in eval mode, and checks what comes out.

    The modules' train flags are put back; no gradient is taken.

    Raises:
        ValueError: the model cannot take the samples, or its outputs do not fit the targets.
    """
    inputs, targets = task.train.inputs[:2], task.train.targets[:2]
    modes = [(module, module.training) for module in model.modules()]
    parameter = next(model.parameters(), None)
    if parameter is not None:
        inputs = inputs.to(parameter.device)
        if inputs.is_floating_point() and parameter.is_floating_point():
            inputs = inputs.to(parameter.dtype)
    shape = tuple(inputs.shape)
    try:
        model.eval()
        with torch.no_grad():
            outputs = model(inputs)
    except Exception as error:  # the user's module is the user's code
        message = " ".join(str(error).split())
        raise ValueError(
            f"model {name} fails on inputs of shape {shape} of task {task.name}: "
            f"{type(error).__name__}: {message}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    expected = (*targets.shape, task.num_classes)
    if not isinstance(outputs, torch.Tensor):
        raise ValueError(f"model {name} returns a {type(outputs).__name__}, not a tensor of logits")
    if tuple(outputs.shape) != expected:
        raise ValueError(
            f"model {name} returns shape {tuple(outputs.shape)} for inputs of shape {shape}; "
            f"task {task.name} needs {expected}"
        )
