"""The part of a task that the core does not see: how it is said to a node, what the answer means, who waits.

A job keeps the story of its attempts, and from it the routing record that the caller reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sollol.core.endpoint import Endpoint
from sollol.core.messages import Accept, Refuse, Settle, Start
from sollol.core.types import Decision, How, Micros, Outcome, Task
from sollol.errors import (
    DeadlineExceeded,
    NoNodeAvailable,
    QueueFull,
    ResponseError,
    SollolError,
    StreamBroken,
)
from sollol.nodes.dialect import Lines, judge, judge_line
from sollol.nodes.transport import Call, Timeouts, Transport
from sollol.pool.answers import Answer

STREAM_AHEAD = 256  # lines a consumer may be behind before the node is no longer read


class Story:
    """The attempts of one task, in the order in which they ended."""

    __slots__ = ("attempts", "submitted_us")

    def __init__(self) -> None:
        self.submitted_us: Micros = 0
        self.attempts: list[tuple[Start, Outcome, Micros, Micros]] = []

    def record(self, attempt: int | None) -> Answer:
        """The routing record: of the attempt that answered, and of those before it."""
        for start, _, began, ended in self.attempts:
            if start.attempt == attempt:
                return self._of(start.decision, began, ended)
        return Answer(attempts=len(self.attempts), tried=self._tried())

    def _of(self, decision: Decision, began: Micros, ended: Micros) -> Answer:
        return Answer(
            node=decision.node,
            reasons=[decision.reason],
            predicted_ms=decision.predicted_us / 1000,
            actual_ms=(ended - began) / 1000,
            queue_ms=(began - self.submitted_us) / 1000,
            attempts=len(self.attempts),
            tried=self._tried(),
            candidates=[
                {"node": c.node, "finish_ms": c.finish_us / 1000, "terms": {t.name: t.us / 1000 for t in c.terms}}
                for c in decision.candidates
            ],
        )

    def _tried(self) -> list[dict[str, Any]]:
        return [
            {"node": start.node, "outcome": outcome.how.value, "why": outcome.message, "ms": (ended - began) / 1000}
            for start, outcome, began, ended in self.attempts
            if outcome.how is not How.OK
        ]


class CallJob:
    """One request with one answer, given whole."""

    def __init__(self, task: Task, path: str, body: bytes, timeouts: Timeouts, done: Callable[[CallJob], None]) -> None:
        self.task = task
        self.call = Call("POST", path, body, timeouts=timeouts)
        self.story = Story()
        self.body = b""
        self.settled: Settle | None = None
        self._bodies: dict[int, bytes] = {}
        self._done = done

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Callable[[], None]) -> Outcome:
        reply = await transport.send(node, self.call)
        body = await reply.read()
        self._bodies[start.attempt] = body
        return judge(reply.status, body)

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        self.story.attempts.append((start, outcome, began, at))

    def accept(self, action: Accept) -> None: ...
    def refuse(self, action: Refuse) -> None: ...
    def want(self, items: int) -> None: ...

    def settle(self, action: Settle, at: Micros) -> None:
        self.settled = action
        if action.attempt is not None:
            self.body = self._bodies.get(action.attempt, b"")
        self._bodies.clear()
        self._done(self)

    def error(self) -> SollolError | None:
        assert self.settled is not None
        return error_of(self.settled, self.task)


class StreamJob(CallJob):
    """One request whose answer arrives line by line.

    `push` receives each line as it comes; nothing is pushed before the node has begun well, so a failure
    before that moves to another node unnoticed. `drained` is awaited when the consumer is far behind.
    """

    def __init__(
        self,
        task: Task,
        path: str,
        body: bytes,
        timeouts: Timeouts,
        done: Callable[[CallJob], None],
        push: Callable[[bytes], bool],
    ) -> None:
        super().__init__(task, path, body, timeouts, done)
        self.call = self.call._replace(stream=True)
        self._push = push
        self.drained = asyncio.Event()

    async def perform(self, transport: Transport, node: Endpoint, start: Start, started: Callable[[], None]) -> Outcome:
        reply = await transport.send(node, self.call)
        try:
            if reply.status != 200:
                return judge(reply.status, await reply.read())
            return await self._relay(reply.__aiter__(), started)
        finally:
            await reply.aclose()

    async def _relay(self, pieces: Any, started: Callable[[], None]) -> Outcome:
        lines = Lines()
        end: Outcome | None = None
        begun = False
        async for piece in pieces:
            for line in lines.feed(piece):
                end = judge_line(line)
                if end is not None and end.how is not How.OK:
                    return end
                if not begun:
                    begun = True
                    started()
                await self._give(line)
        rest = lines.rest()
        if rest:
            end = judge_line(rest)
            if end is None or end.how is How.OK:
                await self._give(rest)
        return end or Outcome(How.FAILED, "the answer ended before it was complete")

    async def _give(self, line: bytes) -> None:
        if not self._push(line):
            self.drained.clear()
            await self.drained.wait()


def error_of(settled: Settle, task: Task) -> SollolError | None:
    """The exception in which a task ended, or None."""
    outcome = settled.outcome
    what = f"{task.kind.value} with {task.model}"
    match outcome.how:
        case How.OK:
            return None
        case How.REFUSED:
            return ResponseError(outcome.message, outcome.status)
        case How.NO_NODE:
            if not settled.tried:
                return NoNodeAvailable(
                    f"{what}: the pool has no nodes. Add one with pool.add_node('host', 11434), set SOLLOL_NODES or "
                    "OLLAMA_HOST, or let OllamaPool.auto_configure() look for them."
                )
            return NoNodeAvailable(f"{what}: {outcome.message}; of {len(settled.tried)} nodes:", settled.tried)
        case How.QUEUE_FULL:
            return QueueFull(f"{what}: {outcome.message}; try again later, or add nodes")
        case How.DEADLINE:
            return DeadlineExceeded(f"{what}: {outcome.message}; raise timeout=, or add nodes")
        case How.LEFT:
            return SollolError(f"{what}: the pool was closed, or the call was cancelled")
        case _:
            return StreamBroken(f"{what}: {outcome.message}")
