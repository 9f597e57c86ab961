"""Signals that ask a training to stop: the step is finished, the state saved, then it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

# Windows has fewer; what a system lacks is left out
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
)


class Interruption:
    """While entered, the first stopping signal is kept in `.signal` instead of killing us.

    A second SIGINT ends the process at once, with `at_once` called first; further signals of the
    other kinds change nothing, as batch systems send several. Handlers are put back on leaving.
    Outside the main thread, where Python allows no handlers, nothing is installed.

    Args:
        at_once: called before the process ends on a second SIGINT.
        on_first: called with the number of the first signal.
        forced: whether a second SIGINT ends the process; not in a worker, whose parent decides.
    """

    def __init__(
        self,
        *,
        at_once: Callable[[], Any] | None = None,
        on_first: Callable[[int], Any] | None = None,
        forced: bool = True,
    ) -> None:
        self.signal: int | None = None
        self._at_once = at_once
        self._on_first = on_first
        self._forced = forced
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            if self._on_first is not None:
                self._on_first(number)
        elif number == signal.SIGINT and self._forced:
            if self._at_once is not None:
                self._at_once()
            os._exit(128 + number)
