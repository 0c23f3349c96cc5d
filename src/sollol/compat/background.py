"""Run coroutines in one background thread for callers without an event loop; validate numbers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sollol.errors import BadInput, SollolError
from sollol.workload.validation import short

T = TypeVar("T")
_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: threads do not exist in a forked child


def background() -> asyncio.AbstractEventLoop:
    """Return an event loop in a daemon thread, started by the first call."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sollol-compat", daemon=True).start()
        return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Start a coroutine in the background; return its future, also for `asyncio.wrap_future`."""
    return asyncio.run_coroutine_threadsafe(work, background())


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background and return its result. An interrupted wait cancels it."""
    if _is_running_here(background()):
        work.close()
        raise SollolError("a coroutine that SOLLOL runs in the background cannot wait for another one there")
    future = submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def check_number(name: str, value: Any, least: float, most: float = float("inf")) -> float:
    """Validate a number within bounds.

    Raises:
        BadInput: It is no number, or out of bounds.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
        raise BadInput(f"{name}={short(value)}; expected a number {bounds}")
    return value
