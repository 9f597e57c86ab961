"""Probing in parallel processes: each measures some checkpoints, all of them on the same axes.

The first half needs nothing of the others; then the largest range that any of them asks for is
told to all, and they measure around their weights.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.plan import ProbePlan
from sam_variants.training.workers import signals_blocked

from .arguments import INTERNAL, CommandError, OutOfMemory

if TYPE_CHECKING:
    from landscape.probing import Measured, Session
    from landscape.stages.connection import Paths

    from .subjects import Request

    # By position; the data's description; whether everything was measured.
    Outcome = tuple[dict[int, Measured], Mapping[str, Any], bool]

Progress = Callable[[int, str, int, "int | None"], None]  # worker, what, done, total
LOOK_SECONDS = 0.2  # how long a signal or the end of the time budget may wait
WHOLE_COST = 3  # of a checkpoint with density and plane, beside one without


@dataclass(frozen=True)
class Order:
    """What every worker is told."""

    paths: Sequence[Path]
    methods: Sequence[str]  # one a path
    request: Request
    plan: ProbePlan
    whole: frozenset[int]
    command: str
    threads: int
    earlier: Mapping[int, Measured] = field(default_factory=dict)  # of an interrupted probe


def shares(num_checkpoints: int, whole: frozenset[int], jobs: int) -> list[list[int]]:
    """The positions that each process measures: the dear ones first, to the least busy."""
    load = [0] * jobs
    dealt: list[list[int]] = [[] for _ in range(jobs)]
    for position in sorted(range(num_checkpoints), key=lambda p: (p not in whole, p)):
        worker = load.index(min(load))
        dealt[worker].append(position)
        load[worker] += WHOLE_COST if position in whole else 1
    return [sorted(share) for share in dealt if share]


def measure(order: Order, *, jobs: int, is_over: Callable[[], bool], progress: Progress) -> Outcome:
    """What every checkpoint gave by position, the data's description, and whether it is complete.

    Raises:
        CommandError: what went wrong in a process.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    channels: list[Connection] = []
    processes = []
    for share in shares(len(order.paths), order.whole, jobs):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, stop, order, share), daemon=True)
        with signals_blocked():  # and blocked they stay there: the parent says when to stop
            process.start()
        theirs.close()
        channels.append(ours)
        processes.append(process)
    try:
        ranges = _gather(channels, stop, is_over, progress)
        known = [half for half in ranges if half is not None]
        for channel in channels:
            with contextlib.suppress(OSError):  # it died: `_gather` will see
                channel.send(max(known, default=None))
        answers = _gather(channels, stop, is_over, progress)
    finally:
        for process in processes:
            process.kill()  # SIGTERM is blocked there
            process.join()
    results: dict[int, Measured] = {}
    for measured, _, _ in answers:
        results |= measured
    return results, answers[0][1], all(complete for _, _, complete in answers)


def measure_here(
    order: Order, *, jobs: int, is_over: Callable[[], bool], progress: Progress
) -> Outcome:
    """The same in this process, one checkpoint after the other; stdout is kept for the answer.

    Raises:
        CommandError: what went wrong.
    """
    from .subjects import numerical_errors

    report = _reporting(is_over, progress)
    with numerical_errors(), contextlib.redirect_stdout(sys.stderr):
        session, data = _begin(order, range(len(order.paths)), report)
        session.measure_around(session.measure_at_weights())
    return session.results(), data, session.complete


def _reporting(
    is_over: Callable[[], bool], progress: Progress
) -> Callable[[str, int, int | None], None]:
    """Progress of this process, which ends the work where it is over."""
    from landscape.probing import BudgetSpent

    def report(what: str, done: int, total: int | None) -> None:
        if is_over():
            raise BudgetSpent
        progress(0, what, done, total)

    return report


def connect_here(order: Order, *, is_over: Callable[[], bool], progress: Progress) -> Paths | None:
    """The paths between the checkpoints, in this process; None where it is over before the end.

    Raises:
        CommandError: what went wrong.
    """
    import torch

    from landscape.probing import BudgetSpent
    from landscape.stages.connection import connect

    from .subjects import build_subjects, numerical_errors, read_all

    report = _reporting(is_over, progress)
    torch.set_num_threads(order.threads)
    with numerical_errors(), contextlib.redirect_stdout(sys.stderr):
        subjects = build_subjects(
            read_all(order.paths, order.request), order.methods, order.request
        )
        try:
            return connect(subjects, order.plan, progress=report)
        except BudgetSpent:
            return None


def _begin(
    order: Order, share: Sequence[int], report: Callable[[str, int, int | None], None]
) -> tuple[Session, Mapping[str, Any]]:
    """A session on a share of the checkpoints, and the description of their data."""
    import torch

    from landscape.probing import Session

    from .subjects import build_subjects, read_all

    torch.set_num_threads(order.threads)
    checkpoints = read_all([order.paths[position] for position in share], order.request)
    methods = [order.methods[position] for position in share]
    subjects = build_subjects(checkpoints, methods, order.request)
    numbered = dict(zip(share, subjects, strict=True))
    session = Session(
        numbered,
        order.plan,
        order.whole,
        progress=report,
        command=order.command,
        earlier=order.earlier,
    )
    return session, subjects[0].data


def _gather(
    channels: Sequence[Connection], stop: Any, is_over: Callable[[], bool], progress: Progress
) -> list[Any]:
    """One answer of each process."""
    answers: dict[int, Any] = {}
    while len(answers) < len(channels):
        if is_over():
            stop.set()
        waiting = [channel for i, channel in enumerate(channels) if i not in answers]
        for channel in wait(waiting, LOOK_SECONDS):
            index = next(i for i, known in enumerate(channels) if known is channel)
            try:
                kind, content = channels[index].recv()
            except (EOFError, OSError):
                raise CommandError(
                    INTERNAL, "a measuring process ended (out of memory?); try --jobs 1"
                ) from None
            if kind == "progress":
                progress(index, *content)
            elif kind == "out of memory":
                raise OutOfMemory
            elif kind == "error":
                raise CommandError(*content)
            else:
                answers[index] = content
    return [answers[index] for index in range(len(channels))]


def _work(channel: Connection, stop: Any, order: Order, share: Sequence[int]) -> None:
    """One process: measures its checkpoints at their weights, waits for the range, goes on."""
    from landscape.probing import BudgetSpent

    from .subjects import numerical_errors

    def report(what: str, done: int, total: int | None) -> None:
        if stop.is_set():
            raise BudgetSpent
        channel.send(("progress", (what, done, total)))

    try:
        with numerical_errors(), contextlib.redirect_stdout(sys.stderr):
            session, data = _begin(order, share, report)
            channel.send(("range", session.measure_at_weights()))
            session.measure_around(channel.recv())
        channel.send(("done", (session.results(), data, session.complete)))
    except OutOfMemory:
        channel.send(("out of memory", None))
    except CommandError as error:
        channel.send(("error", (error.code, error.message)))
    except Exception as error:
        channel.send(("error", (INTERNAL, f"internal error: {type(error).__name__}: {error}")))
