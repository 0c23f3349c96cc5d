"""The thin imperative shell: feeds events to the scheduler and turns its actions into awaits.

It decides nothing. A Job is the part of a task that the core does not see: how to say it to a node, what its
answer means, and who waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, Protocol

from sollol.backends.ollama import load_call, outcome_of
from sollol.backends.probe import ProbeFailed, probe_version, probes
from sollol.core.actions import (
    Abort,
    Accept,
    Action,
    Complete,
    DigestChosen,
    ItemsRequested,
    Load,
    Notice,
    Probe,
    Refuse,
    SchedulerFault,
    Start,
    WakeAt,
)
from sollol.core.endpoint import Endpoint
from sollol.core.events import (
    Cancelled,
    Event,
    Finished,
    FirstToken,
    NodeLost,
    NodeSeen,
    Responding,
    Submitted,
    TaskFailed,
    Tick,
)
from sollol.core.fault_recovery import fault_outcome
from sollol.core.scheduler import Scheduler
from sollol.core.types import Micros, NodeFacts, Outcome, Status, Task
from sollol.duties import Duties
from sollol.engine.node_aliases import Aliases
from sollol.engine.silences import Silences, Watched
from sollol.errors import SollolError
from sollol.observe.journal import Journal
from sollol.transport.base import Call, Transport, TransportFault

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
    def settle(self, action: Complete, at: Micros) -> None: ...


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
        self._asked: set[str] = set()  # nodes whose lists are awaited
        self._odd: dict[str, int] = {}  # the most rows of each that were left out
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._submitting = 0  # the task that a caller is submitting, and what his own policy raised at it
        self._own_fault: Exception | None = None
        self.used_digests: dict[str, str] = {}  # model -> the version that embeddings use
        self.faults = 0  # exceptions that nobody expected
        self.notices: deque[str] = deque(maxlen=NOTICES)
        self.duties = Duties(self.fault)
        self._silences = Silences(self._loop, self.feed, self.duties)
        self._on_tick = self.duties.guarded("the clock of the scheduler", self._tick)
        self._aliases = Aliases(transport, self.tell)

    def tell(self, sentence: str) -> None:
        """Report to the operator: in the log, and in `notices`."""
        self.notices.append(sentence)
        log.warning("%s", sentence)

    def fault(self, where: str, error: BaseException) -> str:
        """Log an exception that nobody expected, with its traceback, and count it. Returns its name in the log."""
        self.faults += 1
        name = secrets.token_hex(4)
        log.error("fault %s, in %s: %s: %s", name, where, type(error).__name__, error, exc_info=error)
        return name

    def now(self) -> Micros:
        return int(self._clock() * 1_000_000.0 + 0.5)

    def submit(self, job: Job, at: Micros | None = None) -> None:
        """`at`: the present moment, if the caller has it at hand. Raises what a caller's own policy raises."""
        task = job.task
        if self._closed:
            job.settle(Complete(task.id, Outcome(Status.LEFT, "the pool is closed")), self.now())
            return
        self._jobs[task.id] = job
        self._submitting, self._own_fault = task.id, None
        self.feed(Submitted(task), at)
        self._submitting = 0
        if (own := self._take_fault()) is not None:
            raise own

    def _take_fault(self) -> Exception | None:
        """Return and clear what a caller's own policy raised. (Compiled, `submit` would take it for None still.)"""
        own, self._own_fault = self._own_fault, None
        return own

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
        self._handle(event, self.now() if at is None else at)
        while self._events:
            self._handle(self._events.popleft(), self.now())
        self._feeding = False

    def feed_soon(self, event: Event) -> None:
        """Feed an event from any thread: at once in the event loop's own, else in its next turn."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self.feed(event)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.feed, event)

    def _handle(self, event: Event, at: Micros) -> None:
        """Raise nothing: whatever fails in one task, the events of the others come after it."""
        try:
            actions = self.scheduler.handle(event, at)
        except Exception as error:  # it says that it raises nothing
            self.fault("the scheduler", error)
            return
        try:
            self.journal.record(at, event, actions)
        except Exception as error:
            self.fault("what listens to the journal", error)
        for action in actions:
            try:
                self._carry_out(action, at)
            except Exception as error:
                self._not_carried_out(action, error)

    def _not_carried_out(self, action: Action, error: Exception) -> None:
        """Let the task that an action is about end, and no other."""
        self.fault(f"carrying out {type(action).__name__}", error)
        if isinstance(action, Start | Accept | Refuse | ItemsRequested) and action.task in self._jobs:
            self._events.append(TaskFailed(action.task, error))

    def _settle(self, action: Complete, at: Micros) -> None:
        job = self._jobs.pop(action.task, None)
        if job is None:
            return
        try:
            job.settle(action, at)
        except Exception as error:  # its caller must hear of an end all the same
            self.fault(f"telling the end of task {action.task}", error)
            job.settle(Complete(action.task, fault_outcome(error)), at)

    def _faulted(self, action: SchedulerFault) -> None:
        """Tell of a fault in the scheduler; one of a caller's own policy is raised where he submits."""
        job = self._jobs.get(action.task)
        hedge = None if job is None else job.task.hedge
        if action.task == self._submitting and isinstance(hedge, str):
            self._jobs.pop(action.task)
            self._own_fault = action.error
        else:
            self.fault(f"the scheduler, at task {action.task}" if action.task else "the scheduler", action.error)

    def _carry_out(self, action: Action, at: Micros) -> None:
        if isinstance(action, Start):  # not `match`: compiled, that asks in the slow way
            self._start(action, at)
        elif isinstance(action, Complete):
            self._settle(action, at)
        elif isinstance(action, WakeAt):
            self._wake_at(action.at)
        elif isinstance(action, Abort):
            self._abort(action, at)
        elif isinstance(action, Accept):
            self._jobs[action.task].accept(action)
        elif isinstance(action, ItemsRequested):
            self._jobs[action.task].want(action.items)
        elif isinstance(action, Probe):
            self.duties.once(f"asking {action.node} how it is", self._probe(action.node))
        elif isinstance(action, DigestChosen):
            self.used_digests[action.model] = action.digest
        elif isinstance(action, Notice):
            self.tell(action.text)
        elif isinstance(action, Load):
            self.duties.once(f"loading a model on {action.node}", self._load(action))
        elif isinstance(action, Refuse):
            self._jobs[action.task].refuse(action)
        else:
            self._faulted(action)

    def _start(self, start: Start, at: Micros) -> None:
        job = self._jobs[start.task]
        node = self.scheduler.view().nodes[start.node].endpoint
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
        except SollolError as error:  # what must not be sent
            outcome = Outcome(Status.REFUSED, f"{type(error).__name__}: {error}")
        except Exception as error:  # a fault of ours, or an answer that nobody can read
            outcome = self.unread(error)
        self.finished(start.attempt, outcome)

    def unread(self, error: Exception) -> Outcome:
        """Return how an attempt ends whose answer was the occasion of a fault: another node may do better."""
        name = self.fault("reading an answer", error)
        return Outcome(Status.FAILED, f"its answer cannot be read ({type(error).__name__}; fault {name} in the log)")

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
            at = self.now()
            self._end(job, start, outcome, began, at)
            self.feed(Finished(attempt, outcome), at)

    def _end(self, job: Job, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        try:
            self._silences.forget(start.attempt)
            job.ended(start, outcome, began, at)
        except Exception as error:  # the log of a task is worth less than its slot
            self.fault(f"the log of task {start.task}", error)

    def _abort(self, action: Abort, at: Micros) -> None:
        entry = self._running.pop(action.attempt, None)
        if entry is not None:
            give_up, start, job, began = entry
            try:
                self._silences.forget(action.attempt)
                give_up()
            except Exception as error:
                self.fault(f"giving up an attempt of task {start.task}", error)
            if not action.withdrawn:
                self._end(job, start, action.outcome, began, at)

    def send_later(self, node: Endpoint, call: Call) -> None:
        """Send a call in the background. If it fails, the next probe shows what the node has."""
        if not self._closed:
            self.duties.once(f"a message to {node.key}", self._send(node, call))

    async def _send(self, node: Endpoint, call: Call) -> None:
        try:
            await self.transport.send(node, call)
        except TransportFault as fault:
            log.info("%s was not told how long to keep a model: %s", node.key, fault)

    async def _load(self, action: Load) -> None:
        node = self.scheduler.view().nodes.get(action.node)
        if node is not None:
            try:
                await self.transport.send(node.endpoint, load_call(action.kind, action.model, action.options))
            except TransportFault:
                pass  # the probe will tell
            except Exception as error:
                self.duties.failed(f"loading a model on {action.node}", error)
            await self._probe(action.node)

    async def _probe(self, key: str) -> None:
        node = self.scheduler.view().nodes.get(key)
        if node is None:
            return
        version, known = node.version if node.up else "", bool(node.models)
        try:
            if key in self._asked:  # its lists are still awaited
                self.feed(NodeSeen(key, await probe_version(self.transport, node.endpoint)))
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
            self.fault(f"asking {key} how it is", error)
            self.feed(NodeLost(key, f"{type(error).__name__}: {error}", True))

    def _probe_again(self, key: str) -> None:
        if not self._closed:
            self.duties.once(f"asking {key} how it is", self._probe(key))

    def _seen(self, key: str, facts: NodeFacts) -> None:
        nodes = self.scheduler.view().nodes
        if key not in nodes:  # it was removed meanwhile
            return
        if facts.odd > self._odd.get(key, 0):
            self._odd[key] = facts.odd
            self.tell(f"{key} lists {facts.odd} models that are none of Ollama's: they are left out")
        aside = self._aliases.found(key, facts, nodes)
        if key not in aside:
            self.feed(NodeSeen(key, facts))
        for name, other in aside.items():
            self.feed(NodeLost(name, f"is {other} under another name", True))

    def _wake_at(self, at: Micros) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at / 1_000_000, self._on_tick)

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
        await self.duties.aclose()
        await self.transport.aclose()


def _raise(error: Exception) -> Perform:
    async def perform(*_: object) -> Outcome:
        raise error

    return perform
