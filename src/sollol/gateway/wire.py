"""One connection of a client: bytes become requests, answers become bytes. HTTP/1.1 and 1.0, strictly.

The parser is llhttp (httptools), which refuses conflicting or repeated framing headers, folded headers, bad chunk sizes
and bare line ends. On top of it: one Host, no coding but chunked, no repeated header that decides something, bounds for
heads, bodies, requests sent ahead and time. A request that breaks a rule is answered with 4xx and the connection is
closed: what follows it cannot be trusted to be a request.

Requests sent ahead (pipelining) wait here and are answered in order, one at a time.

One object stands between the socket and the gateway, as in `nodes._connection`, and for the same reason: that is why
the file has more than 400 lines.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from sollol.gateway import bare
from sollol.gateway.known import KnownRequest
from sollol.gateway.refusals import error_body
from sollol.gateway.request import Request
from sollol.nodes._known import known_head
from sollol.nodes._outbox import Writer

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway
    from sollol.gateway.routes import Route

AHEAD: Final = 16  # requests that a client may send before it has read the answers
UPLOAD_BYTES: Final = 1024 * 1024  # of an upload, not yet taken by its handler
UNLIKE: Final = 4  # heads that are learned in vain: each request of such a client has another
STILL_THERE_S: Final = (0.05, 0.2, 1.0, 5.0)  # between looks after a client that sends nothing more
LINGER_S: Final = 2.0  # a client that is still sending must be able to read why it was refused
RETRY_AFTER_S: Final = "5"  # until a gateway that ends should have begun anew
TARGET_BYTES: Final = 16 * 1024
HEADERS: Final = 128
# A second one of these would be a second opinion about who asks, or of whom.
_ONCE: Final = frozenset((b"host", b"authorization", b"content-type", b"origin", b"expect", b"x-api-key"))


class Broken(Exception):
    """The request breaks a rule: the answer, and then the end of the connection."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class ClientConnection(Writer, asyncio.Protocol):
    """Belongs to a Gateway, which is asked for an answer to each request in turn."""

    # fmt: off
    __slots__ = (
        "_arrived", "_bare", "_body", "_body_size", "_broken", "_continue", "_current", "_ended",
        "_head_size", "_in_message", "_known",
        "_offered", "_parser", "_paused", "_raw", "_reading", "_taken", "_unlike", "_unsent", "_upload_size", "_url",
        "_waiting", "blocked", "draining", "gateway",
    )
    # fmt: on

    def __init__(self, gateway: Gateway, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, gateway.outbox)
        self.gateway = gateway
        self._parser: Any = httptools.HttpRequestParser(self)
        self._current: Request | None = None  # being answered
        self._waiting: deque[Request] = deque()  # complete, behind it
        self._reading: Request | None = None  # its body is coming
        self._in_message = False
        self._broken: Broken | None = None
        self._paused = False  # we take no more bytes
        self._continue = False  # it waits for us to want its body
        self._bare = b""  # of a health check that is not whole
        self._url = self._offered = b""  # the latter: a head with an Upgrade, without it
        self._raw: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._arrived = self._head_size = self._body_size = self._upload_size = self._unsent = 0
        self._known: KnownRequest | None = None
        self._taken: Request | None = None  # in this arrival, and whole
        self._ended = False  # the client sends nothing more
        self._unlike = 0  # heads in a row that were like none before
        self.blocked = False  # it takes no more of ours
        self.draining = gateway.draining

    # --- the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if not self.gateway.welcome(self):
            self._refuse(503, "too many connections; try again later")
            return
        self.expect(self.gateway.limits.header_timeout_s)

    def data_received(self, data: bytes) -> None:
        if self._broken is not None:
            return
        between = self._current is None and not self._in_message and not self._waiting  # no request has begun
        if between and (known := self._known) is not None and (body := known.head.body(data)) is not None:
            gateway = self.gateway
            if gateway.limits is known.limits and len(body) <= known.max_body_bytes:
                self._unlike = 0
                request = Request(self, known.method, known.target, known.version, known.headers)
                request.keep_alive = True
                request.plain = known.plain
                request.body = body
                self._take(request, known.route)
                return
        self._arrived = len(data)
        if between and (self._bare or data[:5] in (b"GET /", b"HEAD ")):
            self._bare, whole = bare.collect(self._bare, data)
            if whole is None:
                self.expect(self.gateway.limits.header_timeout_s)
                return
            data = whole
        try:
            left = self._parse(data)
            while left:
                left = self._parse(left)
        except httptools.HttpParserUpgrade:  # CONNECT: answered, and then closed
            self._broken = Broken(0, "")
            if self._current is None:
                self._linger()
            return
        except httptools.HttpParserError as error:
            found = error.__context__
            if isinstance(found, Broken):
                self._break(found.status, str(found))
            else:
                self._break(400, f"not a request that HTTP/1.1 allows: {error}")
            return
        taken, self._taken = self._taken, None
        if self._in_message:
            self._still_reading(len(data))
        elif between and taken is not None and self._unlike < UNLIKE:
            self._learn(taken, data)

    def _parse(self, data: bytes) -> bytes:
        """What is still to be parsed: where another protocol was offered, HTTP/1.1 goes on without it, as it allows."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            offered, self._offered = self._offered, b""
            if not offered:
                raise
            self._parser = httptools.HttpRequestParser(self)
            return offered + data[stopped.args[0] :]
        return b""

    def _learn(self, request: Request, data: bytes) -> None:
        """The next request may have the same head."""
        if request.keep_alive and b"expect" not in request.headers:
            self._unlike += 1
            head = known_head(data)
            self._known = KnownRequest(head, request, self.gateway) if head is not None else None

    def _still_reading(self, arrived: int) -> None:
        """A request has begun and is not complete."""
        limits = self.gateway.limits
        if self._reading is None:
            self._head_size += arrived
            if self._head_size > limits.max_head_bytes:
                self._break(431, f"the head of the request is larger than {limits.max_head_bytes} bytes")
            elif self._head_size == arrived:  # its first bytes: from now on it has so much time
                self.expect(limits.header_timeout_s)
        elif not self._paused:
            self.expect(limits.body_timeout_s)

    def eof_received(self) -> bool:
        """The client sends nothing more: it has left, or it only waits for its answers. Returns whether we stay.

        One that waits has said so at the end of its request; in the middle of an answer, it has left."""
        request = self._current
        if request is None or request.has_begun or self._in_message or self._broken is not None:
            self.abort()
            return False
        self._ended = True
        self._look_after(0)
        return True

    def _look_after(self, turn: int) -> None:
        """Find out whether a client that sends nothing more is still there: to one that has left, nothing can be sent.

        Each HTTP/1.1 client reads over this interim answer. One of HTTP/1.0 knows none, and is believed."""
        request = self._current
        if self._transport is None or request is None or request.has_begun:
            return
        if request.version == "1.1":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.loop.call_later(STILL_THERE_S[min(turn, len(STILL_THERE_S) - 1)], self._look_after, turn + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        self.gateway.farewell(self)
        self._transport = self._parser = None
        self._waiting.clear()
        for request in (self._current, self._reading):
            if request is not None:
                request.gone()
        self._current = self._reading = None

    def pause_writing(self) -> None:
        self.blocked = True
        self._unsent = self._transport.get_write_buffer_size()
        self.expect(self.gateway.limits.idle_timeout_s)

    def resume_writing(self) -> None:
        self.blocked = False
        if self._current is not None:
            self.expect(None)
            self._current.caught_up()
        elif self._transport is not None:
            self.expect(self.gateway.limits.idle_timeout_s)

    def send(self, data: bytes) -> None:
        if self._late:
            self.flush()
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        self.flush()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when what was said is sent."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def overdue(self) -> None:
        """Too slow: with its head, its body, with reading our answer, or idle for long enough."""
        if self.blocked:
            left = self._transport.get_write_buffer_size()
            if left < self._unsent:
                self._unsent = left
                self.expect(self.gateway.limits.idle_timeout_s)
            else:
                self.abort()
        elif self._broken is not None:
            self.abort()
        elif self._in_message:
            self._break(408, "the request did not arrive in time")
        elif self._current is None:
            self.close()

    # --- the parser ---

    def on_message_begin(self) -> None:
        self._in_message = True
        self._url = b""
        self._head_size = 0

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        if len(self._url) > TARGET_BYTES:
            raise Broken(414, f"the address of the request is longer than {TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is None:  # else a trailer, which nobody needs
            self._raw.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        version = parser.get_http_version()
        raw, self._raw = self._raw, []
        method = parser.get_method().decode("latin-1")
        if parser.should_upgrade() and method != "CONNECT":
            lines = [b"%b: %b\r\n" % header for header in raw if header[0] != b"upgrade"]
            self._offered = b"%b %b HTTP/%b\r\n%b\r\n" % (
                method.encode(),
                self._url,
                version.encode(),
                b"".join(lines),
            )
            return
        headers = dict(raw)
        if len(headers) != len(raw):
            _check_repeated(raw)
        if len(raw) > HEADERS:
            raise Broken(431, f"more than {HEADERS} headers")
        bound = self.gateway.limits.max_head_bytes
        if self._arrived > bound and sum(len(name) + len(value) for name, value in raw) > bound:
            raise Broken(431, f"the head of the request is larger than {bound} bytes")
        if self._url.startswith(b"http://"):  # as to a proxy: it names the host, too
            headers[b"host"], _, path = self._url[7:].partition(b"/")
            self._url = b"/" + path
        if not self._url.startswith(b"/") or not self._url.isascii():
            raise Broken(400, "the address of the request is not a path")
        request = Request(self, method, self._url.decode("ascii"), version, headers)
        self._check_framing(request, version)
        self._reading = request
        self._body_size = 0
        if self.gateway.wants_pieces(request):
            request.uploads()
            self._take(request)
        if b"expect" in headers:
            self._expects_continue(request)

    def _check_framing(self, request: Request, version: str) -> None:
        headers, limits = request.headers, self.gateway.limits
        if version not in ("1.1", "1.0"):
            raise Broken(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if version == "1.1" and not headers.get(b"host"):
            raise Broken(400, "HTTP/1.1 needs a Host header")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise Broken(
                400 if version == "1.0" else 501, "the only transfer coding taken here is chunked, in HTTP/1.1"
            )
        length = headers.get(b"content-length")
        if length is not None and int(length) > limits.max_body_bytes and not self.gateway.wants_pieces(request):
            raise Broken(413, f"the body is larger than {limits.max_body_bytes} bytes")

    def _expects_continue(self, request: Request) -> None:
        if request.header(b"expect").lower() != "100-continue":
            raise Broken(417, "expected 'Expect: 100-continue' or none")
        if self._current is None or self._current is request:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self._continue = True

    def on_body(self, body: bytes) -> None:
        request = self._reading
        assert request is not None
        self._body_size += len(body)
        if request is self._current:
            request.uploaded(body)
            self._upload_size += len(body)
            if self._upload_size > UPLOAD_BYTES:
                self._pause()
            return
        if self._body_size > self.gateway.limits.max_body_bytes:
            raise Broken(413, f"the body is larger than {self.gateway.limits.max_body_bytes} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._offered:
            return
        request, self._reading = self._reading, None
        assert request is not None
        self._in_message = False
        request.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        if request is self._current or request.is_answered:  # an upload, whose handler has it already
            if request is self._current:
                request.uploaded(b"")
                self.expect(None)
            return
        parts = self._body
        if parts:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
            self._body = []
        if self._current is None:
            self._taken = request
            self._take(request)
        else:
            self._waiting.append(request)
            if len(self._waiting) >= AHEAD:
                self._pause()

    # --- one after another ---

    def _take(self, request: Request, route: Route | None = None) -> None:
        """`route`: known from a request with the same head."""
        if self._current is not None:  # an upload sent ahead: too rare to be worth its complications
            raise Broken(400, "an upload cannot be sent before the answers to earlier requests have come")
        self._current = request
        self.expect(None)
        if route is None:
            self.gateway.handle(request)
        else:
            self.gateway.admit(request, route)

    def answered(self, request: Request) -> None:
        """The answer to the current request is written."""
        self._current = None
        if self._reading is request:  # the rest of an upload that nobody wants
            self._broken = Broken(0, "")
        if self._broken is not None:
            self._linger()
            return
        if not request.keep_alive:
            self._broken = Broken(0, "")  # what follows is not answered
            self.close()
            return
        if self._ended and not self._waiting:
            self._broken = Broken(0, "")
            self.close()
        elif self._waiting:
            self.loop.call_soon(self._next)
        else:
            self._resume()
            self.expect(self.gateway.idle_s)

    def _next(self) -> None:
        if self._transport is not None and self._current is None and self._waiting:
            self._take(self._waiting.popleft())
        if self._continue and self._current is None and not self._waiting:
            self._continue = False
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(self._waiting) < AHEAD // 2:
            self._resume()

    def upload_taken(self, size: int) -> None:
        self._upload_size -= size
        if self._upload_size < UPLOAD_BYTES // 2:
            self._resume()

    def drain(self) -> None:
        """Answer what is under way, and no more."""
        self.draining = True
        if self._current is None and not self._in_message:
            self.close()

    def end(self) -> None:
        """The gateway ends: say so to a client that still waits for its answer, and close."""
        request = self._current
        if request is None or request.has_begun or self._broken is not None:
            self.abort()
            return
        self._waiting.clear()
        on_gone = request.on_gone
        request.keep_alive = False
        request.refuse(503, "the gateway is about to end; try again", [("Retry-After", RETRY_AFTER_S)])
        if on_gone is not None:
            on_gone()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()
            self.expect(None)

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    # --- refusals ---

    def _break(self, status: int, message: str) -> None:
        """Answer, and hear nothing more. What is being answered goes on to its end first."""
        if self._broken is not None:
            return
        self._broken = Broken(status, message)
        self._waiting.clear()
        if self._current is None:
            self._refuse(status, message)
        elif self._current is self._reading:  # an upload that can never end
            self.abort()

    def _refuse(self, status: int, message: str) -> None:
        self._broken = self._broken or Broken(status, message)
        path = self._url.decode("latin-1").partition("?")[0]
        answer = Request(self, "GET", path, "1.1", {})
        answer.answer(status, error_body(path, status, message))

    def _linger(self) -> None:
        """Nothing more is said, and what comes is passed over, until the client has had time to read."""
        self.flush()
        if self._transport is not None:
            self._transport.write_eof()
            self._resume()
            self.expect(LINGER_S)


def _check_repeated(raw: list[tuple[bytes, bytes]]) -> None:
    seen: dict[bytes, bytes] = {}
    for name, value in raw:
        before = seen.setdefault(name, value)
        differs = name in seen and before is not value and (before != value or name == b"host")
        if differs and (name in _ONCE or name.startswith(b"x-sollol-")):
            raise Broken(400, f"the header {name.decode('latin-1')} came twice, with different values")
