"""Jobs of single requests: the part of a task outside the core.

A job sends the request to nodes, judges the answers, and delivers the result. It keeps the log of its attempts, the
source of the caller's routing record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from sollol.backends.decoding import is_text
from sollol.backends.model_check import wrong_model
from sollol.backends.ollama import (
    Lines,
    answer_most,
    decode,
    fields_with_num_ctx,
    judge,
    judge_line,
    judge_vectors,
    with_num_ctx,
    with_part_count,
    with_token_limit,
)
from sollol.backends.refusals import outcome_of, refusal
from sollol.backends.repetition import Recent, repeats
from sollol.core.actions import Accept, Complete, Refuse, Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import EMBED, OK, Micros, Outcome, Status, Task
from sollol.core.value import replaced
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.resumption import NotRendered, PartialResponse, ResumeSupport
from sollol.engine.task_errors import error_of as error_of
from sollol.engine.whole_answers import refusal_of, send_observed
from sollol.errors import (
    DeadlineExceeded,
    SollolError,
    StreamBroken,
)
from sollol.observe.attempt_log import AttemptLog
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

STREAM_AHEAD = 256  # buffered lines per consumer; beyond it reading from the node pauses

Started = Callable[[bool], None]  # called at the first part, with True if another node could resume the answer


class CallJob:
    """One request with a whole answer."""

    def __init__(
        self,
        task: Task,
        path: str,
        body: bytes,
        timeouts: Timeouts,
        done: Callable[[CallJob], None],
        launched: Callable[[], None] | None = None,
    ) -> None:
        self.task = task
        self.call = Call("POST", path, body, timeouts=timeouts, most=answer_most(task.kind, body))
        self.attempt_log = AttemptLog(task)
        self.body = b""
        self.settled: Complete | None = None
        self._bodies: dict[int, bytes] = {}
        self._done = done
        self._launched = launched  # called at the start of each attempt

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Start one attempt; return the function that aborts it."""
        if self._launched is not None:
            self._launched()
        return dispatcher.run(self.perform, start, node)

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        """Send the request to a node and judge its answer."""
        if start.observe:
            body, status, headers = await send_observed(transport, node, self.call_of(start), started)
            self.keep(start.attempt, body)
            return (
                self.check(judge(200, body, self.task.kind), body) if status == 200 else refusal(status, body, headers)
            )
        reply = await transport.send(node, self.call_of(start))
        body = await reply.read()
        self.keep(start.attempt, body)
        if reply.status != 200:
            return self.refusal_of(reply.status, body, reply.headers)
        return self.check(judge(reply.status, body, self.task.kind), body)

    def call_of(self, start: Start) -> Call:
        """Return the request of an attempt, with the context of the runner in memory if that is to be sent."""
        num_ctx = start.decision.num_ctx
        return with_num_ctx(self.call, num_ctx) if num_ctx else self.call

    def refusal_of(self, status: int, body: bytes, headers: Mapping[str, str] | None) -> Outcome:
        """Return the outcome of an answer with a status other than 200."""
        return refusal_of(self.call, self.task.model, status, body, headers)

    def check(self, outcome: Outcome, body: bytes) -> Outcome:
        """Return the outcome, or the fault of an answer with a good status: a wrong model, no UTF-8, bad vectors."""
        if outcome.status is not OK:
            return outcome
        strange = wrong_model(body, self.task.model, self.call.path)
        if strange is not None:
            return strange
        if not is_text(body):
            return Outcome(Status.FAILED, "the answer is not UTF-8", 200)
        if self.task.kind is not EMBED:
            return outcome if outcome.timing.received else with_token_limit(outcome, len(body))
        assert isinstance(self.call.body, bytes)
        return judge_vectors(self.call.path, self.call.body, body) or outcome

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        """Record the end of an attempt."""
        self.attempt_log.attempts.append((start, outcome, began, at))

    def accept(self, action: Accept) -> None:
        """Ignore: only batches have items."""
        ...

    def refuse(self, action: Refuse) -> None:
        """Ignore: only batches have items."""
        ...

    def request_items(self, items: int) -> None:
        """Ignore: only batches have items."""
        ...

    def settle(self, action: Complete, at: Micros) -> None:
        """Deliver the end of the task."""
        self.settled = action
        if action.attempt is not None:
            self.body = self._bodies.get(action.attempt, b"")
        self._bodies.clear()
        self._done(self)

    def keep(self, attempt: int, body: bytes) -> None:
        """Keep the body of an attempt until the scheduler selects the answering one."""
        self._bodies[attempt] = body

    def error(self) -> SollolError | None:
        """Return the exception of the completed task, None for a good end."""
        assert self.settled is not None
        return error_of(self.settled, self.task)


class StreamJob(CallJob):
    """One request with a streamed answer.

    `push` receives each line on arrival, the last one when the task is settled. A failure before the first good line
    moves the request to another node unnoticed. After it, another node resumes the answer where that can be exact
    (`engine.resumption`). `drained` is awaited while the consumer is far behind.
    """

    def __init__(
        self,
        task: Task,
        path: str,
        body: bytes,
        timeouts: Timeouts,
        done: Callable[[CallJob], None],
        push: Callable[[bytes], bool],
        partial: PartialResponse | None,
        resume_support: ResumeSupport,
        holders: Callable[..., dict[str, tuple[Endpoint, str]]],
    ) -> None:
        super().__init__(task, path, body, timeouts, done)
        self.call = replaced(self.call, stream=True)
        self.last = b""  # last line of the answer
        self.drained = asyncio.Event()
        self._push = push
        self.partial = partial  # None if the request cannot be resumed
        self._collected = partial or PartialResponse(task.kind, {"model": task.model})
        self._resume_support = resume_support
        self._holders = holders  # model -> {node: (endpoint, digest)}
        self._digest = ""
        self.begun_at = 0.0
        self._count = 0  # received lines, of all nodes
        self._behind = False  # True while the consumer is behind
        self._dispatcher: Dispatcher
        self._loop = asyncio.get_running_loop()

    @property
    def received(self) -> str:
        """The text that the caller has received."""
        return self._collected.text

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Start one attempt; return the function that aborts it."""
        self._dispatcher = dispatcher
        return super().launch(dispatcher, start, node)

    # --- for sollol.engine.stream_watch ---

    def received_parts(self) -> int:
        """Return the number of received parts; negative while the consumer is behind."""
        return -1 if self._behind else self._count

    def resumable(self) -> tuple[bool, bool]:
        """Return (True if it is plain text so far, True if another node can certainly resume it)."""
        plain = self.partial is not None and self.partial.is_exact
        return plain, plain and self._resume_support.supports(self.task.model, self._digest) is True

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        """Send the request to a node, or resume the answer on it."""
        resumes, partial = bool(self.begun_at), self.partial

        def begun(movable: bool) -> None:
            self._behind = False
            started(movable)
            self._dispatcher.watch(start.attempt, self)

        try:
            outcome = await (self._resume if resumes else self._begin)(transport, node, start, begun)
        except TransportFault as fault:
            outcome = outcome_of(fault)
        if outcome.status is not OK and self.begun_at and partial is not None and partial.is_complete:
            self.last = partial.finished(self.elapsed_us())
            return Outcome(OK, "", 200)
        return outcome

    async def _begin(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        call = self.call_of(start)
        return await self._send(transport, node, call, lambda: self.begin_delivery(node, start, started), _unchanged)

    async def _send(
        self,
        transport: Transport,
        node: Endpoint,
        call: Call,
        begins: Callable[[], None],
        translate: Callable[[bytes], bytes],
    ) -> Outcome:
        async with aclosing(await transport.send(node, call)) as reply:
            if reply.status != 200:
                return refusal(reply.status, await reply.read(), reply.headers)
            return await self._relay(reply.__aiter__(), begins, translate)

    def begin_delivery(self, node: Endpoint, start: Start, started: Started) -> None:
        """Handle the first line: assume resumable until the check of the other nodes completes.

        The check starts only now, so that it does not delay the node.
        """
        self.begun_at = self._loop.time()
        self.attempt_log.first_us = round(self.begun_at * 1e6)
        model, partial = self.task.model, self.partial
        self._digest = digest = self._digest_on(node) if partial is not None else ""
        if partial is None or not digest:
            started(False)
            return
        known = self._resume_support.supports(model, digest)
        started(known is not False)
        if known is None:
            holders = self._holders(model).values()
            others = [other for other, theirs in holders if theirs == digest and other.key != node.key]
            body = fields_with_num_ctx(partial.body, start.decision.num_ctx)
            self._resume_support.check([node, *others], model, digest, body, lambda: started(False))

    def _digest_on(self, node: Endpoint) -> str:
        """Return the version of the model on the node."""
        holder = self._holders(self.task.model, node.key).get(node.key)
        return holder[1] if holder else ""

    async def _resume(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        partial, model = self.partial, self.task.model
        assert partial is not None
        if partial.is_complete:
            return Outcome(Status.UNABLE, "the answer is complete")
        if self._digest_on(node) != self._digest:
            return Outcome(Status.UNABLE, f"has another version of {model}: it cannot resume the answer")
        if not partial.is_exact:
            return Outcome(Status.UNABLE, "the answer so far is not plain text: no other node can resume it")
        try:
            body = fields_with_num_ctx(partial.body, start.decision.num_ctx)
            prompt = await self._resume_support.render_prompt(node, model, self._digest, body)
        except NotRendered as refused:
            return refused.outcome
        if prompt is None:
            return Outcome(Status.UNABLE, f"{model} thinks, or the node cannot render the prompt")
        before = partial.tokens
        resumption = {"node": node.key, "characters": len(partial.text), "tokens": before}

        def translate(line: bytes) -> bytes:
            if resumption not in partial.resumptions[-1:]:  # only when the node does resume
                partial.resumptions.append(resumption)
            return partial.translate(line, before, self.elapsed_us())

        call = partial.call(prompt, self.call.timeouts)
        if start.decision.num_ctx:
            call = with_num_ctx(call, start.decision.num_ctx)
        return await self._send(transport, node, call, lambda: started(True), translate)

    def elapsed_us(self) -> int:
        """Return the microseconds since the submission."""
        return round(self._loop.time() * 1e6) - self.attempt_log.submitted_us

    async def _relay(self, pieces: Any, begins: Callable[[], None], translate: Callable[[bytes], bytes]) -> Outcome:
        lines = Lines()
        recent = Recent()
        begun = 0.0
        try:
            async for piece in pieces:
                for line in lines.feed(piece):
                    end = judge_line(line)
                    if end is not None:
                        if end.status is not OK:
                            return end
                        self.last = translate(line)
                        return with_part_count(end, self._count)
                    decode(line)  # an unreadable line fails the attempt
                    if not begun:
                        strange = wrong_model(line, self.task.model, self.call.path)
                        if strange is not None:
                            return strange
                        begins()
                        begun = self._loop.time()
                    self._count += 1
                    recent.add(line + b"\n")
                    if not self._push_line(translate(line)):
                        self._behind = True
                        self.drained.clear()
                        await self.drained.wait()
                        self._behind = False
        except msgspec.DecodeError as error:
            return Outcome(Status.FAILED, f"a line of the answer is not in the format of Ollama: {error}", 200)
        finally:
            if self.partial is not None and begun:
                self.partial.decode_us += round((self._loop.time() - begun) * 1e6)
        rest = lines.rest()
        end = judge_line(rest) if rest else None
        if end is not None and end.status is OK:
            self.last = translate(rest)
            end = with_part_count(end, self._count)
        if end is None and begun and repeats(recent.events()):
            self.last = self._collected.finished(self.elapsed_us())
            end = Outcome(OK, "", 200)
        return end or Outcome(Status.FAILED, "the answer ended before it was complete")

    def _push_line(self, line: bytes) -> bool:
        self._collected.add(line)
        return self._push(line)

    def settle(self, action: Complete, at: Micros) -> None:
        """Deliver the last line and the end of the task."""
        if self.partial is not None:
            self.attempt_log.resumptions = self.partial.resumptions
        if action.outcome.status is OK and self.last:
            self._push(self.last)
        super().settle(action, at)

    def error(self) -> SollolError | None:
        """Return the exception of the completed task; StreamBroken after the first part."""
        error = super().error()
        if error is not None and self.begun_at and not isinstance(error, DeadlineExceeded):
            text, collected = self.received, self._collected
            thinking = "".join(collected.thoughts)
            amount = self.describe_received(text, thinking, len(collected.tool_calls))
            message = f"the answer broke off after {amount}: {error}"
            error = StreamBroken(message, text, thinking, collected.tool_calls)
            error.task_id = self.task.id
        return error

    def describe_received(self, text: str, thinking: str, tool_calls: int) -> str:
        """Return the received amount in words."""
        parts = [f"{len(text)} characters"]
        if thinking:
            parts.append(f"{len(thinking)} characters of thinking")
        if tool_calls:
            parts.append(f"{tool_calls} tool call{'s' if tool_calls > 1 else ''}")
        return ", ".join(parts)


def _unchanged(line: bytes) -> bytes:
    return line
