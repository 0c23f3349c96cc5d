"""Handle signals of the operating system on an event loop, on Windows too."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable


def on_signal(loop: asyncio.AbstractEventLoop, names: tuple[str, ...], then: Callable[[], object]) -> None:
    """Call `then` on the loop at each of these signals that the system has. Only in the main thread.

    Loops of Windows raise NotImplementedError; there, Python's own handler wakes the loop.
    """
    for name in names:
        number = getattr(signal, name, None)
        if number is None:  # SIGHUP on Windows, SIGBREAK elsewhere
            continue
        try:
            loop.add_signal_handler(number, then)
        except NotImplementedError:
            signal.signal(number, lambda *_: _wake(loop, then))


def _wake(loop: asyncio.AbstractEventLoop, then: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the program is about to end anyway
        loop.call_soon_threadsafe(then)
