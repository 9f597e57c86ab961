"""What --dry-run answers: the cost of a probe by stage, as a document and as a table of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.report import digits
from landscape.report.terminal import aligned

if TYPE_CHECKING:
    from landscape.costing import Passes, Prediction, StageCost
    from landscape.plan import ProbePlan
    from landscape.probing import Subject

    Numbers = Mapping[str, float]

_COUNTS = ("products", "gradients", "forwards")
_ENDS = ("typical", "at_most")
_TOGETHER = "connection"  # the stage that all checkpoints have in common
_MOST_NAMES = 3


@dataclass(frozen=True)
class Alike:
    """Checkpoints of which each takes the same.

    Attributes:
        labels: their names, at least one.
        prediction: for each of them. Paths between checkpoints, in one prediction of all, are
            counted once.
    """

    labels: Sequence[str]
    prediction: Prediction


def foretell(subjects: Sequence[Subject], plan: ProbePlan, whole: frozenset[int]) -> list[Alike]:
    """All checkpoints in their order, those of one shape and one share of the plan together.

    The first of each kind is built and a few passes over its data are timed, in as many threads as
    torch has now: they are to be the probe's.

    Args:
        subjects: as the probe takes them.
        plan: what is measured.
        whole: positions that get a density, slices and a plane (`measured_whole`).

    Raises:
        ValueError, FloatingPointError: what the probe itself would raise of the passes.
    """
    from landscape.costing import predict

    kinds: dict[Any, list[int]] = {}
    for position, subject in enumerate(subjects):
        shapes = tuple((name, p.shape) for name, p in subject.model.named_parameters())
        alone = position == 0 and plan.directions == "checkpoints"  # it has the plane of all
        kinds.setdefault((shapes, position in whole, alone), []).append(position)
    return [
        Alike(
            [subjects[position].label for position in alike],
            predict(
                subjects[alike[0]],
                plan,
                whole=alike[0] in whole,
                first=alike[0] == 0,
                num_connected=len(subjects) if alike[0] == 0 else 0,
            ),
        )
        for alike in kinds.values()
    ]


def dry_run_document(parts: Sequence[Alike], *, jobs: int = 1) -> dict[str, Any]:
    """The cost of a probe as plain values, for --json.

    A stage's passes are over the probe data and of one checkpoint, `times` how often they are made.
    Beside what is typical stands the most; where the kind is "exact" the passes of both are the
    same. `total` is of all checkpoints, its seconds those of the clock with so many processes side
    by side. `memory` is in bytes, of one process, beside the model and the data.

    Args:
        parts: all checkpoints, those that take the same together.
        jobs: processes.

    Raises:
        ValueError: no checkpoint, or jobs < 1.
    """
    num_checkpoints = sum(len(part.labels) for part in parts)
    if not num_checkpoints:
        raise ValueError("there is no checkpoint to probe")
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    jobs = min(jobs, num_checkpoints)
    kinds = [_kind(part) for part in parts]
    rows = [row for kind in kinds for row in kind["stages"]]
    return {
        "dry_run": True,
        "jobs": jobs,
        "checkpoints": kinds,
        "total": {end: _total(rows, end, jobs) for end in _ENDS},
        "memory": {end: max(kind["memory"][end] for kind in kinds) for end in _ENDS},
    }


def dry_run_table(document: Mapping[str, Any]) -> str:
    """The same as text: a line a part of a stage, what all of it takes, seconds of a pass."""
    lines: list[str] = []
    for kind in document["checkpoints"]:
        lines += [_heading(kind), *aligned(_table(kind)), _rates(kind), *_notes(kind), ""]
    total, memory, jobs = document["total"], document["memory"], document["jobs"]
    seconds = _ends(total["typical"]["seconds"], total["at_most"]["seconds"], digits.seconds)
    processes = f" in {jobs} processes" if jobs > 1 else ""
    each = " each" if jobs > 1 else ""
    size = _ends(memory["typical"], memory["at_most"], _bytes)
    return "\n".join(
        [
            *lines,
            f"all checkpoints: about {seconds}{processes}",
            f"memory: about {size}{each}, beside the model and the data",
            "(≤: the most it can be, where a search ends by what it finds)",
        ]
    )


def _kind(part: Alike) -> dict[str, Any]:
    prediction, num = part.prediction, len(part.labels)
    rates = next(rate for passes, rate in prediction.rates.of.items() if _is_whole(passes))
    memory = prediction.memory
    return {
        "labels": list(part.labels),
        "num_parameters": prediction.probed.num_parameters,
        "num_rows": prediction.probed.num_rows,
        "rows_timed": prediction.rates.rows_timed,
        "stages": [_row(cost, prediction, num) for cost in prediction.costs],
        "seconds_per_product": rates.product or None,
        "seconds_per_gradient": rates.gradient or None,
        "seconds_per_forward": rates.forward or None,
        "memory": {"typical": memory.typical, "at_most": memory.most},
    }


def _is_whole(passes: Passes) -> bool:
    return passes.rows is None and not (passes.one_layer or passes.one_batch)


def _row(cost: StageCost, prediction: Prediction, num_checkpoints: int) -> dict[str, Any]:
    seconds = prediction.seconds_of(cost)
    return {
        "stage": cost.stage,
        "part": cost.part,
        "kind": cost.kind,
        "times": 1 if cost.stage == _TOGETHER else num_checkpoints,
        "typical": {
            **{count: getattr(cost.spent.typical, count) for count in _COUNTS},
            "seconds": seconds.typical,
        },
        "at_most": {
            **{count: getattr(cost.spent.most, count) for count in _COUNTS},
            "seconds": seconds.most,
        },
        "note": cost.note,
    }


def _total(rows: Iterable[Mapping[str, Any]], end: str, jobs: int) -> dict[str, float]:
    sums = dict.fromkeys((*_COUNTS, "seconds"), 0.0)
    for row in rows:
        for name, value in row[end].items():
            at_once = jobs if name == "seconds" and row["stage"] != _TOGETHER else 1
            sums[name] += row["times"] * value / at_once
    return sums


# -- text -----------------------------------------------------------------------------------------


def _heading(kind: Mapping[str, Any]) -> str:
    labels = kind["labels"]
    names = ", ".join(labels[:_MOST_NAMES])
    if len(labels) > _MOST_NAMES:
        names += f" and {len(labels) - _MOST_NAMES} more"
    size = f"{digits.count(kind['num_parameters'])} parameters"
    rows = f"{digits.count(kind['num_rows'])} rows"
    if kind["rows_timed"] < kind["num_rows"]:
        rows += f" ({digits.count(kind['rows_timed'])} of them timed)"
    return f"{names}: {size}, {rows}{', each' if len(labels) > 1 else ''}"


def _table(kind: Mapping[str, Any]) -> list[list[str]]:
    rows = [["stage", *_COUNTS, "time"]]
    for row in kind["stages"]:
        name = f"{row['stage']}: {row['part']}" if row["part"] else row["stage"]
        rows.append([name, *_cells(row["typical"], row["at_most"])])
    together = [row for row in kind["stages"] if row["stage"] != _TOGETHER]
    rows.append(["one checkpoint", *_cells(*(_total_of_one(together, end) for end in _ENDS))])
    return rows


def _total_of_one(rows: Sequence[Mapping[str, Any]], end: str) -> dict[str, float]:
    return {name: sum(row[end][name] for row in rows) for name in (*_COUNTS, "seconds")}


def _cells(typical: Numbers, most: Numbers) -> list[str]:
    cells = [_ends(typical[name], most[name], _passes) for name in _COUNTS]
    return [*cells, _ends(typical["seconds"], most["seconds"], digits.seconds)]


def _ends(typical: float, most: float, words: Any) -> str:
    """What is typical, and the most where that says something else."""
    said, bound = words(typical), words(most)
    return str(said) if said == bound else f"{said} (≤ {bound})"


def _passes(count: float) -> str:
    if not count:
        return "0"
    return digits.count(count) if count >= 10 or count == int(count) else digits.number(count, 2)


def _bytes(size: float) -> str:
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{digits.number(size / unit, 2)} {name}"


def _rates(kind: Mapping[str, Any]) -> str:
    said = [
        f"a {name.replace('forward', 'forward pass')} {digits.seconds(seconds)}"
        for name in ("product", "gradient", "forward")
        if (seconds := kind[f"seconds_per_{name}"]) is not None
    ]
    return f"timed: {', '.join(said)}"


def _notes(kind: Mapping[str, Any]) -> list[str]:
    return [f"{row['stage']}: {row['note']}" for row in kind["stages"] if row["note"]]
