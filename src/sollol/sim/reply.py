"""Hold the answer of a simulated node, which the node writes and the client reads.

The node writes at its own pace, as into the buffer of a socket. A client that leaves early cancels the task that
writes. A fault may end a body in a cut or in silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from sollol.transport.base import Fault, TransportFault

JSON = "application/json; charset=utf-8"
PLAIN_JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
_CHUNKED_OVER_BYTES = 2048  # Go's server sends a Content-Length when the whole body fits its buffer


class SimReply:
    """Hold an answer, complete (`SimReply.of`) or in pieces (`push`, then `finish` or `fail`)."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers: dict[str, str] = headers if headers is not None else {}
        self.idle_s: float | None = None
        self.writer: asyncio.Task[Any] | None = None
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._fault: TransportFault | None = None
        self._reader: asyncio.Future[None] | None = None

    @classmethod
    def of(cls, status: int, body: bytes, content_type: str = JSON, **headers: str) -> SimReply:
        """Return a complete answer. The names of `headers` have underscores for dashes."""
        found = {"content-type": content_type} if content_type else {}
        found |= {name.replace("_", "-"): value for name, value in headers.items()}
        if len(body) > _CHUNKED_OVER_BYTES:
            found["transfer-encoding"] = "chunked"
        elif status != 204:
            found["content-length"] = str(len(body))
        reply = cls(status, found)
        if body:
            reply._pieces.append(body)
        reply._ended = True
        return reply

    @property
    def complete(self) -> bool:
        """Return whether the node has written everything."""
        return self._ended

    @property
    def cut_short(self) -> bool:
        """Return whether it ends in a fault."""
        return self._fault is not None

    def begin(self, status: int, content_type: str, **headers: str) -> None:
        """Write the head of a stream."""
        self.status = status
        self.headers = {"content-type": content_type, "transfer-encoding": "chunked"}
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}

    def push(self, piece: bytes) -> None:
        """Write a piece of the body."""
        if not self._ended:
            self._pieces.append(piece)
            self._notify()

    def finish(self) -> None:
        """End the body."""
        self._ended = True
        self._notify()

    def fail(self, message: str, fault: Fault = Fault.CUT) -> None:
        """End the body with a fault."""
        if not self._ended:
            self._fault = TransportFault(fault, message)
            self.finish()

    def spoil(self, *, silent: bool) -> None:
        """Keep the first half of a complete body; then a cut, or silence."""
        body = b"".join(self._pieces)
        self._pieces = deque([body[: len(body) // 2]] if len(body) > 1 else [])
        self._ended = False
        if not silent:
            self.fail("the connection was closed inside the answer")

    def replace(self, body: bytes) -> None:
        """Put another body under the same head."""
        self._pieces.clear()
        self._pieces.append(body)
        if "content-length" in self.headers:
            self.headers["content-length"] = str(len(body))

    def push_back(self, body: bytes) -> None:
        """Put a body that was read back as one piece: the reply is complete and unread."""
        if body:
            self._pieces.append(body)

    def peek(self) -> bytes:
        """Return the bytes that are written and not yet read."""
        return b"".join(self._pieces)

    def _notify(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _more(self) -> bool:
        """Wait for a piece or the end. Return False at the end."""
        while not self._pieces and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self.idle_s):
                    await self._reader
            except TimeoutError:
                self._leave()
                raise TransportFault(Fault.IDLE_TIMEOUT, f"nothing came for {self.idle_s:g} s") from None
        if self._pieces:
            return True
        if self._fault is not None:
            raise self._fault
        return False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while await self._more():
            yield self._pieces.popleft()

    async def read(self) -> bytes:
        """Return the rest of the body."""
        if self._ended and self._fault is None:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            return body
        return b"".join([piece async for piece in self])

    async def aclose(self) -> None:
        """Leave: cancel the writer, and drop the rest."""
        self._leave()

    def _leave(self) -> None:
        if self.writer is not None and not self._ended:
            self.writer.cancel()
        if not self._ended:
            self.fail("the client left")
        self._pieces.clear()
