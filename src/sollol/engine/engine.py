"""What both pools share on the loop: scheduler, dispatcher, and the making of jobs."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from sollol.answers import Answer
from sollol.backends.ollama import decode, load_call
from sollol.core.endpoint import Endpoint
from sollol.core.events import Configure, NodeAdded, NodeRemoved, Refresh
from sollol.core.policy import Hedger, Policies
from sollol.core.scheduler import Scheduler
from sollol.core.types import Kind, Micros, RoutingStrategy, Task, TaskType, canonical_model
from sollol.engine.batch_job import BatchJob, Message
from sollol.engine.batch_report import BatchReport
from sollol.engine.dispatcher import Dispatcher
from sollol.engine.history import History
from sollol.engine.jobs import CallJob, StreamJob
from sollol.engine.request import Request
from sollol.engine.resumption import PartialResponse, ResumeSupport, is_plain
from sollol.engine.texts import take
from sollol.engine.whole_answers import OBSERVABLE
from sollol.errors import ResponseError
from sollol.observe.journal import Journal
from sollol.policies.batching import GuidedBatcher
from sollol.policies.breaker import ConsecutiveBreaker
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.hedging import LearnedHedgeBenefit, QuantileHedger
from sollol.policies.lateness import LatenessByPrediction, StallByGap
from sollol.policies.model_concurrency import ModelConcurrency
from sollol.policies.preloading import SkiRentalPreloader
from sollol.policies.retry import BudgetRetrier
from sollol.policies.routing import MODES, CompletionRouter, router_of
from sollol.policies.suspicion import ItemSuspicion
from sollol.transport.base import Timeouts, Transport
from sollol.workload.call_options import CallOptions
from sollol.workload.runner_options import runner_key
from sollol.workload.task import Work, build_task, unloads
from sollol.workload.validation import check_text

# Loading, reading a prompt, and thinking may each take as long as they take: the scheduler judges silence by what else
# is known (`sollol.core.stall_detection`), the caller's timeout bounds it, and a machine that vanished is noticed by
# the connection (`sollol.transport.http`).
TIMEOUTS: Final = Timeouts(connect_s=3.0, first_byte_s=None, idle_s=None)
HEDGERS_MAX: Final = 256  # callers' own hedging policies that are registered at once


def default_policies(hedgers: Mapping[str, Hedger] | None = None) -> Policies:
    return Policies(
        router=CompletionRouter(),
        batcher=GuidedBatcher(),
        retrier=BudgetRetrier(),
        hedger=QuantileHedger(),
        limiter=LearnedLimit,
        breaker=ConsecutiveBreaker,
        hedge_benefit=LearnedHedgeBenefit(),
        lateness=LatenessByPrediction(),
        stalls=StallByGap(),
        suspicion=ItemSuspicion(),
        preloader=SkiRentalPreloader(),
        model_limiter=ModelConcurrency,
        modes=MODES,
        strategies={strategy: router_of(strategy) for strategy in RoutingStrategy},
        hedgers={} if hedgers is None else hedgers,
    )


class Engine:
    """Lives on one running event loop."""

    def __init__(self, endpoints: Iterable[Endpoint], transport: Transport, app: str, seed: int | None) -> None:
        self._hedgers: dict[str, Hedger] = {}  # callers' own, by name: a task holds a name
        self.scheduler = Scheduler(default_policies(self._hedgers), random.Random(seed))
        self.journal = Journal()
        self.dispatcher = Dispatcher(self.scheduler, transport, self.journal)
        self.transport = transport
        self.resume_support = ResumeSupport(transport, self.dispatcher.duties)
        self.history = History(self.dispatcher.now)
        self._app = app
        self._share = 1.0
        self._last_id = 0
        for endpoint in endpoints:
            self.add(endpoint)

    def add(self, endpoint: Endpoint) -> None:
        self.dispatcher.feed(NodeAdded(endpoint))

    def remove(self, key: str) -> None:
        self.dispatcher.feed(NodeRemoved(key))

    def refresh(self) -> None:
        """Probe every node now: models were pulled, loaded or deleted. May be called in any thread."""
        self.dispatcher.feed_soon(Refresh())

    def call(self, request: Request, done: Callable[[CallJob], None]) -> CallJob:
        job = CallJob(self._task(request), request.path, request.body, TIMEOUTS, self.noting(done))
        return self.submit(job)

    def stream(self, request: Request, done: Callable[[CallJob], None], push: Callable[[bytes], bool]) -> StreamJob:
        said = PartialResponse(request.kind, request.fields) if is_plain(request.fields) else None
        job = StreamJob(
            self._task(request),
            request.path,
            request.body,
            TIMEOUTS,
            self.noting(done),
            push,
            said,
            self.resume_support,
            self.holders,
        )
        self.submit(job)
        return job

    def noting(self, done: Callable[[CallJob], None]) -> Callable[[CallJob], None]:
        """`done`, after the call was put into the history."""

        def noted(job: CallJob) -> None:
            self.note(job)
            done(job)

        return noted

    def note(self, job: CallJob) -> None:
        """Put a call that is over into the history, if it is recorded."""
        if self._sees(job.task.id):
            self.history.add(job)

    def holders(self, model: str, key: str = "") -> dict[str, tuple[Endpoint, str]]:
        """The nodes that have a model (or of them this one), and its digest there."""
        found = self.scheduler.view().nodes
        nodes = [found[key]] if key in found else () if key else found.values()
        return {n.key: (n.endpoint, n.digests.get(model, "")) for n in nodes if n.usable and model in n.models}

    def digests(self, model: str) -> dict[str, str]:
        """Return the version of a model on each node that has it and tells it."""
        nodes = self.scheduler.view().nodes.values()
        return {node.key: digest for node in nodes if (digest := node.digests.get(model, ""))}

    def use_digests(self, one: bool, pinned: Mapping[str, str], used: dict[str, str]) -> None:
        """Set whether chats use one version of a model, too, and which versions are pinned.

        `used`: the versions that embeddings have used, also those of an engine before this one; kept up to date."""
        self.dispatcher.used_digests = used
        names = {canonical_model(model): digest.removeprefix("sha256:") for model, digest in pinned.items()}
        self.dispatcher.feed_soon(Configure(one_digest=one, pinned_digests=names, used_digests=dict(used)))

    def use_strategy(self, strategy: RoutingStrategy) -> None:
        """From now on, calls without a mode of their own go where this strategy says."""
        self.dispatcher.feed_soon(Configure(strategy=strategy))

    def set_queue_bound(self, most: int) -> None:
        """Set the most tasks that may wait."""
        self.dispatcher.feed_soon(Configure(queue_bound=most))

    def abandon(self) -> None:
        """Give up the connections without waiting, since the event loop that would close them is over."""
        abandon = getattr(self.transport, "abandon", None)
        if abandon is not None:
            abandon()

    async def aclose(self) -> None:
        await self.resume_support.aclose()
        await self.dispatcher.aclose()

    def batch(
        self,
        model: str,
        fields: Mapping[str, Any],
        call: CallOptions,
        width: int | None,
        post: Callable[[Message], None],
        *,
        make: type[BatchJob] = BatchJob,
    ) -> BatchJob:
        """A batch of embeddings. `make`: what takes its answers."""
        work = Work(Kind.EMBED, model, "/api/embed", type=TaskType.EMBED, batch=True, width=width)
        task = self.task(work, call)
        at_end = unloads(fields.get("keep_alive"))
        if at_end:  # at the end: said with every chunk, it would make the node load the model for each anew
            fields = {name: value for name, value in fields.items() if name != "keep_alive"}
        job = make(task, fields, TIMEOUTS, post, self.dispatcher.now(), self._available, self.digests)
        if at_end:
            job.over = lambda report: self._unload(task, fields, report)
        if self._sees(task.id):
            job.noted = self.history.add_batch
        self.dispatcher.submit(job)
        return job

    def _unload(self, task: Task, fields: Mapping[str, Any], report: BatchReport) -> None:
        """Let the nodes that took part in a batch put the model out of memory."""
        for key, share in report.nodes.items():
            node = self.scheduler.view().nodes.get(key)
            if node is not None and share.items:
                call = load_call(task.kind, task.model, runner_key(fields.get("options")), 0)
                self.dispatcher.send_later(node.endpoint, call)

    async def feed(self, job: BatchJob, source: Iterator[str] | AsyncIterator[str], count: int, fed: int) -> int:
        """Read `count` more texts for a batch and hand them over; call many came. Raises BadInput."""
        if isinstance(source, AsyncIterator):
            texts: list[str] = []
            closed = True
            async for text in source:
                check_text("inputs", fed + len(texts), text)
                texts.append(text)
                if len(texts) >= count:
                    closed = False
                    break
        else:
            texts, closed = take(source, count, fed)
        self.dispatcher.feed(job.more(texts, closed))
        return len(texts)

    def observe(self, share: float) -> None:
        """Record this share of the calls, from 0.0 to 1.0, in the history; with 0.0 no events either."""
        self._share = share
        self.journal.recording = share > 0

    def _sees(self, task: int) -> bool:
        """Whether a call is recorded: by its number, so that all faces agree on it."""
        return self._share >= 1.0 or (task * 0x9E3779B1 & 0xFFFFFFFF) < self._share * 0x100000000

    def next_id(self) -> int:
        self._last_id = id = self._last_id + 1
        return id

    def submit(self, job: CallJob) -> CallJob:
        job.attempt_log.submitted_us = at = self.dispatcher.now()
        self.dispatcher.submit(job, at)
        return job

    def task(self, work: Work, call: CallOptions) -> Task:
        """Return the task of a request, with an id of its own."""
        return build_task(self.next_id(), work, call, self._hedge(call), self._app, self.dispatcher.now())

    def _task(self, request: Request) -> Task:
        work = Work(
            request.kind,
            request.model,
            request.path,
            request.cost,
            request.tokens_out,
            request.options,
            request.type,
            request.prefix,
            request.stream,
            request.kind is not Kind.EMBED and request.path in OBSERVABLE,
            unloads(request.fields.get("keep_alive")),
        )
        return self.task(work, request.call)

    def _hedge(self, call: CallOptions) -> bool | str | None:
        """Return the name of a caller's own hedging policy, after it was registered; else what the caller set."""
        hedge = call.hedge
        if hedge is None or isinstance(hedge, bool):
            return hedge
        for name, known in self._hedgers.items():
            if known is hedge:
                return name
        if len(self._hedgers) >= HEDGERS_MAX:  # those of submitted tasks are no longer looked up
            del self._hedgers[next(iter(self._hedgers))]
        name = f"{type(hedge).__name__} {id(hedge)}"
        self._hedgers[name] = hedge
        return name

    def _available(self, key: str, since: Micros, until: Micros) -> float:
        """The share of a span in which a node was up."""
        node = self.scheduler.view().nodes.get(key)
        if node is None:
            return 1.0
        begin = max(since, node.up_since)
        end = until if node.up else node.down_since
        return max(0.0, end - begin) / max(1, until - since)


def finish(job: CallJob, request: Request) -> Answer:
    """The caller's answer, or the exception the task ended in."""
    error = job.error()
    assert job.settled is not None
    if error is not None:
        raise error
    answer = request.answer(_readable(job.body))
    answer["_sollol_routing"] = job.attempt_log.record(job.settled.attempt)
    return answer


def finish_stream(job: StreamJob, request: Request) -> Answer:
    """The last part of a streamed answer, with its routing."""
    assert job.settled is not None
    answer = request.answer(_readable(job.last))
    answer["_sollol_routing"] = job.attempt_log.record(job.settled.attempt)
    return answer


def _readable(body: bytes) -> Any:
    """Return an answer decoded. Raises ResponseError for what only seemed to be one."""
    try:
        return decode(body)
    except ValueError as error:
        raise ResponseError(f"the answer of the node cannot be read: {error}", 502) from None
