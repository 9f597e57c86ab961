"""Findings: everything that one probe or one training measured, in memory and as a folder.

A folder holds `arrays.nc` (NetCDF-3, written first) and `result.json` (written last: the commit
mark). `result.json` names the sha256 of `arrays.nc` and of its own content, so a folder that was
cut short or edited by hand is refused rather than believed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from landscape.comparing import generalisation_gap

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCHEMA = 1
RESULT, ARRAYS = "result.json", "arrays.nc"
STALE_SECONDS = 600.0  # a temporary that nobody has written to for so long was left by a kill

# Ids are ours ("c0", "r12"); what a user named never reaches a variable name or a file name.
_IDENTIFIER = re.compile(r"[a-z][0-9]{1,9}")
_VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_UNITS = (
    (re.compile(r"density_\w+_(grid|nodes)"), "loss / parameter^2"),
    (re.compile(r"density_\w+_weights"), "1"),
    (re.compile(r"density_\w+_(value|lower|upper)"), "parameter^2 / loss"),
    (re.compile(r"(diagonal_\w+|map_\w+_lambda_(max|min))"), "loss / parameter^2"),
    (re.compile(r"trajectory_\w+_(coordinates|distances|radii)"), "parameter norm"),
    (re.compile(r"\w+_accuracy"), "1"),
    (re.compile(r"\w+_evaluated"), "1"),
    (re.compile(r"\w+_loss"), "loss"),
    (re.compile(r"((surface|map|points|mapped)_\w+_[xy]|line_\w+_t)"), "direction vectors"),
)

# What an array's axes are named after: its own coordinates where it has them.
_COORDINATES = (
    (re.compile(r"(surface_[a-z0-9]+)_(loss|accuracy|evaluated)"), (r"\1_y", r"\1_x")),
    (re.compile(r"(map_[a-z0-9]+)_(lambda_max|lambda_min|ratio)"), (r"\1_y", r"\1_x")),
    (re.compile(r"(path_[a-z0-9]+)_(loss|accuracy|line_loss)"), (r"\1_t",)),
    (re.compile(r"(density_[a-z0-9]+)_(value|lower|upper)"), (r"\1_grid",)),
    (re.compile(r"(density_[a-z0-9]+)_(nodes|weights)"), (r"\1_run", r"\1_step")),
    (re.compile(r"(line_[a-z0-9]+)_(loss|accuracy)"), (r"\1_direction", r"\1_t")),
)


@dataclass(frozen=True, repr=False)
class Findings:
    """What was measured: a document of plain values, and the arrays that it speaks of.

    Attributes:
        document: plain values (numbers, strings, lists, dicts), keys as in the schema; non-finite
            numbers are allowed and survive a round trip.
        arrays: float64 or int32 by name; `surface_c0_loss` belongs to the checkpoint with id "c0".
    """

    document: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        names = [str(entry.get("label") or entry["id"]) for entry in self.checkpoints[:3]]
        more = ", ..." if len(self.checkpoints) > 3 else ""
        about = f" of {', '.join(names)}{more}" if names else ""
        return f"<Findings{about}: {len(self.arrays)} arrays; .table(), .show(), save_findings>"

    @property
    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoints' entries, in the order in which they were given."""
        return list(self.document.get("checkpoints") or [])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The training runs' entries; empty for a probe."""
        return list((self.document.get("training") or {}).get("runs") or [])

    def table(self) -> list[dict[str, Any]]:
        """One flat row a checkpoint (a run, for a training): `pandas.DataFrame(findings.table())`.

        Numbers are as measured, without rounding; a column that a row lacks is None.
        """
        if self.checkpoints:
            rows = [_checkpoint_row(checkpoint) for checkpoint in self.checkpoints]
        else:
            rows = [_run_row(run) for run in self.runs]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return [{name: row.get(name) for name in columns} for row in rows]

    def to_json(self) -> str:
        """The document as strict JSON: a non-finite number is null and is named in "nonfinite"."""
        return json.dumps(_with_nonfinite(self.document), indent=1, allow_nan=False)

    def show(self) -> dict[str, go.Figure]:
        """The report's plotly figures by name, for a notebook."""
        from landscape.report.figures import all_figures

        return all_figures(self)


def save_findings(findings: Findings, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes `arrays.nc`, then `result.json`, and returns the folder.

    Both are complete under temporary names before either gets its own name, so a full disk or a
    kill leaves the folder's earlier result whole; equal findings give equal bytes.

    Raises:
        FileExistsError: the folder holds a result and `overwrite` is False.
        ValueError: the folder is a symbolic link, or something cannot be stored (named).
        OSError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a symbolic link; give the folder that it points to")
    if not overwrite and ((folder / RESULT).exists() or (folder / ARRAYS).exists()):
        raise FileExistsError(f"{folder}: holds a result already; overwrite it or choose another")
    arrays = arrays_bytes(findings.arrays)
    result = result_bytes(findings.document, arrays)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        _complete(folder, ARRAYS, arrays) as name_arrays,
        _complete(folder, RESULT, result) as name_result,
    ):
        name_arrays()
        name_result()
    _sync_folder(folder)
    return folder


def load_findings(folder: str | Path) -> Findings:
    """The findings of a folder, believed only when schema and both hashes hold.

    Raises:
        ValueError: one line that names the file and what is wrong with it.
    """
    folder = Path(folder)
    if folder.name == RESULT:
        folder = folder.parent
    path = folder / RESULT
    document = _parse(path, _read(path))
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {document.get('schema')!r}, this version reads {SCHEMA}")
    if document.pop("sha256", None) != _content_hash(document):
        raise ValueError(f"{path}: content does not match its sha256 (edited, or half written)")
    files = document.pop("files", {})
    expected = files.get(ARRAYS) if isinstance(files, dict) else None
    raw = _read(folder / ARRAYS)
    if hashlib.sha256(raw).hexdigest() != expected:
        raise ValueError(f"{folder / ARRAYS}: does not match the sha256 in {RESULT}")
    _restore_nonfinite(document, document.pop("nonfinite", {}))
    return Findings(document, _parse_arrays(folder / ARRAYS, raw))


def result_bytes(document: Mapping[str, Any], arrays: bytes) -> bytes:
    """`result.json` for a document beside these bytes of `arrays.nc`: strict JSON, UTF-8."""
    plain = _with_nonfinite(document)
    plain["files"] = {ARRAYS: hashlib.sha256(arrays).hexdigest()}
    _check_ids(plain)
    plain["sha256"] = _content_hash(plain)
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def _with_nonfinite(document: Mapping[str, Any]) -> dict[str, Any]:
    nonfinite: dict[str, str] = {}
    plain: dict[str, Any] = _plain(document, "", nonfinite)
    return plain | {"schema": SCHEMA, "nonfinite": nonfinite}


def _plain(value: Any, place: str, nonfinite: dict[str, str]) -> Any:
    """The value in JSON's own types; a non-finite number becomes None and is noted by its place.

    Places are JSON pointers (RFC 6901): "/checkpoints/0/loss".
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        nonfinite[place] = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"result: key {key!r} at {place or '/'} is not a string")
        return {
            key: _plain(item, f"{place}/{key.replace('~', '~0').replace('/', '~1')}", nonfinite)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}/{i}", nonfinite) for i, item in enumerate(value)]
    raise ValueError(f"result: {type(value).__name__} at {place or '/'} cannot be stored as JSON")


def _check_ids(document: Mapping[str, Any]) -> None:
    groups = (document.get("checkpoints"), (document.get("training") or {}).get("runs"))
    for group in groups:
        ids = [entry.get("id") for entry in group or []]
        for identifier in ids:
            if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
                raise ValueError(f"result: id {identifier!r} is not a letter and a number, as 'c0'")
        if len(set(ids)) != len(ids):
            raise ValueError(f"result: ids are not unique: {ids}")


def _content_hash(plain: Mapping[str, Any]) -> str:
    """sha256 of the content: independent of white space and of the order of keys."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def reject(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    try:
        document = json.loads(raw, parse_constant=reject)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid JSON ({reason})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: not a result, its top level is no object")
    return document


def _restore_nonfinite(document: dict[str, Any], nonfinite: Mapping[str, str]) -> None:
    for place, word in nonfinite.items():
        *parents, last = (
            key.replace("~1", "/").replace("~0", "~") for key in place.removeprefix("/").split("/")
        )
        node: Any = document
        for key in parents:
            node = node[int(key) if isinstance(node, list) else key]
        node[int(last) if isinstance(node, list) else last] = float(word)


def arrays_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as a NetCDF-3 file (64-bit offsets), sorted by name.

    Floats are stored as float64, integers and booleans as int32: the widest types of NetCDF-3.
    Units are attributes; axes are named after their coordinate arrays, as xarray likes them.

    Raises:
        ValueError: a name that is not ours, an empty array, a type or an integer that does not fit.
    """
    from scipy.io import netcdf_file

    stored = {name: _storable(name, np.asarray(arrays[name])) for name in sorted(arrays)}
    buffer = io.BytesIO()
    file = netcdf_file(buffer, "w", mmap=False, version=2)
    sizes: dict[str, int] = {}
    for name, array in stored.items():
        axes = _axes(name, array)
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"array {name}: {size} points along {axis}, not {sizes[axis]}")
            if axis not in file.dimensions:
                file.createDimension(axis, size)
        variable = file.createVariable(name, array.dtype, axes)
        variable[...] = array
        setattr(variable, "units", _unit(name).encode())  # noqa: B010
    file.flush()
    raw = buffer.getvalue()
    file.close()
    return raw


def _storable(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if not _VARIABLE.fullmatch(name):
        raise ValueError(f"array {name!r}: a name is lower-case letters, digits and underscores")
    if array.size == 0:
        # A length of zero is NetCDF-3's mark of an unlimited axis.
        raise ValueError(f"array {name}: is empty (shape {array.shape})")
    if array.dtype.kind in "f" and array.dtype.itemsize <= 8:
        return array.astype(np.float64)
    if array.dtype.kind in "iub":
        limits = np.iinfo(np.int32)
        if array.dtype.kind != "b" and (array.min() < limits.min or array.max() > limits.max):
            raise ValueError(f"array {name}: integers beyond 32 bits cannot be stored")
        return array.astype(np.int32)
    raise ValueError(f"array {name}: {array.dtype} cannot be stored; float64 or int32 can")


def _axes(name: str, array: NDArray[Any]) -> tuple[str, ...]:
    if (
        re.fullmatch(r"((surface|map)_\w+_[xy]|density_\w+_grid|(line|path)_\w+_t)", name)
        and array.ndim == 1
    ):
        return (name,)
    for pattern, names in _COORDINATES:
        match = pattern.fullmatch(name)
        if match and len(names) == array.ndim:
            return tuple(match.expand(axis) for axis in names)
    return tuple(f"{name}_axis{i}" for i in range(array.ndim))


def _unit(name: str) -> str:
    return next((unit for pattern, unit in _UNITS if pattern.fullmatch(name)), "1")


def _parse_arrays(path: Path, raw: bytes) -> dict[str, NDArray[Any]]:
    from scipy.io import netcdf_file

    try:
        with netcdf_file(io.BytesIO(raw), "r", mmap=False) as file:
            return {
                name: np.array(variable.data, dtype=variable.data.dtype.newbyteorder("="))
                for name, variable in file.variables.items()
            }
    except Exception as error:
        raise ValueError(f"{path}: not a NetCDF-3 file ({' '.join(str(error).split())})") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextlib.contextmanager
def _complete(folder: Path, name: str, raw: bytes) -> Iterator[Callable[[], None]]:
    """The bytes, whole and on disk under a temporary name; yields what gives them their name."""
    _remove_stale(folder, name)
    handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
    try:
        with _naming(folder / name), os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        yield lambda: os.replace(temporary, folder / name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _remove_stale(folder: Path, name: str) -> None:
    """Removes the temporaries of this file that a killed process left; not one being written."""
    for path in folder.glob(f".{glob.escape(name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Says which file an error is about: a full disk is found while writing, and names none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_file(path: str | Path, raw: bytes) -> Path:
    """Writes the bytes so that `path` is at any time the old file or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _complete(path.parent, path.name, raw) as name:
        name()
    return path


def _umask() -> int:
    # mkstemp makes files that only their owner reads; a result is a file like any other.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a folder cannot be opened on Windows
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _checkpoint_row(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "label", "method", "seed", "path", "num_parameters", "loss", "accuracy")
    row = {name: checkpoint.get(name) for name in (*names, "test_loss", "test_accuracy")}
    row["gap"] = generalisation_gap(checkpoint)
    row["gradient_norm"] = checkpoint.get("gradient_norm")
    row["parameter_norm"] = checkpoint.get("parameter_norm")
    eigenvalues = checkpoint.get("eigenvalues") or []
    top = [pair for pair in eigenvalues if pair.get("end", "top") == "top"]
    bottom = [pair for pair in eigenvalues if pair.get("end") == "bottom"]
    for i, pair in enumerate(top, start=1):
        row[f"lambda_{i}"], row[f"lambda_{i}_residual"] = pair.get("value"), pair.get("residual")
        row[f"lambda_{i}_sampling_error"] = pair.get("sampling_error")
    if bottom:
        row["lambda_min"] = bottom[-1].get("value")
        row["lambda_min_residual"] = bottom[-1].get("residual")
    trace = checkpoint.get("trace") or {}
    row["trace"], row["trace_standard_error"] = trace.get("value"), trace.get("standard_error")
    row["trace_sampling_error"] = trace.get("sampling_error")
    for name, measured in (checkpoint.get("sharpness") or {}).items():
        row[name] = measured.get("value")
        row[f"{name} standard_error"] = measured.get("standard_error")
        row[f"{name} kind"] = measured.get("kind")
    return row


def _run_row(run: Mapping[str, Any]) -> dict[str, Any]:
    last = (run.get("history") or [{}])[-1]
    return {name: run.get(name) for name in ("id", "name", "variant", "seed")} | dict(last)
