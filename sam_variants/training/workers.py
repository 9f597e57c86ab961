"""Runs in parallel processes: each takes the next one, and what one run says reaches the parent.

The parent imports no torch. Workers are spawned, so that nothing of the parent's state leaks into
them; they live as long as there are runs, because importing torch costs more than a small run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from sam_variants.training.failures import DivergedError, TrainingFailure, WorkerError
from sam_variants.training.interruption import STOPPING, Interruption
from sam_variants.training.recipe import Recipe

Report = Callable[[int, float, "dict[str, Any] | None"], None]
LOOK_SECONDS = 0.2  # how long a signal to the parent may wait


@dataclass(frozen=True)
class Order:
    """What every worker is told once."""

    recipe: Recipe
    folder: Path
    allow_code: bool
    cores: int  # that one worker may use


@dataclass
class Ending:
    """How one run ended: complete, failed, or stopped by a signal."""

    failure: TrainingFailure | None = None
    trace: str = ""
    signal: int | None = None


def num_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_here(
    order: Order, pending: Sequence[int], *, interruption: Interruption, report: Report
) -> dict[int, Ending]:
    """Trains the runs one after the other in this process; stdout is kept for the answer."""
    endings: dict[int, Ending] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for index in pending:
            endings[index] = _train(order, index, stop=lambda: interruption.signal, report=report)
            if _is_final(endings[index]) or interruption.signal is not None:
                break
    return endings


def run_parallel(
    order: Order,
    pending: Sequence[int],
    *,
    jobs: int,
    interruption: Interruption,
    report: Report,
) -> dict[int, Ending]:
    """Trains the runs in `jobs` processes and returns how each ended.

    After a failure that the other runs would share (bad data, a full disk, no such device) or a
    signal no further run is begun. A worker that dies fails its run, not the others.
    """
    queue, endings = list(pending), dict[int, Ending]()
    workers = [_Worker(order) for _ in range(min(jobs, len(queue)))]
    told: int | None = None
    try:
        while any(worker.alive for worker in workers):
            over = interruption.signal is not None or any(map(_is_final, endings.values()))
            if interruption.signal is not None and told is None:
                told = interruption.signal
                for worker in workers:
                    worker.forward(told)
            for worker in workers:
                if worker.alive and worker.index is None:
                    worker.take(queue.pop(0) if queue and not over else None)
            for worker in _speaking(workers):
                _listen(worker, endings, report)
                if not worker.alive and queue and not over:
                    workers[workers.index(worker)] = _Worker(order)
    finally:
        for worker in workers:
            worker.end()
    return endings


def _speaking(workers: list[_Worker]) -> list[_Worker]:
    by_channel = {worker.channel: worker for worker in workers if worker.alive}
    return [by_channel[channel] for channel in wait(list(by_channel), LOOK_SECONDS)]  # type: ignore[index]


def _listen(worker: _Worker, endings: dict[int, Ending], report: Report) -> None:
    index = worker.index
    try:
        kind, content = worker.channel.recv()
    except (EOFError, OSError):
        code = worker.end()
        if index is not None:
            how = f"by signal {-code}" if code is not None and code < 0 else f"with code {code}"
            failure = WorkerError(
                f"{worker.name(index)}: its process ended {how} (out of memory?); "
                "--resume continues from its last checkpoint"
            )
            endings[index] = Ending(failure)
        return
    if index is None:
        return
    if kind == "progress":
        report(index, *content)
    else:
        endings[index] = content
        worker.index = None


class _Worker:
    """A process and the line to it; `index` is the run that it is busy with."""

    def __init__(self, order: Order) -> None:
        context = multiprocessing.get_context("spawn")
        self._order = order
        self.index: int | None = None
        self.alive = True
        self.channel, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, order, os.getpid()), daemon=True
        )
        with signals_blocked():
            self._process.start()
        theirs.close()  # else the end of the process would not end the channel

    def name(self, index: int) -> str:
        return self._order.recipe.runs[index].name

    def take(self, index: int | None) -> None:
        """The next run; None: there are no more."""
        with contextlib.suppress(OSError):  # it died: `_listen` will see
            self.channel.send(index)
        self.index = index
        if index is None:
            self.end()

    def forward(self, number: int) -> None:
        """Passes a signal on."""
        with contextlib.suppress(OSError, TypeError):
            os.kill(self._process.pid, number)  # type: ignore[arg-type]

    def end(self) -> int | None:
        """Waits for the process, which has been told or is gone; its exit code."""
        self.alive = False
        self.channel.close()
        self._process.join(timeout=10)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        return self._process.exitcode


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """The stopping signals wait while a process starts; it inherits the mask and lifts it itself.

    So a Ctrl-C during the child's import of torch is not a traceback on the terminal.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        # multiprocessing starts its tracker with the first process and then unblocks INT and TERM
        multiprocessing.resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the worker ---------------------------------------------------------------------------------


def _work(channel: Connection, order: Order, parent: int) -> None:
    """Takes indices of runs until None, and answers ("progress", ...) and ("ended", Ending)."""
    os.dup2(2, 1)  # stdout is the parent's answer: what user code prints goes to stderr
    with Interruption(forced=False) as interruption:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

        def stop() -> int | None:
            if os.getppid() != parent:  # the parent was killed: leave its folder alone
                os._exit(1)
            return interruption.signal

        def report(index: int, share: float, line: dict[str, Any] | None) -> None:
            channel.send(("progress", (share, line)))

        with contextlib.suppress(EOFError, OSError):  # the parent has closed its end
            while (index := channel.recv()) is not None:
                channel.send(("ended", _train(order, index, stop=stop, report=report)))


def _train(order: Order, index: int, *, stop: Callable[[], int | None], report: Report) -> Ending:
    run = order.recipe.runs[index]
    try:
        from sam_variants.training.trainer import train

        ended = train(
            order.recipe,
            run,
            order.folder / run.name,
            allow_code=order.allow_code,
            cores=order.cores,
            stop=stop,
            report=lambda share, line: report(index, share, line),
        )
    except TrainingFailure as failure:
        return Ending(failure, traceback.format_exc())
    except Exception as error:
        message = f"{run.name}: internal error: {type(error).__name__}: {error}"
        return Ending(WorkerError(message), traceback.format_exc())
    return Ending(signal=ended)


def _is_final(ending: Ending) -> bool:
    """Whether no further run should begin: only divergence and death are a run's own."""
    own = (DivergedError, WorkerError)
    return ending.signal is not None or (
        ending.failure is not None and not isinstance(ending.failure, own)
    )
