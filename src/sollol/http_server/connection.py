"""Parse the requests of one client's connection, and write its answers. HTTP/1.1 and 1.0, strictly.

The parser is llhttp (httptools), which refuses conflicting or repeated framing headers, folded headers, bad chunk sizes
and bare line ends. Further rules: one Host, no transfer coding except chunked, no repeated header that affects routing
or access, and bounds of heads, bodies, pipelined requests and time. A request that breaks a rule is answered with 4xx,
and the connection is closed, because the bytes behind it may not be a request.

Pipelined requests wait here, and are answered in order, one at a time.

One object stands between the socket and the server, because it is the hot path: splitting its state over several
objects would add calls for each arrival. Therefore the file has more than 400 lines. `pieces` cuts the bytes for the
parser, `heads` checks heads, `intake` bounds bodies, and `places` bounds connections.

Over 400 lines, because the callbacks of the parser and the timers share the state of one connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import httptools

from sollol.http_server import bare_heads as bare
from sollol.http_server.heads import (
    HEADERS,
    TARGET_BYTES,
    Broken,
    body_length,
    read_headers,
    without_upgrade,
)
from sollol.http_server.intake import SMALL_COST, Body
from sollol.http_server.known_request import KnownRequest
from sollol.http_server.pieces import HEAD_BYTES, Cutter
from sollol.http_server.request import Request
from sollol.transport.head_cache import cache_head
from sollol.transport.outbox import Writer

if TYPE_CHECKING:
    from sollol.http_server.server import HttpServer

AHEAD: Final = 16  # pipelined requests of a connection
JOIN_BYTES: Final = 512 * 1024  # of a body whose pieces the server joins in a thread
UPLOAD_BYTES: Final = 1024 * 1024  # of an upload that its handler has not read yet
UNLIKE: Final = 4  # different heads in a row, after which no head of the connection is cached
STILL_THERE_S: Final = (0.05, 0.2, 1.0, 5.0)  # between checks of a client that has closed its sending side
LINGER_S: Final = 2.0  # for which a refused client can still read the answer
RETRY_AFTER_S: Final = "5"  # after which a restarted gateway should be up
PIECES: Final = 150  # chunks, or pieces without one, that are parsed in one turn of the loop
CHUNK_BYTES: Final = 16  # of the framing of a chunk without extensions
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_ROOM: Final = "the bodies of requests fill the memory reserved for them; try again later"


class ClientConnection(Writer, asyncio.Protocol):
    """Parse the requests of one connection, and pass them to the server one at a time."""

    # fmt: off
    __slots__ = (
        "_bare", "_body", "_broken", "_continue", "_cutter", "_ended", "_head_began", "_head_size", "_head_timed",
        "_hurried", "_in_line", "_in_message", "_known", "_offered", "_parser", "_paused", "_proven", "_raw",
        "_reading", "_refused", "_taken", "_trailers", "_unlike", "_unparsed", "_unsent", "_upload_size", "_url",
        "_waiting", "blocked", "current", "draining", "server",
    )
    # fmt: on

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, server.outbox)
        self.server = server
        self._parser: Any = httptools.HttpRequestParser(self)
        self._cutter = Cutter()
        self.current: Request | None = None  # the request that is being answered
        self._waiting: deque[Request] = deque()  # complete requests behind it
        self._reading: Request | None = None  # the request whose body is arriving
        self._body: Body | None = None  # of that request
        self._refused: Request | None = None  # a request refused by its head; its body is not read
        self._in_message = self._in_line = False
        self._broken: Broken | None = None
        self._paused = False  # reading from the socket is paused
        self._continue = False  # "100 Continue" is due when the requests before are answered
        self._bare = b""  # the part of a health check that has arrived
        self._url = b""
        self._offered = b""  # a head without the Upgrade header that it had
        self._raw: list[tuple[bytes, bytes]] = []  # headers
        self._unparsed = b""  # bytes that wait to be parsed
        self._head_began = False  # a head began in the piece that is being parsed
        self._head_timed = False  # the deadline of the head is set
        self._proven = False  # a request was accepted
        self._hurried = False  # another connection needs the place
        self._head_size = self._trailers = self._upload_size = self._unsent = 0
        self._known: KnownRequest | None = None
        self._taken: Request | None = None  # the request that was taken from the present arrival
        self._ended = False  # the client has closed its sending side
        self._unlike = 0  # different heads in a row
        self.blocked = False  # the write buffer is full
        self.draining = server.draining

    @property
    def deadline(self) -> float:
        """The time at which the connection is closed, on the clock of the loop."""
        return self._deadline

    @property
    def peer(self) -> str:
        """Return the address of the client."""
        found = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(found[0]) if found else ""

    @property
    def is_answering(self) -> bool:
        """True while a request is being answered."""
        return self.current is not None

    @property
    def body_cost(self) -> int:
        """The bytes that the body being received counts against the limits."""
        return self._body.cost if self._body is not None else 0

    # --- the socket ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place of the server, or close the connection where none is free."""
        self._transport = transport
        if not self.server.places.take(self, self.loop.time()):
            self._turn_away("too many connections; try again later")
            return
        self.expect(self.server.limits.header_timeout_s)
        if not self.server.line.admit(self):  # its bytes wait in the kernel
            self._in_line = True
            self._paused = True
            transport.pause_reading()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        if self._broken is not None:
            if not self.server.may_discard(len(data)):
                self._pause()
            return
        if self._unparsed:
            self._unparsed += data
            return
        between = self.current is None and not self._in_message and not self._waiting  # no request is open
        if between and (known := self._known) is not None and (body := known.head.body(data)) is not None:
            server = self.server
            if server.limits is known.limits and len(body) <= known.max_body_bytes:
                self._unlike = 0
                request = Request(self, known.method, known.target, known.version, known.headers)
                request.keep_alive = True
                request.plain = known.plain
                request.body = body
                if known.route is None:
                    server.decide(request)
                    self._hold(request)
                    self._take(request)
                    return
                request.route = known.route
                self.current = request
                self.expect(None)
                if self._hold(request):
                    server.admit(request)
                return
        if between and (self._bare or data[:5] in (b"GET /", b"HEAD ")):
            is_first = not self._bare
            self._bare, whole = bare.collect(self._bare, data)
            if whole is None:
                if is_first:
                    self.expect(self.server.limits.header_timeout_s)
                return
            data = whole
        self._parse(data)
        taken, self._taken = self._taken, None
        if between and taken is not None and not self._in_message and self._unlike < UNLIKE:
            self._learn(taken, data)

    def _parse(self, data: bytes) -> None:
        """Parse arrived bytes piece by piece; keep the rest when a bound is reached."""
        self._taken = None
        cutter, pieces = self._cutter, 0
        try:
            place, size = 0, len(data)
            while place < size and self._broken is None:
                if pieces > PIECES or self._is_enough():
                    self._unparsed = data[place:]
                    self._pause()
                    if pieces > PIECES:
                        self.loop.call_soon(self._read_on)
                    break
                stop = cutter.end(data, place, self._body)
                piece = data if stop - place == size else data[place:stop]
                body = self._body
                before = body.pieces if body is not None else 0
                cutter.check(piece, not self._in_message)
                rest = self._feed(piece)
                if rest:
                    cutter.restart()
                    data, place = rest + data[stop:], 0
                    size = len(data)
                    continue
                place = stop
                chunks = body.pieces - before if body is not None else 0
                cutter.parsed(piece, not self._in_message, chunks)
                self._count(len(piece), body)
                pieces += chunks or 1
        except Broken as broken:
            self._break(broken.status, str(broken))
        except httptools.HttpParserUpgrade:  # CONNECT is answered, and the connection closed
            if self._broken is None:
                self._stop_reading()
                if self.current is None:
                    self._linger()
        except httptools.HttpParserError as error:
            found = error.__context__
            status, message = 400, f"not a request that HTTP/1.1 allows: {error}"
            if isinstance(found, Broken):
                status, message = found.status, str(found)
            if found is not None:  # its frames hold the arrived bytes until the next garbage collection
                found.__traceback__ = None
            self._break(status, message)
        else:
            if self._in_message and self._broken is None:
                self._expect_more()
        if self.current is None and self._waiting:
            self._stand_in_line()

    def _is_enough(self) -> bool:
        """Check for too many pipelined requests, and for a large body that has no turn to be read."""
        if len(self._waiting) >= AHEAD:
            return True
        body = self._body
        if body is None or body.cost <= SMALL_COST or self._reading is self.current:
            return False
        if self.server.intake.may_read(self, body.cost, self.loop.time()):
            return False
        body.paused_at = self.loop.time()
        return True

    def _feed(self, data: bytes) -> bytes:
        """Parse a piece. Return the bytes to parse again: a head that offered an upgrade, without that offer."""
        self._head_began = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            offered, self._offered = self._offered, b""
            if not offered:
                raise
            self._parser = httptools.HttpRequestParser(self)
            return offered + data[stopped.args[0] :]
        return b""

    def _count(self, size: int, body: Body | None) -> None:
        """Check the bounds of an incomplete request after `size` more bytes.

        Args:
            body: The body that was arriving before these bytes.
        """
        if not self._in_message:
            return
        limits = self.server.limits
        if self._body is None:
            self._head_size += 0 if self._head_began else size
            if self._head_size > limits.max_head_bytes:
                part, status = ("address", 414) if len(self._url) > limits.max_head_bytes else ("head", 431)
                self._break(status, f"the {part} of the request is larger than {limits.max_head_bytes} bytes")
            return
        arriving, request = self._body, self._reading
        assert request is not None
        arriving.wire += size if arriving is body else 0
        if not arriving.left and arriving.wire - arriving.size > limits.max_head_bytes + CHUNK_BYTES * arriving.pieces:
            self._break(431, f"the trailers or chunk extensions are larger than {limits.max_head_bytes} bytes")
        elif request is not self.current:
            self._check_size(request, arriving)
            if arriving.size > arriving.counted and request.takes_body:
                arriving.counted = arriving.size
                self.server.intake.grown(self, arriving.size)

    def _learn(self, request: Request, data: bytes) -> None:
        """Cache the head of a request, since the next one may have the same."""
        if request.keep_alive and b"expect" not in request.headers:
            self._unlike += 1
            head = cache_head(data)
            self._known = KnownRequest(head, request, self.server) if head is not None else None

    def _expect_more(self) -> None:
        """Set the deadline of an incomplete request.

        A head has a fixed time. A body has more time the more bytes of it have arrived.
        """
        limits, body = self.server.limits, self._body
        if body is None:
            if not self._head_timed:
                self._head_timed = True
                self.expect(limits.header_timeout_s)
        elif self._paused:
            self.expect(None)
        else:
            now = self.loop.time()
            within_s = limits.body_timeout_s + body.size / limits.min_body_rate
            if self._reading is not self.current:
                within_s = min(within_s, limits.body_total_s)
            self.expect(max(0.0, min(limits.body_timeout_s, body.began + within_s - now)))

    def eof_received(self) -> bool:
        """Handle the end of the client's sending side. Return True to keep the connection open.

        A client that closes it after a complete request waits for the answer. One that closes it later has left.
        """
        request = self.current
        if request is None or request.has_begun or self._in_message or self._broken is not None:
            self.abort()
            return False
        self._ended = True
        self._look_after(0)
        return True

    def _look_after(self, turn: int) -> None:
        """Check that a client which has closed its sending side still reads, by sending an interim answer.

        Sending fails if it has left. Clients of HTTP/1.1 ignore the answer; those of HTTP/1.0 do not accept it.
        """
        request = self.current
        if self._transport is None or request is None or request.has_begun:
            return
        if request.version == "1.1":
            self.send(CONTINUE)
            self.loop.call_later(STILL_THERE_S[min(turn, len(STILL_THERE_S) - 1)], self._look_after, turn + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back, and cancel the request that is being answered."""
        self.stop_timer()
        self.server.places.leave(self)
        self._transport = self._parser = None
        self._drop_body()
        for request in (self.current, self._reading, *self._waiting):
            if request is not None:
                request.gone()
        self._waiting.clear()
        self.current = self._reading = None

    def pause_writing(self) -> None:
        """Stop writing, because the client reads slowly."""
        self.blocked = True
        self._unsent = self._transport.get_write_buffer_size()
        self.expect(self.server.limits.idle_timeout_s)

    def resume_writing(self) -> None:
        """Write again."""
        self.blocked = False
        if self.current is not None:
            self.expect(None)
            self.current.caught_up()
        elif self._transport is not None:
            self.expect(self.server.limits.idle_timeout_s)

    def send(self, data: bytes) -> None:
        """Write bytes after those that wait."""
        if self.deferred:
            self.flush()
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        self.flush()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close when all data are sent."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def overdue(self) -> None:
        """Handle a passed deadline: of a head, a body, an answer that is not read, or an idle connection."""
        if self.blocked:
            left = self._transport.get_write_buffer_size()
            if left < self._unsent:
                self._unsent = left
                self.expect(self.server.limits.idle_timeout_s)
            else:
                self.abort()
        elif self._broken is not None:
            self.abort()
        elif self._in_message:
            self._break(408, "the request did not arrive in time")
        elif self.current is None:
            self.close()

    # --- the parser ---

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._in_message = self._head_began = True
        self._head_timed = False
        self._url = b""
        self._head_size = self._trailers = 0

    def on_url(self, url: bytes) -> None:
        """Receive a part of the request target."""
        self._url = self._url + url if self._url else url
        if len(self._url) > TARGET_BYTES:
            raise Broken(414, f"the address of the request is longer than {TARGET_BYTES} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Receive a header, or a trailer of a body."""
        if self._reading is None:
            self._raw.append((name.lower(), value))
            return
        self._trailers += 1  # trailers are dropped
        if self._trailers > HEADERS:
            raise Broken(431, f"more than {HEADERS} trailers")

    def on_headers_complete(self) -> None:
        """Check the head, and choose the handler before the body is read."""
        parser = self._parser
        version = parser.get_http_version()
        raw, self._raw = self._raw, []
        method = parser.get_method().decode("latin-1")
        if parser.should_upgrade() and method != "CONNECT":
            self._offered = without_upgrade(method, self._url, version, raw)
            return
        bound = self.server.limits.max_head_bytes
        headers = read_headers(raw, version, bound if self._head_size + 2 * HEAD_BYTES > bound else 0)
        if self._url.startswith(b"http://"):  # as clients send it to a proxy, with the host
            headers[b"host"], _, path = self._url[7:].partition(b"/")
            self._url = b"/" + path
        if not self._url.startswith(b"/") or not self._url.isascii():
            raise Broken(400, "the address of the request is not a path")
        request = Request(self, method, self._url.decode("ascii"), version, headers)
        length = body_length(headers, version)
        self.server.decide(request)
        if request.key is not None and not self._proven:
            self._prove()
        if length == 0:
            self._reading = request
            if request.uploads_body:
                request.uploads()
                self._take(request)
        elif request.is_refused:
            self._refused = request
            raise Broken(0, "")
        else:
            self._begin_body(request, length)

    def _prove(self) -> None:
        """Record that this connection is not a stranger's."""
        self._proven = True
        self.server.places.prove(self)

    def _begin_body(self, request: Request, length: int) -> None:
        """Read the body of a request that is accepted by its head.

        Args:
            length: Its length in bytes, -1 for chunks.
        """
        bound = self.server.limits.max_body_bytes
        if length > bound and not request.uploads_body:
            raise Broken(413, f"the body is larger than {bound} bytes")
        expected = request.header(b"expect").lower()
        if expected not in ("", "100-continue"):
            raise Broken(417, "expected 'Expect: 100-continue' or none")
        self._reading = request
        self._body = Body(self.loop.time(), max(0, length))
        if request.uploads_body:
            request.uploads()
            self._take(request)
        if expected and (self.current is None or self.current is request):
            self.send(CONTINUE)
        elif expected:
            self._continue = True

    def on_body(self, piece: bytes) -> None:
        """Receive a piece of the body."""
        request, body = self._reading, self._body
        assert request is not None
        assert body is not None
        size = len(piece)
        body.size += size
        body.pieces += 1
        if body.left:
            body.left -= size
        if request is self.current:
            request.uploaded(piece)
            self._upload_size += size
            if self._upload_size > UPLOAD_BYTES:
                self._pause()
        elif request.takes_body:
            body.add(piece)

    def on_message_complete(self) -> None:
        """Answer the request, whose body is complete."""
        if self._offered:
            return
        request, self._reading = self._reading, None
        body, self._body = self._body, None
        assert request is not None
        self._in_message = False
        request.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        if request is self.current or request.is_answered:  # an upload, which was taken when its head arrived
            if request is self.current:
                request.uploaded(b"")
                self.expect(None)
            return
        if body is not None:
            if body.counted:
                self.server.intake.forget(self, is_whole=True)
            self._check_size(request, body)
            pieces = body.take_pieces()
            if body.size > JOIN_BYTES and self.server.joins_bodies:
                request.unjoined = pieces
            else:
                request.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._hold(request) and not self._proven and self.server.proves(request):
            self._prove()
        if self.current is None and self._taken is None and not self._waiting:
            self._taken = request
            self._take(request)
        else:  # one pipelined request is served in a turn of the loop
            self._waiting.append(request)

    def _check_size(self, request: Request, body: Body) -> None:
        limits = self.server.limits
        bound = limits.max_body_bytes if request.takes_body else limits.max_head_bytes
        if body.size > bound:
            raise Broken(413, f"the body is larger than {bound} bytes")

    def _hold(self, request: Request) -> bool:
        """Count the body of a request until it is answered; refuse it where there is no room."""
        if request.is_refused:
            return False
        pieces = request.unjoined
        size = len(request.body) if pieces is None else sum([len(piece) for piece in pieces])
        if size == 0:
            return True
        if self.server.intake.hold(size):
            request.held = size
            return True
        request.body, request.unjoined = b"", None
        request.refuse(503, NO_ROOM, [("Retry-After", RETRY_AFTER_S)])
        return False

    # --- requests in order ---

    def _take(self, request: Request) -> None:
        if self.current is not None:  # a pipelined upload is too rare to be supported
            raise Broken(400, "an upload cannot be sent before the answers to earlier requests have arrived")
        self.current = request
        self._head_timed = False
        self.expect(None)
        if request.is_refused:
            request.answer_early()
        else:
            self.server.handle(request)

    def answered(self, request: Request) -> None:
        """Continue after the answer to the current request is written."""
        self.current = None
        self._upload_size = 0
        if self._reading is request or not request.keep_alive:  # later requests are not answered
            is_read = self._broken is None and self._reading is not request
            self._stop_reading()
            if is_read:
                self.close()
            else:
                self._linger()
        elif self._waiting:
            self._stand_in_line()
        elif self._broken is not None:
            self._refuse()
        elif self._ended:
            self._broken = Broken(0, "")
            self.close()
        else:
            self._read_on()
            if self.current is None and self._broken is None:
                if self._in_message:
                    self._expect_more()
                else:
                    self.expect(self.server.idle_s)

    def _stand_in_line(self) -> None:
        if not self._in_line:
            self._in_line = True
            self.server.line.stand(self)

    def take_turn(self) -> None:
        """Take the next request, or parse the bytes that wait; called by the line."""
        self._in_line = False
        if self._waiting:
            self._next()
        else:
            self._read_on()

    def _next(self) -> None:
        if self._transport is not None and self.current is None and self._waiting:
            self._take(self._waiting.popleft())
        if self._continue and self.current is None and not self._waiting and self._broken is None:
            self._continue = False
            self.send(CONTINUE)
        if len(self._waiting) < AHEAD // 2:
            self._read_on()

    def upload_taken(self, size: int) -> None:
        """Record that the handler has taken bytes of an upload; read again where few are left."""
        self._upload_size -= size
        if self._upload_size < UPLOAD_BYTES // 2:
            self._read_on()

    def drain(self) -> None:
        """Answer the open requests, and close."""
        self.draining = True
        if self.current is None and not self._in_message:
            self.close()

    def end(self) -> None:
        """Refuse a request that still waits for its answer, and close: the server ends."""
        request = self.current
        if request is None or request.has_begun or self._broken is not None:
            self.abort()
            return
        self._forget_waiting()
        on_gone = request.on_gone
        request.keep_alive = False
        request.refuse(503, "the gateway is about to end; try again", [("Retry-After", RETRY_AFTER_S)])
        if on_gone is not None:
            on_gone()

    # --- reading and waiting ---

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
            if self.current is None or self.current is self._reading:
                self.expect(LINGER_S if self._broken is not None else None)

    def _read_on(self) -> None:
        """Continue reading, unless a large body waits for its turn."""
        if self._paused and (self._body is None or not self._body.paused_at):
            self.go_on()

    def go_on(self) -> None:
        """Parse the bytes that wait, and continue reading."""
        if self._transport is None or self._broken is not None or not self._paused:
            return
        body = self._body
        if body is not None and body.paused_at:
            body.began += self.loop.time() - body.paused_at
            body.paused_at = 0.0
        data, self._unparsed = self._unparsed, b""
        self._parse(data)
        self._taken = None
        if not self._unparsed and self._upload_size <= UPLOAD_BYTES and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
            if self._in_message and self._broken is None:
                self._expect_more()

    def wait_in_line(self) -> None:
        """Pause reading a large body, so that others are read."""
        if self._body is not None:
            self._body.paused_at = self.loop.time()
            self._pause()

    # --- refusals ---

    def give_way(self) -> None:
        """Close, because another connection needs the place."""
        self._hurried = True
        if self._in_message and self._broken is None:
            self._break(503, "too many connections, and this one sent no whole request; try again later")
        elif self._broken is None:
            self._stop_reading()
            self.close()
        else:
            self.abort()

    def no_room(self) -> None:
        """Refuse the arriving body, because it is the largest and the memory is needed."""
        self._break(503, NO_ROOM)

    def _turn_away(self, message: str) -> None:
        self._hurried = True
        self._broken = Broken(503, message)
        self._refuse()

    def _break(self, status: int, message: str) -> None:
        """Stop reading; answer the requests before, then refuse this one."""
        if self._broken is not None:
            return
        is_upload = self.current is not None and self.current is self._reading
        self._broken = Broken(status, message)
        self._stop_reading()
        refused, self._refused = self._refused, None
        if refused is not None:
            self._broken = Broken(0, "")
            refused.keep_alive = False
            self._waiting.append(refused)
        if is_upload:  # its handler would wait for the rest
            self.abort()
        elif self.current is None and self._waiting:
            self._stand_in_line()
        elif self.current is None:
            self._refuse()

    def _stop_reading(self) -> None:
        """Drop the incomplete request, and all bytes behind it."""
        self._broken = self._broken or Broken(0, "")
        self._drop_body()
        self._reading = None
        self._unparsed = b""
        self._in_message = False

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body = None
            self.server.intake.forget(self)

    def _forget_waiting(self) -> None:
        for request in self._waiting:
            request.gone()
        self._waiting.clear()

    def _refuse(self) -> None:
        """Answer the request that broke a rule, and close."""
        broken = self._broken
        if broken is None or not broken.status:
            self._linger()
            return
        status, message = broken.status, str(broken)
        self._broken = Broken(0, "")
        path = self._url.decode("latin-1").partition("?")[0]
        self.current = answer = Request(self, "GET", path, "1.1", {})
        later = [("Retry-After", RETRY_AFTER_S)] if status == 503 else []
        answer.answer(status, self.server.error_body(path, status, message), headers=later)

    def _linger(self) -> None:
        """Close the sending side, and discard received bytes until the client has had time to read."""
        self._forget_waiting()
        if self._hurried and not self.server.places.may_linger(self):
            self.close()
            return
        self.flush()
        if self._transport is not None:
            self._transport.write_eof()
            if not self.server.may_discard(0):
                self._pause()
            elif self._paused:
                self._paused = False
                self._transport.resume_reading()
            self.expect(LINGER_S)
