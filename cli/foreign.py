"""Data of a user's factory that are probed and never trained on: any form that a loss can take.

`sam_variants.tasks` asks more of data, because it trains on them and counts classes.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from sam_variants.tasks import Split, Task
from sam_variants.tasks.task import hash_arrays
from sam_variants.tasks.user_code import (
    find_function,
    folder_of,
    run_factory,
    users_code,
    users_place,
    where,
)
from sam_variants.tasks.user_model import user_model
from sam_variants.tasks.user_task import task_of_returned
from sam_variants.training.evaluation import fixed_rows

_EXPECTED = (
    "expected one data set or two (training, test): (inputs, targets), a dict of tensors, a torch "
    "Dataset, or a DataLoader, list or iterator of batches"
)


@dataclass(frozen=True)
class Chosen:
    """The rows of a data set that are probed, in batches.

    Attributes:
        batches: as `Objective` takes them.
        num_rows: in them.
        num_rows_total: in the whole data set.
        sha256: of every tensor of the chosen rows, in hexadecimal.
        described: the form of a batch, in words.
    """

    batches: tuple[Any, ...]
    num_rows: int
    num_rows_total: int
    sha256: str
    described: str


class DataSet(Protocol):
    """One data set in any form."""

    def choose(self, max_rows: int | None, *, batch_size: int, seed: int) -> Chosen:
        """At most so many rows, drawn at random by the seed, in the order of the data."""


@dataclass(frozen=True)
class ProbeData:
    """What a user's factory returned, as data sets.

    Attributes:
        sets: by split: "train" and "test", or one single set under "".
        source: the factory and its place.
    """

    sets: Mapping[str, DataSet]
    source: str


def probe_data(
    word: str, arguments: Mapping[str, str], *, allow_code: bool, seed: int
) -> ProbeData | Task:
    """What the user's factory returns for the arguments; a `Task` where it returns one.

    Its draws, and those of a DataLoader that shuffles, start from the seed, so that two processes
    get the same data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the factory or its iterator failed (names the user's line), or returned no data
            of a known form.
    """
    with seeded(seed):
        returned = run_factory(word, allow_code=allow_code, **_literals(arguments))
        source = f"{word} at {where(word, allow_code=allow_code)}"
        if isinstance(returned, Task):
            return _described_task(returned)
        folder = folder_of(find_function(word, allow_code))
        with users_code(word, folder):
            returned = _taken(returned)
    return ProbeData(_sets(returned, source), source)


def strict_task(word: str, arguments: Mapping[str, str], *, allow_code: bool) -> Task:
    """The classification task that the factory returns for the arguments, checked as for training.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the factory failed or returned something else.
    """
    returned = run_factory(word, allow_code=allow_code, **_literals(arguments))
    source = f"{word} at {where(word, allow_code=allow_code)}"
    return _described_task(task_of_returned(word, returned, source=source))


def foreign_model(word: str, arguments: Mapping[str, Any], *, allow_code: bool) -> nn.Module:
    """The module that the user's factory returns, whatever its outputs are; raises as `user_model`.

    Its random numbers start from 0 and the global ones stay where they were.
    """
    with seeded(0), torch.device("cpu"):
        return user_model(word, allow_code=allow_code, **arguments)


def literal(text: str) -> Any:
    """The number, truth value or other Python literal that a text spells; else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def stand_in_task(batches: Iterable[Any], source: str) -> Task:
    """A task of the shape and classes of these batches, for the models that are built for a task.

    Raises:
        ValueError: the batches are no pairs of an input tensor and class labels, shape (n,).
    """
    shapes, num_classes, first = set(), 0, None
    for batch in batches:
        labels = batch[1] if is_pair(batch) else None
        inputs = batch[0] if is_pair(batch) else None
        if (
            not isinstance(inputs, Tensor)
            or not isinstance(labels, Tensor)
            or labels.ndim != 1
            or labels.is_floating_point()
            or labels.is_complex()
        ):
            raise ValueError(
                f"{source}: the networks of --list models are built for class labels, shape (n,); "
                f"these batches are {described(batch)}: give a function of yours as --model"
            )
        shapes.add(tuple(inputs.shape[1:]))
        num_classes = max(num_classes, int(labels.max()) + 1)
        first = first or Split(inputs[:2], labels[:2].clamp(min=0))
    if len(shapes) != 1 or first is None:
        raise ValueError(f"{source}: batches hold samples of several shapes: {sorted(shapes)}")
    return Task(source, "classification", first, first, num_classes, shapes.pop(), source)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of torch's CPU, numpy and Python from this seed on; put back afterwards."""
    generator = torch.default_generator
    states = generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


# -- what a factory may return -----------------------------------------------------------------


class _Iterated(list[Any]):
    """The batches that an iterator gave."""


def _taken(returned: Any) -> Any:
    """The same with iterators and DataLoaders read to their end: that is the user's code."""
    if isinstance(returned, tuple) and len(returned) == 2:
        return tuple(map(_taken, returned))
    if isinstance(returned, DataLoader):
        # In this process: ours may be one that must not start others, and workers draw for
        # themselves.
        returned.num_workers, returned.timeout = 0, 0
    known = (Tensor, np.ndarray, Mapping, list, tuple, str, bytes, Dataset)
    if isinstance(returned, Iterable) and not isinstance(returned, known):
        return _Iterated(returned)
    return returned


def _sets(returned: Any, source: str) -> dict[str, DataSet]:
    if isinstance(returned, tuple) and len(returned) == 2 and all(map(_is_set, returned)):
        train, test = returned
        return {"train": _set(train, source), "test": _set(test, source)}
    if type(returned) is list and (_is_table(returned) or _are_two_pairs(returned)):
        raise ValueError(
            f"{source} returned a list of two, which may be two batches, or training and test "
            "data, or inputs and targets: return a tuple for those, an iterator or DataLoader for "
            "batches"
        )
    return {"": _set(returned, source)}


def _are_two_pairs(thing: list[Any]) -> bool:
    return len(thing) == 2 and all(map(is_pair, thing))


def _is_set(thing: Any) -> bool:
    """Whether it is a data set in itself, and not the inputs or the targets of one."""
    batches = isinstance(thing, list) and bool(thing) and all(map(_holds_tensors, thing))
    return batches or _is_table(thing) or isinstance(thing, (Dataset, _Iterated))


def _is_table(thing: Any) -> bool:
    """Whether it is (inputs, targets) of all samples: a tuple, or a list of two arrays."""
    if not is_pair(thing) or isinstance(thing, _Iterated):
        return False
    inputs, targets = thing
    array = isinstance(targets, (Tensor, np.ndarray))
    if isinstance(thing, list):
        return array and isinstance(inputs, (Tensor, np.ndarray))
    numbers = isinstance(targets, list) and bool(targets) and isinstance(targets[0], (int, float))
    return _is_input(inputs) and (array or numbers or isinstance(targets, Mapping))


def _is_input(thing: Any) -> bool:
    """Whether it may be the inputs of a table: an array, or a tuple or mapping of arrays."""
    parts = thing.values() if isinstance(thing, Mapping) else thing
    if isinstance(thing, (Mapping, tuple)):
        return bool(thing) and all(map(_is_input, parts))
    return isinstance(thing, (Tensor, np.ndarray))


def _holds_tensors(thing: Any) -> bool:
    return next(_tensors(thing), None) is not None


def _set(thing: Any, source: str) -> DataSet:
    if isinstance(thing, Dataset):
        if isinstance(thing, IterableDataset) or not hasattr(thing, "__len__"):
            raise ValueError(f"{source} returned a Dataset without a length: return a DataLoader")
        return _Items(thing, source)
    if _is_table(thing):
        return _Batches((_pair(thing[0], thing[1], source),), source, one_table=True)
    if isinstance(thing, (Tensor, np.ndarray, Mapping)) and _holds_tensors(thing):
        return _Batches((_converted(thing, source),), source, one_table=True)
    if not isinstance(thing, list):
        raise ValueError(f"{source} returned {described(thing)}; {_EXPECTED}")
    if not thing:
        raise ValueError(f"{source} returned no batch")
    for index, batch in enumerate(thing):
        if not _holds_tensors(batch):
            raise ValueError(
                f"{source}: batch {index} is {described(batch)}, without a tensor; {_EXPECTED}"
            )
    return _Batches(tuple(_converted(batch, source) for batch in thing), source)


def _pair(inputs: Any, targets: Any, source: str) -> tuple[Any, Any]:
    """One table (inputs, targets), as `task_of_arrays` reads arrays: bytes are divided by 255."""
    inputs = _converted(inputs, source)
    if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8:
        inputs = inputs.float() / 255
    targets = _converted(np.asarray(targets) if isinstance(targets, list) else targets, source)
    if isinstance(targets, Tensor) and not (targets.is_floating_point() or targets.is_complex()):
        targets = targets.long()
    for tensor in (*_tensors(inputs), *_tensors(targets)):
        if tensor.numel() == 0:
            raise ValueError(f"{source}: an array of shape {tuple(tensor.shape)} is empty")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: an array of shape {tuple(tensor.shape)} is not finite")
    num_targets = _num_rows(targets)
    lengths = {len(t) if t.ndim else 1 for t in _tensors(inputs)}
    if lengths != {num_targets}:
        shown = " and ".join(map(str, sorted(lengths)))
        raise ValueError(f"{source}: {shown} inputs but {num_targets} targets")
    return inputs, targets


def _converted(thing: Any, source: str) -> Any:
    """The same structure with tensors in place of arrays."""
    if isinstance(thing, Mapping):
        return {key: _converted(value, source) for key, value in thing.items()}
    if isinstance(thing, (tuple, list)):
        return tuple(_converted(value, source) for value in thing)
    if isinstance(thing, np.ndarray):
        if thing.dtype.kind not in "biufc":
            raise ValueError(f"{source}: an array has dtype {thing.dtype}, not numbers")
        # torch takes neither the other byte order nor what cannot be written to.
        thing = torch.from_numpy(np.array(thing, dtype=thing.dtype.newbyteorder("=")))
    return thing.detach() if isinstance(thing, Tensor) else thing


# -- choosing rows -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batches:
    """Batches in memory; `one_table`: a single one, which is cut into batches."""

    content: tuple[Any, ...]
    source: str
    one_table: bool = False

    def choose(self, max_rows: int | None, *, batch_size: int, seed: int) -> Chosen:
        """Raises ValueError where rows are to be left out and cannot be told."""
        sizes = [_num_rows(batch) for batch in self.content]
        total, content = sum(sizes), self.content
        if max_rows is not None and max_rows < total:
            self._require_rows(
                f"--max-samples {max_rows} of its {total} rows cannot be chosen: give "
                f"--max-samples {total} or --thorough, or make fewer batches"
            )
            rows = fixed_rows(max_rows, total, seed=seed)
            ends = pairwise(accumulate(sizes, initial=0))
            parts = [rows[(rows >= begin) & (rows < end)] - begin for begin, end in ends]
            content = tuple(
                _rows_of(batch, part)
                for batch, part in zip(self.content, parts, strict=True)
                if len(part)
            )
        digest, shape = _hash(content), described(content[0])
        num_rows = sum(map(_num_rows, content))
        if self.one_table and num_rows > batch_size:
            self._require_rows(
                f"it cannot be cut into batches of {batch_size}: give --batch-size {total}, or "
                "return batches"
            )
            content = tuple(
                _rows_of(content[0], torch.arange(begin, min(begin + batch_size, num_rows)))
                for begin in range(0, num_rows, batch_size)
            )
            shape = described(content[0])
        return Chosen(content, num_rows, total, digest, shape)

    def _require_rows(self, advice: str) -> None:
        for batch in self.content:
            lengths = {len(t) if t.ndim else None for t in _tensors(batch)}
            if len(lengths) > 1 or None in lengths:
                raise ValueError(
                    f"{self.source}: a batch is {described(batch)}; its tensors differ in length, "
                    f"so {advice}"
                )


@dataclass(frozen=True)
class _Items:
    """A torch Dataset, of which only the chosen items are read."""

    dataset: Dataset[Any]
    source: str

    def choose(self, max_rows: int | None, *, batch_size: int, seed: int) -> Chosen:
        """Raises ValueError where the Dataset fails, or its items do not fit one another."""
        index, items = 0, []
        try:
            total = len(self.dataset)  # type: ignore[arg-type]
            rows = fixed_rows(total if max_rows is None else max_rows, total, seed=seed)
            with seeded(seed):
                for index in rows.tolist():
                    items.append(self.dataset[index])
        except Exception as error:  # the user's Dataset is the user's code
            raise ValueError(_failed(self.source, f"item {index}", error)) from error
        if not items:
            raise ValueError(f"{self.source}: the Dataset is empty")
        try:
            table = default_collate(items)
        except Exception as error:
            message = " ".join(str(error).split())
            raise ValueError(
                f"{self.source}: the Dataset's items do not stack into a batch ({message}): return "
                "a DataLoader with a collate_fn"
            ) from error
        if isinstance(table, list) and len(table) == 2:
            table = _pair(table[0], table[1], self.source)
        else:
            table = _converted(table, self.source)
        chosen = _Batches((table,), self.source, one_table=True)
        told = chosen.choose(None, batch_size=batch_size, seed=seed)
        return replace(told, num_rows_total=total)


def is_pair(batch: Any) -> bool:
    """Whether `Objective` takes a batch for (inputs, targets)."""
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def first_rows(batch: Any, size: int | None) -> Any:
    """The batch with at most so many of its rows; None, or rows of several lengths: all of it."""
    num_rows = _num_rows(batch)
    if size is None or num_rows is None or num_rows <= size:
        return batch
    return _rows_of(batch, torch.arange(size))


def described(thing: Any) -> str:
    """The form of a batch in words: `((500, 3, 24, 24) float32, (500,) int64)`."""
    if isinstance(thing, (Tensor, np.ndarray)):
        return f"{tuple(thing.shape)} {str(thing.dtype).removeprefix('torch.')}"
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{k}: {described(v)}" for k, v in list(thing.items())[:6]) + "}"
    if isinstance(thing, (tuple, list)):
        if thing and all(isinstance(item, (int, float, str)) for item in thing):
            return f"a {type(thing).__name__} of {len(thing)} {type(thing[0]).__name__}"
        return "(" + ", ".join(map(described, thing[:4])) + (", ...)" if len(thing) > 4 else ")")
    return "None" if thing is None else f"a {type(thing).__name__}"


def _failed(source: str, what: str, error: BaseException) -> str:
    place = users_place(error)
    at = f" at {place}" if place else ""
    return f"{source}: {what} failed{at}: {type(error).__name__}: {' '.join(str(error).split())}"


def _tensors(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (Tensor, np.ndarray)):
        yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from _tensors(value)
    elif isinstance(thing, (tuple, list)):
        for value in thing:
            yield from _tensors(value)


def _num_rows(batch: Any) -> int:
    """As `Objective` counts them: the length of the target, or of the first tensor."""
    first = next(_tensors(batch[1] if is_pair(batch) else batch), None)
    return len(first) if first is not None and first.ndim else 1


def _rows_of(thing: Any, rows: Tensor) -> Any:
    if isinstance(thing, Tensor):
        return thing[rows]
    if isinstance(thing, Mapping):
        return {key: _rows_of(value, rows) for key, value in thing.items()}
    if isinstance(thing, tuple):
        return tuple(_rows_of(value, rows) for value in thing)
    return thing


def _hash(thing: Any) -> str:
    """SHA-256 over dtype, shape and little-endian bytes of every tensor, in order."""
    digest = hashlib.sha256()
    for tensor in _tensors(thing):
        dtype = str(tensor.dtype)
        if tensor.dtype == torch.bfloat16:  # numpy has none
            tensor = tensor.view(torch.int16)
        array = np.ascontiguousarray(tensor.cpu().numpy())
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _literals(arguments: Mapping[str, str]) -> dict[str, Any]:
    return {name: literal(text) for name, text in arguments.items()}


def _described_task(task: Task) -> Task:
    sizes = f"{len(task.train):,} training and {len(task.test):,} test samples"
    description = f"{task.description}; {sizes}"
    return replace(task, description=description, sha256=hash_arrays(task))
