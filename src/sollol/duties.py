"""Background duties: recurring work besides calls, such as health checks and reloads.

All of them start here. An exception does not end a duty: it is logged with its traceback and counted, and the duty runs
again after a pause, which doubles with each failure in a row, from PAUSE_S up to PAUSE_MOST_S.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

log: Final = logging.getLogger("sollol")
PAUSE_S: Final = 0.5
PAUSE_MOST_S: Final = 30.0

Report = Callable[[str, BaseException], object]


def log_fault(name: str, error: BaseException) -> None:
    """Log the failure of a duty; the default for owners that count no faults."""
    log.error("in %s: %s: %s", name, type(error).__name__, error, exc_info=error)


def pause_s(failures: int) -> float:
    """Return the pause in seconds after so many failures in a row."""
    return min(PAUSE_S * 2.0 ** min(failures - 1, 16), PAUSE_MOST_S)


class Duties:
    """The duties of one owner, on one event loop. `report` logs a failure with its traceback, and counts it."""

    def __init__(self, report: Report = log_fault) -> None:
        self._report = report
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0

    def keep(self, name: str, work: Callable[[], Awaitable[object]], every_s: float = 0.0) -> asyncio.Task[None]:
        """Repeat `work`, `every_s` seconds after its end, until the task is cancelled."""
        return self._start(self._keep(name, work, every_s))

    def once(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background, once. A failure is reported and not retried."""
        task = self._start(work)
        task.add_done_callback(partial(self._ended, name))
        return task

    def guarded(self, name: str, call: Callable[..., object]) -> Callable[..., None]:
        """Return a callback that calls `call`, and reports an exception instead of raising it."""

        def guard(*given: object) -> None:
            try:
                call(*given)
            except Exception as error:
                self.failed(name, error)

        return guard

    def failed(self, name: str, error: BaseException) -> None:
        """Count and report a failure."""
        self.failures += 1
        self._report(name, error)

    def cancel(self) -> None:
        """Cancel all duties without waiting for their ends."""
        for task in list(self._tasks):
            task.cancel()

    async def aclose(self) -> None:
        """Cancel all duties and wait for their ends."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(name, error)

    async def _keep(self, name: str, work: Callable[[], Awaitable[object]], every_s: float) -> None:
        failures = 0
        while True:
            try:
                await work()
            except Exception as error:
                failures += 1
                self.failed(name, error)
                await asyncio.sleep(pause_s(failures))
            else:
                failures = 0
                await asyncio.sleep(every_s)


def future_of(name: str, call: Callable[[], T]) -> Future[T]:
    """Run `call` in a daemon thread, which blocks neither a loop nor the exit; return its future, without `cancel`."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def in_thread(name: str, work: Callable[[], object], report: Report = log_fault) -> threading.Thread:
    """Run `work` in a daemon thread; report a failure."""

    def run() -> None:
        try:
            work()
        except Exception as error:
            report(name, error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
