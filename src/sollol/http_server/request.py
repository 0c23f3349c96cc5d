"""One request of a client, and the ways to answer it.

A request is answered once: whole (`answer`, `refuse`), or as a stream (`begin`, `write`, `end`). What is written after
the client has left goes nowhere and is no error: its handler is told by `on_gone`, or cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from sollol.http_server.connection import ClientConnection

JSON: Final = "application/json; charset=utf-8"
NDJSON: Final = "application/x-ndjson"
SSE: Final = "text/event-stream"
TEXT: Final = "text/plain; charset=utf-8"

_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_UNBUFFERED: Final = b"X-Accel-Buffering: no\r\n"  # else nginx before us holds a stream back
_V1_JSON: Final = "application/json"
_TYPES: Final = {t: f"Content-Type: {t}\r\n".encode() for t in (JSON, NDJSON, SSE, TEXT, _V1_JSON)}
SMALL: Final = 1024  # bytes of a piece of a stream; most have 200, and the formatting costs more than the copying
_SIZES: Final = [b"%x\r\n" % size for size in range(SMALL)]
Headers = Iterable[tuple[str, str]]


class Request:
    __slots__ = (
        "_begun",
        "_connection",
        "_drain",
        "_early",
        "_ended",
        "_upload",
        "asked",
        "body",
        "charge",
        "fields",
        "headers",
        "held",
        "keep_alive",
        "key",
        "method",
        "on_drained",
        "on_gone",
        "origin",
        "parts",
        "path",
        "plain",
        "route",
        "said",
        "takes_body",
        "target",
        "task",
        "uploads_body",
        "version",
    )

    def __init__(
        self,
        connection: ClientConnection,
        method: str,
        target: str,
        version: str,
        headers: dict[bytes, bytes],
    ) -> None:
        self._connection: ClientConnection | None = connection
        self.method = method
        self.target = target  # path and query, as they came
        path = target.partition("?")[0] if "?" in target else target
        self.path = unquote(path) if "%" in path else path  # as a node reads it: /api%2Fchat is /api/chat
        self.version = version
        self.headers = headers  # names in lower case
        self.body = b""
        self.keep_alive = False
        self.key: Any = None  # of the client, where the server asks for keys
        self.charge: Any = None  # what the key has reserved for this request
        self.task = 0  # that it became, for an inference
        self.plain = False  # it is known to have none of our own headers
        self.origin = b""  # of a browser's page that may read the answer
        self.route: Any = None  # what answers it, as the server has it; None until the head is accepted
        self.uploads_body = False  # its body is taken in pieces, and may be larger than memory
        self.parts: tuple[str, ...] = ()  # of its path
        self.takes_body = True  # else what comes of a body is passed over
        self.asked: Any = None  # what was read of a large body in a thread: what decides of an inference,
        self.fields: dict[str, Any] | None = None  # all of it,
        self.said: Any = None  # what is needed to go on with its stream elsewhere
        self.held = 0  # bytes of its body that the intake counts
        self.on_gone: Callable[[], object] | None = None
        self.on_drained: Callable[[], object] | None = None  # the client has caught up after a `write` gave False
        self._begun = False
        self._ended = False
        self._early: tuple[int, bytes, bytes, bytes] | None = None  # an answer that was given before its turn
        self._drain: asyncio.Future[None] | None = None
        self._upload: asyncio.Queue[bytes] | None = None

    # --- what was asked ---

    def header(self, name: bytes) -> str:
        """A header by its name in lower case; "" if absent."""
        value = self.headers.get(name)
        return value.decode("latin-1").strip() if value is not None else ""

    @property
    def query(self) -> dict[str, str]:
        """The query; a name that came more than once has its values joined by commas."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.target.partition("?")[2], keep_blank_values=True):
            found[name] = f"{found[name]},{value}" if name in found else value
        return found

    def pieces(self) -> AsyncIterator[bytes]:
        """The body of an upload as it comes, in any cutting. Waits for the client; ends with the body."""
        return Upload(self)

    async def next_piece(self) -> bytes:
        """The next piece of an upload; b"" is its end."""
        assert self._upload is not None
        piece = await self._upload.get()
        if self._connection is not None:
            self._connection.upload_taken(len(piece))
        return piece

    @property
    def is_gone(self) -> bool:
        """The client has left."""
        return self._connection is None and not self._ended

    # --- answers ---

    @property
    def json_line(self) -> bytes:
        """The header line of a JSON answer, as a node's route has it."""
        return _TYPES[_V1_JSON if self.path.startswith("/v1/") else JSON]

    def answer(self, status: int, body: bytes, content_type: str = "", headers: Headers = ()) -> None:
        """The whole answer. JSON, if no type is given."""
        self.answer_with(status, body, type_line(content_type) if content_type else self.json_line, _lines(headers))

    def answer_with(self, status: int, body: bytes, type_line: bytes, extra: bytes) -> None:
        """The same with header lines at hand."""
        connection = self._connection
        if connection is None or self._begun:
            return
        if connection.current is not self:  # it is refused by its head, while others before it are being answered
            self._early = (status, body, type_line, extra)
            return
        self._begun = True
        framing = b"Content-Length: %d\r\n" % len(body) if status != 204 else b""
        head = self._head(connection, status, type_line, extra, framing)
        answer = head + body if self.method != "HEAD" else head
        if connection.server.is_crowded:
            connection.defer_write(answer)
        else:
            connection.send(answer)
        self._finish(connection)

    @property
    def is_refused(self) -> bool:
        """It is answered already, but for its turn."""
        return self._early is not None

    def answer_early(self) -> None:
        """Give the answer that was found before its turn."""
        assert self._early is not None
        status, body, type_line, extra = self._early
        self.answer_with(status, body, type_line, extra)

    def begin(self, status: int = 200, content_type: str = NDJSON, headers: Headers = ()) -> None:
        """A streamed answer begins: `write` its pieces, then `end`."""
        self.begin_with(status, type_line(content_type), _lines(headers))

    def begin_with(self, status: int, type_line: bytes, extra: bytes, first: bytes = b"") -> None:
        """The same with header lines, and perhaps a first piece, at hand: one write."""
        connection = self._connection
        if connection is None or self._begun:
            return
        self._begun = True
        framing = b"Transfer-Encoding: chunked\r\n"
        if self.version == "1.0":  # the end of the connection is the end of the answer
            self.keep_alive = False
            framing = b""
        head = self._head(connection, status, type_line, extra, _UNBUFFERED + framing)
        connection.send(head + self._chunk(first) if first and self.method != "HEAD" else head)

    def _head(self, connection: ClientConnection, status: int, type_line: bytes, extra: bytes, framing: bytes) -> bytes:
        more = _cors(self.origin) if self.origin else b""
        if not self.keep_alive or connection.draining:
            self.keep_alive = False
            more += b"Connection: close\r\n"
        elif self.version == "1.0":
            more += b"Connection: keep-alive\r\n"
        common = connection.server.common
        line = _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status  # a node may say any
        return b"%b%b%b%b%b%b\r\n" % (line, type_line, common, extra, more, framing)

    def _chunk(self, piece: bytes) -> bytes:
        if self.version == "1.0":
            return piece
        size = len(piece)
        return _SIZES[size] + piece + b"\r\n" if size < SMALL else b"%x\r\n%b\r\n" % (size, piece)

    def write(self, piece: bytes) -> bool:
        """A piece of a streamed answer. False: the client is behind; wait for `drained` or `on_drained`."""
        connection = self._connection
        if connection is None:
            return True
        if piece and self.method != "HEAD":
            connection.send(self._chunk(piece))
        return not connection.blocked

    def end(self, last: bytes = b"") -> None:
        """The streamed answer is complete, with `last`."""
        connection = self._connection
        if connection is None or self._ended:
            return
        if self.version == "1.0":
            connection.send(last)
        elif last and self.method != "HEAD":
            connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        elif self.method != "HEAD":
            connection.send(b"0\r\n\r\n")
        self._finish(connection)

    def cut(self) -> None:
        """Break a streamed answer off, so that the client sees that it is not whole."""
        if self._connection is not None:
            self._connection.abort()

    async def drained(self) -> None:
        """Wait until the client has caught up."""
        connection = self._connection
        if connection is not None and connection.blocked:
            self._drain = asyncio.get_running_loop().create_future()
            await self._drain

    def refuse(self, status: int, message: str, headers: Headers = ()) -> None:
        """An error in the words of the API that was called."""
        if self._connection is not None:
            kind = TEXT if status in (404, 405) and not message else ""
            self.answer(status, self._connection.server.error_body(self.path, status, message), kind, headers)

    @property
    def is_answered(self) -> bool:
        return self._ended

    @property
    def has_begun(self) -> bool:
        return self._begun

    def _finish(self, connection: ClientConnection) -> None:
        self._ended = True
        self._release(connection)
        self._connection = None
        self.on_gone = self.on_drained = None
        connection.answered(self)

    def _release(self, connection: ClientConnection) -> None:
        if self.held:
            connection.server.intake.release(self.held)
            self.held = 0

    # --- what the connection tells ---

    def gone(self) -> None:
        """The client has left."""
        if self._connection is not None:
            self._release(self._connection)
        self._connection = None
        if self._upload is not None:
            self._upload.put_nowait(b"")
        self.caught_up()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def caught_up(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None
        if self.on_drained is not None:
            self.on_drained()

    def uploads(self) -> None:
        """The body will come in pieces."""
        self._upload = asyncio.Queue()

    def uploaded(self, piece: bytes) -> None:
        """A piece of the body; b"" is its end."""
        assert self._upload is not None
        self._upload.put_nowait(piece)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path} {self.task}>"


class Upload:
    """The pieces of a body that is too large to be held."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._request.next_piece()
        if not piece:
            raise StopAsyncIteration
        return piece


def has_ours(headers: Iterable[bytes]) -> bool:
    """Is there a header of our own among these names?"""
    return any(name.startswith(b"x-sollol-") for name in headers)


def _lines(headers: Headers) -> bytes:
    return b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers])


def type_line(content_type: str) -> bytes:
    return _TYPES.get(content_type) or f"Content-Type: {content_type}\r\n".encode("latin-1")


def _cors(origin: bytes) -> bytes:
    return b"Access-Control-Allow-Origin: " + origin + b"\r\nVary: Origin\r\n"
