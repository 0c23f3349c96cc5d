"""What the doors share: a loop in the background for callers that have none, and keywords of older versions."""

from __future__ import annotations

import asyncio
import difflib
import os
import threading
import warnings
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from sollol.errors import BadInput, SollolError

T = TypeVar("T")
_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a child has no thread of its parent's
_warned: set[str] = set()


def background() -> asyncio.AbstractEventLoop:
    """An event loop that runs in a daemon thread of its own; started by the first call."""
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="sollol-doors", daemon=True).start()
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


def accept_old(where: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
    """Keywords of older versions: accepted, without effect, and said once. Raises BadInput for any other."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise BadInput(
                f"{where}() got an unknown keyword {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        if f"{where}.{name}" not in _warned:
            _warned.add(f"{where}.{name}")
            warnings.warn(f"{where}({name}=...) has no effect any more and can be removed", stacklevel=3)


def warn_once(text: str) -> None:
    """Say it the first time only."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=3)


def check_number(name: str, value: Any, least: float, most: float = float("inf")) -> float:
    """A number within bounds. Raises BadInput."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"from {least:g} to {most:g}" if most < float("inf") else f"of at least {least:g}"
        raise BadInput(f"{name}={value!r}; expected a number {bounds}")
    return value
