"""landscape-train: trains variants of sharpness-aware minimization over seeds and compares them."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import landscape
from landscape.table import Choice, Entry, Option, Range
from sam_variants.training import failures
from sam_variants.training.comparison import bases_words, caption, table
from sam_variants.training.recipe import ALL, Recipe, recipe_options
from sam_variants.training.study import (
    COMPARISON,
    CONFIG,
    REPORT,
    default_folder,
    finished_comparison,
    train_study,
)

from .arguments import (
    BAD_INPUT,
    DONE,
    INTERNAL,
    NUMERICAL,
    PARTIAL,
    SIGNALLED,
    USAGE,
    Argument,
    CommandError,
    Kind,
    Settings,
    Switch,
    Text,
    Words,
    read_arguments,
    run_command,
    to_toml,
    usage_errors,
)

PROG = "landscape-train"
DESCRIPTION = "Trains a model with each variant and each seed, and compares them."
EPILOG = """examples:
  landscape-train
  landscape-train --variants ae-sam,looksam --task digits --model resnet8 --seeds 3 --out runs/x
  landscape-train --variants sam:rho=0.1,ae-sam:rho=0.1 --optimizer adamw --lr 1e-3
  landscape-train --variants all --epochs 20 --seeds 3
  landscape-train --config runs/x/config.toml --resume

exit codes: 0 done, 2 usage, 3 bad input or user code, 4 numerical failure, 5 saved but not
complete (disk full), 128+n ended by signal n after saving"""

LISTS = ("variants", "tasks", "models", "metrics")
EXCLUSIVE = dict.fromkeys(("epochs", "max_steps", "max_gradients", "max_seconds"), "budget")
METAVARS = {
    "variants": "NAME,...", "when": "POLICY", "switch_signal": "SIGNAL", "data_dir": "FOLDER",
    "validation": "SHARE", "warmup": "SHARE", "label_noise": "SHARE",
    "probe_every": "EPOCHS|end|never", "save_every": "EPOCHS", "threads": "auto|N",
}  # fmt: skip

RUN = "runs"
ANSWER = "output"
ARGUMENTS_OF_THE_COMMAND = (
    Argument(
        "jobs",
        Range(1, 4096, None, integer=True, optional=True),
        "runs in parallel processes (default: the cores)",
        group=RUN,
        metavar="N",
    ),
    Argument(
        "allow-code",
        Switch(),
        "allow a task or model FILE.py:factory to be run",
        group=RUN,
        in_config=False,
    ),
    Argument(
        "out",
        Text(),
        "folder of the runs (default runs/TASK-MODEL-HASH)",
        group=ANSWER,
        metavar="FOLDER",
    ),
    Argument("resume", Switch(), "continue what the folder holds", group=ANSWER, in_config=False),
    Argument(
        "overwrite",
        Switch(),
        "remove what the folder holds and begin anew",
        group=ANSWER,
        in_config=False,
    ),
    Argument(
        "dry-run",
        Switch(),
        "print the plan, the gradients and an estimate of time; train nothing",
        group=ANSWER,
        in_config=False,
    ),
    Argument("json", Switch(), "one JSON object on stdout", group=ANSWER, in_config=False),
    Argument("quiet", Switch(), "no bars and no notes on stderr", group=ANSWER, in_config=False),
    Argument(
        "config",
        Text(),
        "TOML file of options; flags win over it",
        group=ANSWER,
        in_config=False,
        metavar="FILE",
    ),
    Argument(
        "print-config",
        Switch(),
        "print all options as TOML, and stop",
        group=ANSWER,
        in_config=False,
    ),
    Argument(
        "list",
        Choice(LISTS, None),
        "print a table of names, and stop",
        group=ANSWER,
        in_config=False,
    ),
    Argument("debug", Switch(), "a traceback with an error", group=ANSWER, in_config=False),
    Argument("version", Switch(), "print the version, and stop", group=ANSWER, in_config=False),
)

EXIT_CODES: tuple[tuple[type[failures.TrainingFailure], int], ...] = (
    (failures.BadInputError, BAD_INPUT),
    (failures.FolderError, USAGE),
    (failures.DeviceError, USAGE),
    (failures.DivergedError, NUMERICAL),
    (failures.SaveError, PARTIAL),
    (failures.WorkerError, INTERNAL),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(_main, argv, prog=PROG)


def _main(argv: Sequence[str]) -> int:
    settings = read_arguments(
        recipe_arguments() + ARGUMENTS_OF_THE_COMMAND,
        argv,
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    if settings["version"]:
        print(f"{PROG} {landscape.__version__}")
        return DONE
    if settings["list"] is not None:
        print(listed(settings["list"]))
        return DONE
    named = settings.config if settings.flags.isdisjoint(recipe_options()) else None
    with usage_errors(f"{named}: " if named else ""):
        recipe = read_recipe(settings)
    _check(settings, recipe)
    if not settings["quiet"]:
        for note in notes(settings["variants"], recipe):
            _say(f"note: {note}")
    if settings["print_config"]:
        chosen = {key: settings[key] for key in ("out", "jobs") if key in settings.given}
        print(to_toml(recipe.to_dict() | chosen), end="")
        return DONE
    folder = _folder(settings, recipe)
    with _training_failures(settings):
        if settings["dry_run"]:
            return _dry_run(settings, recipe, folder)
        return _train(settings, recipe, folder, argv)


def recipe_arguments() -> tuple[Argument, ...]:
    """One argument a field of the recipe, with the field's own range."""
    arguments = []
    for key, (option, default, help_, group) in recipe_options().items():
        arguments.append(
            Argument(
                key.replace("_", "-"),
                _kind(option, default),
                help_,
                group=group,
                exclusive=EXCLUSIVE.get(key),
                metavar=METAVARS.get(key),
            )
        )
    return tuple(arguments)


def _kind(option: Option | None, default: Any) -> Kind:
    if option is not None:
        return option
    return Words(default) if isinstance(default, tuple) else Text(default)


def read_recipe(settings: Settings) -> Recipe:
    """The recipe of the settings.

    Raises:
        ValueError: as `Recipe`.
    """
    return Recipe(**{key: settings[key] for key in recipe_options()})


def notes(given: Sequence[str], recipe: Recipe) -> list[str]:
    """What the recipe makes of the words that the user would not expect, a line each.

    Args:
        given: the variants as they were typed.
        recipe: what became of them.
    """
    found = []
    if ALL in given and recipe.left_out:
        reasons = [f"{name} ({reason})" for name, reason in recipe.left_out.items()]
        found.append(f"{ALL} leaves out {'; '.join(reasons)}")
    if recipe.passed_over:
        found.append(
            f"when = {recipe.when} does not reach {', '.join(recipe.passed_over)}, which have no "
            "clean gradient for it to watch: they perturb every step"
        )
    return found


def _check(settings: Settings, recipe: Recipe) -> None:
    from sam_variants.tasks import parse_model, parse_task

    if settings["resume"] and settings["overwrite"]:
        raise CommandError(USAGE, "--resume and --overwrite exclude each other")
    for word in (parse_task(recipe.task), parse_model(recipe.model)):
        if word.key.startswith("FILE.py") and not settings["allow_code"]:
            raise CommandError(
                USAGE, f"{word.argument} would run that file; give --allow-code to allow it"
            )


def _folder(settings: Settings, recipe: Recipe) -> Path:
    """--out, or the config file's own folder on --resume, or the one named after the recipe."""
    config = settings.config
    if settings["out"] is not None:
        return Path(settings["out"])
    if settings["resume"] and config is not None and config.name == CONFIG:
        return config.parent
    return default_folder(recipe)


def _train(settings: Settings, recipe: Recipe, folder: Path, argv: Sequence[str]) -> int:
    quiet = settings["quiet"]
    known = None
    if not settings["overwrite"]:
        known = finished_comparison(recipe, folder, resume=settings["resume"])
    if known is not None and (folder / REPORT).is_file():
        _answer(settings, folder, known)
        return DONE
    runs = recipe.runs
    with _progress([run.name for run in runs], quiet=quiet) as report:
        comparison = train_study(
            recipe,
            folder,
            jobs=settings["jobs"],
            allow_code=settings["allow_code"],
            resume=settings["resume"],
            overwrite=settings["overwrite"],
            command=shlex.join([PROG, *argv]),
            report=report,
            warn=_say,
        )
    _answer(settings, folder, comparison)
    return DONE


def _answer(settings: Settings, folder: Path, comparison: dict[str, Any]) -> None:
    if settings["json"]:
        answer = {"out": str(folder), "report": str(folder / REPORT), **comparison}
        print(json.dumps(answer, allow_nan=False))
        return
    print(table(comparison))
    print(caption(comparison))
    print(f"comparison: {folder / COMPARISON}\nreport: {folder / REPORT}")


def _dry_run(settings: Settings, recipe: Recipe, folder: Path) -> int:
    from sam_variants.training.planning import plan_study
    from sam_variants.training.workers import num_cores

    with contextlib.redirect_stdout(sys.stderr):
        plans = plan_study(recipe, allow_code=settings["allow_code"])
    jobs = min(settings["jobs"] or num_cores(), len(recipe.runs))
    seconds = sum((plan.seconds or 0.0) * plan.num_runs for plan in plans) / jobs
    probing = sum((plan.probe_seconds or 0.0) * plan.num_runs for plan in plans) / jobs
    if settings["json"]:
        answer = {
            "out": str(folder),
            "jobs": jobs,
            "seconds": seconds,
            "probe_seconds": probing,
            "variants": [plan.to_dict() for plan in plans],
        }
        print(json.dumps(answer))
        return DONE
    print(f"{recipe.model} ({plans[0].num_parameters:,} parameters) on {recipe.task}, to {folder}")
    print(bases_words({"variants": [plan.to_dict() for plan in plans]}))
    for plan in plans:
        steps = f"{plan.steps:,} steps" if plan.steps is not None else "as many steps as fit"
        low, high = plan.gradients
        spent = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
        about = "" if plan.exact or low != high else "about "
        print(f"  {plan.label}: {plan.num_runs} x {steps}, {about}{spent} gradients a run")
    probes = f", {probing:,.0f} s of it for lambda_max and sharpness" if probing else ""
    where = "one process" if jobs == 1 else f"{jobs} processes"
    print(f"about {seconds:,.0f} s in {where}{probes}; evaluations come on top")
    return DONE


@contextlib.contextmanager
def _progress(
    names: Sequence[str], *, quiet: bool
) -> Iterator[Callable[[int, float, dict[str, Any] | None], None]]:
    """A report that draws one bar for all runs on a terminal, and says nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield lambda index, share, line: None
        return
    from tqdm import tqdm

    shares = dict.fromkeys(range(len(names)), 0.0)
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(total=float(len(names)), bar_format=layout, file=sys.stderr) as bar:

        def report(index: int, share: float, line: dict[str, Any] | None) -> None:
            shares[index] = max(share, shares[index])
            bar.n = sum(shares.values())
            done = sum(value >= 1 for value in shares.values())
            bar.set_description_str(f"{done}/{len(names)} runs", refresh=False)
            if line is not None:
                text = f"{names[index]} epoch {line['epoch']} test {line['test_accuracy']:.1%}"
                bar.set_postfix_str(text, refresh=False)
            bar.refresh()

        yield report


@contextlib.contextmanager
def _training_failures(settings: Settings) -> Iterator[None]:
    """Failures of a training as exit codes."""
    try:
        yield
    except failures.Interrupted as interrupted:
        raise CommandError(SIGNALLED + interrupted.signal, str(interrupted)) from interrupted
    except failures.TrainingFailure as failure:
        code = next(code for kind, code in EXIT_CODES if isinstance(failure, kind))
        raise CommandError(code, str(failure)) from failure


def _say(message: str) -> None:
    print(f"{PROG}: {message}", file=sys.stderr)


def listed(which: str) -> str:
    """The table of that name: each entry with its line, and each option with its default."""
    entries = _tables()[which]
    width = max(map(len, entries))
    lines = []
    for name, entry in entries.items():
        cost = f"; gradients a step: {entry.cost}" if entry.cost else ""
        lines.append(f"{name.ljust(width)}  {entry.summary}{cost}")
        if entry.options:
            options = ", ".join(
                f"{key}={option.default}" if option.default is not None else key
                for key, option in entry.options.items()
            )
            lines.append(" " * width + f"    {options}")
    return "\n".join(lines)


def _tables() -> dict[str, Mapping[str, Entry]]:
    from landscape.sharpness import METRICS
    from sam_variants import VARIANTS
    from sam_variants.tasks import MODELS, TASKS

    tables: tuple[Mapping[str, Entry], ...] = (VARIANTS, TASKS, MODELS, METRICS)
    return dict(zip(LISTS, tables, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
