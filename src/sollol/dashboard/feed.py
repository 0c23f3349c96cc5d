"""Send two snapshots a second to all listeners.

Snapshots are taken only while there is a listener. A slow listener skips frames and does not delay the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from sollol.duties import Duties
from sollol.errors import SollolError

EVERY_S = 0.5
LISTENERS = 32  # a frame may be 100 kB, and a browser opens one stream for each tab


def encode(value: Any) -> bytes:
    """Return a value as JSON for browsers, with null for NaN and infinity."""
    return msgspec.json.encode(value)


class Feed:
    """Read a snapshot twice a second and send it to all listeners.

    An error of `read` is sent to the listeners as an event `trouble`, and the next turn `read` is called again.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], every_s: float = EVERY_S) -> None:
        self._read = read
        self._every_s = every_s
        self._listening = 0
        self._frame = b""
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._closed = False
        self._trouble = ""  # the error of the last turn, so that each is logged once
        self._duties = Duties()

    @property
    def listening(self) -> int:
        """Return the number of listeners."""
        return self._listening

    def take_place(self) -> bool:
        """Add a listener, which must call `leave` at its end; return False where there is no room."""
        if self._listening >= LISTENERS or self._closed:
            return False
        self._listening += 1
        if self._reading is None:
            self._reading = self._duties.keep("what the page shows", self._turn, self._every_s)
        return True

    def leave(self) -> None:
        """Remove a listener; the last one ends the reading."""
        self._listening -= 1
        if not self._listening and self._reading is not None:
            self._reading.cancel()
            self._reading, self._frame = None, b""

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield server-sent events, from the newest on, until the feed is closed."""
        yield b"retry: 2000\n\n"
        if self._frame:
            yield self._frame
        while not self._closed:
            await self._news.wait()
            if not self._closed:
                yield self._frame

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._news.set()

    async def _turn(self) -> None:
        if self._closed:
            return
        trouble = ""
        try:
            event = b"snapshot", encode(await self._read())
        except Exception as error:  # the page shows any error instead of old numbers
            trouble = str(error) or type(error).__name__
            event = b"trouble", encode({"error": trouble})
            if trouble != self._trouble and not isinstance(error, SollolError):
                self._duties.failed("what the page shows", error)
        self._trouble = trouble
        self._frame = b"event: %b\ndata: %b\n\n" % event
        news, self._news = self._news, asyncio.Event()
        news.set()
