"""What `HttpTransport.send` hands back: a reply that is all there, or one that is still arriving.

A streamed reply and its connection live different lives. The connection goes back to the pool when the last
byte has come, while the caller may still be reading; a caller may forget the reply, and the node must then
stop. So between them stands an `Inbox`: the connection fills it, the reply empties it, and each lets go of
it at the end. The connection never refers to the reply, so a forgotten reply is garbage at once and takes
its connection along.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from sollol.transport import faults as _faults
from sollol.transport.base import ERROR_MOST, RawHeaders, TransportFault


def fold(raw: RawHeaders) -> dict[str, str]:
    """Names in lower case; a name that came twice has its values joined by ", "."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


class Source(Protocol):
    """What an inbox knows of its connection."""

    url: str
    loop: asyncio.AbstractEventLoop
    max_body_bytes: int

    def resume(self) -> None: ...
    def abort(self) -> None: ...


class Inbox:
    """What has come of a streamed body and was not taken yet."""

    __slots__ = ("error", "max_body_bytes", "pieces", "size", "source", "url", "waiter")

    def __init__(self, source: Source) -> None:
        self.source: Source | None = source  # None once the body has ended, well or badly
        self.url, self.max_body_bytes = source.url, source.max_body_bytes
        self.pieces: list[bytes] = []
        self.size = 0
        self.error: BaseException | None = None
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def end(self, error: BaseException | None) -> None:
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
        """Everything that is there. A slow reader so catches up in one step."""
        pieces = self.pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.size = 0
        if self.source is not None:
            self.source.resume()
        return taken


class WholeReply:
    """A reply whose body is complete; it has no connection any more."""

    __slots__ = ("_headers", "_raw", "_rest", "status")

    def __init__(self, status: int, raw: RawHeaders, body: bytes) -> None:
        self.status = status
        self._raw = raw
        self._headers: dict[str, str] | None = None
        self._rest = body

    @property
    def headers(self) -> dict[str, str]:
        if self._headers is None:  # most callers never look
            self._headers = fold(self._raw)
        return self._headers

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        return await self.read()

    async def read(self) -> bytes:
        body, self._rest = self._rest, b""
        return body

    async def aclose(self) -> None:
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
            fault = _faults.body_too_large(inbox.url, most)
            self._leave(fault)
            raise fault

    async def aclose(self) -> None:
        source = self._inbox.source
        if source is not None:
            self._leave(_faults.closed_here(source.url))
            self._inbox.pieces.clear()

    def _leave(self, why: TransportFault) -> None:
        source = self._inbox.source
        if source is not None:
            self._inbox.end(why)
            source.abort()

    def __del__(self) -> None:
        source = self._inbox.source
        if source is not None:
            try:  # the collector may run in any thread
                source.loop.call_soon_threadsafe(source.abort)
            except RuntimeError:  # the loop is closed, and its sockets with it
                pass

    def __repr__(self) -> str:
        return f"<StreamReply {self.status} {'arriving' if self._inbox.source else 'ended'}>"
