"""A study: the runs of one recipe in one folder, from config.toml to comparison and report.

    OUT/config.toml  OUT/VARIANT[-option=value...]-seedN/...  OUT/comparison.json  OUT/report.html

`comparison.json` is written when every run is complete, so it marks a finished study. No torch in
this process, unless the runs are trained in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_variants.training.comparison import RunResult, compare
from sam_variants.training.failures import (
    BadInputError,
    FolderError,
    Interrupted,
    TrainingFailure,
)
from sam_variants.training.folder import locked, remove_temporaries, write_json, write_text
from sam_variants.training.recipe import Recipe, Run

if TYPE_CHECKING:
    from sam_variants.training.interruption import Interruption
    from sam_variants.training.workers import Ending

Report = Callable[[int, float, "dict[str, Any] | None"], None]

CONFIG, COMPARISON, REPORT = "config.toml", "comparison.json", "report.html"
CHECKPOINT, BEST, METRICS, TRAJECTORY = "checkpoint.pt", "best.pt", "metrics.jsonl", "trajectory"


def default_folder(recipe: Recipe) -> Path:
    """runs/TASK-MODEL-HASH; what a file system dislikes in the names becomes a dash."""
    words = "-".join((recipe.task, recipe.model))
    safe = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in words)[:80]
    return Path("runs") / f"{safe}-{recipe.hash}"


def finished_comparison(
    recipe: Recipe, folder: Path, *, resume: bool = False
) -> dict[str, Any] | None:
    """The comparison of a study that is complete in this folder, or None.

    With `resume` a study without a readable metrics.jsonl is not complete: its runs write it again.

    Raises:
        BadInputError: comparison.json or a metrics.jsonl cannot be read, or the one is not what the
            others give.
    """
    path = folder / COMPARISON
    complete = all((folder / run.name / CHECKPOINT).is_file() for run in recipe.runs)
    if not path.is_file() or not complete or stored_differences(recipe, folder) != []:
        return None
    try:
        expected = _comparison(recipe, folder)
    except BadInputError:
        if resume:
            return None
        raise
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot read {path}: {error}; remove it, then --resume") from error
    if comparison != json.loads(json.dumps(expected)):
        raise BadInputError(
            f"{path} is not what the runs' {METRICS} give (edited, or of another version): remove "
            "it, then --resume writes it again"
        )
    return expected


def stored_differences(recipe: Recipe, folder: Path) -> list[str] | None:
    """How the recipe differs from the folder's config.toml; None where there is none.

    Raises:
        FolderError: config.toml cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    try:
        stored = tomllib.loads(path.read_bytes().decode("utf-8", "surrogateescape"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FolderError(f"cannot read {path}: {error}") from error
    return recipe.differences(stored)


def train_study(
    recipe: Recipe,
    folder: Path,
    *,
    jobs: int | None = None,
    allow_code: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    report: Report = lambda index, share, line: None,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Trains every run of the recipe in the folder and returns the comparison.

    A study that is complete there is not trained again. Signals (INT, TERM, USR1, USR2, HUP) end
    it after the step at hand, with everything saved; a second INT ends it at once.

    Args:
        recipe: what to train.
        folder: OUT; made if need be.
        jobs: processes; None: the cores. One job, or one run, is trained in this process.
        allow_code: whether task and model may be files of the user's.
        resume: continue what the folder holds; begin where it holds nothing.
        overwrite: remove what an earlier training left in the folder, and begin anew.
        command: the command line, for the report.
        report: called with a run's index, the share of its budget that is spent, and its line of
            metrics.jsonl at the end of an epoch.
        warn: called with one line about a run that failed while others went on.

    Raises:
        DeviceError: the device is not there; nothing is written then.
        FolderError: the folder is in use, is a link, or holds something else.
        Interrupted: by a signal, after saving.
        TrainingFailure: the first failure of a run, after the others have ended.
    """
    # imported here: a study that is finished, and every usage error, answer without them
    from sam_variants.training.interruption import Interruption
    from sam_variants.training.workers import Order, num_cores, run_here, run_parallel

    _check_folder(folder)
    if overwrite or finished_comparison(recipe, folder, resume=resume) is None:
        _check_device(recipe)
    with _removed_if_nothing_began(folder), locked(folder):
        finished = None if overwrite else finished_comparison(recipe, folder, resume=resume)
        if finished is not None:
            if not (folder / REPORT).is_file():
                _write_report(recipe, folder, finished, command)
            return finished
        _prepare(recipe, folder, resume=resume, overwrite=overwrite)
        pending = list(range(len(recipe.runs)))
        jobs = min(jobs or num_cores(), len(pending))
        order = Order(recipe, folder, allow_code, cores=max(1, num_cores() // jobs))
        at_once = (folder / ".lock").unlink  # the process ends without leaving the `with`
        with Interruption(at_once=lambda: _quietly(at_once)) as interruption:
            if jobs == 1:
                endings = run_here(order, pending, interruption=interruption, report=report)
            else:
                endings = run_parallel(
                    order, pending, jobs=jobs, interruption=interruption, report=report
                )
            _raise_failures(recipe, folder, endings, interruption, warn)
            comparison = _comparison(recipe, folder)
            write_json(folder / COMPARISON, comparison)
            _write_report(recipe, folder, comparison, command)
        return comparison


def _check_folder(folder: Path) -> None:
    if folder.is_symlink():
        raise FolderError(f"{folder} is a symbolic link; give the folder that it points to")
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is a file; give another --out")


@contextlib.contextmanager
def _removed_if_nothing_began(folder: Path) -> Iterator[None]:
    """Bad data or user code is told before the first step: no trace of that attempt is left.

    The next attempt is then not asked whether to resume what never began.
    """
    is_new = not folder.exists()
    try:
        yield
    except BadInputError:
        if is_new and [path.name for path in folder.iterdir()] == [CONFIG]:
            (folder / CONFIG).unlink()
            folder.rmdir()
        raise


def _check_device(recipe: Recipe) -> None:
    """Before anything is written or removed: the workers would find out after that, each anew."""
    if recipe.device != "cpu":
        from sam_variants.training.trainer import usable_device  # brings torch

        usable_device(recipe.device)


def _prepare(recipe: Recipe, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Leaves the folder with this recipe's config.toml and nothing that another recipe wrote."""
    differences = stored_differences(recipe, folder)
    if differences is None:
        left = [path.name for path in folder.iterdir() if path.name != ".lock"]
        if left:
            raise FolderError(
                f"{folder} holds files that no training wrote ({sorted(left)[0]}); "
                "give another --out"
            )
    elif overwrite:
        _clear(folder)
    elif differences and resume:
        raise BadInputError(
            f"{folder} was begun with other settings ({'; '.join(differences)}): resume with its "
            f"own (--config {folder / CONFIG}), or give another --out"
        )
    elif differences:
        raise FolderError(
            f"{folder} holds another training ({'; '.join(differences)}): give another --out, "
            "or --overwrite"
        )
    elif not resume:
        raise FolderError(f"{folder} holds this training, unfinished: --resume or --overwrite")
    for run in recipe.runs:
        if (folder / run.name).is_symlink():
            raise FolderError(f"{folder / run.name} is a symbolic link; nothing is written there")
    remove_temporaries(folder)
    write_text(folder / CONFIG, recipe.to_toml())


def _clear(folder: Path) -> None:
    """Removes what a training writes, by name; anything else in the folder stays."""
    for path in (folder / COMPARISON, folder / REPORT, folder / CONFIG):
        path.unlink(missing_ok=True)
    for run in folder.iterdir():
        if run.is_symlink() or not (run / METRICS).is_file():
            continue
        kept = run / TRAJECTORY
        files = [run / CHECKPOINT, run / BEST, run / METRICS]
        for path in [*files, *(kept.glob("*.pt") if not kept.is_symlink() else ())]:
            path.unlink(missing_ok=True)
        for emptied in (kept, run):
            with contextlib.suppress(OSError):
                emptied.rmdir()


def _raise_failures(
    recipe: Recipe,
    folder: Path,
    endings: dict[int, Ending],
    interruption: Interruption,
    warn: Callable[[str], None],
) -> None:
    failed = [ending for ending in endings.values() if ending.failure is not None]
    stopped = next((e.signal for e in endings.values() if e.signal is not None), None)
    signal = interruption.signal or stopped
    for ending in failed:
        _attach_trace(ending)
    reasons = list(dict.fromkeys(str(ending.failure) for ending in failed))  # several meet one
    for reason in reasons[1:] if signal is None else reasons:
        warn(reason)
    done = sum(e.failure is None and e.signal is None for e in endings.values())
    if signal is not None and done < len(recipe.runs):
        raise Interrupted(signal, f"ended by signal {signal}; saved in {folder}: --resume goes on")
    if failed:
        failure = failed[0].failure
        assert failure is not None
        raise failure


def _attach_trace(ending: Ending) -> None:
    if isinstance(ending.failure, TrainingFailure):
        ending.failure.add_note(ending.trace)


def read_history(folder: Path, run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Raises:
        BadInputError: the file is missing or not what a training writes.
    """
    path = folder / run.name / METRICS
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BadInputError(f"cannot read {path}: {error}; --resume writes it again") from error
    if not lines or not all(isinstance(line, dict) for line in lines):
        raise BadInputError(f"{path} is not what a training writes; --resume writes it again")
    return lines


def _comparison(recipe: Recipe, folder: Path) -> dict[str, Any]:
    return compare([_result(recipe, folder, run) for run in recipe.runs])


def _result(recipe: Recipe, folder: Path, run: Run) -> RunResult:
    final = read_history(folder, run)[-1]
    return RunResult(run.label, run.seed, final, recipe.base(run.spec).words)


def _write_report(
    recipe: Recipe, folder: Path, comparison: dict[str, Any], command: str | None
) -> None:
    from landscape.findings import Findings
    from landscape.report import write_report

    document = training_document(recipe, folder, comparison, command=command)
    write_report(Findings(document, {}), folder / REPORT)


def training_document(
    recipe: Recipe, folder: Path, comparison: dict[str, Any], *, command: str | None = None
) -> dict[str, Any]:
    """The Findings document of a finished study: its histories and its comparison."""
    histories = [read_history(folder, run) for run in recipe.runs]
    last = histories[0][-1]
    return {
        "schema": 1,
        "kind": "training",
        "complete": True,
        "quick": False,
        "title": f"Training of {recipe.model} on {recipe.task}",
        "command": command,
        "settings": recipe.to_dict(),
        "data": None,
        "warnings": _warnings(recipe, comparison),
        "checkpoints": [],
        "comparison": None,
        "training": {
            "runs": [
                {
                    "id": f"r{index}",
                    "name": run.name,
                    "variant": run.label,
                    "seed": run.seed,
                    "history": history,
                }
                for index, (run, history) in enumerate(zip(recipe.runs, histories, strict=True))
            ],
            "comparison": comparison,
            "papers": {
                spec.label: spec.entry.paper
                for spec in recipe.specs
                if spec.entry.paper is not None
            },
            "task": recipe.task,
            "model": recipe.model,
            "num_parameters": last.get("num_parameters"),
        },
    }


def _warnings(recipe: Recipe, comparison: dict[str, Any]) -> list[str]:
    found = []
    if recipe.seeds == 1:
        found.append("one seed a variant: no interval, and differences may be chance")
    if recipe.max_seconds is not None:
        found.append("the budget is in seconds: another machine, or another day, gives other runs")
    for entry in comparison["variants"]:
        gradient = entry.get("test_loss", {}).get("mean")
        if gradient is None or not math.isfinite(gradient):
            found.append(f"{entry['variant']}: the test loss is not a finite number")
    return found


def _quietly(action: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError):
        action()


__all__: Sequence[str] = (
    "default_folder",
    "finished_comparison",
    "read_history",
    "train_study",
    "training_document",
)
