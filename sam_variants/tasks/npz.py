"""npz:FILE: the user's arrays, and the checks that arrays from outside must pass."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from .task import Request, Split, Task

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def npz(request: Request) -> Task:
    """Classification of the arrays x_train, y_train, x_test, y_test of one .npz file.

    x is (n, features), (n, channels, length) or (n, channels, height, width); bytes are divided by
    255, other numbers are taken as they are. y is (n,) whole numbers from 0. Pickled objects are
    never read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .npz file, arrays missing, of objects, or not fitting one another.
    """
    path = Path(request.argument).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"npz file {path} does not exist")
    # Our own handle: numpy leaves its own open where the file is a broken zip.
    with path.open("rb") as file, _opened(file, path) as archive:
        missing = [name for name in _NAMES if name not in archive.files]
        if missing:
            raise ValueError(
                f"npz file {path} lacks {', '.join(missing)} "
                f"(it has {', '.join(archive.files) or 'nothing'})"
            )
        arrays = {name: _read(archive, name, path) for name in _NAMES}
    return task_of_arrays(
        request.name,
        (arrays["x_train"], arrays["y_train"]),
        (arrays["x_test"], arrays["y_test"]),
        source=f"npz file {path.name}",
    )


def _opened(file: BinaryIO, path: Path) -> NpzFile:
    try:
        archive = np.load(file, allow_pickle=False)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError):
        # numpy calls whatever it does not know a pickle; we read none, whatever it is.
        raise ValueError(f"npz file {path} is incomplete or no .npz file") from None
    if not isinstance(archive, NpzFile):
        raise ValueError(f"npz file {path} holds a single array; save it with numpy.savez")
    return archive


def _read(archive: NpzFile, name: str, path: Path) -> Any:
    try:
        return archive[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"npz file {path}: {name} cannot be read: {error}") from None


def task_of_arrays(name: str, train: Any, test: Any, *, source: str) -> Task:
    """A classification task of two pairs (inputs, labels) of arrays or tensors, checked.

    The classes are 0 to the largest training label.

    Raises:
        ValueError: wrong dtype, shape or length, non-finite inputs, a label out of range; says
            which array and where it came from.
    """
    x_train, y_train = _inputs(train[0], "x_train", source), _labels(train[1], "y_train", source)
    x_test, y_test = _inputs(test[0], "x_test", source), _labels(test[1], "y_test", source)
    for x, y, part in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        if len(x) != len(y):
            raise ValueError(
                f"{source}: x_{part} has {len(x)} samples, y_{part} has {len(y)} labels"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"{source}: training samples have shape {tuple(x_train.shape[1:])}, "
            f"test samples {tuple(x_test.shape[1:])}"
        )
    num_classes = int(y_train.max()) + 1
    if num_classes < 2:
        raise ValueError(f"{source}: y_train holds one single class, at least two are needed")
    if int(y_test.max()) >= num_classes:
        raise ValueError(
            f"{source}: label {int(y_test.max())} of y_test is out of range, y_train has "
            f"0 to {num_classes - 1}"
        )
    shape = tuple(x_train.shape[1:])
    return Task(
        name=name,
        kind="classification",
        train=Split(x_train, y_train),
        test=Split(x_test, y_test),
        num_classes=num_classes,
        input_shape=shape,
        description=f"{source}, samples {' x '.join(map(str, shape))}, {num_classes} classes",
    )


def _array(value: Any, name: str, source: str) -> np.ndarray[Any, Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if not isinstance(value, (np.ndarray, list, tuple)):
        raise ValueError(f"{source}: {name} is a {type(value).__name__}, not an array")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{source}: {name} has rows of different lengths") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{source}: {name} has dtype {array.dtype}, not numbers")
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{source}: {name} is empty")
    return array


def _inputs(value: Any, name: str, source: str) -> torch.Tensor:
    array = _array(value, name, source)
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{source}: {name} has shape {array.shape}; expected (n, features), "
            "(n, channels, length) or (n, channels, height, width)"
        )
    scale = 255.0 if array.dtype == np.uint8 else 1.0
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        inputs = torch.from_numpy(np.array(array, dtype=np.float32)) / scale
    finite = torch.isfinite(inputs)
    if not bool(finite.all()):
        row = int((~finite).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"{source}: {name} holds a non-finite value (or one too large for float32)"
            f" in sample {row}"
        )
    return inputs


def _labels(value: Any, name: str, source: str) -> torch.Tensor:
    array = _array(value, name, source)
    if array.ndim != 1:
        raise ValueError(f"{source}: {name} has shape {array.shape}, expected (n,)")
    if array.dtype.kind not in "biu":
        raise ValueError(f"{source}: {name} has dtype {array.dtype}; labels are whole numbers")
    if int(array.min()) < 0:
        row = int(np.argmin(array))
        raise ValueError(f"{source}: label {array.min()} of {name} (sample {row}) is negative")
    if int(array.max()) >= 1_000_000:
        row = int(np.argmax(array))
        raise ValueError(
            f"{source}: label {array.max()} of {name} (sample {row}) is out of range; "
            "classes count from 0"
        )
    return torch.from_numpy(array.astype(np.int64))
