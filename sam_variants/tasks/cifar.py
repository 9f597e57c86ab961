"""cifar10 and cifar100: the downloaded files, read without running what they hold."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .task import Request, Split, Task

Bytes = NDArray[np.uint8]
_PIXELS = 3 * 32 * 32
_FOLDERS = {
    10: ("cifar-10-batches-py", "cifar-10-batches-bin"),
    100: ("cifar-100-python", "cifar-100-binary"),
}
_TRAIN_FILES = {10: tuple(f"data_batch_{i}" for i in range(1, 6)), 100: ("train",)}
_TEST_FILES = {10: ("test_batch",), 100: ("test",)}


def cifar(request: Request, *, num_classes: int, cutout: int = 0) -> Task:
    """CIFAR-10 or CIFAR-100 from the user's folder: images (3, 32, 32), 50,000 and 10,000.

    Python and binary versions are both read. Each colour is standardised by its mean and deviation
    over the training images. Training batches are cropped and flipped; `cutout` > 0 blanks a
    square of that side.

    Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009).

    Raises:
        FileNotFoundError: no data_dir, or none of the known files in it.
        ValueError: a file that is not what its name says.
    """
    title = f"CIFAR-{num_classes}"
    folder = _folder(request, num_classes, title)
    train, train_labels = _read_files(folder, _TRAIN_FILES[num_classes], num_classes, title)
    test, test_labels = _read_files(folder, _TEST_FILES[num_classes], num_classes, title)
    # By the counts of each byte value: exact in float64, with no float copy of the images.
    mean, deviation = _moments(train)
    return Task(
        name=request.name,
        kind="classification",
        train=Split(_standardised(train, mean, deviation), torch.from_numpy(train_labels)),
        test=Split(_standardised(test, mean, deviation), torch.from_numpy(test_labels)),
        num_classes=num_classes,
        input_shape=(3, 32, 32),
        description=f"{title} images, {num_classes} classes, crop and flip"
        + (f", cutout {cutout}" if cutout else ""),
        augment=CropFlipCutout(tuple((-mean / deviation).tolist()), cutout=cutout),
    )


@dataclass(frozen=True)
class CropFlipCutout:
    """Random crops of images padded with black, random flips, and optionally a blank square.

    Attributes:
        black: value of a black pixel in each standardised colour, (channels,).
        padding: pixels added on each side before the crop (4: He et al. 2015).
        cutout: side of the square that is set to 0, the mean colour, around a uniform centre and
            cut at the edge (DeVries and Taylor 2017); 0: none.
    """

    black: tuple[float, ...]
    padding: int = 4
    cutout: int = 0

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """New images of the same shape (n, C, H, W); every choice is drawn from the generator.

        The draws are made on the generator's device: a CPU generator gives the same images on
        every device.
        """
        num, _, height, width = inputs.shape
        device = generator.device

        def draw(end: int) -> Tensor:
            drawn = torch.randint(end, (num, 1), generator=generator, device=device)
            return drawn.to(inputs.device)

        top, left, flip = draw(2 * self.padding + 1), draw(2 * self.padding + 1), draw(2)
        black = inputs.new_tensor(self.black).view(1, -1, 1, 1)
        # Padding adds zeros, so black has to be zero while it does.
        padded = functional.pad(inputs - black, [self.padding] * 4) + black
        rows = torch.arange(height, device=inputs.device)
        columns = torch.arange(width, device=inputs.device)
        down = top + rows  # (n, H)
        across = left + torch.where(flip == 1, width - 1 - columns, columns)  # (n, W)
        samples = torch.arange(num, device=inputs.device).view(-1, 1, 1)
        # Indices apart from each other put the channels last: (n, H, W, C).
        images = padded[samples, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
        if self.cutout:
            inside = self._square(rows, draw(height))[:, :, None]
            inside = inside & self._square(columns, draw(width))[:, None, :]
            images = images.masked_fill(inside[:, None], 0.0)
        return images.contiguous()

    def _square(self, positions: Tensor, centre: Tensor) -> Tensor:
        start = centre - self.cutout // 2
        return (positions >= start) & (positions < start + self.cutout)


def _folder(request: Request, num_classes: int, title: str) -> Path:
    names = _FOLDERS[num_classes]
    if request.data_dir is None:
        raise FileNotFoundError(f"{title} needs --data-dir: the folder that holds {names[0]}")
    root = Path(request.data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{title}: --data-dir {root} is no folder")
    first = _TRAIN_FILES[num_classes][0]
    for folder in (*(root / name for name in names), root):
        if (folder / first).is_file() or (folder / f"{first}.bin").is_file():
            return folder
    raise FileNotFoundError(
        f"{title}: {root} holds neither {names[0]} nor {names[1]} "
        f"(looked for {first} and {first}.bin; unpack the downloaded archive there)"
    )


def _read_files(
    folder: Path, names: tuple[str, ...], num_classes: int, title: str
) -> tuple[Bytes, NDArray[np.int64]]:
    images, labels = [], []
    for name in names:
        path, binary = folder / name, folder / f"{name}.bin"
        if path.is_file():
            part, part_labels = read_python_batch(path, num_classes)
        elif binary.is_file():
            part, part_labels = read_binary_batch(binary, num_classes)
        else:
            raise FileNotFoundError(f"{title}: {folder} lacks {name} (or {name}.bin)")
        images.append(part)
        labels.append(part_labels)
    return np.concatenate(images), np.concatenate(labels)


def read_binary_batch(path: Path, num_classes: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) of one .bin file.

    A record is the label (CIFAR-100: coarse label, then fine label) and 3,072 pixels.

    Raises:
        ValueError: the file's size is no multiple of a record, or a label is out of range.
    """
    num_labels = 1 if num_classes == 10 else 2
    content = np.fromfile(path, dtype=np.uint8)
    record = num_labels + _PIXELS
    if len(content) == 0 or len(content) % record:
        raise ValueError(
            f"{path}: {len(content)} bytes are no multiple of a record of {record}; "
            "the file is incomplete or another one"
        )
    records = content.reshape(-1, record)
    labels = records[:, num_labels - 1].astype(np.int64)
    return records[:, num_labels:].reshape(-1, 3, 32, 32), _checked(labels, num_classes, path)


def read_python_batch(path: Path, num_classes: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) of one pickled batch; nothing in it is run.

    Raises:
        ValueError: names anything but numpy arrays, is truncated, or lacks `data` and labels.
    """
    with path.open("rb") as file:
        try:
            batch = _ArrayUnpickler(file).load()
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # whatever a broken pickle makes the machine stumble over
            raise ValueError(f"{path} is no CIFAR batch: {type(error).__name__}: {error}") from None
    key = b"labels" if num_classes == 10 else b"fine_labels"
    if not isinstance(batch, dict):
        raise ValueError(f"{path} holds a {type(batch).__name__}, not a CIFAR batch")
    # Written by Python 2 the keys are bytes, re-written by Python 3 strings.
    batch = {name.encode() if isinstance(name, str) else name: batch[name] for name in batch}
    if b"data" not in batch or key not in batch:
        raise ValueError(f"{path} lacks {'data' if b'data' not in batch else key.decode()!r}")
    data, labels = batch[b"data"], batch[key]
    if not isinstance(data, _PickledArray):
        raise ValueError(f"{path}: data is a {type(data).__name__}, not an array of bytes")
    images = data.array()
    if images.ndim != 2 or images.shape[1] != _PIXELS or len(images) == 0:
        raise ValueError(f"{path}: data has shape {images.shape}, not (n, {_PIXELS})")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"{path}: {key.decode()} is no list of whole numbers")
    if len(labels) != len(images):
        raise ValueError(f"{path}: {len(images)} images but {len(labels)} labels")
    checked = _checked(np.array(labels, dtype=np.int64), num_classes, path)
    return images.reshape(-1, 3, 32, 32), checked


def _checked(labels: NDArray[np.int64], num_classes: int, path: Path) -> NDArray[np.int64]:
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"{path}: label {wrong[0]} is not in 0 to {num_classes - 1}")
    return labels


class _PickledDtype:
    """Stands for numpy.dtype in a pickle: keeps its code."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """The byte order of single bytes says nothing."""


class _PickledArray:
    """Stands for numpy.ndarray in a pickle: keeps shape, dtype and bytes.

    numpy's own `__setstate__` takes whatever the file says; nothing of a foreign file reaches it.
    """

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> Bytes:
        """The array of bytes. Raises ValueError where it holds anything else."""
        try:
            _, shape, dtype, fortran, content = self.state
        except (TypeError, ValueError):
            raise ValueError("an array without content in a pickle") from None
        if not isinstance(dtype, _PickledDtype) or dtype.code not in ("u1", "|u1", "uint8", "B"):
            code = dtype.code if isinstance(dtype, _PickledDtype) else dtype
            raise ValueError(f"an array of dtype {code!r}, not of bytes, in a pickle")
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError(f"an array whose content is a {type(content).__name__} in a pickle")
        values = np.frombuffer(content, dtype=np.uint8)
        return values.reshape(shape, order="F" if fortran else "C")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles plain containers and arrays of bytes; any other name in the file is refused."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")
        # Bound methods and classes with __setstate__: a pickle may also set attributes of what it
        # has found, and of these it can set none that counts.
        self._admitted = {
            ("numpy", "ndarray"): _PickledArray,
            ("numpy", "dtype"): _PickledDtype,
            ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
            ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
            ("numpy.core.numeric", "_frombuffer"): self._from_buffer,
            ("numpy._core.numeric", "_frombuffer"): self._from_buffer,
            ("_codecs", "encode"): self._encode,
        }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle names {module}.{name}; only numpy arrays are admitted, nothing was run"
            ) from None

    def _from_buffer(self, content: Any, dtype: Any, shape: Any, order: Any) -> _PickledArray:
        # Protocol 5's way to spell an array.
        array = _PickledArray()
        array.__setstate__((1, shape, dtype, order == "F", content))
        return array

    def _encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        # Protocol 2, written by Python 3, spells bytes as _codecs.encode(text, "latin1").
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r} is not admitted")
        return text.encode("latin1")


def _moments(images: Bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for colour in range(3):
        counts = np.bincount(images[:, colour].ravel(), minlength=256)
        mean = counts @ values / counts.sum()
        means.append(mean)
        deviations.append(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
    if min(deviations) == 0:
        raise ValueError("CIFAR: the training images are of one single value in a colour")
    return np.array(means), np.array(deviations)


def _standardised(
    images: Bytes, mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> Tensor:
    pixels = torch.from_numpy(images).float()
    pixels -= torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1)
    pixels /= torch.tensor(deviation, dtype=torch.float32).view(1, 3, 1, 1)
    return pixels
