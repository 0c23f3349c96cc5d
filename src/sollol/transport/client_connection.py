"""One connection to a node: write a request, parse the received bytes into a reply.

This is the hot path of the product, so one object stands between the socket and llhttp: the event loop calls
`data_received`, the parser calls `on_...`, and after the body the caller's future is set. One future for each call, no
task or coroutine. The state of a call is in the connection's own fields, which `_begin` resets, because a connection
serves one call at a time (pipelining is not used: a long answer would block the others).

Over 400 lines, because splitting the object would put calls between the parser and the caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import httptools

from sollol.transport import faults
from sollol.transport.base import ERROR_MOST, Call, RawHeaders, Reply, Timeouts, TransportFault
from sollol.transport.head_cache import CachedHead, cache_head
from sollol.transport.outbox import Outbox, Writer
from sollol.transport.reply import Inbox, StreamReply, WholeReply, fold

if TYPE_CHECKING:
    from sollol.transport.http import Exchange

log = logging.getLogger("sollol")
INTERIM: Final = (100, 102, 103)  # permitted interim statuses; others below 200 are errors
ONE_WRITE_BYTES: Final = (
    65_536  # up to this size, copying the body behind its head is cheaper than a second system call
)


TURN_BYTES: Final = 65_536  # after an arrival of so many bytes, reading pauses for a turn: uvloop would read on at once
_JSON_BEGINS: Final = b"{["
BLANKS_MOST: Final = 65_536  # bytes of white space in a row in a complete answer; memory for nothing


class ConnectionLimits(NamedTuple):
    """Limits of a connection; the reasons are beside the defaults in `http.py`."""

    head_bytes: int
    body_bytes: int
    inbox_bytes: int
    idle_age_s: float


class ConnectionPool(Protocol):
    """The pool of a connection."""

    def release(self, connection: Connection) -> bool:
        """Add a connection that is ready for the next call. False: the pool is full, and the connection will close."""
        ...

    def forget(self, connection: Connection) -> None:
        """Remove a connection that closes."""
        ...


class Connection(Writer, asyncio.Protocol):
    """An HTTP/1.1 connection to one node, for one call at a time."""

    # fmt: off
    __slots__ = (
        "_blanks", "_blocked", "_body_most", "_busy", "_cached_head", "_cached_headers", "_complete", "_dirty",
        "_drain", "_exchange", "_has_begun", "_head_delivered", "_head_only", "_head_size", "_inbox", "_is_json",
        "_keep", "_limits", "_overhead", "_parser", "_paused", "_pieces", "_pool", "_raw", "_refusal", "_rests",
        "_size", "_status", "_stream", "_timeouts", "_unsent", "_upload", "_waiter", "_waiting", "closed", "lost",
        "max_body_bytes", "silent", "turn", "url",
    )
    # fmt: on

    def __init__(
        self, loop: asyncio.AbstractEventLoop, outbox: Outbox, url: str, pool: ConnectionPool, limits: ConnectionLimits
    ) -> None:
        super().__init__(loop, outbox)
        self.url = url
        self.max_body_bytes = limits.body_bytes
        self.turn = 0  # number of the call; a late cancel of an earlier one must not affect it
        self.silent = True  # no byte of the answer was received
        self.closed = False  # this side closed it
        self.lost = asyncio.Event()  # the event loop closed it
        self._pool = pool
        self._limits = limits
        self._parser: Any = httptools.HttpResponseParser(self)
        self._busy = False  # a call is in flight
        self._blocked = False  # the write buffer is full
        self._paused = False  # reading is paused because the reader is behind
        self._rests = False  # reading is paused until the next turn of the loop
        self._unsent = 0
        self._upload: asyncio.Task[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._inbox: Inbox | None = None
        self._exchange: Exchange | None = None
        self._cached_head: CachedHead | None = None  # head of the last good answer
        self._cached_headers: RawHeaders = []  # the same as headers, without the length

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self._busy else "idle"
        return f"<Connection {self.url} {state}, call {self.turn}>"

    # -- a call: begin and end -------------------------------------------------------------------------

    def start(self, head: bytes, body: bytes, call: Call) -> asyncio.Future[Reply]:
        """Write a request with a complete body; return the future of its reply.

        `head` comes from `RequestHeads.for_call`.
        """
        waiter = self._waiter = self.loop.create_future()
        self._write(head, body, call)
        return waiter

    def start_exchange(self, head: bytes, body: bytes, call: Call, exchange: Exchange) -> None:
        """Write a request whose answer goes to an exchange, outside the parser's callbacks, once for each arrival."""
        self._exchange = exchange
        self._head_delivered = False
        self._write(head, body, call)

    def _write(self, head: bytes, body: bytes, call: Call) -> None:
        self._begin(call)
        self.expect(call.timeouts.first_byte_s)  # before the write, which may be blocked
        size = len(body)
        if size > ONE_WRITE_BYTES:
            self._transport.write(b"%b%d\r\n\r\n" % (head, size))
            self._transport.write(body)
            return
        data = b"%b%d\r\n\r\n%b" % (head, size, body) if size else head
        if self.outbox.waiting:
            self.defer_write(data)
        else:
            self._transport.write(data)

    def start_upload(self, head: bytes, body: AsyncIterator[bytes], call: Call) -> asyncio.Future[Reply]:
        """Write a request whose body is an iterator, in a task: the answer may come before the body's end."""
        waiter = self._waiter = self.loop.create_future()
        self._begin(call)
        self._transport.write(head)
        self._upload = self.loop.create_task(self._pump(body))
        self.expect(None)  # the caller decides how long the pieces take
        return waiter

    def _begin(self, call: Call) -> None:
        self.turn += 1
        self.silent = self._busy = True
        self._waiting = True  # for the first byte of the answer
        self._complete = self._keep = self._dirty = False
        self._stream = call.stream
        self._head_only = call.method == "HEAD"
        self._body_most = min(call.most, self.max_body_bytes) if call.most else self.max_body_bytes
        self._timeouts: Timeouts = call.timeouts
        self._status = self._size = self._head_size = self._blanks = 0
        self._has_begun = False  # a byte of the body that is no white space was received
        self._is_json = True  # as far as is known
        self._overhead = 0  # bytes received since the last body byte: head, trailers, chunk sizes
        self._raw: RawHeaders = []
        self._pieces: list[bytes] = []
        self._refusal: TransportFault | None = None

    def _end(self, error: BaseException | None) -> None:
        """Deliver the end of the call to its receiver; None is a good end."""
        self._busy = False
        exchange, waiter, inbox = self._exchange, self._waiter, self._inbox
        self._exchange = self._waiter = self._inbox = None
        if exchange is not None:
            try:
                if error is not None:
                    exchange.failed(error, self.silent)
                else:
                    exchange.done(self._status, self._take_body())
            except Exception as fault:
                log.exception("delivering the end of an answer of %s failed", self.url)
                exchange.handler_failed(fault)
            return
        if inbox is not None:
            inbox.end(error)
        elif waiter is not None and not waiter.done():
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(WholeReply(self._status, self._raw, self._take_body()))
        self._pieces = []  # free the memory: the connection may stay idle

    def _take_body(self) -> bytes:
        """Return and clear body bytes not yet delivered."""
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        self._pieces = []
        return b"".join(pieces)

    def _deliver(self, exchange: Exchange) -> None:
        """Deliver the parts of a streamed answer that arrived in this loop turn."""
        if self._status and not self._head_delivered:
            self._head_delivered = True
            exchange.on_head(self._status, self._raw)
        if self._pieces and self._exchange is exchange:
            exchange.on_body(self._take_body())

    def _finish(self) -> None:
        """Deliver the complete answer; return the connection to its pool if it is reusable."""
        reusable = self._keep and not (self._dirty or self._blocked or self._upload is not None)
        if self._paused:
            self._paused = False
            if not self._rests:
                self._transport.resume_reading()
        exchange = self._exchange
        if exchange is None:
            self._end(None)
            self._retire(reusable)
        else:
            self._release_and_deliver(exchange, self._take_body(), reusable)

    def _release_and_deliver(self, exchange: Exchange, body: bytes, reusable: bool) -> None:
        """Release the connection before the callback, which may start another call."""
        status = self._status
        if status != 200:
            exchange.headers = self._raw
        self._exchange = None
        self._busy = False
        self._retire(reusable)
        exchange.done(status, body)

    def _retire(self, reusable: bool) -> None:
        if self._head_only:
            self._parser = httptools.HttpResponseParser(self)  # the old parser waits for a body
        if reusable and self._pool.release(self):
            self.expect(self._limits.idle_age_s)
        else:
            self.abort()

    def _break(self, error: BaseException) -> None:
        if self._busy:
            self._end(error)
        self.abort()

    def abandon(self, turn: int) -> None:
        """Close the connection if the cancelled call is still its current one."""
        if turn == self.turn and self._busy:
            self.abort()

    def abort(self) -> None:
        """Close at once, which cancels the call on the node. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.deferred = b""
        self.stop_timer()
        self._stop_upload()
        if self._busy:
            self._end(faults.closed_here(self.url))
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    # -- the request's body ----------------------------------------------------------------------------

    async def _pump(self, body: AsyncIterator[bytes]) -> None:
        try:
            await self._write_chunks(body)
        except Exception as error:  # the caller's iterator failed: its error is the result
            self._upload = None
            self._break(error)
        else:
            self._upload = None
            if not self._blocked:
                self._expect_answer()

    async def _write_chunks(self, body: AsyncIterator[bytes]) -> None:
        failed: BaseException | None = None
        try:
            async for piece in body:
                if piece:  # an empty chunk would end the body
                    self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                if self._blocked:
                    self._drain = self.loop.create_future()
                    await self._drain
        except BaseException as error:  # and no `finally`: see docs/decisions/compiled.md
            failed = error
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
        if failed is not None:
            raise failed
        self._transport.write(b"0\r\n\r\n")

    def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
            self._upload = None
            self._dirty = True  # the request was sent in part

    def pause_writing(self) -> None:
        """Note a full write buffer; called by the event loop."""
        self._blocked = True
        if self._busy:  # the node must keep reading
            self._unsent = self._transport.get_write_buffer_size()
            self.expect(self._timeouts.idle_s)

    def resume_writing(self) -> None:
        """Note a free write buffer; called by the event loop."""
        self._blocked = False
        if self._busy:
            self._expect_answer()
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.set_result(None)

    # -- callbacks of the socket ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket's transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. An exception of a receiver ends the call and the connection."""
        exchange = self._exchange
        try:
            self._received(data)
        except Exception as error:  # an error of this process ends the call and the connection
            log.exception("processing an answer of %s failed", self.url)
            self._break(faults.handler_failed(self.url, error))
            if exchange is not None:
                exchange.handler_failed(error)

    def _received(self, data: bytes) -> None:
        if not self._busy:  # unexpected bytes: the connection is unusable
            self.abort()
            return
        first = self.silent and not self._stream and not self._head_only and self._upload is None
        self.silent = False
        if first and (cached := self._cached_head) is not None and (body := cached.body(data)) is not None:
            self._deliver_cached(body)
            return
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._break(self._refusal or faults.not_http(self.url, error))
                return
            self._dirty = True
        if self._stream and (exchange := self._exchange) is not None:
            self._deliver(exchange)
            if self.closed:
                return
        if self._complete or (self._head_only and self._status):
            if first and self._status == 200 and self._keep and not self._dirty:
                self._cached_head = cache_head(data)
                self._cached_headers = [(name, value) for name, value in self._raw if name.lower() != b"content-length"]
            self._finish()
        else:
            self._overhead = 0 if self._size > size else self._overhead + len(data)
            self._continue()
            if len(data) >= TURN_BYTES and self._busy and not self._paused and not self._rests:
                self._rests = True
                self._transport.pause_reading()
                self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        """Continue reading in the next turn of the loop."""
        self._rests = False
        if not (self.closed or self._paused) and self._transport is not None:
            self._transport.resume_reading()

    def _deliver_cached(self, body: bytes) -> None:
        """Deliver a whole answer whose head equals a parsed one."""
        if len(body) > self._body_most:
            self._break(faults.body_too_large(self.url, self._body_most))
            return
        self._waiting = False
        self._complete = self._keep = True
        self._status, self._size = 200, len(body)
        exchange = self._exchange
        if exchange is not None and not self._paused:
            self._release_and_deliver(exchange, body, not self._blocked)
            return
        self._raw = [*self._cached_headers, (b"content-length", b"%d" % len(body))]
        self._pieces.append(body)
        self._finish()

    def eof_received(self) -> None:
        """Handle the node's end of the connection."""
        self._on_closed(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._on_closed(exc)
        self._parser = self._transport = None  # they are reference cycles: spare the garbage collector
        self.lost.set()

    def _on_closed(self, exc: Exception | None) -> None:
        if self._busy:
            if exc is None and self._status and self._ends_with_the_connection():
                self._end(None)
            else:
                self._end(faults.cut(self.url, self._size if self._status else None, exc))
        self.abort()

    def _ends_with_the_connection(self) -> bool:
        """Check for a body without a length or chunks, which ends with the connection."""
        headers = fold(self._raw)
        coding = headers.get("transfer-encoding")
        if coding is not None:
            return coding.rpartition(",")[2].strip().lower() != "chunked"
        return "content-length" not in headers

    def _continue(self) -> None:
        """Expect more bytes; wake the reader."""
        if self._overhead > self._limits.head_bytes:
            self._break(faults.head_too_large(self.url, self._limits.head_bytes))
            return
        inbox = self._inbox
        if inbox is not None and inbox.pieces:
            inbox.wake()
            if inbox.size > self._limits.inbox_bytes:
                self.pause()
        if not self._waiting:
            self._expect_answer()

    def pause(self) -> None:
        """Pause reading from the node, because the reader is behind."""
        if not self._paused and self._busy:
            self._paused = True
            if not self._rests:
                self._transport.pause_reading()
            self.expect(None)

    def resume(self) -> None:
        """Continue reading from the node."""
        if self._paused:
            self._paused = False
            if not self._rests:
                self._transport.resume_reading()
            self._expect_answer()

    # -- callbacks of the parser ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Note the first byte of a message."""
        self._waiting = False
        if self._complete:
            self._dirty = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a header, within the limit of the head."""
        self._head_size += len(name) + len(value)
        if self._head_size > self._limits.head_bytes:
            self._refuse(faults.head_too_large(self.url, self._limits.head_bytes))
        if not self._status:  # trailers are dropped
            if len(name) == 16 and name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
                self._refuse(faults.encoded(self.url, value))
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the status."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._on_head(status)
        elif status not in INTERIM:
            self._refuse(faults.bad_status(self.url, status))

    def _on_head(self, status: int) -> None:
        self._status = status
        if self._head_only:
            self._keep = self._parser.should_keep_alive()
        if status >= 400:  # the node does not read the rest of the request
            self._stop_upload()
        if self._stream and self._exchange is None:
            waiter, self._waiter = self._waiter, None
            self._inbox = Inbox(self)
            if waiter is not None and not waiter.done():  # a cancelled one is followed by `abandon`
                waiter.set_result(StreamReply(status, self._raw, self._inbox))

    def on_body(self, data: bytes) -> None:
        """Store a piece of the body, within its limit."""
        size = self._size = self._size + len(data)
        inbox = self._inbox
        if self._head_only:
            self._dirty = True
        elif inbox is not None:
            inbox.pieces.append(data)
            inbox.size += len(data)
        elif not self._stream and size > (most := self._most()):
            is_text = most < self._body_most and self._status < 300
            self._refuse((faults.not_json if is_text else faults.body_too_large)(self.url, most))
        else:
            if not self._stream:
                self._check_form(data)
            self._pieces.append(data)

    def _check_form(self, data: bytes) -> None:
        """Limit white space in a row, and an answer that does not begin as JSON."""
        is_blank = data.isspace()
        self._blanks = self._blanks + len(data) if is_blank else 0
        if self._blanks > BLANKS_MOST:
            self._refuse(faults.too_blank(self.url, BLANKS_MOST))
        if not (is_blank or self._has_begun):
            self._has_begun = True
            self._is_json = data[0] in _JSON_BEGINS or data.lstrip()[0] in _JSON_BEGINS

    def _most(self) -> int:
        """Return the limit of this answer's body in bytes."""
        is_short = self._status >= 300 or not self._is_json
        return min(ERROR_MOST, self._body_most) if is_short else self._body_most

    def on_message_complete(self) -> None:
        """Note the end of a message."""
        if self._status:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
        else:  # an interim status: the answer follows
            self._waiting = True
            self._raw.clear()

    def _refuse(self, fault: TransportFault) -> None:
        """Stop the parser by the fault, which `data_received` reports."""
        self._refusal = fault
        raise fault

    # -- time ------------------------------------------------------------------------------------------

    def _expect_answer(self) -> None:
        if self._paused or self._upload is not None:
            self.expect(None)  # the node is not at fault for this wait
        else:
            self.expect(self._timeouts.first_byte_s if self._waiting else self._timeouts.idle_s)

    def overdue(self) -> None:
        """End a call at its deadline, or close an idle connection."""
        if not self._busy:
            self.abort()
        elif self._blocked:
            self._check_upload()
        elif self._waiting:
            self._break(faults.first_byte_timeout(self.url, self._timeouts.first_byte_s))
        else:
            self._break(faults.idle_timeout(self.url, self._timeouts.idle_s))

    def _check_upload(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._unsent = left
            self.expect(self._timeouts.idle_s)
        else:
            self._break(faults.upload_timeout(self.url, self._timeouts.idle_s))
