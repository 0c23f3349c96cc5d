"""Replies of `HttpTransport.send`: a complete one, or one that is still arriving.

A streamed reply and its connection have different lifetimes. The connection returns to the pool after the last byte,
while the caller may still be reading; a caller may drop the reply, and the node must then stop. So an `Inbox` stands
between them: the connection fills it, the reply empties it, and both release it at the end. The connection never refers
to the reply, so a dropped reply is collected at once and its finaliser closes the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from sollol.transport import faults
from sollol.transport.base import ERROR_MOST, RawHeaders, TransportFault


def fold(raw: RawHeaders) -> dict[str, str]:
    """Return headers by lower-case name; values of a repeated name are joined by ", "."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


class InboxSource(Protocol):
    """The connection of an inbox."""

    url: str
    loop: asyncio.AbstractEventLoop
    max_body_bytes: int

    def resume(self) -> None:
        """Continue reading from the node."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class Inbox:
    """Received pieces of a streamed body that the reader has not taken."""

    __slots__ = ("error", "max_body_bytes", "pieces", "size", "source", "url", "waiter")

    def __init__(self, source: InboxSource) -> None:
        self.source: InboxSource | None = source  # None after the end of the body, good or bad
        self.url, self.max_body_bytes = source.url, source.max_body_bytes
        self.pieces: list[bytes] = []
        self.size = 0
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Wake the waiting reader."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def end(self, error: BaseException | None) -> None:
        """End the body, with an error or without."""
        self.source, self.error = None, error
        self.wake()

    async def arrival(self) -> None:
        """Wait for the next piece, or the end."""
        assert self.source is not None
        if self.waiter is not None:
            raise RuntimeError("two tasks read the same reply")
        waiter = self.waiter = self.source.loop.create_future()
        try:
            await waiter
        finally:
            self.waiter = None

    def take(self) -> bytes:
        """Return all waiting pieces as one, so that a slow reader catches up in one step."""
        pieces = self.pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        if self.source is not None:
            self.source.resume()
        return taken


class WholeReply:
    """A reply with a complete body and without a connection."""

    __slots__ = ("_headers", "_raw", "_rest", "status")

    def __init__(self, status: int, raw: RawHeaders, body: bytes) -> None:
        self.status = status
        self._raw = raw
        self._headers: dict[str, str] | None = None
        self._rest = body

    @property
    def headers(self) -> dict[str, str]:
        """The headers; names in lower case."""
        if self._headers is None:  # most callers never read them
            self._headers = fold(self._raw)
        return self._headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return await self.read()

    async def read(self) -> bytes:
        """Return the rest of the body."""
        body, self._rest = self._rest, b""
        return body

    async def aclose(self) -> None:
        """Drop the rest of the body."""
        self._rest = b""

    def __repr__(self) -> str:
        return f"<WholeReply {self.status}>"


class StreamReply:
    """A reply that is still arriving."""

    __slots__ = ("_headers", "_inbox", "_raw", "status")

    def __init__(self, status: int, raw: RawHeaders, inbox: Inbox) -> None:
        self.status = status
        self._raw = raw
        self._headers: dict[str, str] | None = None
        self._inbox = inbox

    @property
    def headers(self) -> dict[str, str]:
        """The headers; names in lower case."""
        if self._headers is None:
            self._headers = fold(self._raw)
        return self._headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        inbox = self._inbox
        while not inbox.pieces:
            if inbox.source is None:
                if inbox.error is not None:
                    raise inbox.error
                raise StopAsyncIteration
            await inbox.arrival()
        return inbox.take()

    async def read(self) -> bytes:
        """Return the rest of the body, at most `max_body_bytes`."""
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            self._refuse_above_bound(size)
        return b"".join(pieces)

    def _refuse_above_bound(self, size: int) -> None:
        inbox = self._inbox
        most = inbox.max_body_bytes if self.status < 300 else min(ERROR_MOST, inbox.max_body_bytes)
        if size > most:
            fault = faults.body_too_large(inbox.url, most)
            self._leave(fault)
            raise fault

    async def aclose(self) -> None:
        """Close the connection unless the body is complete."""
        source = self._inbox.source
        if source is not None:
            self._leave(faults.closed_here(source.url))
            self._inbox.pieces.clear()

    def _leave(self, why: TransportFault) -> None:
        source = self._inbox.source
        if source is not None:
            self._inbox.end(why)
            source.abort()

    def __del__(self) -> None:
        source = self._inbox.source
        if source is not None:
            try:  # the garbage collector may run in any thread
                source.loop.call_soon_threadsafe(source.abort)
            except RuntimeError:  # the loop is closed, and its sockets with it
                pass

    def __repr__(self) -> str:
        return f"<StreamReply {self.status} {'arriving' if self._inbox.source else 'ended'}>"
