"""Hold one request of a client, and send its answer.

A request is answered once: whole (`answer`, `refuse`), or as a stream (`begin`, `write`, `end`). Writes after the
client has left are dropped and are no error: `on_gone` is called, which may cancel the handler.
"""

from __future__ import annotations

import asyncio
import base64
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
_UNBUFFERED: Final = b"X-Accel-Buffering: no\r\n"  # without it, nginx as a proxy buffers a stream
_V1_JSON: Final = "application/json"
_TYPES: Final = {t: f"Content-Type: {t}\r\n".encode() for t in (JSON, NDJSON, SSE, TEXT, _V1_JSON)}
SMALL: Final = 1024  # bytes; most pieces of a stream have 200, and a table is faster than formatting their size
_SIZES: Final = [b"%x\r\n" % size for size in range(SMALL)]
Headers = Iterable[tuple[str, str]]


class Request:
    """Hold the head and body of a request, and send its answer to the client."""

    __slots__ = (
        "_begun",
        "_connection",
        "_drain",
        "_early",
        "_ended",
        "_left",
        "_upload",
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
        "parsed",
        "partial",
        "parts",
        "path",
        "plain",
        "route",
        "takes_body",
        "target",
        "task",
        "unjoined",
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
        self.target = target  # path and query, not decoded
        path = target.partition("?")[0] if "?" in target else target
        self.path = unquote(path) if "%" in path else path  # decoded as a node does: /api%2Fchat is /api/chat
        self.version = version
        self.headers = headers  # names in lower case
        self.body = b""
        self.unjoined: list[bytes] | None = None  # of a large body that is not joined yet
        self.keep_alive = False
        self.key: Any = None  # of the client, where the server requires keys
        self.charge: Any = None  # the key's reservation for this request
        self.task = 0  # id of the task of an inference
        self.plain = False  # it has no header `X-Sollol-*`
        self.origin = b""  # of a browser's page that may read the answer
        self.route: Any = None  # the server's handler; None until the head is accepted
        self.uploads_body = False  # its body is read in pieces, and may be larger than memory
        self.parts: tuple[str, ...] = ()  # of its path
        self.takes_body = True  # if not, its body is discarded
        # Results of parsing a large body in a thread: the fields of an inference, all fields, the state of its stream.
        self.parsed: Any = None
        self.fields: dict[str, Any] | None = None
        self.partial: Any = None
        self.held = 0  # bytes of its body that the intake counts
        self.on_gone: Callable[[], object] | None = None
        self.on_drained: Callable[[], object] | None = None  # called when the client has caught up
        self._begun = False
        self._ended = False
        self._left = -1  # bytes to come of an answer of known length; -1 for chunks
        self._early: tuple[int, bytes, bytes, bytes] | None = None  # an answer given before its turn
        self._drain: asyncio.Future[None] | None = None
        self._upload: asyncio.Queue[bytes] | None = None

    # --- the request ---

    def header(self, name: bytes) -> str:
        """Return a header by its name in lower case, or "" if absent."""
        value = self.headers.get(name)
        return value.decode("latin-1").strip() if value is not None else ""

    @property
    def query(self) -> dict[str, str]:
        """Return the query; the values of a repeated name are joined by commas."""
        found: dict[str, str] = {}
        for name, value in parse_qsl(self.target.partition("?")[2], keep_blank_values=True):
            found[name] = f"{found[name]},{value}" if name in found else value
        return found

    def join_body(self) -> None:
        """Join the pieces of a large body. Takes a millisecond for each megabyte; other threads run meanwhile."""
        pieces, self.unjoined = self.unjoined, None
        if pieces is not None:
            self.body = b"".join(pieces)

    def pieces(self) -> AsyncIterator[bytes]:
        """Return an iterator of the pieces of an upload as they arrive."""
        return Upload(self)

    async def next_piece(self) -> bytes:
        """Return the next piece of an upload, b"" at its end."""
        assert self._upload is not None
        piece = await self._upload.get()
        if self._connection is not None:
            self._connection.upload_taken(len(piece))
        return piece

    @property
    def is_gone(self) -> bool:
        """Check whether the client has left before the answer's end."""
        return self._connection is None and not self._ended

    # --- answers ---

    @property
    def json_line(self) -> bytes:
        """Return the Content-Type line that a node sends with JSON on this path."""
        return _TYPES[_V1_JSON if self.path.startswith("/v1/") else JSON]

    def answer(self, status: int, body: bytes, content_type: str = "", headers: Headers = ()) -> None:
        """Send a whole answer, as JSON if no type is given."""
        self.answer_with(status, body, type_line(content_type) if content_type else self.json_line, _lines(headers))

    def answer_with(self, status: int, body: bytes, type_line: bytes, extra: bytes) -> None:
        """Send a whole answer with encoded header lines."""
        connection = self._connection
        if connection is None or self._begun:
            return
        if connection.current is not self:  # refused by its head, before the answers to earlier requests
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
        """Check whether an answer waits for its turn."""
        return self._early is not None

    def answer_early(self) -> None:
        """Send the answer that was given before its turn."""
        assert self._early is not None
        status, body, type_line, extra = self._early
        self.answer_with(status, body, type_line, extra)

    def begin(self, status: int = 200, content_type: str = NDJSON, headers: Headers = ()) -> None:
        """Begin a streamed answer: `write` its pieces, then `end`."""
        self.begin_with(status, type_line(content_type), _lines(headers))

    def begin_sized(self, status: int, content_type: str, length: int, headers: Headers = ()) -> None:
        """Begin a streamed answer of `length` bytes. An answer to HEAD ends with its head."""
        connection = self._connection
        if connection is None or self._begun:
            return
        self._begun = True
        self._left = length
        extra = _lines(headers)
        framing = b"Content-Length: %d\r\n" % length
        connection.send(self._head(connection, status, type_line(content_type), extra, framing))
        if self.method == "HEAD":
            self._left = 0

    @property
    def peer(self) -> str:
        """Return the address of the client, "" if it has left."""
        return self._connection.peer if self._connection is not None else ""

    def begin_with(self, status: int, type_line: bytes, extra: bytes, first: bytes = b"") -> None:
        """Begin a streamed answer with encoded header lines and its first piece, in one write."""
        connection = self._connection
        if connection is None or self._begun:
            return
        self._begun = True
        framing = b"Transfer-Encoding: chunked\r\n"
        if self.version == "1.0":  # the connection's end marks the answer's end
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
        line = _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status  # a node may send any status
        return b"%b%b%b%b%b%b\r\n" % (line, type_line, common, extra, more, framing)

    def _chunk(self, piece: bytes) -> bytes:
        if self._left >= 0:
            self._left -= len(piece)
            assert self._left >= 0, "an answer is longer than its head announces"
            return piece
        if self.version == "1.0":
            return piece
        size = len(piece)
        return _SIZES[size] + piece + b"\r\n" if size < SMALL else b"%x\r\n%b\r\n" % (size, piece)

    def write(self, piece: bytes) -> bool:
        """Send a piece of a streamed answer; after False, wait for `drained` or `on_drained`."""
        connection = self._connection
        if connection is None:
            return True
        if piece and self.method != "HEAD":
            connection.send(self._chunk(piece))
        return not connection.blocked

    def end(self, last: bytes = b"") -> None:
        """End a streamed answer with the piece `last`."""
        connection = self._connection
        if connection is None or self._ended:
            return
        if self._left > 0:
            self.cut()  # shorter than announced
            return
        if self._left == 0:
            pass
        elif self.version == "1.0":
            connection.send(last)
        elif last and self.method != "HEAD":
            connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        elif self.method != "HEAD":
            connection.send(b"0\r\n\r\n")
        self._finish(connection)

    def cut(self) -> None:
        """Abort a streamed answer, so that the client detects that it is incomplete."""
        if self._connection is not None:
            self._connection.abort()

    async def drained(self) -> None:
        """Wait until the client has caught up."""
        connection = self._connection
        if connection is not None and connection.blocked:
            self._drain = asyncio.get_running_loop().create_future()
            await self._drain

    def refuse(self, status: int, message: str, headers: Headers = ()) -> None:
        """Send an error in the form of the API that was called."""
        if self._connection is not None:
            kind = TEXT if status in (404, 405) and not message else ""
            self.answer(status, self._connection.server.error_body(self.path, status, message), kind, headers)

    @property
    def is_answered(self) -> bool:
        """Check whether the answer is complete."""
        return self._ended

    @property
    def has_begun(self) -> bool:
        """Check whether the head of the answer has been sent."""
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

    # --- notices of the connection ---

    def gone(self) -> None:
        """Record that the client has left, and call `on_gone`."""
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
        """Wake the writers that wait for the client."""
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)
        self._drain = None
        if self.on_drained is not None:
            self.on_drained()

    def uploads(self) -> None:
        """Expect the body in pieces."""
        self._upload = asyncio.Queue()

    def uploaded(self, piece: bytes) -> None:
        """Receive a piece of the body, b"" at its end."""
        assert self._upload is not None
        self._upload.put_nowait(piece)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path} {self.task}>"


class Upload:
    """Iterate over the pieces of a body that is too large for memory."""

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
    """Check whether one of these names is a header `X-Sollol-*`."""
    return any(name.startswith(b"x-sollol-") for name in headers)


def _lines(headers: Headers) -> bytes:
    return b"".join([f"{name}: {value}\r\n".encode("latin-1") for name, value in headers])


def type_line(content_type: str) -> bytes:
    """Return the encoded Content-Type line."""
    return _TYPES.get(content_type) or f"Content-Type: {content_type}\r\n".encode("latin-1")


def _cors(origin: bytes) -> bytes:
    return b"Access-Control-Allow-Origin: " + origin + b"\r\nVary: Origin\r\n"


def basic_password(scheme: str, credentials: str) -> str:
    """Return the password of Basic authentication, or ""; clients send the key of `http://any:KEY@host` so."""
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""
