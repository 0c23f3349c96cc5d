"""The thin imperative shell: feeds events to the scheduler and turns its actions into awaits.

It decides nothing. A Job is the part of a task that the core does not see: how to say it to a node, what its
answer means, and who waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, Protocol

from sollol.core.endpoint import Endpoint
from sollol.core.messages import (
    Abort,
    Accept,
    Action,
    Cancelled,
    Event,
    Finished,
    FirstToken,
    Load,
    NodeLost,
    NodeSeen,
    Notice,
    Probe,
    Refuse,
    Responding,
    Settle,
    Start,
    Submitted,
    Tick,
    WakeAt,
    Want,
)
from sollol.core.scheduler import Scheduler
from sollol.core.types import How, Micros, NodeFacts, Outcome, Task
from sollol.nodes.dialect import load_call, outcome_of
from sollol.nodes.probe import ProbeFailed, alive, probes
from sollol.nodes.transport import Call, Transport, TransportFault
from sollol.observe.journal import Journal
from sollol.pool.aliases import Aliases
from sollol.pool.silences import Silences, Watched

log: Final = logging.getLogger("sollol")
NOTICES: Final = 100  # sentences for the operator that are kept
PROBE_AGAIN_S = 0.5  # after this process had no file descriptor left

GiveUp = Callable[[], object]


class Job(Protocol):
    task: Task

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Begin one attempt; the result gives it up. Its end is told later with `dispatcher.finished`."""
        ...

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        """An attempt is over (LEFT if it was aborted)."""
        ...

    def accept(self, action: Accept) -> None: ...
    def refuse(self, action: Refuse) -> None: ...
    def want(self, items: int) -> None: ...
    def settle(self, action: Settle, at: Micros) -> None: ...


# Carries out one attempt as a coroutine. The last argument is called with whether another node could go on with the
# answer, when its caller has begun to receive it, and again if that turns out to be otherwise.
Perform = Callable[[Transport, Endpoint, Start, Callable[[bool], None]], Coroutine[Any, Any, Outcome]]


class Dispatcher:
    def __init__(self, scheduler: Scheduler, transport: Transport, journal: Journal) -> None:
        self.scheduler = scheduler
        self.transport = transport
        self.journal = journal
        self._loop = asyncio.get_running_loop()
        # uvloop's own clock, the same one, steps in whole milliseconds.
        self._clock = time.monotonic if type(self._loop).__module__.startswith("uvloop") else self._loop.time
        self._jobs: dict[int, Job] = {}
        self._running: dict[int, tuple[GiveUp, Start, Job, Micros]] = {}
        self._events: deque[Event] = deque()  # that came while the actions of another were carried out
        self._feeding = False
        self._silences = Silences(self._loop, self.feed)
        self._asked: set[str] = set()  # nodes whose lists are awaited
        self._background: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.notices: deque[str] = deque(maxlen=NOTICES)
        self._aliases = Aliases(transport, self.tell)

    def tell(self, sentence: str) -> None:
        """Report to the operator: in the log, and in `notices`."""
        self.notices.append(sentence)
        log.warning("%s", sentence)

    def now(self) -> Micros:
        return int(self._clock() * 1_000_000.0 + 0.5)

    def submit(self, job: Job, at: Micros | None = None) -> None:
        """`at`: the present moment, if the caller has it at hand. Raises what a caller's own policy raises."""
        task = job.task
        if self._closed:
            job.settle(Settle(task.id, Outcome(How.LEFT, "the pool is closed")), self.now())
            return
        self._jobs[task.id] = job
        try:
            self.feed(Submitted(task), at)
        except Exception:  # of a caller's own policy: nobody will wait for this task
            self._jobs.pop(task.id, None)
            self.scheduler.handle(Cancelled(task.id), self.now())
            raise

    def cancel(self, task: int) -> None:
        if task in self._jobs:
            self.feed(Cancelled(task))

    def feed(self, event: Event, at: Micros | None = None) -> None:
        """Hand an event to the scheduler and carry out what follows; one that comes meanwhile is next."""
        if self._closed:
            return
        if self._feeding:
            self._events.append(event)
            return
        self._feeding = True
        try:
            self._handle(event, self.now() if at is None else at)
            while self._events:
                self._handle(self._events.popleft(), self.now())
        finally:
            self._feeding = False

    def _handle(self, event: Event, at: Micros) -> None:
        actions = self.scheduler.handle(event, at)
        self.journal.record(at, event, actions)
        for action in actions:
            self._carry_out(action, at)

    def _carry_out(self, action: Action, at: Micros) -> None:
        if isinstance(action, Start):  # not `match`: compiled, that asks in the slow way
            self._start(action, at)
        elif isinstance(action, Settle):
            self._jobs.pop(action.task).settle(action, at)
        elif isinstance(action, WakeAt):
            self._wake_at(action.at)
        elif isinstance(action, Abort):
            self._abort(action, at)
        elif isinstance(action, Accept):
            self._jobs[action.task].accept(action)
        elif isinstance(action, Want):
            self._jobs[action.task].want(action.items)
        elif isinstance(action, Probe):
            self._in_background(self._probe(action.node))
        elif isinstance(action, Notice):
            self.tell(action.text)
        elif isinstance(action, Load):
            self._in_background(self._load(action))
        else:
            self._jobs[action.task].refuse(action)

    def _start(self, start: Start, at: Micros) -> None:
        job = self._jobs[start.task]
        node = self.scheduler.fleet.nodes[start.node].endpoint
        try:
            give_up = job.launch(self, start, node)
        except Exception as error:  # what must not be sent, or a fault of ours: the task must still end
            give_up = self.run(_raise(error), start, node)
        self._running[start.attempt] = (give_up, start, job, at)

    def run(self, perform: Perform, start: Start, node: Endpoint) -> GiveUp:
        """Carry out an attempt as a coroutine, in a task of its own."""
        return self._loop.create_task(self._attempt(perform, start, node)).cancel

    async def _attempt(self, perform: Perform, start: Start, node: Endpoint) -> None:
        try:
            outcome = await perform(self.transport, node, start, lambda movable: self._starts(start, movable))
        except TransportFault as fault:
            outcome = outcome_of(fault)
        except Exception as error:  # a fault of ours, or of a caller's object: the task must still end
            outcome = Outcome(How.REFUSED, f"{type(error).__name__}: {error}")
        self.finished(start.attempt, outcome)

    def _starts(self, start: Start, movable: bool) -> None:
        if start.observe:
            self.responding(start.attempt)
        else:
            self.began(start.attempt, movable)

    def began(self, attempt: int, movable: bool) -> None:
        """The caller has begun to receive this attempt's answer."""
        self.feed(FirstToken(attempt, movable))

    def watch(self, attempt: int, stream: Watched) -> None:
        """Notice it if nothing more comes of this attempt's stream."""
        if attempt in self._running:
            self._silences.watch(attempt, stream)

    def responding(self, attempt: int) -> None:
        """Report that a node has begun to answer an attempt whose caller wants the answer whole."""
        if attempt in self._running:
            self.feed(Responding(attempt))

    def finished(self, attempt: int, outcome: Outcome) -> None:
        """An attempt has ended by itself. One that was aborted meanwhile is not heard any more."""
        entry = self._running.pop(attempt, None)
        if entry is not None:
            _, start, job, began = entry
            self._silences.forget(attempt)
            at = self.now()
            job.ended(start, outcome, began, at)
            self.feed(Finished(attempt, outcome), at)

    def _abort(self, action: Abort, at: Micros) -> None:
        entry = self._running.pop(action.attempt, None)
        if entry is not None:
            give_up, start, job, began = entry
            self._silences.forget(action.attempt)
            give_up()
            if not action.withdrawn:
                job.ended(start, action.outcome, began, at)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def send_later(self, node: Endpoint, call: Call) -> None:
        """Send a call in the background. If it fails, the next probe shows what the node has."""
        if not self._closed:
            self._in_background(self._send(node, call))

    async def _send(self, node: Endpoint, call: Call) -> None:
        try:
            await self.transport.send(node, call)
        except TransportFault as fault:
            log.info("%s was not told how long to keep a model: %s", node.key, fault)

    async def _load(self, action: Load) -> None:
        node = self.scheduler.fleet.nodes.get(action.node)
        if node is not None:
            try:
                await self.transport.send(node.endpoint, load_call(action.kind, action.model, action.options))
            except TransportFault:
                pass  # the probe will tell
            await self._probe(action.node)

    async def _probe(self, key: str) -> None:
        node = self.scheduler.fleet.nodes.get(key)
        if node is None:
            return
        version, known = node.version if node.up else "", bool(node.models)
        try:
            if key in self._asked:  # its lists are still awaited
                self.feed(NodeSeen(key, await alive(self.transport, node.endpoint)))
                return
            self._asked.add(key)
            try:
                async with aclosing(probes(self.transport, node.endpoint, version, known)) as found:
                    async for facts in found:
                        self._seen(key, facts)
            finally:
                self._asked.discard(key)
        except ProbeFailed as error:
            self.feed(NodeLost(key, str(error), error.certain))
        except TransportFault:  # this process has no file descriptor left, which says nothing of the node
            self._loop.call_later(PROBE_AGAIN_S, self._probe_again, key)
        except Exception as error:  # whatever it is, the node must not count as being asked for ever
            self.feed(NodeLost(key, f"{type(error).__name__}: {error}", True))

    def _probe_again(self, key: str) -> None:
        if not self._closed:
            self._in_background(self._probe(key))

    def _seen(self, key: str, facts: NodeFacts) -> None:
        nodes = self.scheduler.fleet.nodes
        if key not in nodes:  # it was removed meanwhile
            return
        aside = self._aliases.found(key, facts, nodes)
        if key not in aside:
            self.feed(NodeSeen(key, facts))
        for name, other in aside.items():
            self.feed(NodeLost(name, f"is {other} under another name", True))

    def _wake_at(self, at: Micros) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at / 1_000_000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    async def aclose(self) -> None:
        """Cancel what runs, tell those who wait, close the connections."""
        for task in list(self._jobs):
            self.feed(Cancelled(task))
        self._closed = True
        self._silences.close()
        if self._timer is not None:
            self._timer.cancel()
        for asking in list(self._background):
            asking.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.transport.aclose()


def _raise(error: Exception) -> Perform:
    async def perform(*_: object) -> Outcome:
        raise error

    return perform
