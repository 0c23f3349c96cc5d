"""An inference request on its way: to a node and back, by callbacks in the turns of the loop in which bytes arrive.

The same jobs as the pool's, for the same dispatcher: what differs is that the answer goes on as bytes, that nothing
is decoded that does not decide, and that no task is made for an attempt. Before the first byte has gone to the client,
a failure moves on unnoticed; after it, another node goes on where that can be exact (`pool.continuation`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sollol.backends.model_check import wrong_model
from sollol.backends.ollama import outcome_of, refusal, with_part_count
from sollol.backends.repetition import Recent, repeats
from sollol.core.actions import Complete, Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import OK, Micros, Outcome, Status, Task, Timing
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.jobs import CallJob, StreamJob
from sollol.engine.resumption import UNREAD, PartialResponse, ResumeSupport
from sollol.gateway.auth.access import words
from sollol.gateway.formats.api_formats import Tongue
from sollol.gateway.formats.stream_end import closing
from sollol.gateway.formats.stream_parser import CUT, Reader
from sollol.http_server.request import Request
from sollol.transport.base import ERROR_MOST, RawHeaders, Timeouts, TransportFault
from sollol.transport.http import Exchange, HttpTransport
from sollol.transport.reply import fold

Done = Callable[[CallJob], None]


class WholeRelay(CallJob):
    """A request whose answer comes whole."""

    def __init__(
        self,
        task: Task,
        request: Request,
        body: bytes,
        tongue: Tongue,
        timeouts: Timeouts,
        done: Done,
        transport: HttpTransport,
    ) -> None:
        super().__init__(task, tongue.path, body, timeouts, done)
        self.request = request
        self._transport = transport
        self._judge = tongue.judge

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        if start.observe:  # seldom: a task of its own is no matter
            return dispatcher.run(self.perform, start, node)
        attempt = _WholeAttempt(self, dispatcher, start.attempt)
        self._transport.start(node, self.call, attempt)
        return attempt.abort

    def came_so_far(self) -> tuple[int, int]:
        """Return how many parts the client has received, and their bytes: a whole answer is none."""
        return 0, 0

    def came(self, attempt: int, status: int, body: bytes, headers: RawHeaders) -> Outcome:
        self.keep(attempt, body)
        if status != 200:
            return self.refusal_of(status, body, fold(headers))
        return self.check(self._judge(status, body), body)

    def answer(self, settled: Complete) -> None:
        """To the client, what the node said."""
        self.request.answer_with(
            settled.outcome.http_status, self.body, self.request.json_line, routing_lines(self, settled.attempt)
        )


class _WholeAttempt(Exchange):
    __slots__ = ("_attempt", "_dispatcher", "_job")

    def __init__(self, job: WholeRelay, dispatcher: Dispatcher, attempt: int) -> None:
        super().__init__()
        self._job = job
        self._dispatcher = dispatcher
        self._attempt = attempt

    def on_whole(self, status: int, body: bytes) -> None:
        try:
            outcome = self._job.came(self._attempt, status, body, self.headers)
        except Exception as error:  # another node may answer what can be read
            outcome = self._dispatcher.answer_fault(error)
        self._dispatcher.finished(self._attempt, outcome)

    def on_end(self, fault: TransportFault | None) -> None:
        assert fault is not None
        self._dispatcher.finished(self._attempt, outcome_of(fault))


class StreamRelay(StreamJob):
    """A request whose answer is passed on as it comes. Another node goes on with it as for the pool's streams."""

    def __init__(
        self,
        task: Task,
        request: Request,
        body: bytes,
        tongue: Tongue,
        timeouts: Timeouts,
        done: Done,
        transport: HttpTransport,
        said: PartialResponse | None,
        resume_support: ResumeSupport,
        holders: Callable[[str], dict[str, tuple[Endpoint, str]]],
    ) -> None:
        super().__init__(task, tongue.path, body, timeouts, done, self._pass_on, said, resume_support, holders)
        self.request = request
        self.tongue = tongue
        self.transport = transport
        self._unread: list[bytes] | None = None if said is None else said.unread
        self.refused = b""  # the event in which a node refused an answer that had begun
        self.parts = self.part_bytes = 0  # passed on without being read
        self._events = self._event_bytes = 0  # passed on
        self.is_whole = False  # though a stream was asked for: so is the answer to a load

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        if self.begun_at:  # another node has to go on: seldom, and several questions
            return super().launch(dispatcher, start, node)
        return StreamAttempt(self, dispatcher, start, node).launch()

    def begins(self, attempt: StreamAttempt, piece: bytes) -> None:
        """The first piece: this node has won, and the client is told who answers."""
        lines = routing_lines(self, None, attempt)
        self.request.begin_with(200, self.tongue.type_line, lines, piece)
        start = attempt.start
        self.begin_delivery(attempt.node, lambda movable: attempt.dispatcher.began(start.attempt, movable))
        attempt.dispatcher.watch(start.attempt, attempt)

    def count(self, events: int, size: int) -> None:
        """Count events that go to the client, and their bytes."""
        self._events += events
        self._event_bytes += size

    def came_so_far(self) -> tuple[int, int]:
        """Return how many parts the client has received, and their bytes."""
        return self._events, self._event_bytes

    def _pass_on(self, line: bytes) -> bool:
        """A part that another node went on with."""
        self.count(1, len(line))
        if self.request.write(self.tongue.framed(line)):
            return True
        self.request.on_drained = self.drained.set
        return False

    def ended_badly(self, attempt: StreamAttempt, outcome: Outcome) -> None:
        """An attempt has failed; perhaps when all was said."""
        said = self.partial
        dispatcher, number = attempt.dispatcher, attempt.start.attempt
        if self.begun_at and said is not None and said.is_complete:
            self.last = said.finished(self.elapsed_us())
            outcome = Outcome(OK, "", 200)
        dispatcher.finished(number, outcome)

    def end_of_repetition(self, events: Sequence[Mapping[str, Any]], tokens: int) -> bytes:
        """The end that the node has left out."""
        said = self.partial
        if said is not None and said.is_exact:
            return said.finished(self.elapsed_us())
        return closing(self.tongue.path, events, tokens)

    def hear(self, piece: bytes) -> None:
        unread, said = self._unread, self.partial
        if unread is not None and said is not None:  # as PartialResponse.add, which is not compiled
            unread.append(piece)
            if len(unread) >= UNREAD:
                said.read()
        else:
            self.parts += 1
            self.part_bytes += len(piece)

    def settle(self, action: Complete, at: Micros) -> None:
        if self.partial is not None:
            self.attempt_log.seams = self.partial.seams
        CallJob.settle(self, action, at)

    def answer(self, settled: Complete) -> None:
        request = self.request
        if settled.outcome.status is not OK:  # refused before anything was passed on
            request.answer_with(
                settled.outcome.http_status, self.body, request.json_line, routing_lines(self, settled.attempt)
            )
            return
        if not request.has_begun and self.is_whole:
            request.answer_with(200, self.last, request.json_line, routing_lines(self, settled.attempt))
            return
        if not request.has_begun:
            request.begin_with(200, self.tongue.type_line, routing_lines(self, settled.attempt))
        request.end(self.tongue.framed(self.last))

    def describe_received(self, text: str, thinking: str, tool_calls: int) -> str:
        """Parts are counted where they are not read: those of answers that are more than plain text."""
        if self._unread is not None:
            return super().describe_received(text, thinking, tool_calls)
        return f"{self.parts} parts, {self.part_bytes} bytes"

    def break_off(self, settled: Complete) -> None:
        """The answer cannot go on: said as an error, in the words of the request."""
        if settled.outcome.status is Status.REFUSED and self.refused:  # as the node says it
            self.request.end(self.tongue.framed(self.refused))
            return
        error = self.error()
        assert error is not None
        self.request.end(self.tongue.error_event(self.request.path, words(self.request, error)))


class StreamAttempt(Exchange):
    __slots__ = (
        "_began",
        "_counted",
        "_ending",
        "_job",
        "_parts",
        "_reader",
        "_recent",
        "_refused",
        "_refused_size",
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
        self._reader: Reader = job.tongue.reader()
        self._status = 0
        self._refused: list[bytes] = []
        self._refused_size = 0
        self._began = False
        self._parts = 0  # pieces that came
        self._counted = 0  # events of them that were passed on
        self._recent = Recent()
        self._ending: asyncio.Handle | None = None

    def launch(self) -> GiveUp:
        self._job.transport.start(self.node, self._job.call, self)
        return self.abort

    def on_head(self, status: int, headers: RawHeaders) -> None:
        try:
            self._read_head(status, headers)
        except Exception as error:
            self._unread(error)

    def on_body(self, piece: bytes) -> None:
        try:
            self._came(piece)
        except Exception as error:
            self._unread(error)

    def on_end(self, fault: TransportFault | None) -> None:
        try:
            self._end(fault)
        except Exception as error:
            self._unread(error)

    def _unread(self, error: Exception) -> None:
        """What came was the occasion of a fault: this attempt is over, and another node may answer."""
        if self._ending is not None:
            self._ending.cancel()
        self.abort()
        self._job.ended_badly(self, self.dispatcher.answer_fault(error))

    def _read_head(self, status: int, headers: RawHeaders) -> None:
        self._status = status
        if status != 200:
            self.headers = headers
        for name, value in headers:
            if name.lower() == b"content-type":
                self._job.is_whole = value.startswith(b"application/json")

    def _came(self, piece: bytes) -> None:
        if self._status != 200:
            self._refused_size += len(piece)
            if self._refused_size <= ERROR_MOST:
                self._refused.append(piece)
            else:
                self.abort()
                self._end(None)
            return
        if self._ending is not None:
            self.abort()  # there is more after its end, perhaps without an end
            return
        reader, job = self._reader, self._job
        self._parts += 1
        passed = reader.feed(piece)
        if passed:
            if not self._began:
                strange = wrong_model(passed, job.task.model, job.call.path)
                if strange is not None:
                    self.abort()
                    self._finish(strange)
                    return
            job.hear(passed)
            job.count(reader.count - self._counted, len(passed))
            self._counted = reader.count
            self._recent.add(passed)
            if not self._began:
                self._began = True
                job.begins(self, passed)
            elif not job.request.write(passed):
                job.request.on_drained = self.resume
                self.pause()
        if reader.ended is not None:  # the end of the connection's turn follows at once, most often
            if reader.ended.status is not OK:
                self.abort()  # nothing more of it is read
            self._ending = asyncio.get_running_loop().call_soon(self._finish, reader.ended)

    def received_parts(self) -> int:
        """How many pieces have come so far; negative while the client is behind."""
        return -1 if self.paused else self._parts

    def resumable(self) -> tuple[bool, bool]:
        """See StreamJob."""
        return self._job.resumable()

    def _end(self, fault: TransportFault | None) -> None:
        if self._status not in (0, 200):
            body = b"".join(self._refused)
            self._job.keep(self.start.attempt, body)
            self._finish(refusal(self._status, body, fold(self.headers)))
        elif self._ending is not None:
            self._ending.cancel()
            assert self._reader.ended is not None
            self._finish(self._reader.ended)
        else:
            ended = self._reader.close(fault is None)
            if fault is None and ended is CUT and self._began and self._ends_in_repetition():
                return
            self._finish(ended if ended.status is OK or fault is None else outcome_of(fault))

    def _ends_in_repetition(self) -> bool:
        """The body ended in good form: if Ollama ended it because the text repeats itself, it is all there is."""
        events = self._recent.events()
        if not repeats(events):
            return False
        job = self._job
        job.last = job.end_of_repetition(events, self._parts)
        self.dispatcher.finished(self.start.attempt, Outcome(OK, "", 200, Timing(tokens=self._parts)))
        return True

    def _finish(self, outcome: Outcome) -> None:
        try:
            self._finished(outcome)
        except Exception as error:
            self._unread(error)

    def _finished(self, outcome: Outcome) -> None:
        job = self._job
        if outcome.status is Status.REFUSED and self._status == 200:
            job.refused = self._reader.tail
        if outcome.status is OK:
            outcome = with_part_count(outcome, max(self._parts, self._reader.count))
            job.last = self._reader.tail
            self.dispatcher.finished(self.start.attempt, outcome)
        else:
            job.ended_badly(self, outcome)


def routing_lines(job: CallJob, attempt: int | None, now: StreamAttempt | None = None) -> bytes:
    """Where it went and why, as header lines: of the attempt that answered, or of the one that does so now."""
    attempt_log = job.attempt_log
    node, predicted, queue_us, attempts = "", 0, 0, len(attempt_log.attempts)
    if now is not None:
        node, predicted, attempts = now.start.node, now.start.decision.predicted_us, attempts + 1
        queue_us = now.began_us - attempt_log.submitted_us
    for entry in attempt_log.attempts:
        if entry[0].attempt == attempt:
            node, predicted = entry[0].node, entry[0].decision.predicted_us
            queue_us = entry[2] - attempt_log.submitted_us
    return (
        b"X-Sollol-Node: %b\r\nX-Sollol-Request-Id: %d\r\nX-Sollol-Queue-Ms: %d\r\nX-Sollol-Predicted-Ms: %d\r\n"
        b"X-Sollol-Attempts: %d\r\n"
    ) % (node.encode("latin-1"), job.task.id, queue_us // 1000, predicted // 1000, attempts)
