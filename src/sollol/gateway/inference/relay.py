"""Relay inferences between clients and nodes, by callbacks in the turn of the loop in which bytes arrive.

Relays are jobs of the dispatcher (`engine.dispatcher.Job`), as those of the pool are. The answer is relayed as bytes
and only the fields that decide are decoded. An attempt runs in callbacks, without an asyncio task of its own. Before
the first byte reaches the client, another node can answer unnoticed; after it, another node resumes the answer where
that can be exact (`engine.resumption`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sollol.backends.model_check import wrong_model
from sollol.backends.ollama import with_part_count
from sollol.backends.refusals import outcome_of, refusal
from sollol.backends.repetition import Recent, repeats
from sollol.core.actions import Complete, Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import OK, Micros, Outcome, Status, Task, Timing
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.jobs import CallJob, StreamJob
from sollol.engine.resumption import UNREAD, PartialResponse, ResumeSupport
from sollol.gateway.auth.access import shown_message
from sollol.gateway.formats.api_formats import ApiFormat
from sollol.gateway.formats.stream_end import closing_events
from sollol.gateway.formats.stream_parser import CUT, StreamParser
from sollol.gateway.inference.routing_headers import lines_of_attempt, routing_lines
from sollol.http_server.request import Request
from sollol.printable import printable_body
from sollol.transport.base import ERROR_MOST, RawHeaders, Timeouts, TransportFault
from sollol.transport.http import Exchange, HttpTransport
from sollol.transport.reply import fold

Done = Callable[[CallJob], None]


class WholeRelay(CallJob):
    """A request with a whole answer."""

    def __init__(
        self,
        task: Task,
        request: Request,
        body: bytes,
        api_format: ApiFormat,
        timeouts: Timeouts,
        done: Done,
        transport: HttpTransport,
    ) -> None:
        super().__init__(task, api_format.path, body, timeouts, done)
        self.request = request
        self._transport = transport
        self._judge = api_format.judge

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Send the request to a node; return the function that aborts it."""
        if start.observe:  # rare
            return dispatcher.run(self.perform, start, node)
        attempt = WholeAttempt(self, dispatcher, start.attempt)
        self._transport.start(node, self.call_of(start), attempt)
        return attempt.abort

    def delivered(self) -> tuple[int, int]:
        """Return no events and no bytes: the client receives nothing before a whole answer."""
        return 0, 0

    def judge_answer(self, attempt: int, status: int, body: bytes, headers: RawHeaders) -> Outcome:
        """Keep the answer of an attempt and return its outcome."""
        self.keep(attempt, body)
        if status != 200:
            return self.refusal_of(status, body, fold(headers))
        return self.check(self._judge(status, body), body)

    def answer(self, settled: Complete) -> None:
        """Send the node's answer to the client."""
        lines = lines_of_attempt(self.attempt_log, settled.attempt)
        body = self.body if settled.outcome.status is OK else printable_body(self.body)
        self.request.answer_with(settled.outcome.http_status, body, self.request.json_line, lines)


class WholeAttempt(Exchange):
    """Receive one whole answer."""

    __slots__ = ("_attempt", "_dispatcher", "_job")

    def __init__(self, job: WholeRelay, dispatcher: Dispatcher, attempt: int) -> None:
        super().__init__()
        self._job = job
        self._dispatcher = dispatcher
        self._attempt = attempt

    def on_whole(self, status: int, body: bytes) -> None:
        """Judge the answer and report the end of the attempt."""
        try:
            outcome = self._job.judge_answer(self._attempt, status, body, self.headers)
        except Exception as error:  # another node may give an answer that can be parsed
            outcome = self._dispatcher.answer_fault(error)
        self._dispatcher.finished(self._attempt, outcome)

    def on_end(self, fault: TransportFault | None) -> None:
        """Report a connection that failed."""
        assert fault is not None
        self._dispatcher.finished(self._attempt, outcome_of(fault))


class StreamRelay(StreamJob):
    """A request with a streamed answer, which another node can resume as in the pool."""

    def __init__(
        self,
        task: Task,
        request: Request,
        body: bytes,
        api_format: ApiFormat,
        timeouts: Timeouts,
        done: Done,
        transport: HttpTransport,
        partial: PartialResponse | None,
        resume_support: ResumeSupport,
        holders: Callable[[str], dict[str, tuple[Endpoint, str]]],
    ) -> None:
        super().__init__(
            task, api_format.path, body, timeouts, done, self._relay_resumed, partial, resume_support, holders
        )
        self.request = request
        self.api_format = api_format
        self.transport = transport
        self._unread: list[bytes] | None = None if partial is None else partial.unread
        self.refusal_event = b""  # the event by which a node refused an answer that had begun
        self._pieces = self._piece_bytes = 0  # relayed, of a stream that cannot be resumed
        self._events = self._event_bytes = 0  # relayed events
        self.is_whole = False  # a whole answer to a stream, as to a request that only loads the model

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Send the request to a node, or resume the answer there; return the function that aborts it."""
        if self.begun_at:  # rare: several calls to the node
            return super().launch(dispatcher, start, node)
        return StreamAttempt(self, dispatcher, start, node).launch()

    def begin(self, attempt: StreamAttempt, piece: bytes) -> None:
        """Send the head and the first piece, and report the first token."""
        start, log = attempt.start, self.attempt_log
        lines = routing_lines(log, start.node, start.decision.predicted_us, attempt.began_us, len(log.attempts) + 1)
        self.request.begin_with(200, self.api_format.type_line, lines, piece)
        self.begin_delivery(attempt.node, start, lambda movable: attempt.dispatcher.began(start.attempt, movable))
        attempt.dispatcher.watch(start.attempt, attempt)

    def count(self, events: int, size: int) -> None:
        """Count events sent to the client, and their bytes."""
        self._events += events
        self._event_bytes += size

    def delivered(self) -> tuple[int, int]:
        """Return the number of events that the client has received, and their bytes."""
        return self._events, self._event_bytes

    def _relay_resumed(self, line: bytes) -> bool:
        """Send a part from a node that resumes the answer; return False if the client is behind."""
        self.count(1, len(line))
        if self.request.write(self.api_format.framed(line)):
            return True
        self.request.on_drained = self.drained.set
        return False

    def report_failure(self, attempt: StreamAttempt, outcome: Outcome) -> None:
        """Report a failed attempt, or the success of one that delivered all tokens before it failed."""
        partial = self.partial
        if self.begun_at and partial is not None and partial.is_complete:
            self.last = partial.finished(self.elapsed_us())
            outcome = Outcome(OK, "", 200)
        attempt.dispatcher.finished(attempt.start.attempt, outcome)

    def end_of_repetition(self, events: Sequence[Mapping[str, Any]], tokens: int) -> bytes:
        """Return the end of an answer that the node ended because its text repeats."""
        partial = self.partial
        if partial is not None and partial.is_exact:
            return partial.finished(self.elapsed_us())
        return closing_events(self.api_format.path, events, tokens)

    def record(self, piece: bytes) -> None:
        """Keep a relayed piece for a resumption, or count it."""
        unread, partial = self._unread, self.partial
        if unread is not None and partial is not None:  # as PartialResponse.add, which is not compiled
            unread.append(piece)
            if len(unread) >= UNREAD:
                partial.read()
        else:
            self._pieces += 1
            self._piece_bytes += len(piece)

    def settle(self, action: Complete, at: Micros) -> None:
        """Deliver the end of the task. Its last line is sent by `answer`, not pushed as by StreamJob."""
        if self.partial is not None:
            self.attempt_log.resumptions = self.partial.resumptions
        CallJob.settle(self, action, at)

    def answer(self, settled: Complete) -> None:
        """Send the end of the stream, or a refusal before its beginning, to the client."""
        request, lines = self.request, lines_of_attempt(self.attempt_log, settled.attempt)
        if settled.outcome.status is not OK:
            request.answer_with(settled.outcome.http_status, printable_body(self.body), request.json_line, lines)
        elif not request.has_begun and self.is_whole:
            request.answer_with(200, self.last, request.json_line, lines)
        else:
            if not request.has_begun:
                request.begin_with(200, self.api_format.type_line, lines)
            request.end(self.api_format.framed(self.last))

    def describe_received(self, text: str, thinking: str, tool_calls: int) -> str:
        """Return the received amount in words: the number of pieces, where the text is not decoded."""
        if self._unread is not None:
            return super().describe_received(text, thinking, tool_calls)
        return f"{self._pieces} parts, {self._piece_bytes} bytes"

    def break_off(self, settled: Complete) -> None:
        """End a stream that cannot be resumed with an error in the API's format."""
        if settled.outcome.status is Status.REFUSED and self.refusal_event:
            self.request.end(self.api_format.framed(self.refusal_event))
            return
        error = self.error()
        assert error is not None
        self.request.end(self.api_format.error_event(self.request.path, shown_message(self.request, error)))


class StreamAttempt(Exchange):
    """Receive the stream of one node and relay its events."""

    __slots__ = (
        "_began",
        "_counted",
        "_ending",
        "_job",
        "_parser",
        "_pieces",
        "_recent",
        "_refusal_body",
        "_refusal_size",
        "_status",
        "began_us",
        "dispatcher",
        "node",
        "start",
    )

    def __init__(self, job: StreamRelay, dispatcher: Dispatcher, start: Start, node: Endpoint) -> None:
        super().__init__()
        self.dispatcher = dispatcher
        self.start = start
        self.node = node
        self.began_us = dispatcher.now()
        self._job = job
        self._parser: StreamParser = job.api_format.new_parser()
        self._status = 0
        self._refusal_body: list[bytes] = []  # the body of an answer with another status than 200
        self._refusal_size = 0
        self._began = False  # a piece was relayed
        self._pieces = 0  # received pieces
        self._counted = 0  # relayed events
        self._recent = Recent()
        self._ending: asyncio.Handle | None = None

    def launch(self) -> GiveUp:
        """Send the request; return the function that aborts it."""
        self._job.transport.start(self.node, self._job.call_of(self.start), self)
        return self.abort

    def on_head(self, status: int, headers: RawHeaders) -> None:
        """Receive the head of the answer."""
        try:
            self._read_head(status, headers)
        except Exception as error:
            self._fail(error)

    def on_body(self, piece: bytes) -> None:
        """Receive a piece of the answer."""
        try:
            self._relay(piece)
        except Exception as error:
            self._fail(error)

    def on_end(self, fault: TransportFault | None) -> None:
        """Receive the end of the answer, or of its connection."""
        try:
            self._end(fault)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the attempt after a defect of SOLLOL that its bytes caused; another node may answer."""
        if self._ending is not None:
            self._ending.cancel()
        self.abort()
        self._job.report_failure(self, self.dispatcher.answer_fault(error))

    def _read_head(self, status: int, headers: RawHeaders) -> None:
        self._status = status
        if status != 200:
            self.headers = headers
        for name, value in headers:
            if name.lower() == b"content-type":
                self._job.is_whole = value.startswith(b"application/json")

    def _relay(self, piece: bytes) -> None:
        if self._status != 200:
            self._refusal_size += len(piece)
            if self._refusal_size <= ERROR_MOST:
                self._refusal_body.append(piece)
            else:
                self.abort()
                self._end(None)
            return
        if self._ending is not None:
            self.abort()  # bytes after the end of the answer, perhaps without a limit
            return
        parser, job = self._parser, self._job
        self._pieces += 1
        relayed = parser.feed(piece)
        if relayed:
            if not self._began:
                failure = wrong_model(relayed, job.task.model, job.call.path)
                if failure is not None:
                    self.abort()
                    self._finish(failure)
                    return
            job.record(relayed)
            job.count(parser.count - self._counted, len(relayed))
            self._counted = parser.count
            self._recent.add(relayed)
            if not self._began:
                self._began = True
                job.begin(self, relayed)
            elif not job.request.write(relayed):
                job.request.on_drained = self.resume
                self.pause()
        if parser.ended is not None:  # usually the connection ends in the same turn of the loop
            if parser.ended.status is not OK:
                self.abort()
            self._ending = asyncio.get_running_loop().call_soon(self._finish, parser.ended)

    def received_parts(self) -> int:
        """Return the number of pieces so far; negative while the client is behind."""
        return -1 if self.paused else self._pieces

    def resumable(self) -> tuple[bool, bool]:
        """Return the result of `StreamJob.resumable`."""
        return self._job.resumable()

    def _end(self, fault: TransportFault | None) -> None:
        if self._status not in (0, 200):
            body = b"".join(self._refusal_body)
            self._job.keep(self.start.attempt, body)
            self._finish(refusal(self._status, body, fold(self.headers)))
        elif self._ending is not None:
            self._ending.cancel()
            assert self._parser.ended is not None
            self._finish(self._parser.ended)
        else:
            ended = self._parser.close(fault is None)
            if fault is None and ended is CUT and self._began and self._ends_in_repetition():
                return
            self._finish(ended if ended.status is OK or fault is None else outcome_of(fault))

    def _ends_in_repetition(self) -> bool:
        """Report success, if a cleanly closed body without an end is one that Ollama ended for its repetition."""
        events = self._recent.events()
        if not repeats(events):
            return False
        job = self._job
        job.last = job.end_of_repetition(events, self._pieces)
        self.dispatcher.finished(self.start.attempt, Outcome(OK, "", 200, Timing(tokens=self._pieces)))
        return True

    def _finish(self, outcome: Outcome) -> None:
        try:
            self._report(outcome)
        except Exception as error:
            self._fail(error)

    def _report(self, outcome: Outcome) -> None:
        job = self._job
        if outcome.status is Status.REFUSED and self._status == 200:
            job.refusal_event = self._parser.tail
        if outcome.status is OK:
            outcome = with_part_count(outcome, max(self._pieces, self._parser.count))
            job.last = self._parser.tail
            self.dispatcher.finished(self.start.attempt, outcome)
        else:
            job.report_failure(self, outcome)
