"""What is trained out of the box: the tables of tasks (data sets) and of models, in words.

Reading a table, or a word of one (`parse_task`, `parse_model`), imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from landscape.table import Choice, Entry, Range, unknown

_HERE = "sam_variants.tasks"
_CUTOUT = Range(0, 32, 0, integer=True)  # side of the square in pixels; 0: none
_CONTEXT = Range(1, 4096, 64, integer=True)  # characters a window
_TRAIN_SHARE = Range(0, 1, 0.9, open_low=True, open_high=True)
_TEXT = {"context": _CONTEXT, "train-share": _TRAIN_SHARE}
_RESNET = {"width": Range(1, 1024, 16, integer=True)}
_DIM = Range(1, 4096, 192, integer=True)
_FACTORY = "package.module:factory"
_FACTORY_FILE = "FILE.py:factory"
CODE = (_FACTORY, _FACTORY_FILE)  # keys of both tables whose argument is code that is run

TASKS: dict[str, Entry] = {
    "mnist1d": Entry(
        f"{_HERE}.mnist1d:mnist1d",
        "4,000 + 1,000 generated signals of length 40, ten classes; more test signals on demand",
    ),
    "digits": Entry(
        f"{_HERE}.tabular:digits", "1,437 + 360 real handwritten 8 x 8 digits (scikit-learn)"
    ),
    "breast-cancer": Entry(
        f"{_HERE}.tabular:breast_cancer",
        "455 + 114 real cases of 30 measurements, two classes (scikit-learn)",
    ),
    "python-docs": Entry(
        f"{_HERE}.text:python_docs",
        "character language model on the help text that CPython carries",
        options=_TEXT,
    ),
    "text:FILE": Entry(
        f"{_HERE}.text:text_file", "character language model on your UTF-8 text", options=_TEXT
    ),
    "cifar10": Entry(
        f"{_HERE}.cifar:cifar",
        "50,000 + 10,000 images of ten classes, from --data-dir; crop, flip, cutout=SIDE",
        options={"cutout": _CUTOUT},
        fixed={"num_classes": 10},
    ),
    "cifar100": Entry(
        f"{_HERE}.cifar:cifar",
        "50,000 + 10,000 images of a hundred classes, from --data-dir; crop, flip, cutout=SIDE",
        options={"cutout": _CUTOUT},
        fixed={"num_classes": 100},
    ),
    "npz:FILE": Entry(f"{_HERE}.npz:npz", "your x_train, y_train, x_test, y_test in one .npz file"),
    _FACTORY: Entry(
        f"{_HERE}.user_task:user_task",
        "what your importable function returns: training and test data, each (inputs, labels)",
    ),
    _FACTORY_FILE: Entry(
        f"{_HERE}.user_task:user_task", "the same from a file of yours, with --allow-code"
    ),
}

MODELS: dict[str, Entry] = {
    "logistic": Entry(f"{_HERE}.mlp:logistic", "one linear layer on the flattened sample"),
    "mlp": Entry(
        f"{_HERE}.mlp:mlp",
        "two hidden layers of 100 on the flattened sample",
        options={
            "hidden": Range(1, 65536, 100, integer=True),
            "depth": Range(1, 64, 2, integer=True),
            "activation": Choice(("relu", "tanh", "gelu"), "relu"),
        },
    ),
    "cnn1d": Entry(
        f"{_HERE}.cnn1d:cnn1d",
        "three convolutions of 25 channels and a linear layer (the MNIST-1D paper's)",
        options={"channels": Range(1, 4096, 25, integer=True)},
    ),
    "resnet8": Entry(
        f"{_HERE}.resnet:cifar_resnet",
        "ResNet-8 in the CIFAR form, batch norm (0.08 million parameters)",
        options=_RESNET,
        fixed={"depth": 8},
    ),
    "resnet20": Entry(
        f"{_HERE}.resnet:cifar_resnet",
        "ResNet-20 in the CIFAR form, batch norm (0.27 million)",
        options=_RESNET,
        fixed={"depth": 20},
    ),
    "resnet18": Entry(
        f"{_HERE}.resnet:resnet18", "ResNet-18 with a CIFAR stem, batch norm (11.2 million)"
    ),
    "wrn-16-4": Entry(
        f"{_HERE}.wide_resnet:wide_resnet",
        "Wide ResNet 16-4 (2.7 million)",
        fixed={"depth": 16, "widen": 4},
    ),
    "wrn-28-10": Entry(
        f"{_HERE}.wide_resnet:wide_resnet",
        "Wide ResNet 28-10 (36.5 million)",
        fixed={"depth": 28, "widen": 10},
    ),
    "pyramidnet-110": Entry(
        f"{_HERE}.pyramidnet:pyramidnet",
        "PyramidNet-110 of basic blocks, alpha 270 (28.5 million)",
        options={"alpha": Range(1, 1000, 270, integer=True)},
        fixed={"depth": 110},
    ),
    "vit-tiny": Entry(
        f"{_HERE}.vit:vit",
        "Vision Transformer of width 192, 12 blocks, 3 heads, on images or signals (5.4 million)",
        options={
            "dim": _DIM,
            "depth": Range(1, 128, 12, integer=True),
            "heads": Range(1, 64, 3, integer=True),
            "patch": Range(1, 1024, None, integer=True, optional=True),
        },
    ),
    "gpt-mini": Entry(
        f"{_HERE}.gpt:gpt",
        "decoder of width 192, 6 blocks, 6 heads, pre-norm, tied embedding (2.7 million)",
        options={
            "dim": _DIM,
            "depth": Range(1, 128, 6, integer=True),
            "heads": Range(1, 64, 6, integer=True),
        },
    ),
    "timm:NAME": Entry(f"{_HERE}.timm_model:timm_model", "any image model of timm, with the extra"),
    _FACTORY: Entry(f"{_HERE}.user_model:user_model", "what your importable function returns"),
    _FACTORY_FILE: Entry(
        f"{_HERE}.user_model:user_model", "the same from a file of yours, with --allow-code"
    ),
}


@dataclass(frozen=True)
class Word:
    """What a task's or a model's word stands for: `cifar10:cutout=16`, `npz:data.npz`.

    Attributes:
        key: the table's name.
        argument: the file, factory or foreign name behind the key's prefix; "" where it has none.
        options: the options that the word gives, checked against the entry's.
    """

    key: str
    argument: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_task(word: str) -> Word:
    """The entry of TASKS, the argument and the options that a task's word names.

    Raises:
        ValueError: no such task or option (names the nearest), or a value out of its range.
    """
    return _parse(word, TASKS, "task")


def parse_model(word: str) -> Word:
    """The entry of MODELS, the argument and the options that a model's word names.

    Raises:
        ValueError: no such model or option (names the nearest), or a value out of its range.
    """
    return _parse(word, MODELS, "model")


def _parse(word: str, table: Mapping[str, Entry], kind: str) -> Word:
    name = word
    given: list[tuple[str, str]] = []
    # Options stand at the end; a file's name may itself hold colons.
    while match := re.fullmatch(r"(.+):([A-Za-z][\w-]*)=([^:=/\\]*)", name, re.DOTALL):
        name = match[1]
        given.insert(0, (match[2], match[3]))
    key, argument = _find(name, table, kind)
    options: dict[str, Any] = {}
    for option, text in given:
        if option in options:
            raise ValueError(f"{kind} {word!r} gives {option} twice")
        options[option] = table[key].option(option, f"{kind} {key}").parse(option, text)
    return Word(key, argument, options)


def _find(name: str, table: Mapping[str, Entry], kind: str) -> tuple[str, str]:
    prefixes = {key.split(":")[0]: key for key in table if re.fullmatch(r"[a-z]+:[A-Z]+", key)}
    prefix, colon, rest = name.partition(":")
    if prefix in prefixes:
        if not rest:
            raise ValueError(f"{kind} {name!r} lacks what follows the colon: {prefixes[prefix]}")
        return prefixes[prefix], rest
    if name in table and ":" not in name:
        return name, ""
    path, _, factory = name.rpartition(":")
    if path.endswith(".py") and factory.isidentifier():
        return _FACTORY_FILE, name
    if colon and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.\w+)*", name):
        return _FACTORY, name
    raise ValueError(unknown(name, table, kind))


def check_options(entry: Entry, owner: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the builder takes them: words parsed, numbers checked, dashes as underscores.

    Raises:
        ValueError: an option that the entry has not, or a value out of its range.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        known = name if name in entry.options else name.replace("_", "-")
        option = entry.option(known if known in entry.options else name, owner)
        if isinstance(value, str):
            value = option.parse(name, value)
        option.check(name, value)
        whole = isinstance(option, Range) and option.integer and isinstance(value, float)
        checked[known.replace("-", "_")] = int(value) if whole else value
    return checked


LABEL_NOISE = Range(0, 1, 0.0)
VALIDATION = Range(0, 1, 0.0, open_high=True)
TEST_SIZE = Range(1, math.inf, None, integer=True, optional=True)
DATA_SEED = Range(0, math.inf, 0, integer=True)

_EXPORTS = {
    "Task": f"{_HERE}.task",
    "Split": f"{_HERE}.task",
    "build_task": f"{_HERE}.building",
    "build_model": f"{_HERE}.building",
    "dry_run": f"{_HERE}.building",
    "run_factory": f"{_HERE}.user_code",
}

__all__ = [
    "CODE",
    "DATA_SEED",
    "LABEL_NOISE",
    "MODELS",
    "TASKS",
    "TEST_SIZE",
    "VALIDATION",
    "Split",
    "Task",
    "Word",
    "build_model",
    "build_task",
    "dry_run",
    "parse_model",
    "parse_task",
    "run_factory",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
