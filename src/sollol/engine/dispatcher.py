"""Feed events to the scheduler and carry out its actions.

The dispatcher makes no decisions. A Job is the part of a task outside the core: its request to a node, the meaning of
the answer, and its caller.

Over 400 lines, because each event and each action passes here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, Protocol

from sollol.backends.ollama import judge, load_call, retest_call
from sollol.backends.probe import ProbeFailed, probe_version, probes
from sollol.backends.refusals import outcome_of, refusal
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
    Retest,
    SchedulerException,
    Start,
    Unload,
    Wake,
    WakeAt,
)
from sollol.core.endpoint import Endpoint
from sollol.core.events import (
    Cancelled,
    Event,
    Finished,
    FirstToken,
    LoadEnded,
    NodeLost,
    NodeSeen,
    Responding,
    Retested,
    Submitted,
    TaskFailed,
    Tick,
)
from sollol.core.exception_recovery import exception_outcome
from sollol.core.scheduler import Scheduler
from sollol.core.types import EMBED, OK, SECOND, Kind, Micros, NodeFacts, Outcome, Status, Task
from sollol.duties import Duties
from sollol.engine.node_aliases import Aliases
from sollol.engine.stream_watch import StreamWatch, WatchedStream
from sollol.errors import SollolError
from sollol.observe.journal import Journal
from sollol.observe.tracing import Tracing
from sollol.transport.base import Call, Transport, TransportFault
from sollol.workload.cost import item_cost

log: Final = logging.getLogger("sollol")
NOTICES: Final = 100  # notices kept for the operator
RETEST_TEXT = "SOLLOL embeds this text to measure how fast the node is: it has about as many letters as a sentence."
RETEST_TEXTS = 64  # most of them in one test
UNLOAD_WAIT_S = 10.0  # that a load waits for the unloads before it
PROBE_AGAIN_S = 0.5  # after this process ran out of file descriptors

GiveUp = Callable[[], object]


class Job(Protocol):
    """The part of a task outside the core."""

    task: Task

    def launch(self, dispatcher: Dispatcher, start: Start, node: Endpoint) -> GiveUp:
        """Start one attempt; return the function that aborts it. `dispatcher.finished` reports its end."""
        ...

    def ended(self, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        """Record the end of an attempt (LEFT if it was aborted)."""
        ...

    def accept(self, action: Accept) -> None:
        """Deliver the new items of a batch's attempt."""
        ...

    def refuse(self, action: Refuse) -> None:
        """Deliver the error of failed items."""
        ...

    def request_items(self, items: int) -> None:
        """Request more items from the caller of a batch."""
        ...

    def settle(self, action: Complete, at: Micros) -> None:
        """Deliver the end of the task."""
        ...


# Carries out one attempt as a coroutine. It calls its last argument when the caller has received the first part, with
# True if another node could resume the answer, and again if that changes.
Perform = Callable[[Transport, Endpoint, Start, Callable[[bool], None]], Coroutine[Any, Any, Outcome]]


class Dispatcher:
    """Connection between the scheduler and the world, on one event loop."""

    def __init__(self, scheduler: Scheduler, transport: Transport, journal: Journal) -> None:
        self.scheduler = scheduler
        self.transport = transport
        self.journal = journal
        self.tracing: Tracing | None = None
        self._loop = asyncio.get_running_loop()
        # uvloop's own clock has a resolution of 1 ms only.
        self._clock = time.monotonic if type(self._loop).__module__.startswith("uvloop") else self._loop.time
        self._jobs: dict[int, Job] = {}
        self._running: dict[int, tuple[GiveUp, Start, Job, Micros]] = {}
        self._events: deque[Event] = deque()  # events during the actions of another event
        self._feeding = False
        self._probing: set[str] = set()  # nodes whose lists are outstanding
        self._unloading: dict[str, set[asyncio.Future[None]]] = {}  # node -> unloads in flight
        self._odd: dict[str, int] = {}  # node -> most rows left out so far
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._submitting = 0  # the task being submitted, and the exception of its own policy
        self._own_fault: Exception | None = None
        self.used_digests: dict[str, str] = {}  # model -> version used by embeddings
        self.faults = 0  # unexpected exceptions
        self.notices: deque[str] = deque(maxlen=NOTICES)
        self.noticed = 0  # notices so far
        self.duties = Duties(self.fault)
        self.wake: Callable[[str], None] = _no_packet  # sends the packet that starts a node
        self._stream_watch = StreamWatch(self._loop, self.feed, self.duties)
        self._on_tick = self.duties.guarded("the clock of the scheduler", self._tick)
        self._aliases = Aliases(transport, self.notify_operator)

    def notify_operator(self, sentence: str) -> None:
        """Report to the operator: in the log, and in `notices`."""
        self.notices.append(sentence)
        self.noticed += 1
        log.warning("%s", sentence)

    def fault(self, where: str, error: BaseException) -> str:
        """Log an unexpected exception with its traceback and count it; return its name in the log."""
        self.faults += 1
        name = secrets.token_hex(4)
        log.error("fault %s, in %s: %s: %s", name, where, type(error).__name__, error, exc_info=error)
        return name

    def now(self) -> Micros:
        """Return the present in microseconds of the loop's clock."""
        return int(self._clock() * 1_000_000.0 + 0.5)

    def submit(self, job: Job, at: Micros | None = None) -> None:
        """Submit a job at the time `at`, by default now. Raises the exceptions of a caller's own policy."""
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
        """Return and clear the exception of a caller's own policy.

        A method of its own, because compiled `submit` would still read the attribute as None.
        """
        own, self._own_fault = self._own_fault, None
        return own

    def cancel(self, task: int, why: str = "") -> None:
        """Cancel a task. With `why`, its caller gets an error with this message."""
        if task in self._jobs:
            self.feed(Cancelled(task, why))

    def feed(self, event: Event, at: Micros | None = None) -> None:
        """Feed an event to the scheduler and carry out the actions; queue events that arrive meanwhile."""
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
        """Feed one event. Raises nothing: a failure in one task must not affect the others."""
        try:
            actions = self.scheduler.handle(event, at)
        except Exception as error:  # it should raise nothing
            self.fault("the scheduler", error)
            return
        try:
            self.journal.record(at, event, actions)
        except Exception as error:
            self.fault("a listener of the journal", error)
        for action in actions:
            try:
                self._carry_out(action, at)
            except Exception as error:
                self._action_failed(action, error)

    def _action_failed(self, action: Action, error: Exception) -> None:
        """End the task of a failed action, and no other."""
        self.fault(f"carrying out {type(action).__name__}", error)
        if isinstance(action, Start | Accept | Refuse | ItemsRequested) and action.task in self._jobs:
            self._events.append(TaskFailed(action.task, error))

    def _settle(self, action: Complete, at: Micros) -> None:
        job = self._jobs.pop(action.task, None)
        if job is None:
            return
        try:
            job.settle(action, at)
        except Exception as error:  # its caller must get an end in any case
            self.fault(f"delivering the end of task {action.task}", error)
            job.settle(Complete(action.task, exception_outcome(error)), at)

    def _faulted(self, action: SchedulerException) -> None:
        """Report a fault of the scheduler; raise that of a caller's own policy where it was submitted."""
        job = self._jobs.get(action.task)
        hedge = None if job is None else job.task.hedge
        if action.task == self._submitting and isinstance(hedge, str):
            self._jobs.pop(action.task)
            self._own_fault = action.error
        else:
            self.fault(f"the scheduler, at task {action.task}" if action.task else "the scheduler", action.error)

    def _carry_out(self, action: Action, at: Micros) -> None:
        if isinstance(action, Start):  # not `match`, which is slow when compiled
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
            self._jobs[action.task].request_items(action.items)
        elif isinstance(action, Probe):
            self.duties.once(f"probing {action.node}", self._probe(action.node))
        elif isinstance(action, DigestChosen):
            self.used_digests[action.model] = action.digest
        elif isinstance(action, Notice):
            self.notify_operator(action.text)
        elif isinstance(action, Wake):
            self.wake(action.node)
        elif isinstance(action, Unload):
            self.duties.once(f"unloading a model on {action.node}", self._unload(action))
        elif isinstance(action, Retest):
            self.duties.once(f"testing a model on {action.node}", self._retest(action))
        elif isinstance(action, Load):
            self.duties.once(f"loading a model on {action.node}", self._load(action))
        elif isinstance(action, Refuse):
            self._jobs[action.task].refuse(action)
        else:
            self._faulted(action)

    def _start(self, start: Start, at: Micros) -> None:
        job = self._jobs[start.task]
        node = self.scheduler.view().nodes[start.node].endpoint
        tracing = self.tracing
        entered = None if tracing is None else tracing.enter(start)
        try:
            give_up = job.launch(self, start, node)
        except Exception as error:  # the task must end after any error
            give_up = self.run(_raise(error), start, node)
        if tracing is not None and entered is not None:
            tracing.leave(entered)
        self._running[start.attempt] = (give_up, start, job, at)

    def run(self, perform: Perform, start: Start, node: Endpoint) -> GiveUp:
        """Carry out an attempt as a coroutine in its own task."""
        return self._loop.create_task(self._attempt(perform, start, node)).cancel

    async def _attempt(self, perform: Perform, start: Start, node: Endpoint) -> None:
        try:
            outcome = await perform(self.transport, node, start, lambda movable: self._starts(start, movable))
        except TransportFault as fault:
            outcome = outcome_of(fault)
        except SollolError as error:  # the request must not be sent
            outcome = Outcome(Status.REFUSED, f"{type(error).__name__}: {error}")
        except Exception as error:  # our own fault, or an unreadable answer
            outcome = self.answer_fault(error)
        self.finished(start.attempt, outcome)

    def answer_fault(self, error: Exception) -> Outcome:
        """Return the outcome of an attempt whose answer caused an exception: another node may do better."""
        name = self.fault("reading an answer", error)
        return Outcome(Status.FAILED, f"its answer cannot be read ({type(error).__name__}; fault {name} in the log)")

    def _starts(self, start: Start, movable: bool) -> None:
        if start.observe:
            self.responding(start.attempt)
        else:
            self.began(start.attempt, movable)

    def began(self, attempt: int, movable: bool) -> None:
        """Report the first part of a streamed answer at the caller."""
        self.feed(FirstToken(attempt, movable))

    def watch(self, attempt: int, stream: WatchedStream) -> None:
        """Watch the stream of an attempt for stalls."""
        if attempt in self._running:
            self._stream_watch.watch(attempt, stream)

    def responding(self, attempt: int) -> None:
        """Report the first part of a whole answer."""
        if attempt in self._running:
            self.feed(Responding(attempt))

    def finished(self, attempt: int, outcome: Outcome) -> None:
        """Report completion; ignored after abort."""
        entry = self._running.pop(attempt, None)
        if entry is not None:
            _, start, job, began = entry
            at = self.now()
            self._end(job, start, outcome, began, at)
            self.feed(Finished(attempt, outcome), at)

    def _end(self, job: Job, start: Start, outcome: Outcome, began: Micros, at: Micros) -> None:
        try:
            self._stream_watch.forget(start.attempt)
            job.ended(start, outcome, began, at)
            if self.tracing is not None:
                self.tracing.end(start, outcome, began, at)
        except Exception as error:  # a failing log must not block the slot
            self.fault(f"the log of task {start.task}", error)

    def _abort(self, action: Abort, at: Micros) -> None:
        entry = self._running.pop(action.attempt, None)
        if entry is not None:
            give_up, start, job, began = entry
            try:
                self._stream_watch.forget(action.attempt)
                give_up()
            except Exception as error:
                self.fault(f"giving up an attempt of task {start.task}", error)
            if not action.withdrawn:
                self._end(job, start, action.outcome, began, at)

    def send_later(self, node: Endpoint, call: Call) -> None:
        """Send a call in the background. If it fails, the next probe reports the node's state."""
        if not self._closed:
            self.duties.once(f"a message to {node.key}", self._send(node, call))

    def _forget_trace(self) -> None:
        """Leave the trace of the request in whose turn this coroutine was started."""
        if self.tracing is not None:
            self.tracing.forget()

    async def _send(self, node: Endpoint, call: Call) -> None:
        self._forget_trace()
        try:
            await self.transport.send(node, call)
        except TransportFault as fault:
            log.info("the call to unload a model on %s failed: %s", node.key, fault)

    async def _load(self, action: Load) -> None:
        node = self.scheduler.view().nodes.get(action.node)
        if node is not None:
            if unloading := self._unloading.get(action.node):  # else the load might evict another model
                await asyncio.wait(unloading, timeout=UNLOAD_WAIT_S)
            try:
                outcome = await self._loaded(node.endpoint, action, action.kind)
                if outcome.status is Status.REFUSED and action.kind is not Kind.EMBED:  # it may be an embedding model
                    outcome = await self._loaded(node.endpoint, action, Kind.EMBED)
            except TransportFault as fault:
                outcome = outcome_of(fault)
            except Exception as error:
                outcome = Outcome(Status.FAILED, str(error))
                self.duties.failed(f"loading a model on {action.node}", error)
            await self._probe(action.node)
            self.feed(LoadEnded(action.node, action.model, outcome))

    async def _loaded(self, endpoint: Endpoint, action: Load, kind: Kind) -> Outcome:
        call = load_call(kind, action.model, action.options, action.keep_alive or None)
        reply = await self.transport.send(endpoint, call)
        body = await reply.read()
        return Outcome(OK) if reply.status == 200 else refusal(reply.status, body)

    async def _unload(self, action: Unload) -> None:
        node = self.scheduler.view().nodes.get(action.node)
        if node is not None:
            ended = self._loop.create_future()
            unloading = self._unloading.setdefault(action.node, set())
            unloading.add(ended)
            try:
                with contextlib.suppress(TransportFault):  # the probe reports the state
                    await self.transport.send(node.endpoint, load_call(Kind.GENERATE, action.model, "", 0))
            finally:
                ended.set_result(None)
                unloading.discard(ended)
            await self._probe(action.node)

    async def _retest(self, action: Retest) -> None:
        node, rate, took_us = self.scheduler.view().nodes.get(action.node), 0.0, 0
        if node is None:
            return
        texts = [RETEST_TEXT] * min(max(1, round(action.cost / item_cost(RETEST_TEXT))), RETEST_TEXTS)
        try:
            began_us = self.now()
            call = retest_call(action.kind, action.model, action.options, texts)
            reply = await self.transport.send(node.endpoint, call)
            outcome = judge(reply.status, await reply.read(), action.kind)
            timing = outcome.timing
            if action.kind is EMBED:
                took_us = max(1, self.now() - began_us - timing.load_us)
                rate = item_cost(RETEST_TEXT) * len(texts) / took_us * SECOND if outcome.status is OK else 0.0
            elif timing.decode_us > 0:
                took_us, rate = timing.decode_us, timing.tokens / timing.decode_us * SECOND
        except TransportFault:
            pass  # the next test is due in a minute
        self.feed(Retested(action.node, action.model, rate, took_us))

    async def _probe(self, key: str) -> None:
        self._forget_trace()
        node = self.scheduler.view().nodes.get(key)
        if node is None:
            return
        version, known = node.version if node.up else "", bool(node.models)
        try:
            if key in self._probing:  # its lists are outstanding
                self.feed(NodeSeen(key, await probe_version(self.transport, node.endpoint)))
                return
            self._probing.add(key)
            try:
                async with aclosing(probes(self.transport, node.endpoint, version, known)) as found:
                    async for facts in found:
                        self._seen(key, facts)
            finally:
                self._probing.discard(key)
        except ProbeFailed as error:
            self.feed(NodeLost(key, str(error), error.certain))
        except TransportFault:  # this process is out of file descriptors: no evidence about the node
            self._loop.call_later(PROBE_AGAIN_S, self._probe_again, key)
        except Exception as error:  # the node must not stay in the state of being probed
            self.fault(f"probing {key}", error)
            self.feed(NodeLost(key, f"{type(error).__name__}: {error}", True))

    def _probe_again(self, key: str) -> None:
        if not self._closed:
            self.duties.once(f"probing {key}", self._probe(key))

    def _seen(self, key: str, facts: NodeFacts) -> None:
        nodes = self.scheduler.view().nodes
        if key not in nodes:  # removed meanwhile
            return
        if facts.odd > self._odd.get(key, 0):
            self._odd[key] = facts.odd
            self.notify_operator(f"{key} lists {facts.odd} models in another format than Ollama's: they are left out")
        aside = self._aliases.detect(key, facts, nodes)
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
        """Cancel all tasks and duties, close the connections."""
        for task in list(self._jobs):
            self.feed(Cancelled(task))
        self._closed = True
        self._stream_watch.close()
        if self._timer is not None:
            self._timer.cancel()
        await self.duties.aclose()
        await self.transport.aclose()


def _raise(error: Exception) -> Perform:
    async def perform(*_: object) -> Outcome:
        raise error

    return perform


def _no_packet(node: str) -> None:
    """Send nothing: no node can be woken before its owner's wishes are known."""
