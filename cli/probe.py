"""landscape-probe: how flat the minima of given checkpoints are, from one command to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shlex
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.checkpoints import MAX_GIGABYTES, CheckpointError, find_checkpoints
from landscape.findings import Findings, load_findings, save_findings
from landscape.plan import (
    CONNECTIONS,
    DIRECTIONS,
    MATRICES,
    SEMIDEFINITE,
    TRACE_METHODS,
    ProbePlan,
)
from landscape.table import Choice, Range
from sam_variants.training.interruption import Interruption
from sam_variants.training.recipe import Recipe
from sam_variants.training.workers import num_cores

from .arguments import (
    BAD_INPUT,
    DONE,
    PARTIAL,
    SIGNALLED,
    USAGE,
    Argument,
    CommandError,
    OutOfMemory,
    Settings,
    Switch,
    Text,
    Words,
    read_arguments,
    run_command,
    to_toml,
    usage_errors,
)
from .losses import LOSSES, check_loss, is_code

if TYPE_CHECKING:
    from landscape.checkpoints import Checkpoint

    from .parallel import Order

PROG = "landscape-probe"
QUICK_SAMPLES = 1000
SMALL_BYTES = 16_000_000  # of a checkpoint file with weights, momentum and history
DEFAULT_SAMPLES = 4000
HALVINGS = 4  # of the rows at a time, where memory runs out

_COUNT = Range(0, math.inf, None, integer=True, optional=True)
_POSITIVE = Range(0, math.inf, None, open_low=True, optional=True)
_SPECTRUM, _PLANE, _SHARPNESS = "spectrum", "slices and plane", "sharpness"
_INPUT, _RUN = "checkpoints and data", "running and writing"


def _word(choices: Sequence[Any]) -> Choice:
    return Choice((None, *choices), None)


ARGUMENTS = (
    Argument("checkpoint", Text(), "a checkpoint file, a run's folder, or a folder of runs",
             _INPUT, positional=True, metavar="CHECKPOINT"),
    Argument("model", Text(), "network of a plain state dict (--list models)", _INPUT),
    Argument("model-arg", Text(), "option of the network, name=value; may be repeated", _INPUT,
             repeated=True, metavar="K=V"),
    Argument("data", Text(), "data to probe on, in place of the recipe's (--list tasks)", _INPUT),
    Argument("data-arg", Text(), "option of a function given as --data, name=value; may be "
             "repeated", _INPUT, repeated=True, metavar="K=V"),
    Argument("loss", Text(), "in place of the task's own (--list losses); with it --data may be "
             "any batches", _INPUT),
    Argument("data-dir", Text(), "folder with the data's files", _INPUT, metavar="DIR"),
    Argument("allow-code", Switch(), "run a FILE.py named by --model, --data, --loss", _INPUT),
    Argument("state-key", Text(), "which state dict of the file, nested keys as a.b", _INPUT,
             metavar="KEY"),
    Argument("allow-missing", Words(), "globs of names that the checkpoint may lack", _INPUT,
             metavar="GLOB"),
    Argument("trust-pickle", Switch(), "run the code inside the checkpoint, where it has some",
             _INPUT),
    Argument("max-checkpoint-gb", Range(0, math.inf, MAX_GIGABYTES, open_low=True),
             "most that a checkpoint may take in memory", _INPUT, metavar="GB"),
    Argument("allow-nonfinite", Switch(), "let weights in that are nan or inf", _INPUT),
    Argument("split", Choice(("train", "test"), "train"), "which samples are probed", _INPUT),
    Argument("max-samples", Range(1, math.inf, None, integer=True, optional=True),
             f"probe so many fixed samples (default {DEFAULT_SAMPLES}; --quick {QUICK_SAMPLES}; "
             "--thorough all)", _INPUT, metavar="N"),
    Argument("batch-size", Range(1, math.inf, 500, integer=True), "samples of a batch", _INPUT),
    Argument("micro-batch", Range(1, math.inf, None, integer=True, optional=True),
             "samples evaluated at a time, for memory", _INPUT, metavar="N"),
    Argument("quick", Switch(), "small budgets: seconds a checkpoint on a small net", _RUN,
             exclusive="preset"),
    Argument("thorough", Switch(), "all the data, every plane point evaluated", _RUN,
             exclusive="preset"),
    Argument("params", Words(), "globs of the parameters that move (default all)", _SPECTRUM,
             metavar="GLOB"),
    Argument("eigenvalues", _COUNT, "eigenpairs at each end; 0: none", _SPECTRUM, metavar="K"),
    Argument("ends", _word(("top", "bottom", "both")), "of the spectrum (default both; of ggn and "
             "Fisher matrices, which end in a crowd at zero, top)", _SPECTRUM,
             metavar="top|bottom|both"),
    Argument("tolerance", Range(0, 1, None, open_low=True, optional=True),
             "relative, of each eigenvalue", _SPECTRUM),
    Argument("matrix", _word(MATRICES), "whose spectrum", _SPECTRUM, metavar="|".join(MATRICES)),
    Argument("approximate", Switch(), "the Hessian's products by central differences of gradients, "
             "marked so", _SPECTRUM),
    Argument("across-kinks", Switch(), "such differences across ReLU and max-pooling too",
             _SPECTRUM),
    Argument("trace-probes", _COUNT, "products of the trace; 0: none", _SPECTRUM, metavar="N"),
    Argument("trace-method", _word(TRACE_METHODS), "how the trace is estimated", _SPECTRUM,
             metavar="|".join(TRACE_METHODS)),
    Argument("no-sampling-error", Switch(), "leave out the errors over the data", _SPECTRUM),
    Argument("diagonal-probes", _COUNT, "products of the diagonal; 0: none", _SPECTRUM,
             metavar="N"),
    Argument("density-runs", _COUNT, "Lanczos runs of the density; 0: none", _SPECTRUM,
             metavar="N"),
    Argument("density-steps", Range(2, math.inf, None, integer=True, optional=True),
             "Lanczos steps a run", _SPECTRUM, metavar="N"),
    Argument("dynamics", Switch(), "curvature along the gradient, both parts of the Hessian, "
             "gradient noise", _SPECTRUM),
    Argument("noise-batch-size", Range(1, math.inf, None, integer=True, optional=True),
             "samples of a batch in --dynamics (default the recipe's)", _SPECTRUM, metavar="N"),
    Argument("per-layer", Switch(), "lambda_max, trace and worst case of each layer alone",
             _SPECTRUM),
    Argument("second-opinion", Switch(), "PyHessian's numbers beside ours", _SPECTRUM),
    Argument("surface", _COUNT, "points of each axis of the plane; 0: none", _PLANE, metavar="N"),
    Argument("line", _COUNT, "points of each slice; 0: none", _PLANE, metavar="N"),
    Argument("range", _POSITIVE, "half-length of the axes in units of the directions", _PLANE),
    Argument("directions", _word(DIRECTIONS), "of the plane", _PLANE,
             metavar="|".join(DIRECTIONS)),
    Argument("exact", Switch(), "evaluate every point of the plane", _PLANE),
    Argument("eigenvalue-map", _COUNT, "points of each axis of a map of the extreme eigenvalues; "
             "0: none", _PLANE, metavar="N"),
    Argument("connect", _word(CONNECTIONS), "the barrier between each two checkpoints", _PLANE,
             metavar="|".join(CONNECTIONS)),
    Argument("align", Switch(), "bring units into one order before two are connected", _PLANE),
    Argument("metrics", Words(), "measures, each NAME[:option=value...] (--list metrics)",
             _SHARPNESS),
    Argument("rho", Range(0, math.inf, None, optional=True), "radius of the measures", _SHARPNESS),
    Argument("batch-norm", Choice(("eval", "batch", "recalibrate"), "eval"),
             "running statistics, those of each batch, or estimated anew at each point around",
             _SHARPNESS),
    Argument("dtype", _word(("float32", "float64")), "of the arithmetic", _SHARPNESS,
             metavar="float32|float64"),
    Argument("fix-seeds", Switch(), "seed a model that draws random numbers", _SHARPNESS),
    Argument("seed", Range(0, math.inf, 0, integer=True), "of every random draw", _RUN),
    Argument("time-budget", Text(), "stop after 90s, 10m or 1h with what is measured", _RUN,
             metavar="TIME"),
    Argument("jobs", Range(1, 4096, None, integer=True, optional=True),
             "parallel processes (default: the cores, for small nets; else 1)", _RUN, metavar="N"),
    Argument("device", Text("cpu"), "torch device", _RUN),
    Argument("out", Text(), "result folder (default: probe/ in the run's folder)", _RUN,
             in_config=False, metavar="DIR"),
    Argument("resume", Switch(), "go on from a partial result in the folder", _RUN,
             in_config=False),
    Argument("overwrite", Switch(), "replace the result in the folder", _RUN, in_config=False),
    Argument("report-only", Text(), "redraw the report of a result folder, compute nothing", _RUN,
             in_config=False, metavar="DIR"),
    Argument("verify", Text(), "check the hashes and completeness of a result folder", _RUN,
             in_config=False, metavar="DIR"),
    Argument("config", Text(), "TOML file with these options", _RUN, in_config=False,
             metavar="FILE"),
    Argument("print-config", Switch(), "print the options as TOML and stop", _RUN,
             in_config=False),
    Argument("dry-run", Switch(), "print what would be measured and stop", _RUN, in_config=False),
    Argument("json", Switch(), "print the result as one JSON object", _RUN, in_config=False),
    Argument("quiet", Switch(), "no progress bars", _RUN, in_config=False),
    Argument("list", _word(("metrics", "models", "tasks", "losses")), "list names and stop", _RUN,
             in_config=False, metavar="metrics|models|tasks|losses"),
    Argument("version", Switch(), "print the version and stop", _RUN, in_config=False),
    Argument("debug", Switch(), "show where an error was raised", _RUN, in_config=False),
)  # fmt: skip

# The plan's fields and the arguments that set them, where the two are named differently.
_PLAN_KEYS = {"parameters": "params"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_main, argv, prog=PROG)


def _main(argv: Sequence[str]) -> int:
    settings = read_arguments(
        ARGUMENTS,
        argv,
        prog=PROG,
        description="Measure how flat the minima of checkpoints are, each number with its error.",
        epilog="example: landscape-probe runs/demo --quick",
    )
    if settings["version"]:
        from landscape import __version__

        print(f"{PROG} {__version__}")
        return DONE
    if settings["list"]:
        return _list(settings["list"])
    if settings["report_only"]:
        return _redraw(Path(settings["report_only"]))
    if settings["verify"]:
        return _verify(Path(settings["verify"]))
    with usage_errors():
        plan = plan_of(settings)
        deadline = _deadline(settings["time_budget"])
        model_args = dict(_pair("--model-arg", word) for word in settings["model_arg"])
        _check_loss_and_data(settings)
        if settings["resume"] and settings["overwrite"]:
            raise ValueError("--resume keeps what --overwrite would replace: give one of them")
    if settings["print_config"]:
        print(to_toml(_config(settings)), end="")
        return DONE
    if not settings["checkpoint"]:
        raise CommandError(USAGE, "name a checkpoint, a run's folder or a folder of runs")
    try:
        paths = [
            path for word in settings["checkpoint"] for path in _in_order(find_checkpoints(word))
        ]
    except CheckpointError as error:
        raise CommandError(BAD_INPUT, str(error)) from error
    if plan.connect is not None and len(paths) < 2:
        raise CommandError(USAGE, "--connect needs two or more checkpoints, got one")
    if plan.directions == "checkpoints" and len(paths) < 2:
        raise CommandError(USAGE, "--directions checkpoints needs two or more of them, got one")
    out = _out_folder(settings, paths)
    if out.is_symlink():
        raise CommandError(USAGE, f"{out}: is a symbolic link; give the folder that it points to")
    if settings["dry_run"]:
        return _dry_run(_prepare(plan, paths, settings, model_args, argv), out, settings)
    earlier = None if settings["overwrite"] else _earlier(out, plan, settings, paths)
    if earlier is not None and earlier.document["complete"]:
        return _answer(earlier, out, settings)
    prepared = _prepare(plan, paths, settings, model_args, argv, earlier)
    return _probe(prepared, out, settings, deadline, earlier)


def _check_loss_and_data(settings: Settings) -> None:
    """Raises ValueError for a loss that is none, options that are not taken, code not allowed."""
    for name in ("model", "data", "loss"):
        word = settings[name]
        if is_code(word) and word.rpartition(":")[0].endswith(".py") and not settings["allow_code"]:
            raise ValueError(f"--{name} {word} would run this file; give --allow-code to allow it")
    if settings["loss"] is not None:
        check_loss(settings["loss"])
    for word in settings["data_arg"]:
        _pair("--data-arg", word)
    if settings["data_arg"] and not is_code(settings["data"]):
        raise ValueError(
            "--data-arg is for a function given as --data (package.module:function); a task of "
            f"--list tasks takes its options behind colons, got --data {settings['data']}"
        )


def plan_of(settings: Settings) -> ProbePlan:
    """The preset's plan with what was asked for in its place."""
    changes: dict[str, Any] = {}
    for item in dataclasses.fields(ProbePlan):
        key = _PLAN_KEYS.get(item.name, item.name)
        if key in settings.given and key in settings.values and settings[key] not in (None, ()):
            changes[item.name] = settings[key]
    if settings["no_sampling_error"]:
        changes["sampling"] = False
    if settings["matrix"] in SEMIDEFINITE:
        changes.setdefault("ends", "top")
    if settings["batch_norm"] == "recalibrate":
        changes |= {"batch_norm": "eval", "recalibrate": True}
    if settings["quick"]:
        return ProbePlan.quick_look(**{**changes, "quick": True})
    if settings["thorough"]:
        changes.setdefault("exact", True)
        changes.setdefault("trace_probes", 256)
        changes.setdefault("dynamics", True)
        changes.setdefault("per_layer", True)
    return ProbePlan(**changes)


def _num_samples(settings: Settings) -> int | None:
    if settings["max_samples"] is not None:
        return int(settings["max_samples"])
    if settings["thorough"]:
        return None
    return QUICK_SAMPLES if settings["quick"] else DEFAULT_SAMPLES


@dataclass(frozen=True)
class _Prepared:
    """What a probe needs before it measures: the checkpoints are read and fit each other."""

    order: Order
    checkpoints: list[Checkpoint]
    jobs: int


def _prepare(
    plan: ProbePlan,
    paths: Sequence[Path],
    settings: Settings,
    model_args: Mapping[str, str],
    argv: Sequence[str],
    earlier: Findings | None = None,
) -> _Prepared:
    from landscape.probing import measured_by_position, measured_whole

    from .parallel import Order
    from .subjects import Request, check_comparable, check_device, methods_of, read_all

    request = Request(
        model=settings["model"],
        model_args=model_args,
        data=settings["data"],
        split=settings["split"],
        max_samples=_num_samples(settings),
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        device=settings["device"],
        data_dir=settings["data_dir"],
        allow_code=settings["allow_code"],
        allow_nonfinite=settings["allow_nonfinite"],
        with_trajectory=plan.directions == "pca",
        landmarks=paths[:3] if plan.directions == "checkpoints" else (),
        state_key=settings["state_key"],
        trust_pickle=settings["trust_pickle"],
        max_gigabytes=settings["max_checkpoint_gb"],
        allow_missing=settings["allow_missing"],
        micro_batch=plan.micro_batch,
        loss=settings["loss"],
        data_args=dict(_pair("--data-arg", word) for word in settings["data_arg"]),
    )
    checkpoints = read_all(paths, request)
    check_comparable(checkpoints, request)
    check_device(settings["device"])
    methods = methods_of(checkpoints)
    jobs = settings["jobs"] or _default_jobs(paths, settings["device"])
    jobs = min(jobs, len(paths))
    order = Order(
        paths=paths,
        request=request,
        plan=plan,
        methods=methods,
        whole=measured_whole(methods, plan),
        command=shlex.join([PROG, *argv]),
        threads=1 if _are_small(paths) else max(1, num_cores() // jobs),
        earlier={} if earlier is None else measured_by_position(earlier),
    )
    return _Prepared(order, checkpoints, jobs)


def _dry_run(prepared: _Prepared, out: Path, settings: Settings) -> int:
    """Prints what the probe will cost: models and data are built, and a few passes are timed."""
    import torch

    from .dry_run import dry_run_document, dry_run_table, foretell
    from .subjects import build_subjects, numerical_errors

    order = prepared.order
    torch.set_num_threads(order.threads)
    with numerical_errors(), contextlib.redirect_stdout(sys.stderr):
        subjects = build_subjects(prepared.checkpoints, order.methods, order.request)
        parts = foretell(subjects, order.plan, order.whole)
    document = dry_run_document(parts, jobs=prepared.jobs)
    if settings["json"]:
        print(json.dumps(document | {"out": str(out)}, indent=1, allow_nan=False))
        return DONE
    print(f"would probe {len(subjects)} checkpoints on {subjects[0].data['description']}")
    print(f"into {out}:\n")
    print(dry_run_table(document))
    return DONE


def _probe(
    prepared: _Prepared,
    out: Path,
    settings: Settings,
    deadline: float,
    earlier: Findings | None,
) -> int:
    from landscape.probing import assemble

    from .parallel import connect_here, measure, measure_here
    from .subjects import training_section

    order, jobs = prepared.order, prepared.jobs
    plan = order.plan
    bars = _Bars(quiet=settings["quiet"])
    with Interruption() as interruption:

        def is_over() -> bool:
            return interruption.signal is not None or time.monotonic() > deadline

        def measured(order: Order) -> tuple[Any, ...]:
            run = measure_here if jobs == 1 else measure
            results, data, complete = run(order, jobs=jobs, is_over=is_over, progress=bars)
            connection = None
            if plan.connect is not None and complete:
                connection = connect_here(order, is_over=is_over, progress=bars)
                complete = connection is not None
            return results, data, complete, connection

        try:
            while True:
                try:
                    results, data, complete, connection = measured(order)
                    break
                except OutOfMemory:
                    order = _with_half_the_rows(order, at_first=prepared.order)
        finally:
            bars.close()
        if not results:
            stopped = interruption.signal
            code = PARTIAL if stopped is None else SIGNALLED + stopped
            raise CommandError(code, "stopped before anything was measured: nothing was saved")
        findings = assemble(
            results,
            plan,
            complete=complete,
            connection=connection,
            data=data,
            command=order.command,
            title=_title(order.paths),
        )
        if settings["loss"] is not None:
            _tell_of_the_loss(findings, settings)
        if order is not prepared.order:
            rows = order.request.micro_batch
            findings.document["warnings"].append(
                f"Memory ran out: {rows} samples went through the model at a time."
            )
        findings.document["request"] = _request_of(settings, order.paths) | {
            "files": _files_of(settings, prepared.checkpoints)
        }
        findings.document["training"] = training_section(prepared.checkpoints)
        _write(findings, out, overwrite=settings["overwrite"] or earlier is not None)
        code = _answer(findings, out, settings)
        return code if interruption.signal is None else SIGNALLED + interruption.signal


def _tell_of_the_loss(findings: Findings, settings: Settings) -> None:
    """Writes down how many terms the loss had; only the measurement tells of one that was given.

    Raises:
        CommandError: exit code 3: the user's function gave each process, or a resumed probe, other
            data, so that the numbers do not compare.
    """
    provenance = [checkpoint["provenance"] for checkpoint in findings.checkpoints]
    data = findings.document["data"]
    if data["num_terms"] is None:
        data["num_terms"] = provenance[0]["num_terms"]
    if is_code(settings["data"]) and len({own["data_sha256"] for own in provenance}) > 1:
        raise CommandError(
            BAD_INPUT,
            f"--data {settings['data']} returned other data when it was called again, so the "
            "numbers do not compare and nothing was saved: seed its random numbers",
        )


def _with_half_the_rows(order: Order, *, at_first: Order) -> Order:
    """The same with half as many rows at a time; raises OutOfMemory after so many halvings."""
    now, then = (
        each.request.micro_batch
        or min(each.request.batch_size, each.request.max_samples or each.request.batch_size)
        for each in (order, at_first)
    )
    half = (now + 1) // 2
    if half == now or half * 2**HALVINGS < then or order.plan.batch_norm == "batch":
        raise OutOfMemory(now)
    return dataclasses.replace(
        order,
        plan=dataclasses.replace(order.plan, micro_batch=half),
        request=dataclasses.replace(order.request, micro_batch=half),
    )


def _are_small(paths: Sequence[Path]) -> bool:
    """Whether the nets have under a million parameters or so: two threads make those slower."""
    return max(map(_num_bytes, paths)) < SMALL_BYTES


def _num_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _default_jobs(paths: Sequence[Path], device: str) -> int:
    return num_cores() if device == "cpu" and _are_small(paths) else 1


class _Bars:
    """Progress on stderr, one bar a process."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._bars: dict[int, tuple[str, Any]] = {}

    def __call__(self, process: int, what: str, done: int, total: int | None) -> None:
        if not self._shown:
            return
        shown, bar = self._bars.get(process, ("", None))
        if what != shown:
            from tqdm import tqdm

            if bar is not None:
                bar.close()
            bar = tqdm(desc=what, total=total, leave=False, position=process)
            self._bars[process] = (what, bar)
        bar.total, bar.n = total, done
        bar.refresh()

    def close(self) -> None:
        for _, bar in self._bars.values():
            bar.close()
        self._bars.clear()


def _write(findings: Findings, out: Path, *, overwrite: bool) -> None:
    try:
        save_findings(findings, out, overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        raise CommandError(USAGE, str(error)) from error
    _draw(findings, out)


def _draw(findings: Findings, out: Path) -> None:
    from landscape.report import write_figures, write_report

    write_report(findings, out / "report.html")
    write_figures(findings, out / "figures")


def _verify(folder: Path) -> int:
    """Whether a result is what was written: schema and hashes hold; code 5 where it is partial."""
    findings = _load(folder)
    document = findings.document
    state = "complete" if document["complete"] else "partial"
    print(f"{folder}: {state}, {len(findings.checkpoints)} checkpoints, hashes hold")
    for checkpoint in findings.checkpoints:
        path = Path(checkpoint["path"] or "")
        # A folder's hash, and an index's, is of several files.
        alone = path.is_file() and not path.name.endswith(".index.json")
        if checkpoint["path"] and not path.exists():
            print(f"{path}: no longer there", file=sys.stderr)
        elif alone and _hash_of(path) != checkpoint["provenance"]["checkpoint_sha256"]:
            print(f"{path}: changed since", file=sys.stderr)
    return DONE if document["complete"] else PARTIAL


def _load(folder: Path) -> Findings:
    try:
        return load_findings(folder)
    except ValueError as error:
        raise CommandError(BAD_INPUT, str(error)) from error


def _redraw(folder: Path) -> int:
    findings = _load(folder)
    _draw(findings, folder)
    print(folder / "report.html")
    return DONE


def _answer(findings: Findings, out: Path, settings: Settings) -> int:
    """Prints the table (or the document) and returns the exit code."""
    if settings["json"]:
        print((out / "result.json").read_text(encoding="utf-8").strip())
    else:
        from landscape.report.terminal import terminal_table
        from landscape.report.warnings import grouped_warnings

        print(terminal_table(findings))
        for group in grouped_warnings(findings):
            owner = group.owner(len(findings.checkpoints))
            words = ["warning", owner, group.message] if owner else ["warning", group.message]
            print(": ".join(words), file=sys.stderr)
        print(f"report: {out / 'report.html'}")
    return DONE if findings.document["complete"] else PARTIAL


def _earlier(
    out: Path, plan: ProbePlan, settings: Settings, paths: Sequence[Path]
) -> Findings | None:
    """The findings that lie in the folder, where they answer this very question; else None.

    A complete result is the answer; a partial one is gone on from, with --resume.

    Raises:
        CommandError: exit code 2: they answer another question, and would be overwritten.
    """
    if not (out / "result.json").exists():
        return None
    try:
        findings = load_findings(out)
    except ValueError as error:
        raise CommandError(
            BAD_INPUT, f"{error}; choose another folder with --out, or --overwrite"
        ) from error
    document = findings.document
    asked = dict(document.get("request") or {})
    files = asked.pop("files", {})
    same = (
        asked == _request_of(settings, paths)
        and document["settings"] == _as_read_back(dataclasses.asdict(plan))
        and all(_hash_of(Path(name)) == known for name, known in files.items())
    )
    if same and (document["complete"] or settings["resume"]):
        return findings
    if same:
        advice = "go on from it with --resume, or choose another folder with --out, or --overwrite"
        raise CommandError(USAGE, f"{out} holds a partial result: {advice}")
    kind = "another" if document["complete"] else "another, partial"
    raise CommandError(
        USAGE, f"{out} holds {kind} result: choose another folder with --out, or --overwrite"
    )


def _sha256(path: Path, settings: Settings) -> str:
    """Of the checkpoint, as `read_checkpoint` says it: of several files where it has several."""
    if path.is_dir() or path.name.endswith(".index.json"):
        from landscape.checkpoints import read_checkpoint

        try:
            checkpoint = read_checkpoint(
                path,
                state_key=settings["state_key"],
                trust_pickle=settings["trust_pickle"],
                max_gigabytes=settings["max_checkpoint_gb"],
            )
        except CheckpointError as error:
            raise CommandError(BAD_INPUT, str(error)) from error
        return str(checkpoint.sha256)
    known = _hash_of(path)
    if known is None:
        raise CommandError(BAD_INPUT, f"{path}: cannot be read")
    return known


def _request_of(settings: Settings, paths: Sequence[Path]) -> dict[str, Any]:
    """What decides the answer, beside the plan and the files that data and code come from."""
    names = ("model", "model_arg", "data", "data_arg", "loss", "data_dir", "split", "batch_size",
             "allow_nonfinite", "state_key", "allow_missing")  # fmt: skip
    chosen = {name: settings[name] for name in names}
    hashes = [_sha256(path, settings) for path in paths]
    return _as_read_back(chosen | {"max_samples": _num_samples(settings), "checkpoints": hashes})


def _files_of(settings: Settings, checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    """The hashes of the files that the user, or a checkpoint's recipe, named for data and code."""
    words = {settings["model"], settings["data"], settings["loss"]}
    for checkpoint in checkpoints:
        recipe = checkpoint.recipe or {}
        words |= {recipe.get("model"), recipe.get("task")}
    found = {path.resolve() for word in words - {None} if (path := _file_of(str(word)))}
    return {str(path): known for path in sorted(found) if (known := _hash_of(path)) is not None}


def _hash_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _file_of(word: str) -> Path | None:
    """The file in `FILE.py:name`, `npz:FILE` or `text:FILE`, or that of `package.module:name`."""
    kind, _, rest = word.partition(":")
    path = Path(rest if kind in ("npz", "text") else word.rpartition(":")[0] or word)
    if path.is_file():
        return path
    module = sys.modules.get(word.rpartition(":")[0])
    origin = getattr(module, "__file__", None)
    return None if origin is None else Path(origin)


def _as_read_back(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _out_folder(settings: Settings, paths: Sequence[Path]) -> Path:
    """--out, or probe/ beside what was named: in a run's folder, or in the folder of runs."""
    if settings["out"] is not None:
        return Path(settings["out"])
    if len(paths) == 1 and len(settings["checkpoint"]) == 1:
        return paths[0].parent / "probe"
    folders = {path.parent.parent for path in paths}
    if len(folders) > 1:
        raise CommandError(USAGE, "the checkpoints lie in several folders: say where with --out")
    return folders.pop() / "probe"


def _in_order(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints of a study in its own order: the first variant is the reference."""
    try:
        stored = tomllib.loads((paths[0].parent.parent / "config.toml").read_text("utf-8"))
        names = [run.name for run in Recipe.from_dict(stored).runs]
    except (OSError, ValueError):
        names = []  # not a study: as they were found
    rank = {name: position for position, name in enumerate(names)}
    return sorted(paths, key=lambda path: rank.get(path.parent.name, len(rank)))


def _title(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return paths[0].parent.name or paths[0].name
    return f"{paths[0].parent.parent.name or 'runs'}: {len(paths)} checkpoints"


def _config(settings: Settings) -> dict[str, Any]:
    """The options as a TOML file may hold them."""
    keys = [argument.key for argument in ARGUMENTS if argument.in_config]
    # 0 equals False, and means something: nothing of that kind
    unset = (None, False)
    return {
        key: settings[key]
        for key in keys
        if settings[key] != () and not any(settings[key] is word for word in unset)
    }


def _list(what: str) -> int:
    from landscape.sharpness import METRICS
    from sam_variants.tasks import MODELS, TASKS

    table = {"metrics": METRICS, "models": MODELS, "tasks": TASKS, "losses": LOSSES}[what]
    width = max(map(len, table))
    for name, entry in table.items():
        print(f"{name.ljust(width)}  {entry.summary}")
    return DONE


def _deadline(budget: str | None) -> float:
    if budget is None:
        return math.inf
    number, unit = budget[:-1], budget[-1:]
    seconds = {"s": 1, "m": 60, "h": 3600}.get(unit)
    if seconds is None or not number.replace(".", "", 1).isdigit():
        raise ValueError(f"--time-budget must be as 90s, 10m or 1h, got {budget!r}")
    return time.monotonic() + float(number) * seconds


def _pair(flag: str, word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise ValueError(f"{flag} must be name=value, got {word!r}")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
