"""Engine of both pools on the event loop: scheduler, dispatcher, and the construction of jobs.

Over 400 lines, because both pools and the gateway find all parts of a running cluster here.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sollol.answers import Answer
from sollol.backends.ollama import decode, load_call
from sollol.core.endpoint import Endpoint
from sollol.core.events import Configure, LearnedRestored, NodeAdded, NodeDrained, NodeRemoved, Refresh
from sollol.core.policy import Hedger, Policies
from sollol.core.scheduler import Scheduler
from sollol.core.types import Kind, Micros, RoutingStrategy, Task, TaskType, canonical_model
from sollol.engine.batch_job import BatchJob, Message
from sollol.engine.dispatcher import Dispatcher
from sollol.engine.inference_request import InferenceRequest
from sollol.engine.inputs import take_texts
from sollol.engine.jobs import CallJob, StreamJob
from sollol.engine.resumption import PartialResponse, ResumeSupport, is_plain
from sollol.engine.whole_answers import OBSERVABLE
from sollol.errors import ResponseError
from sollol.observe.batch_report import BatchReport
from sollol.observe.journal import Journal
from sollol.observe.journal_file import JournalFile
from sollol.observe.monitor import EVERY_S, Monitor
from sollol.observe.present import present_values
from sollol.observe.recorder import Recorder
from sollol.observe.snapshot import EngineState
from sollol.observe.tracing import Tracing
from sollol.policies.batching import GuidedBatcher
from sollol.policies.breaker import ConsecutiveBreaker
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.demotion import DemotionByRate
from sollol.policies.hedging import LearnedHedgeBenefit, QuantileHedger
from sollol.policies.lateness import LatenessByPrediction, StallByGap
from sollol.policies.load_watch import LoadWatchByPrediction
from sollol.policies.model_concurrency import ModelConcurrency
from sollol.policies.overlap import OverlapShort
from sollol.policies.prefill import AbandonedPrefill
from sollol.policies.preloading import SkiRentalPreloader
from sollol.policies.probing import ProbeSchedule
from sollol.policies.retry import BudgetRetrier
from sollol.policies.routing import CompletionRouter
from sollol.policies.strategies import MODES, router_of
from sollol.policies.suspicion import ItemSuspicion
from sollol.policies.takeover import TakeoverIfSooner
from sollol.policies.waking import WakeWhenSlower
from sollol.transport.base import Timeouts, Transport
from sollol.workload.call_options import CallOptions
from sollol.workload.runner_options import runner_key
from sollol.workload.task import Work, build_task, unloads
from sollol.workload.validation import check_text

if TYPE_CHECKING:
    from sollol.config import OtelSettings
    from sollol.exporters.otel import OtelExporter
    from sollol.exporters.redis_feed import RedisFeed
    from sollol.observe.recording import Recording
    from sollol.observe.store import Store

# Loading, prefill and thinking have no time limit: the scheduler judges silence by other evidence
# (`sollol.core.stall_detection`), the caller's timeout applies, and the connection detects a machine that
# vanished (`sollol.transport.http`).
TIMEOUTS: Final = Timeouts(connect_s=3.0, first_byte_s=None, idle_s=None)
LEAVE_S: Final = 0.3  # wait for the last message to Redis
HEDGERS_MAX: Final = 256  # limit of registered hedging policies of callers


def default_policies(hedgers: Mapping[str, Hedger] | None = None) -> Policies:
    """Return the policies of a pool. `hedgers`: callers' own hedging policies by name."""
    return Policies(
        router=CompletionRouter(),
        batcher=GuidedBatcher(),
        retrier=BudgetRetrier(),
        hedger=QuantileHedger(),
        limiter=LearnedLimit,
        breaker=ConsecutiveBreaker,
        hedge_benefit=LearnedHedgeBenefit(),
        lateness=LatenessByPrediction(),
        probing=ProbeSchedule(),
        stalls=StallByGap(),
        suspicion=ItemSuspicion(),
        takeover=TakeoverIfSooner(),
        overlap=OverlapShort(),
        prefill=AbandonedPrefill(),
        preloader=SkiRentalPreloader(),
        load_watch=LoadWatchByPrediction(),
        demotion=DemotionByRate(),
        waking=WakeWhenSlower(),
        model_limiter=ModelConcurrency,
        modes=MODES,
        strategies={named: router_of(named) for named in RoutingStrategy if named is not RoutingStrategy.INTELLIGENT},
        hedgers={} if hedgers is None else hedgers,
    )


class Engine:
    """Scheduler, dispatcher and history of a pool, on one running event loop."""

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        transport: Transport,
        app: str,
        seed: int | None,
        journal_path: Path | None = None,
    ) -> None:
        self._hedgers: dict[str, Hedger] = {}  # callers' own policies; a task holds only the name
        seed = secrets.randbits(32) if seed is None else seed
        self.scheduler = Scheduler(default_policies(self._hedgers), random.Random(seed))
        self.journal = Journal()
        self._journal_file: JournalFile | None = None
        if journal_path is not None:
            self._journal_file = JournalFile(journal_path, seed, lambda text: self.dispatcher.notify_operator(text))
            self.journal.subscribe(self._journal_file)
        self.dispatcher = Dispatcher(self.scheduler, transport, self.journal)
        self._monitor: Monitor | None = None
        self.storing: Recording | None = None
        self.redis_feed: RedisFeed | None = None
        self.otel: OtelExporter | None = None
        self.transport = transport
        self.resume_support = ResumeSupport(transport, self.dispatcher.duties)
        self.recorder = Recorder(self.dispatcher.now)
        self._app = app
        self.share_contexts = True
        self._last_id = 0
        for endpoint in endpoints:
            self.add(endpoint)

    def add(self, endpoint: Endpoint) -> None:
        """Add a node."""
        self.dispatcher.feed(NodeAdded(endpoint))

    def remove(self, key: str) -> None:
        """Remove a node."""
        self.dispatcher.feed(NodeRemoved(key))

    def drain(self, key: str, drained: bool) -> None:
        """Keep new work away from a node, or let it come again. Callable from any thread."""
        self.dispatcher.feed_soon(NodeDrained(key, drained))

    def refresh(self) -> None:
        """Probe every node now, after models were pulled, loaded or deleted. Callable from any thread."""
        self.dispatcher.feed_soon(Refresh())

    def call(
        self,
        request: InferenceRequest,
        done: Callable[[CallJob], None],
        launched: Callable[[], None] | None = None,
    ) -> CallJob:
        """Submit a request with a whole answer; `done` is called at its end, `launched` when an attempt starts."""
        job = CallJob(self._task(request), request.path, request.body, TIMEOUTS, self.recording(done), launched)
        return self.submit(job)

    def stream(
        self, request: InferenceRequest, done: Callable[[CallJob], None], push: Callable[[bytes], bool]
    ) -> StreamJob:
        """Submit a streamed request; `push` receives its lines, `done` is called at its end."""
        partial = PartialResponse(request.kind, request.fields) if is_plain(request.fields) else None
        job = StreamJob(
            self._task(request),
            request.path,
            request.body,
            TIMEOUTS,
            self.recording(done),
            push,
            partial,
            self.resume_support,
            self.holders,
        )
        self.submit(job)
        return job

    def recording(self, done: Callable[[CallJob], None]) -> Callable[[CallJob], None]:
        """Return a callback that records the finished call, then calls `done`."""

        def recorded(job: CallJob) -> None:
            self.record_call(job)
            done(job)

        return recorded

    def record_call(self, job: CallJob) -> None:
        """Record a finished call."""
        assert job.settled is not None
        self.recorder.add_call(job.settled, job.attempt_log)

    def holders(self, model: str, key: str = "") -> dict[str, tuple[Endpoint, str]]:
        """Return node -> (endpoint, digest) of the usable nodes with a model. `key`: only this node."""
        found = self.scheduler.view().nodes
        nodes = [found[key]] if key in found else () if key else found.values()
        return {n.key: (n.endpoint, n.digests.get(model, "")) for n in nodes if n.usable and model in n.models}

    def digests(self, model: str) -> dict[str, str]:
        """Return the version of a model on each node that sends one."""
        nodes = self.scheduler.view().nodes.values()
        return {node.key: digest for node in nodes if (digest := node.digests.get(model, ""))}

    def use_digests(self, one: bool, pinned: Mapping[str, str], used: dict[str, str]) -> None:
        """Set the pinned versions, and whether chats use only one version of a model, too.

        `used`: versions used by embeddings, also with an earlier engine; the dict is kept up to date.
        """
        self.dispatcher.used_digests = used
        names = {canonical_model(model): digest.removeprefix("sha256:") for model, digest in pinned.items()}
        self.dispatcher.feed_soon(Configure(one_digest=one, pinned_digests=names, used_digests=dict(used)))

    def use_strategy(self, strategy: RoutingStrategy) -> None:
        """Set the routing strategy of calls without a mode."""
        self.dispatcher.feed_soon(Configure(strategy=strategy))

    def set_queue_bound(self, most: int) -> None:
        """Set the limit of waiting tasks."""
        self.dispatcher.feed_soon(Configure(queue_bound=most))

    def abandon(self) -> None:
        """Drop the connections without waiting, since their event loop has ended."""
        self._close_files()
        abandon = getattr(self.transport, "abandon", None)
        if abandon is not None:
            abandon()

    async def aclose(self) -> None:
        """Cancel all tasks and close the connections."""
        await self.resume_support.aclose()
        await self.dispatcher.aclose()
        feed = self.redis_feed
        self._close_files()
        for thread in (feed, self.otel):
            if thread is not None:
                await asyncio.to_thread(thread.join, LEAVE_S)

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
        """Submit a batch of embeddings. `post` receives its messages, `make` is the class of its job."""
        options = runner_key(fields.get("options"))
        work = Work(Kind.EMBED, model, "/api/embed", options=options, type=TaskType.EMBED, batch=True, width=width)
        task = self.task(work, call)
        at_end = unloads(fields.get("keep_alive"))
        if at_end:  # applied at the end: in each chunk it would make the node load the model again
            fields = {name: value for name, value in fields.items() if name != "keep_alive"}
        job = make(task, fields, TIMEOUTS, post, self.dispatcher.now(), self.available, self.digests)
        if at_end:
            job.on_end = lambda report: self._unload(task, fields, report)
        job.on_settled = self.recorder.add_batch
        self.dispatcher.submit(job)
        return job

    def _unload(self, task: Task, fields: Mapping[str, Any], report: BatchReport) -> None:
        """Unload the model of a batch on the nodes that took part."""
        for key, share in report.nodes.items():
            node = self.scheduler.view().nodes.get(key)
            if node is not None and share.items:
                call = load_call(task.kind, task.model, runner_key(fields.get("options")), 0)
                self.dispatcher.send_later(node.endpoint, call)

    async def feed(self, job: BatchJob, source: Iterator[str] | AsyncIterator[str], count: int, fed: int) -> int:
        """Read up to `count` more texts for a batch and submit them; return their number.

        Raises:
            BadInput: An item is no text.
        """
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
            texts, closed = take_texts(source, count, fed)
        self.dispatcher.feed(job.more(texts, closed))
        return len(texts)

    def observe(self, share: float) -> None:
        """Record this share of the calls, from 0.0 to 1.0, in the history; with 0.0 no events either."""
        self.recorder.sample(share)
        self.journal.recording = share > 0

    def state(self) -> EngineState:
        """Return the present state for snapshots and statistics."""
        dispatcher = self.dispatcher
        return EngineState(
            self.scheduler.view(), dispatcher.now(), self.recorder.history, dispatcher.notices, dispatcher.noticed
        )

    def monitor(self) -> Monitor:
        """Return the monitor, which starts at the first call. To be called on the engine's loop."""
        if self._monitor is None:
            monitor = self._monitor = Monitor(self.recorder, self.state)

            async def tick() -> None:
                monitor.tick()
                if monitor.wants_probes():
                    self.refresh()

            monitor.tick()
            self.dispatcher.duties.keep("the monitor", tick, EVERY_S)
        return self._monitor

    def _close_files(self) -> None:
        if self._journal_file is not None:
            self._journal_file.close()
        if self.redis_feed is not None:
            self.redis_feed.end()
        if self.otel is not None:
            self.otel.end()
        storing, self.storing = self.storing, None
        if storing is not None:
            storing.close()

    def use_store(self, store: Store) -> None:
        """Restore what was learned from a store, and record into it from now on. To be called on the engine's loop."""
        from sollol.observe.recording import EVERY_S, Recording  # sqlite3 takes 5 ms to import

        self.dispatcher.feed(LearnedRestored(store.learned()))
        recording = Recording(store, self.recorder, self.scheduler.view(), self.dispatcher.notify_operator)
        self.dispatcher.duties.keep("the store", recording.write, EVERY_S)
        self.storing = recording

    def use_redis(self, url: str, version: str) -> None:
        """Publish finished requests and presence in a Redis from now on. To be called on the engine's loop."""
        from sollol.exporters.applications import Identity
        from sollol.exporters.redis_feed import RedisFeed

        view, dispatcher = self.scheduler.view(), self.dispatcher

        def present() -> tuple[int, int, int]:
            return len(view.nodes), len(view.attempts), view.waiting()

        identity = Identity(self._app, version)
        self.redis_feed = RedisFeed(url, identity, self.recorder, present, _on_this_loop(), dispatcher.notify_operator)

    def use_otel(self, settings: OtelSettings, version: str) -> None:
        """Send spans and metrics to an OTLP receiver from now on. To be called on the engine's loop."""
        from sollol.exporters.otel import OtelExporter

        tracing = Tracing(self.recorder.is_sampled)
        self.recorder.tracing = self.dispatcher.tracing = tracing
        transport: Any = self.transport
        if hasattr(transport, "propagate"):  # not a simulated one
            transport.propagate = tracing.header_lines
        self.otel = OtelExporter(
            settings.endpoint, self._app, version, tracing, _on_this_loop(), self.dispatcher.notify_operator
        )

    def metrics(self, version: str) -> bytes:
        """Return the metrics in Prometheus' text format."""
        values = present_values(
            self.scheduler.view(), version=version, faults=self.dispatcher.faults, lost=self.recorder.lost()
        )
        if self.redis_feed is not None:
            values |= self.redis_feed.metrics()
        return self.recorder.metrics.render(values)

    def next_id(self) -> int:
        """Return the number of the next task."""
        self._last_id = id = self._last_id + 1
        return id

    def submit(self, job: CallJob) -> CallJob:
        """Submit a job."""
        job.attempt_log.submitted_us = at = self.dispatcher.now()
        self.dispatcher.submit(job, at)
        return job

    def task(self, work: Work, call: CallOptions) -> Task:
        """Return the task of a request with a new id."""
        id = self.next_id()
        if self.recorder.tracing is not None:
            self.recorder.tracing.begin(id, call.trace)
        return build_task(id, work, call, self._hedge(call), self._app, self.dispatcher.now(), self.share_contexts)

    def _task(self, request: InferenceRequest) -> Task:
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
            not unloads(request.fields.get("keep_alive")),
        )
        return self.task(work, request.call)

    def _hedge(self, call: CallOptions) -> bool | str | None:
        """Register a caller's own hedging policy and return its name; return other values unchanged."""
        hedge = call.hedge
        if hedge is None or isinstance(hedge, bool):
            return hedge
        for name, found in self._hedgers.items():
            if found is hedge:
                return name
        if len(self._hedgers) >= HEDGERS_MAX:  # submitted tasks no longer look theirs up
            del self._hedgers[next(iter(self._hedgers))]
        name = f"{type(hedge).__name__} {id(hedge)}"
        self._hedgers[name] = hedge
        return name

    def available(self, key: str, since: Micros, until: Micros) -> float:
        """Return the share of a span in which a node was up."""
        node = self.scheduler.view().nodes.get(key)
        if node is None:
            return 1.0
        begin = max(since, node.up_since)
        end = until if node.up else node.down_since
        return max(0.0, end - begin) / max(1, until - since)


def _on_this_loop() -> Callable[..., None]:
    """Return a function that runs another one on the running loop, from any thread."""
    loop = asyncio.get_running_loop()

    def on_loop(call: Callable[..., object], *given: object) -> None:
        try:
            loop.call_soon_threadsafe(call, *given)
        except RuntimeError:  # the loop has ended
            pass

    return on_loop


def finish(job: CallJob, request: InferenceRequest) -> Answer:
    """Return the caller's answer with its routing record.

    Raises:
        SollolError: The task failed.
    """
    error = job.error()
    assert job.settled is not None
    if error is not None:
        raise error
    answer = request.answer(_readable(job.body))
    answer["_sollol_routing"] = job.attempt_log.record(job.settled.attempt)
    return answer


def finish_stream(job: StreamJob, request: InferenceRequest) -> Answer:
    """Return the last part of a streamed answer with its routing record."""
    assert job.settled is not None
    answer = request.answer(_readable(job.last))
    answer["_sollol_routing"] = job.attempt_log.record(job.settled.attempt)
    return answer


def _readable(body: bytes) -> Any:
    """Decode an answer.

    Raises:
        ResponseError: It cannot be decoded.
    """
    try:
        return decode(body)
    except ValueError as error:
        raise ResponseError(f"the answer of the node cannot be read: {error}", 502) from None
