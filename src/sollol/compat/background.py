"""Run coroutines in one background thread, for callers without an event loop; check numbers."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sollol.errors import BadInput, SollolError

T = TypeVar("T")
_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a child has no thread of its parent's


def background() -> asyncio.AbstractEventLoop:
    """An event loop that runs in a daemon thread of its own; started by the first call."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sollol-compat", daemon=True).start()
        return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine in the background; the result is a future of threads, for `asyncio.wrap_future` too."""
    return asyncio.run_coroutine_threadsafe(work, background())


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background and wait for it; it is cancelled if the wait is interrupted."""
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
    """A number within bounds. Raises BadInput."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
        raise BadInput(f"{name}={value!r}; expected a number {bounds}")
    return value
