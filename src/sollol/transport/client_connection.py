"""One connection to a node: it writes a request and turns the bytes that come back into a reply.

The hot path of the product, so one object stands between the socket and llhttp: the event loop calls
`data_received`, the parser calls `on_...`, and when the body is complete the caller's future is set. No
streams, no task, no coroutine in between; one future for each call. The state of a call lives in the
connection's own fields, which `_begin` resets, because a connection serves one call at a time (pipelining
is not used: a long answer would hold up the others). That is also why the file has more than 400 lines: cutting the
object up would put calls between the parser and the caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import httptools

from sollol.transport import faults as _faults
from sollol.transport.base import ERROR_MOST, Call, RawHeaders, Reply, Timeouts, TransportFault
from sollol.transport.head_cache import KnownHead, known_head
from sollol.transport.outbox import Outbox, Writer
from sollol.transport.reply import Inbox, StreamReply, WholeReply, fold

if TYPE_CHECKING:
    from sollol.transport.http import Exchange

log = logging.getLogger("sollol")
INTERIM: Final = (100, 102, 103)  # statuses before the answer proper; after any other below 200 none may come
ONE_WRITE_BYTES: Final = 65_536  # up to here copying the body behind its head beats a second system call


class Limits(NamedTuple):
    """Bounds of a connection; the reasons stand beside their defaults in `http.py`."""

    head_bytes: int
    body_bytes: int
    inbox_bytes: int
    idle_age_s: float


class Home(Protocol):
    """The pool that a connection goes back to."""

    def release(self, connection: Connection) -> bool:
        """Take a connection that is ready for the next call. False: no room, it will close."""
        ...

    def forget(self, connection: Connection) -> None:
        """The connection closes."""
        ...


class Connection(Writer, asyncio.Protocol):
    """Speaks HTTP/1.1 to one node, one call at a time."""

    # fmt: off
    __slots__ = (
        "_bare", "_blocked", "_body_most", "_busy", "_complete", "_dirty", "_drain", "_head_only", "_head_size",
        "_head_told", "_home", "_inbox", "_keep", "_known", "_known_raw", "_limits", "_parser", "_paused", "_pieces",
        "_raw", "_refusal", "_size", "_status", "_stream", "_teller", "_timeouts", "_unsent", "_upload", "_waiter",
        "_waiting", "closed", "lost", "max_body_bytes", "silent", "turn", "url",
    )
    # fmt: on

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, url: str, home: Home, limits: Limits) -> None:
        super().__init__(loop, outbox)
        self.url = url
        self.max_body_bytes = limits.body_bytes
        self.turn = 0  # which call this is: a late cancel of an earlier one must not hit it
        self.silent = True  # no byte of an answer has come
        self.closed = False  # we let go of it
        self.lost = asyncio.Event()  # the event loop let go of it
        self._home = home
        self._limits = limits
        self._parser: Any = httptools.HttpResponseParser(self)
        self._busy = False  # a call is under way
        self._blocked = False  # the node does not take our bytes as fast as we have them
        self._paused = False  # the reader does not take the node's
        self._unsent = 0
        self._upload: asyncio.Task[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._inbox: Inbox | None = None
        self._teller: Exchange | None = None
        self._known: KnownHead | None = None  # of the last good answer that was parsed
        self._known_raw: RawHeaders = []  # without the length

    def __repr__(self) -> str:
        state = "closed" if self.closed else "busy" if self._busy else "idle"
        return f"<Connection {self.url} {state}, call {self.turn}>"

    # -- a call: begin and end -------------------------------------------------------------------------

    def start(self, head: bytes, body: bytes, call: Call) -> asyncio.Future[Reply]:
        """Write a request whose body is at hand. `head` is what RequestHeads.for_call made."""
        waiter = self._waiter = self.loop.create_future()
        self._write(head, body, call)
        return waiter

    def start_telling(self, head: bytes, body: bytes, call: Call, teller: Exchange) -> None:
        """The same for an exchange, which is told outside of the parser's callbacks, once for each arrival."""
        self._teller = teller
        self._head_told = False
        self._write(head, body, call)

    def _write(self, head: bytes, body: bytes, call: Call) -> None:
        self._begin(call)
        self.expect(call.timeouts.first_byte_s)  # before the write, which may find the node blocked
        size = len(body)
        if size > ONE_WRITE_BYTES:
            self._transport.write(b"%b%d\r\n\r\n" % (head, size))
            self._transport.write(body)
            return
        data = b"%b%d\r\n\r\n%b" % (head, size, body) if size else head
        if self.outbox.waiting:
            self.write_late(data)
        else:
            self._transport.write(data)

    def start_upload(self, head: bytes, body: AsyncIterator[bytes], call: Call) -> asyncio.Future[Reply]:
        """Write a request whose body is still being made, in a task: the answer may come before its end."""
        waiter = self._waiter = self.loop.create_future()
        self._begin(call)
        self._transport.write(head)
        self._upload = self.loop.create_task(self._pump(body))
        self.expect(None)  # how long the pieces take is the caller's affair
        return waiter

    def _begin(self, call: Call) -> None:
        self.turn += 1
        self.silent = self._busy = True
        self._waiting = True  # for the first byte of the answer proper
        self._complete = self._keep = self._dirty = False
        self._stream = call.stream
        self._head_only = call.method == "HEAD"
        self._body_most = min(call.most, self.max_body_bytes) if call.most else self.max_body_bytes
        self._timeouts: Timeouts = call.timeouts
        self._status = self._size = self._head_size = 0
        self._bare = 0  # bytes read since the last of a body: head, trailers, chunk sizes
        self._raw: RawHeaders = []
        self._pieces: list[bytes] = []
        self._refusal: TransportFault | None = None

    def _end(self, error: BaseException | None) -> None:
        """Tell whoever waits how the call ended; None means well."""
        self._busy = False
        teller, waiter, inbox = self._teller, self._waiter, self._inbox
        self._teller = self._waiter = self._inbox = None
        if teller is not None:
            try:
                if error is not None:
                    teller.failed(error, self.silent)
                else:
                    teller.done(self._status, self._told())
            except Exception as fault:
                log.exception("the end of an answer of %s could not be told", self.url)
                teller.broke(fault)
            return
        if inbox is not None:
            inbox.end(error)
        elif waiter is not None and not waiter.done():
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(WholeReply(self._status, self._raw, self._told()))
        self._pieces = []  # an idle connection must not hold on to an answer

    def _told(self) -> bytes:
        """The body as far as it was not told, which it is now."""
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        self._pieces = []
        return b"".join(pieces)

    def _tell(self, teller: Exchange) -> None:
        """What came of a streamed answer in this turn of the loop."""
        if self._status and not self._head_told:
            self._head_told = True
            teller.on_head(self._status, self._raw)
        if self._pieces and self._teller is teller:
            teller.on_body(self._told())

    def _finish(self) -> None:
        """The answer is complete: hand it over, and go back to the pool if the connection can serve again."""
        reusable = self._keep and not (self._dirty or self._blocked or self._upload is not None)
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        teller = self._teller
        if teller is None:
            self._end(None)
            self._retire(reusable)
        else:
            self._hand_over(teller, self._told(), reusable)

    def _hand_over(self, teller: Exchange, body: bytes, reusable: bool) -> None:
        """What it is told may make it send the next call, which should find this connection idle."""
        status = self._status
        if status != 200:
            teller.headers = self._raw
        self._teller = None
        self._busy = False
        self._retire(reusable)
        teller.done(status, body)

    def _retire(self, reusable: bool) -> None:
        if self._head_only:
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for a body
        if reusable and self._home.release(self):
            self.expect(self._limits.idle_age_s)
        else:
            self.abort()

    def _break(self, error: BaseException) -> None:
        if self._busy:
            self._end(error)
        self.abort()

    def abandon(self, turn: int) -> None:
        """The caller of that call is gone: close, unless the call has ended already."""
        if turn == self.turn and self._busy:
            self.abort()

    def abort(self) -> None:
        """Close at once: to the node that is the cancel. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._late = b""
        self.stop_timer()
        self._stop_upload()
        if self._busy:
            self._end(_faults.closed_here(self.url))
        self._home.forget(self)
        if self._transport is not None:
            self._transport.abort()

    # -- the request's body ----------------------------------------------------------------------------

    async def _pump(self, body: AsyncIterator[bytes]) -> None:
        try:
            await self._write_chunks(body)
        except Exception as error:  # the caller's own iterator failed: its error is the answer
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
            self._dirty = True  # half a request is on the wire

    def pause_writing(self) -> None:
        self._blocked = True
        if self._busy:  # the node must keep taking bytes, as it must keep sending them
            self._unsent = self._transport.get_write_buffer_size()
            self.expect(self._timeouts.idle_s)

    def resume_writing(self) -> None:
        self._blocked = False
        if self._busy:
            self._expect_answer()
        drain, self._drain = self._drain, None
        if drain is not None and not drain.done():
            drain.set_result(None)

    # -- what the socket says --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        teller = self._teller
        try:
            self._received(data)
        except Exception as error:  # a fault of ours: this call ends, and the connection with it
            log.exception("an answer of %s could not be taken", self.url)
            self._break(_faults.not_taken(self.url, error))
            if teller is not None:
                teller.broke(error)

    def _received(self, data: bytes) -> None:
        if not self._busy:  # nobody asked: whatever it is, the connection is of no more use
            self.abort()
            return
        first = self.silent and not self._stream and not self._head_only and self._upload is None
        self.silent = False
        if first and (known := self._known) is not None and (body := known.body(data)) is not None:
            self._knew(body)
            return
        size = self._size
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._break(self._refusal or _faults.not_http(self.url, error))
                return
            self._dirty = True
        if self._stream and (teller := self._teller) is not None:
            self._tell(teller)
            if self.closed:
                return
        if self._complete or (self._head_only and self._status):
            if first and self._status == 200 and self._keep and not self._dirty:
                self._known = known_head(data)
                self._known_raw = [(name, value) for name, value in self._raw if name.lower() != b"content-length"]
            self._finish()
        else:
            self._bare = 0 if self._size > size else self._bare + len(data)
            self._go_on()

    def _knew(self, body: bytes) -> None:
        """A whole answer, with the same head as one before it."""
        if len(body) > self._body_most:
            self._break(_faults.body_too_large(self.url, self._body_most))
            return
        self._waiting = False
        self._complete = self._keep = True
        self._status, self._size = 200, len(body)
        teller = self._teller
        if teller is not None and not self._paused:
            self._hand_over(teller, body, not self._blocked)
            return
        self._raw = [*self._known_raw, (b"content-length", b"%d" % len(body))]
        self._pieces.append(body)
        self._finish()

    def eof_received(self) -> None:
        self._gone(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone(exc)
        self._parser = self._transport = None  # they refer back: no work for the garbage collector
        self.lost.set()

    def _gone(self, exc: Exception | None) -> None:
        if self._busy:
            if exc is None and self._status and self._ends_with_the_connection():
                self._end(None)
            else:
                self._end(_faults.cut(self.url, self._size if self._status else None, exc))
        self.abort()

    def _ends_with_the_connection(self) -> bool:
        """Neither a length nor chunks: the end of the connection is the end of the body."""
        headers = fold(self._raw)
        coding = headers.get("transfer-encoding")
        if coding is not None:
            return coding.rpartition(",")[2].strip().lower() != "chunked"
        return "content-length" not in headers

    def _go_on(self) -> None:
        """Bytes came, more will come."""
        if self._bare > self._limits.head_bytes:
            self._break(_faults.head_too_large(self.url, self._limits.head_bytes))
            return
        inbox = self._inbox
        if inbox is not None and inbox.pieces:
            inbox.wake()
            if inbox.size > self._limits.inbox_bytes:
                self.pause()
        if not self._waiting:
            self._expect_answer()

    def pause(self) -> None:
        """The reader is behind: the node has to wait."""
        if not self._paused and self._busy:
            self._paused = True
            self._transport.pause_reading()
            self.expect(None)

    def resume(self) -> None:
        """The reader has caught up."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
            self._expect_answer()

    # -- what the parser says --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._waiting = False
        if self._complete:
            self._dirty = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > self._limits.head_bytes:
            self._refuse(_faults.head_too_large(self.url, self._limits.head_bytes))
        if not self._status:  # otherwise it is a trailer
            if len(name) == 16 and name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
                self._refuse(_faults.encoded(self.url, value))
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._on_head(status)
        elif status not in INTERIM:
            self._refuse(_faults.odd_status(self.url, status))

    def _on_head(self, status: int) -> None:
        self._status = status
        if self._head_only:
            self._keep = self._parser.should_keep_alive()
        if status >= 400:  # it does not want the rest of the request
            self._stop_upload()
        if self._stream and self._teller is None:
            waiter, self._waiter = self._waiter, None
            self._inbox = Inbox(self)
            if waiter is not None and not waiter.done():  # else cancelled just now: `abandon` follows
                waiter.set_result(StreamReply(status, self._raw, self._inbox))

    def on_body(self, data: bytes) -> None:
        size = self._size = self._size + len(data)
        inbox = self._inbox
        if self._head_only:
            self._dirty = True
        elif inbox is not None:
            inbox.pieces.append(data)
            inbox.size += len(data)
        elif not self._stream and size > (most := self._most()):
            self._refuse(_faults.body_too_large(self.url, most))
        else:
            self._pieces.append(data)

    def _most(self) -> int:
        """Return how many bytes the body of this answer may have."""
        return self._body_most if self._status < 300 else min(ERROR_MOST, self._body_most)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
        else:  # 1xx: the answer is still to come
            self._waiting = True
            self._raw.clear()

    def _refuse(self, fault: TransportFault) -> None:
        """Stop the parser; `data_received` finds the reason."""
        self._refusal = fault
        raise fault

    # -- time ------------------------------------------------------------------------------------------

    def _expect_answer(self) -> None:
        if self._paused or self._upload is not None:
            self.expect(None)  # it is not the node that we wait for
        else:
            self.expect(self._timeouts.first_byte_s if self._waiting else self._timeouts.idle_s)

    def overdue(self) -> None:
        if not self._busy:
            self.abort()  # idle for too long
        elif self._blocked:
            self._check_upload()
        elif self._waiting:
            self._break(_faults.first_byte_timeout(self.url, self._timeouts.first_byte_s))
        else:
            self._break(_faults.fell_silent(self.url, self._timeouts.idle_s))

    def _check_upload(self) -> None:
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._unsent = left
            self.expect(self._timeouts.idle_s)
        else:
            self._break(_faults.took_nothing(self.url, self._timeouts.idle_s))
