"""Copies of the scheduler's state for users: nodes, statistics, running and waiting calls."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from sollol.core.endpoint import Endpoint
from sollol.core.state.replica import Attempt, Node
from sollol.core.types import SECOND, LoadedModel, Micros, RoutingMode, RoutingStrategy, Task
from sollol.core.view import SchedulerView
from sollol.observe.attempt_log import shown_candidates
from sollol.observe.history import History
from sollol.observe.load_rows import is_being_loaded, load_row
from sollol.observe.replica_state import replica_states
from sollol.observe.rows import (
    BatchProgress,
    Calibration,
    CallTotals,
    LoadedRow,
    MixedDigest,
    NodeState,
    NodeStateRow,
    NodeStatistics,
    OpenAttemptRow,
    OpenExplanation,
    PoolStatistics,
    RefusalRow,
    RunningRow,
    Snapshot,
    WaitingRow,
)
from sollol.observe.totals import Totals
from sollol.version import __version__

WAITING_SHOWN = 100
RUNNING_SHOWN = 200


class EngineState(NamedTuple):
    """Hold what snapshots are read from; `now` is in microseconds on the scheduler's clock."""

    view: SchedulerView
    now: Micros
    history: History
    notices: Sequence[str]
    noticed: int  # notices so far

    def wall_clock(self, at: Micros) -> float:
        """Return a moment of the scheduler's clock in seconds since 1970."""
        return time.time() - (self.now - at) / SECOND


_UP: Final[dict[bool | None, NodeState]] = {True: "up", False: "down", None: "unknown"}
READABLE = (
    "host", "port", "url", "is_healthy", "version", "models", "loaded_models", "node_id", "gpu_available", "healthy"
)  # fmt: skip


class NodeView:
    """A node for users: `n["host"]`, `n["port"]`, `n.url`, `n.is_healthy`, `n.loaded_models` ..."""

    __slots__ = ("_endpoint", "_state")

    def __init__(self, endpoint: Endpoint, state: Node | None) -> None:
        self._endpoint = endpoint
        self._state = state

    @property
    def host(self) -> str:
        """The host of the address."""
        return self._endpoint.host

    @property
    def port(self) -> int:
        """The port of the address."""
        return self._endpoint.port

    @property
    def key(self) -> str:
        """`host:port`: the name of this node in statistics and errors."""
        return self._endpoint.key

    @property
    def url(self) -> str:
        """The URL of the node."""
        return self._endpoint.url

    @property
    def endpoint(self) -> Endpoint:
        """The address of the node."""
        return self._endpoint

    @property
    def is_healthy(self) -> bool:
        """False for a node that is down. A node before its first probe counts as healthy."""
        return self._state is None or self._state.up is not False

    @property
    def state(self) -> NodeState:
        """One of "up", "down", "unknown" (before the first probe), "asleep" and "waking"."""
        if self._state is not None and (self._state.asleep or self._state.waking_us):
            return "asleep" if self._state.asleep else "waking"
        return _UP[self._state.up if self._state else None]

    @property
    def why(self) -> str:
        """The reason of a node's state "down", else ""."""
        return self._state.lost_why if self._state and self._state.up is False else ""

    @property
    def version(self) -> str:
        """The version of its server, "" if unknown."""
        return self._state.version if self._state else ""

    @property
    def models(self) -> list[str]:
        """The names of the models on its disk."""
        return sorted(self._state.models) if self._state else []

    @property
    def loaded_models(self) -> list[str]:
        """The names of the models in its memory."""
        return sorted(self._state.loaded) if self._state else []

    @property
    def node_id(self) -> str:
        """`host:port`, as `key`."""
        return self._endpoint.key

    @property
    def gpu_available(self) -> bool:
        """True if a model was seen in the memory of its GPU. Before it has loaded one, this is not known."""
        return self._state is not None and has_gpu(self._state)

    @property
    def healthy(self) -> bool:
        """As `is_healthy`."""
        return self.is_healthy

    def keys(self) -> list[str]:
        """Return the names that can be read as items."""
        return list(READABLE)

    def __getitem__(self, name: str) -> Any:
        if name not in READABLE:
            raise KeyError(name)
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an item, or `default` if there is none."""
        return self[name] if name in READABLE else default

    def __contains__(self, name: object) -> bool:
        return name in READABLE

    def __repr__(self) -> str:
        return f"<Node {self.url} {self.state}>"


def stats_of(engine: EngineState | None, endpoints: dict[str, Endpoint], totals: Totals) -> PoolStatistics:
    """Return the pool's statistics: totals, calibration, and `node_performance` by "host:port"."""
    view, now = (engine.view, engine.now) if engine else (None, 0)
    performance: dict[str, NodeStatistics] = {}
    for key, endpoint in endpoints.items():
        state = view.nodes.get(key) if view else None
        performance[key] = NodeStatistics(**_statistics(NodeView(endpoint, state), state, now))
    return PoolStatistics(
        total_requests=totals.successful + totals.failed,
        successful_requests=totals.successful,
        failed_requests=totals.failed,
        nodes_used={key: row.total_requests for key, row in performance.items() if row.total_requests},
        nodes=list(endpoints),
        waiting=view.waiting() if view else 0,
        running=len(view.attempts) if view else 0,
        calibration=engine.history.calibration() if engine else Calibration(),
        mixed_digests=mixed_digests(engine) if engine else {},
        notices=list(engine.notices) if engine else [],
        node_performance=performance,
    )


def snapshot_of(
    engine: EngineState | None,
    endpoints: dict[str, Endpoint],
    totals: CallTotals,
    mode: RoutingMode | None,
    strategy: RoutingStrategy,
    app_name: str,
    app: str | None = None,
) -> Snapshot:
    """Return the state of the pool for displays. `app`: only requests of this application."""
    found = Snapshot(
        app_name=app_name,
        version=__version__,
        routing_mode=mode.value if mode else None,
        routing_strategy=strategy.value,
        totals=totals,
        nodes=[_node(engine, key, endpoint) for key, endpoint in endpoints.items()],
    )
    if engine is not None:
        found.waiting, found.running = _waiting(engine, app), _running(engine, app)
        found.recent, found.calibration = engine.history.recent(app), engine.history.calibration(app)
        found.mixed_digests, found.notices = mixed_digests(engine), list(engine.notices)
    return found


def _node(engine: EngineState | None, key: str, endpoint: Endpoint) -> NodeStateRow:
    state = engine.view.nodes.get(key) if engine else None
    view = NodeView(endpoint, state)
    row = NodeStateRow(
        **_statistics(view, state, engine.now if engine else 0),
        url=view.url,
        why=view.why,
        version=view.version,
        models=view.models,
    )
    if engine is None or state is None:
        return row
    since = {True: state.up_since, False: state.down_since, None: None}[state.up]
    loading = {replica.model: replica for replica in state.replicas.values() if is_being_loaded(replica, engine.now)}
    row.loaded = [
        loaded_row(name, held)
        for name, held in sorted(state.loaded.items())
        if held.size or name not in loading  # one that is expected, and that the node does not list yet
    ]
    row.loading = [load_row(replica, engine.now) for replica in loading.values()]
    row.replicas = replica_states(state, engine.now, engine.wall_clock(engine.now))
    row.since = engine.wall_clock(since) if since else None
    row.has_gpu = has_gpu(state)
    row.drained = state.drained
    row.drained_for = list(state.drained_for)
    row.breakers = [model for model, replica in state.replicas.items() if not replica.breaker.closed]
    return row


def loaded_row(model: str, held: LoadedModel) -> LoadedRow:
    """Return the row of a model in memory."""
    return LoadedRow(model, **held._asdict(), processor=held.processor)


def has_gpu(state: Node) -> bool:
    """Check that a node was seen to hold a model in the memory of a GPU."""
    return state.held_bytes > 0 or any(held.size_vram > 0 for held in state.loaded.values())


def mixed_digests(engine: EngineState) -> dict[str, MixedDigest]:
    """Return model -> its versions with their nodes, and the one of embeddings, for models with several versions."""
    found: dict[str, dict[str, list[str]]] = {}
    for node in engine.view.nodes.values():
        for model, digest in node.digests.items() if node.up else ():
            if digest:
                found.setdefault(model, {}).setdefault(digest, []).append(node.key)
    groups = engine.view.groups
    return {
        model: MixedDigest(groups[model].digest if model in groups else "", versions)
        for model, versions in found.items()
        if len(versions) > 1
    }


def _task(task: Task) -> dict[str, Any]:
    """Return the fields of a `TaskRow`."""
    return {
        "id": task.id, "kind": task.kind.value, "model": task.model, "app": task.app, "priority": task.priority
    }  # fmt: skip


def _waiting(engine: EngineState, app: str | None) -> list[WaitingRow]:
    view, now = engine.view, engine.now
    rows: list[WaitingRow] = []
    for model in view.waited_for():
        for position, (task, wait) in enumerate(view.queue_of(model, now), 1):
            pending = view.tasks[task]
            if app is None or pending.task.app == app:
                waited_ms = (now - pending.since) / 1000
                row = WaitingRow(**_task(pending.task), waited_ms=waited_ms, position=position, eta_ms=wait / 1000)
                rows.append(row)
    return rows[:WAITING_SHOWN]


def _running(engine: EngineState, app: str | None) -> list[RunningRow]:
    attempts = [one for one in engine.view.attempts.values() if app is None or one.task.app == app]
    return [
        RunningRow(
            **_task(attempt.task),
            attempt=attempt.id,
            node=attempt.replica.node.key,
            phase=_phase(attempt),
            cause=attempt.cause.value,
            predicted_ms=attempt.decision.predicted_us / 1000,
            elapsed_ms=(engine.now - attempt.started_us) / 1000,
            queue_ms=(attempt.started_us - engine.view.tasks[attempt.task.id].since) / 1000,
            reason=attempt.decision.reason,
            items=attempt.items.total(),
        )
        for attempt in attempts[:RUNNING_SHOWN]
    ]


def _phase(attempt: Attempt) -> Literal["load", "prefill", "decode", "embed"]:
    """Return the part of the work that an attempt is in, as far as it shows."""
    if attempt.items.total():
        return "embed"
    if attempt.delivering or attempt.responding:
        return "decode"
    return "load" if attempt.loads else "prefill"


def explained(engine: EngineState, task_id: int) -> dict[str, Any] | None:
    """Return the record of one task, None for an unknown one."""
    pending = engine.view.tasks.get(task_id)
    if pending is None:
        found = engine.history.find(task_id)
        return found and {"state": "done", **found}
    now = engine.now
    row = OpenExplanation(
        **_task(pending.task),
        state="running" if pending.attempts else "waiting",
        task_type=pending.task.type.value,
        queue_ms=(now - pending.since) / 1000,
        tried=[RefusalRow(node, why) for node, why in pending.tried.items()],
        running=[
            OpenAttemptRow(
                node=attempt.replica.node.key,
                reason=attempt.decision.reason,
                predicted_ms=attempt.decision.predicted_us / 1000,
                elapsed_ms=(now - attempt.started_us) / 1000,
                candidates=shown_candidates(attempt.decision),
            )
            for attempt in pending.attempts.values()
        ],
    )
    batch = pending.batch
    if batch is not None:
        under_way = sum(attempt.items.total() for attempt in pending.attempts.values())
        row.items = BatchProgress(batch.pending_count, under_way, batch.answered, batch.refused)
    place = engine.view.position(task_id, now)
    if place is not None:
        row.position, row.eta_ms = place[0], place[1] / 1000
    shown: dict[str, Any] = msgspec.to_builtins(row)
    return shown


def _statistics(view: NodeView, state: Node | None, now: Micros) -> dict[str, Any]:
    """Return the fields of a `NodeStatistics`."""
    replicas = list(state.replicas.values()) if state else []
    latencies = [replica.latency_us(now) for replica in replicas if replica.latency.read() is not None]
    done = state.succeeded if state else 0
    failed = state.failed if state else 0
    rates = [
        rate * SECOND * replica.embedded / replica.done_cost
        for replica in replicas
        if replica.done_cost and (rate := replica.work.read())
    ]
    return {
        "host": view.key,
        "latency_ms": sum(latencies) / len(latencies) / 1000 if latencies else 0.0,
        "success_rate": done / (done + failed) if done + failed else 1.0,
        "total_requests": done + failed,
        "failed_requests": failed,
        "available": view.is_healthy,
        "state": view.state,
        "active_requests": state.running if state else 0,
        "batch_throughput": sum(rates),
        "items": sum(replica.embedded for replica in replicas),
        "loaded_models": view.loaded_models,
        "unable": state.incapable.words(now) if state else [],
        "slots": {replica.model: replica.limiter.limit for replica in replicas},
    }
