"""The part of a task that the core does not see: how it is said to a node, what the answer means, who waits.

A job keeps the log of its attempts, and from it the routing record that the caller reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from sollol.answers import Answer
from sollol.backends.decoding import is_text
from sollol.backends.model_check import wrong_model
from sollol.backends.ollama import (
    Lines,
    decode,
    judge,
    judge_line,
    judge_vectors,
    outcome_of,
    refusal,
    with_part_count,
    with_token_limit,
)
from sollol.backends.repetition import Recent, repeats
from sollol.core.actions import Accept, Complete, Refuse, Start
from sollol.core.endpoint import Endpoint
from sollol.core.types import EMBED, OK, Decision, Micros, Outcome, Status, Task
from sollol.core.value import replaced
from sollol.engine.dispatcher import Dispatcher, GiveUp
from sollol.engine.endings import error_of as error_of
from sollol.engine.resumption import NotRendered, PartialResponse, ResumeSupport
from sollol.engine.whole_answers import observed, refusal_of
from sollol.errors import (
    DeadlineExceeded,
    SollolError,
    StreamBroken,
)
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

STREAM_AHEAD = 256  # lines a consumer may be behind before the node is no longer read

Started = Callable[[bool], None]  # the caller has begun to receive; whether another node could go on


class AttemptLog:
    """The attempts of one task, in the order in which they ended."""

    __slots__ = ("attempts", "seams", "submitted_us", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.submitted_us: Micros = 0
        self.seams: list[dict[str, Any]] = []  # where another node went on with the answer
        self.attempts: list[tuple[Start, Outcome, Micros, Micros]] = []

    def record(self, attempt: int | None) -> Answer:
        """The routing record: of the attempt that answered (or, for None, of the last one), and of those before it."""
        answered = [entry for entry in self.attempts if entry[0].attempt == attempt] or self.attempts[-1:]
        task = self.task
        record = Answer(
            id=task.id,
            node="",
            reasons=[],
            predicted_ms=0.0,
            actual_ms=0.0,
            queue_ms=0.0,
            attempts=len(self.attempts),
            tried=self._tried(),
            candidates=[],
            task_type=task.type.value,
            mode=task.mode.value if task.mode else None,
            seams=self.seams,
        )
        for start, _, began, ended in answered:
            decision = start.decision
            record.update(
                node=decision.node,
                reasons=[decision.reason],
                predicted_ms=decision.predicted_us / 1000,
                actual_ms=(ended - began) / 1000,
                queue_ms=(began - self.submitted_us) / 1000,
                candidates=shown_candidates(decision),
            )
        return record

    def _tried(self) -> list[dict[str, Any]]:
        return [
            {"node": start.node, "outcome": outcome.status.value, "why": outcome.message, "ms": (ended - began) / 1000}
            for start, outcome, began, ended in self.attempts
            if outcome.status is not OK
        ]


def shown_candidates(decision: Decision) -> list[dict[str, Any]]:
    """The nodes that were considered, with what their predictions are made of; milliseconds."""
    return [
        {"node": c.node, "finish_ms": c.finish_us / 1000, "terms": {name: us / 1000 for name, us in c.terms.items()}}
        for c in decision.candidates
    ]


class CallJob:
    """One request with one answer, given whole."""

    def __init__(self, task: Task, path: str, body: bytes, timeouts: Timeouts, done: Callable[[CallJob], None]) -> None:
        self.task = task
        self.call = Call("POST", path, body, timeouts=timeouts)
        self.attempt_log = AttemptLog(task)
        self.body = b""
        self.settled: Complete | None = None
        self._bodies: dict[int, bytes] = {}
        self._done = done

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        return dispatcher.run(self.perform, start, node)

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        if start.observe:
            body, status, headers = await observed(transport, node, self.call, started)
            self.keep(start.attempt, body)
            return (
                self.check(judge(200, body, self.task.kind), body) if status == 200 else refusal(status, body, headers)
            )
        reply = await transport.send(node, self.call)
        body = await reply.read()
        self.keep(start.attempt, body)
        if reply.status != 200:
            return self.refusal_of(reply.status, body, reply.headers)
        return self.check(judge(reply.status, body, self.task.kind), body)

    def refusal_of(self, status: int, body: bytes, headers: Mapping[str, str] | None) -> Outcome:
        """Return what an answer with another status than 200 means."""
        return refusal_of(self.call, self.task.model, status, body, headers)

    def check(self, outcome: Outcome, body: bytes) -> Outcome:
        """Return the outcome, or what is wrong with the vectors of an answer that looks well."""
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
        self.attempt_log.attempts.append((start, outcome, began, at))

    def accept(self, action: Accept) -> None: ...
    def refuse(self, action: Refuse) -> None: ...
    def want(self, items: int) -> None: ...

    def settle(self, action: Complete, at: Micros) -> None:
        self.settled = action
        if action.attempt is not None:
            self.body = self._bodies.get(action.attempt, b"")
        self._bodies.clear()
        self._done(self)

    def keep(self, attempt: int, body: bytes) -> None:
        """What an attempt brought, until it is known which one answers."""
        self._bodies[attempt] = body

    def error(self) -> SollolError | None:
        assert self.settled is not None
        return error_of(self.settled, self.task)


class StreamJob(CallJob):
    """One request whose answer arrives line by line.

    `push` receives each line as it comes, the last one when the task is settled; nothing is pushed before the
    node has begun well, so a failure before that moves to another node unnoticed. After it, another node goes on
    where that can be exact (`pool.continuation`). `drained` is awaited when the consumer is far behind.
    """

    def __init__(
        self,
        task: Task,
        path: str,
        body: bytes,
        timeouts: Timeouts,
        done: Callable[[CallJob], None],
        push: Callable[[bytes], bool],
        said: PartialResponse | None,
        resume_support: ResumeSupport,
        holders: Callable[..., dict[str, tuple[Endpoint, str]]],
    ) -> None:
        super().__init__(task, path, body, timeouts, done)
        self.call = replaced(self.call, stream=True)
        self.last = b""  # the line that ends the answer
        self.drained = asyncio.Event()
        self._push = push
        self._said = said  # None where the request rules out going on
        self._heard = said or PartialResponse(task.kind, {"model": task.model})
        self._continuity = resume_support
        self._holders = holders  # of a model: node -> (endpoint, digest)
        self._digest = ""
        self._begun_at = 0.0
        self._count = 0  # lines that came, of all nodes
        self._behind = False  # the consumer is
        self._dispatcher: Dispatcher
        self._loop = asyncio.get_running_loop()

    @property
    def received(self) -> str:
        """The text that went to the caller."""
        return self._heard.text

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        self._dispatcher = dispatcher
        return super().launch(dispatcher, start, node)

    # --- how it stands, for sollol.engine.silences ---

    def received_parts(self) -> int:
        """How many parts have come so far; negative while the consumer is behind."""
        return -1 if self._behind else self._count

    def nature(self) -> tuple[bool, bool]:
        """Whether it is plain text so far, and whether it is certain that another node can go on with it."""
        plain = self._said is not None and self._said.is_exact
        return plain, plain and self._continuity.can(self.task.model, self._digest) is True

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Started) -> Outcome:
        resumes, said = bool(self._begun_at), self._said

        def begun(movable: bool) -> None:
            self._behind = False
            started(movable)
            self._dispatcher.watch(start.attempt, self)

        try:
            outcome = await (self._go_on if resumes else self._begin)(transport, node, begun)
        except TransportFault as fault:
            outcome = outcome_of(fault)
        if outcome.status is not OK and self._begun_at and said is not None and said.is_complete:
            self.last = said.finished(self._elapsed_us())
            return Outcome(OK, "", 200)
        return outcome

    async def _begin(self, transport: Transport, node: Endpoint, started: Started) -> Outcome:
        return await self._ask(transport, node, self.call, lambda: self._begins(node, started), _as_it_is)

    async def _ask(
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

    def _begins(self, node: Endpoint, started: Started) -> None:
        """The first line is there. Whether others could go on has to be known before it is needed; until then it is
        hoped. The node is asked only now, so as not to be in its way."""
        self._begun_at = self._loop.time()
        model, said = self.task.model, self._said
        self._digest = digest = self._digest_on(node) if said is not None else ""
        if said is None or not digest:
            started(False)
            return
        known = self._continuity.can(model, digest)
        started(known is not False)
        if known is None:
            holders = self._holders(model).values()
            others = [other for other, theirs in holders if theirs == digest and other.key != node.key]
            self._continuity.ask([node, *others], model, digest, said.body, lambda: started(False))

    def _digest_on(self, node: Endpoint) -> str:
        """Which version of the model the node has."""
        holder = self._holders(self.task.model, node.key).get(node.key)
        return holder[1] if holder else ""

    async def _go_on(self, transport: Transport, node: Endpoint, started: Started) -> Outcome:
        said, model = self._said, self.task.model
        assert said is not None
        if said.is_complete:
            return Outcome(Status.UNABLE, "there is nothing left to say")
        if self._digest_on(node) != self._digest:
            return Outcome(Status.UNABLE, f"has another version of {model}: it cannot go on with the answer")
        if not said.is_exact:
            return Outcome(Status.UNABLE, "the answer so far is not plain text, so no other node can go on with it")
        try:
            prompt = await self._continuity.learn(node, model, self._digest, said.body)
        except NotRendered as refused:
            return refused.outcome
        if prompt is None:
            return Outcome(Status.UNABLE, f"{model} thinks, or the node cannot tell how it would render the prompt")
        before = said.tokens
        seam = {"node": node.key, "characters": len(said.text), "tokens": before}

        def translate(line: bytes) -> bytes:
            if seam not in said.seams[-1:]:  # it does go on
                said.seams.append(seam)
            return said.translate(line, before, self._elapsed_us())

        call = said.call(prompt, self.call.timeouts)
        return await self._ask(transport, node, call, lambda: started(True), translate)

    def _elapsed_us(self) -> int:
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
                    decode(line)  # what the caller could not read is a failed attempt
                    if not begun:
                        strange = wrong_model(line, self.task.model, self.call.path)
                        if strange is not None:
                            return strange
                        begins()
                        begun = self._loop.time()
                    self._count += 1
                    recent.add(line + b"\n")
                    if not self._give(translate(line)):
                        self._behind = True
                        self.drained.clear()
                        await self.drained.wait()
                        self._behind = False
        except msgspec.DecodeError as error:
            return Outcome(Status.FAILED, f"a line of the answer is not in the format of Ollama: {error}", 200)
        finally:
            if self._said is not None and begun:
                self._said.decode_us += round((self._loop.time() - begun) * 1e6)
        rest = lines.rest()
        end = judge_line(rest) if rest else None
        if end is not None and end.status is OK:
            self.last = translate(rest)
            end = with_part_count(end, self._count)
        if end is None and begun and repeats(recent.events()):
            self.last = self._heard.finished(self._elapsed_us())
            end = Outcome(OK, "", 200)
        return end or Outcome(Status.FAILED, "the answer ended before it was complete")

    def _give(self, line: bytes) -> bool:
        self._heard.hear(line)
        return self._push(line)

    def settle(self, action: Complete, at: Micros) -> None:
        if self._said is not None:
            self.attempt_log.seams = self._said.seams
        if action.outcome.status is OK and self.last:
            self._push(self.last)
        super().settle(action, at)

    def error(self) -> SollolError | None:
        error = super().error()
        if error is not None and self._begun_at and not isinstance(error, DeadlineExceeded):
            text, heard = self.received, self._heard
            thinking = "".join(heard.thoughts)
            message = f"the answer broke off after {self.came(text, thinking, len(heard.tool_calls))}: {error}"
            error = StreamBroken(message, text, thinking, heard.tool_calls)
            error.task_id = self.task.id
        return error

    def came(self, text: str, thinking: str, tool_calls: int) -> str:
        """What the caller has received, in words."""
        told = [f"{len(text)} characters"]
        if thinking:
            told.append(f"{len(thinking)} characters of thinking")
        if tool_calls:
            told.append(f"{tool_calls} tool call{'s' if tool_calls > 1 else ''}")
        return ", ".join(told)


def _as_it_is(line: bytes) -> bytes:
    return line
