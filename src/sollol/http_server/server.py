"""Accept connections, apply the bounds, and close them at the end; a subclass answers the requests.

Gateway and dashboard share this server. Requests arrive as `Request` objects: `decide` is called when a head is
complete and its body unread; `handle` when the body is complete or, for an upload, with the first piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from email.utils import formatdate
from typing import Any, Final

import msgspec

from sollol.duties import Duties
from sollol.http_server.connection import ClientConnection
from sollol.http_server.intake import Intake
from sollol.http_server.limits import ServerLimits
from sollol.http_server.places import Line, Places, backlog_within, descriptors, places_within
from sollol.http_server.request import Request
from sollol.transport.outbox import Outbox

ABORT_WAIT_S: Final = 1.0
DISCARD_BYTES: Final = 8 * 1024 * 1024  # of refused requests, in a second


class HttpServer:
    """Accept connections on one address, in the event loop that starts it."""

    joins_bodies = False  # the subclass calls `join_body` before it reads the body of a request

    def __init__(self, limits: ServerLimits) -> None:
        self.draining = False
        self.common = b""  # header lines of every answer
        self.places = Places(limits.max_connections)
        self.intake = Intake(limits)
        self.bound(limits)
        self._discards = DISCARD_BYTES
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    # --- for subclasses ---

    def decide(self, request: Request) -> None:
        """Accept a request by its head alone (set its `route`), or answer it."""
        raise NotImplementedError

    def handle(self, request: Request) -> None:
        """Answer an accepted request, now or later; it must not raise."""
        raise NotImplementedError

    def admit(self, request: Request) -> None:
        """Answer a request whose head `settled` has accepted before; it must not raise."""
        self.handle(request)

    def settled(self, request: Request) -> Any:
        """Return the route of a request, or None if the same head needs `decide` again."""
        return None

    def proves(self, request: Request) -> bool:
        """Check whether a complete request shows that its connection is no stranger."""
        return True

    def error_body(self, path: str, status: int, message: str) -> bytes:
        """Return the body of an error answer."""
        return msgspec.json.encode({"error": message})

    def header_lines(self) -> bytes:
        """Return the header lines of every answer, without the date."""
        return b""

    @property
    def is_crowded(self) -> bool:
        """Check whether answers are to be written together at the end of the loop's turn."""
        return False

    # --- life ---

    async def listen(
        self, duties: Duties, outbox: Outbox, host: str | None = None, port: int = 0, sock: socket.socket | None = None
    ) -> int:
        """Listen at an address, or on a bound socket, and return the port.

        Raises:
            OSError: The address cannot be bound.
            UnicodeError: The host is no valid name.
        """
        loop = asyncio.get_running_loop()
        self.outbox = outbox
        self.line = Line(loop)
        self.duties = duties
        self._set_date()
        duties.keep("the date of answers", self._each_second, 1.0)
        backlog = backlog_within(descriptors())
        if sock is None:
            self._server = await loop.create_server(lambda: ClientConnection(self, loop), host, port, backlog=backlog)
        else:
            self._server = await loop.create_server(lambda: ClientConnection(self, loop), sock=sock, backlog=backlog)
        server: Any = self._server  # its sockets are a tuple, or a list with uvloop
        found: int = server.sockets[0].getsockname()[1]
        return found

    def bound(self, limits: ServerLimits) -> None:
        """Use these limits from the next request on."""
        self.limits = limits
        self.places.limit = min(limits.max_connections, places_within(descriptors()))
        self.intake.apply(limits)
        self.idle_s = limits.idle_timeout_s

    async def _each_second(self) -> None:
        self._set_date()
        self._discards = DISCARD_BYTES
        self.intake.tick(asyncio.get_running_loop().time())

    def _set_date(self) -> None:
        self.common = b"Date: %b\r\n%b" % (formatdate(usegmt=True).encode(), self.header_lines())

    async def close(self, drain_s: float) -> int:
        """Stop listening, wait up to `drain_s` seconds for requests, and return the number cut off."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in self.places.all():
            connection.drain()
        try:
            async with asyncio.timeout(drain_s):
                while self.places.all():  # noqa: ASYNC110 - they end one by one
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass
        left = len(self.places.all())
        for connection in self.places.all():
            connection.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_WAIT_S):
                while self.places.all():  # noqa: ASYNC110 - their last answers are on the way
                    await asyncio.sleep(0.01)
        for connection in self.places.all():
            connection.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ABORT_WAIT_S)
        return left

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the answer of one request as a task, and cancel it when the server closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def may_discard(self, size: int) -> bool:
        """Check whether `size` more bytes of refused requests may be read in this second."""
        self._discards -= size
        return self._discards > 0
