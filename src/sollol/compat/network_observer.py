"""Publish the traffic between a pool and its nodes as events, for logs, counters and listeners.

    observer = NetworkObserver(pool)
    stop = observer.subscribe(lambda event: print(event.backend, event.event_type, event.details))

It reads the journal of the pool, and costs nothing while unused. `sample_rate` is the share of requests that is kept
(`SOLLOL_OBSERVER_SAMPLING`): whole requests, not single events. Failures and changes of nodes are always kept, except
at a rate of 0.

Over 400 lines, because each method of the older interface has its docstring.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from sollol.compat.background import check_number
from sollol.config import load_settings
from sollol.core.actions import Abort, Complete, Load, Start
from sollol.core.events import Finished, NodeAdded, NodeLost, NodeRemoved, NodeSeen, Submitted
from sollol.core.types import Micros, Status, Task
from sollol.errors import BadInput
from sollol.observe.journal import Entry
from sollol.pool import processes
from sollol.pool.keywords import accept_old
from sollol.workload.validation import check_count, short

logger = logging.getLogger("sollol.network_observer")
MAX_EVENTS = 10_000
_LEVELS = {"info": logging.DEBUG, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}
_SEVERITIES = list(_LEVELS)


class EventType(StrEnum):
    """The kind of an event."""

    OLLAMA_REQUEST = "ollama_request"
    OLLAMA_RESPONSE = "ollama_response"
    OLLAMA_ERROR = "ollama_error"
    OLLAMA_CANCELLED = "ollama_cancelled"
    OLLAMA_MODEL_LOAD = "ollama_model_load"
    # Published by programs only.
    OLLAMA_MODEL_UNLOAD = "ollama_model_unload"
    RPC_REQUEST = "rpc_request"
    RPC_RESPONSE = "rpc_response"
    RPC_ERROR = "rpc_error"
    RPC_BACKEND_CONNECT = "rpc_backend_connect"
    RPC_BACKEND_DISCONNECT = "rpc_backend_disconnect"
    COORDINATOR_START = "coordinator_start"
    COORDINATOR_STOP = "coordinator_stop"
    COORDINATOR_MODEL_LOAD = "coordinator_model_load"
    NODE_HEALTH_CHECK = "node_health_check"
    HIGH_LATENCY = "high_latency"
    VRAM_EXHAUSTED = "vram_exhausted"
    BACKEND_OVERLOADED = "backend_overloaded"
    # Published by pools.
    NODE_DISCOVERED = "node_discovered"
    NODE_REMOVED = "node_removed"
    NODE_STATUS_CHANGE = "node_status_change"


class NetworkEvent(NamedTuple):
    """One event.

    `timestamp` is in seconds since the epoch, `backend` the node ("host:port"), `severity` "info", "warning", "error"
    or "critical".
    """

    event_type: EventType
    timestamp: float
    backend: str
    details: dict[str, Any]
    severity: str = "info"

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain values."""
        return {**self._asdict(), "event_type": self.event_type.value}


class NetworkObserver:
    """The last `max_events` events of attached pools and of `log_event`. Thread-safe.

    `sample_rate` None: the setting SOLLOL_OBSERVER_SAMPLING. It can be changed at any time.
    """

    def __init__(
        self, pool: Any = None, *, sample_rate: float | None = None, max_events: int = MAX_EVENTS, **old: Any
    ) -> None:
        accept_old("NetworkObserver", old, frozenset(["redis_url", "enable_sampling", "batch_size", "batch_timeout"]))
        self.sample_rate = load_settings().observer_sampling if sample_rate is None else sample_rate
        self.events: deque[NetworkEvent] = deque(maxlen=check_count("max_events", max_events))
        self._listeners: list[Callable[[NetworkEvent], Any]] = []
        self._detach: list[Callable[[], None]] = []
        self._counts = {"total": 0, "kept": 0}
        self._by_type: Counter[str] = Counter()
        self._by_backend: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._credit = 0.0
        self._lock = threading.Lock()
        if pool is not None:
            self.attach(pool)

    redis_client = None  # of older versions: events stay in this process
    batch_size = 1
    batch_timeout = 0.0

    def _flush_dashboard_batch(self) -> None:
        """Do nothing: events are published at once. A name of older versions, which programs call."""

    @property
    def sample_rate(self) -> float:
        """The share of requests that is kept, 0.0 (off) to 1.0 (all)."""
        return self._rate

    @sample_rate.setter
    def sample_rate(self, rate: float) -> None:
        self._rate = float(check_number("sample_rate", rate, 0, 1))

    # --- sources ---

    def attach(self, pool: Any) -> Callable[[], None]:
        """Follow a pool; return the function that ends that.

        It starts an unused pool. An AsyncOllamaPool must be attached on its own loop.
        """
        if not callable(getattr(pool, "_running", None)):
            raise BadInput(f"pool={short(pool)}; expected an OllamaPool or an AsyncOllamaPool")
        journal = pool._running().journal
        follower = _Follower(self)
        stop: Callable[[], None] = pool.read_state(lambda: journal.subscribe(follower))

        def detach() -> None:
            if detach in self._detach:
                self._detach.remove(detach)
                with contextlib.suppress(Exception):  # a closed pool has dropped the subscription
                    pool.read_state(stop)

        self._detach.append(detach)
        return detach

    def log_event(
        self, event_type: EventType | str, backend: str, details: dict[str, Any] | None = None, severity: str = "info"
    ) -> None:
        """Add your own event; events of severity "info" are sampled."""
        try:
            kind = EventType(event_type)
        except ValueError:
            raise BadInput(f"event_type={short(event_type)}; expected one of {', '.join(EventType)}") from None
        _check_severity(severity)
        self._keep(NetworkEvent(kind, _now(), backend, dict(details or {}), severity), self._draw())

    # --- listeners ---

    def subscribe(self, listener: Callable[[NetworkEvent], Any]) -> Callable[[], None]:
        """Call `listener` with every kept event; return the function that removes it.

        It runs in the thread of the event (for a pool, that of its loop), so it should be quick. A listener that raises
        is removed, and the exception is logged.
        """
        if not callable(listener):
            raise BadInput(f"listener={short(listener)}; expected a function of one event")
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def get_recent_events(
        self,
        limit: int = 100,
        event_type: EventType | str | None = None,
        backend: str | None = None,
        min_severity: str = "info",
    ) -> list[dict[str, Any]]:
        """Return the events as plain values, newest first."""
        check_count("limit", limit)
        least = _check_severity(min_severity)
        found: list[dict[str, Any]] = []
        for event in reversed(list(self.events)):
            if event_type is not None and event.event_type != event_type:
                continue
            if backend is not None and event.backend != backend:
                continue
            if _SEVERITIES.index(event.severity) >= least:
                found.append(event.to_dict())
            if len(found) == limit:
                break
        return found

    def get_stats(self) -> dict[str, Any]:
        """Return the numbers of events: `total_events`, `sampled_events` and dropped ones, by type and node."""
        with self._lock:
            return {
                "total_events": self._counts["total"],
                "sampled_events": self._counts["kept"],
                "dropped_events": self._counts["total"] - self._counts["kept"],
                "events_by_type": dict(self._by_type),
                "events_by_backend": dict(self._by_backend),
                "errors_by_backend": dict(self._errors),
                "events_in_memory": len(self.events),
                "sample_rate": self.sample_rate,
                "sampling_enabled": self.sample_rate < 1,
                "backends_tracked": len(self._by_backend),
            }

    def get_backend_metrics(self, backend: str | None = None) -> dict[str, Any]:
        """Return the numbers of kept events and errors of a node, or of each node."""
        with self._lock:
            nodes = list(self._by_backend) if backend is None else [backend]
            found = {node: {"events": self._by_backend[node], "errors": self._errors[node]} for node in nodes}
        return found if backend is None else found[backend]

    def get_active_requests(self) -> dict[str, list[dict[str, Any]]]:
        """Return the kept requests that have no response yet, by node."""
        active: dict[str, dict[Any, dict[str, Any]]] = {}
        for event in list(self.events):
            number = event.details.get("attempt")
            if number is None:
                continue
            if event.event_type is EventType.OLLAMA_REQUEST:
                active.setdefault(event.backend, {})[number] = event.to_dict()
            else:
                active.get(event.backend, {}).pop(number, None)
        return {node: list(found.values()) for node, found in active.items() if found}

    def close(self) -> None:
        """Stop following all pools."""
        for detach in list(self._detach):
            detach()

    shutdown = close

    # --- internals ---

    def _draw(self) -> bool:
        """Return True if the next request is kept: every fourth at a rate of 0.25."""
        with self._lock:
            self._credit += self._rate
            kept = self._credit >= 1
            self._credit -= kept
            return kept

    def _keep(self, event: NetworkEvent, kept: bool) -> None:
        kept = self._rate > 0 and (kept or event.severity != "info")
        with self._lock:
            self._counts["total"] += 1
            if not kept:
                return
            self._counts["kept"] += 1
            self._by_type[event.event_type.value] += 1
            self._by_backend[event.backend] += 1
            if event.severity in ("error", "critical"):
                self._errors[event.backend] += 1
            self.events.append(event)
        logger.log(_LEVELS[event.severity], "%s %s %s", event.event_type.value, event.backend, event.details)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                self._listeners.remove(listener)
                logger.exception("%r raised; it is not called again", listener)


class _Follower:
    """Listener of one pool's journal, on the pool's loop."""

    def __init__(self, observer: NetworkObserver) -> None:
        self._observer = observer
        self._tasks: dict[int, tuple[Task, bool]] = {}
        self._attempts: dict[int, tuple[str, Task, bool, Micros]] = {}
        self._up: dict[str, bool] = {}

    def __call__(self, entry: Entry) -> None:
        if not self._observer.sample_rate:
            self._tasks.clear()
            self._attempts.clear()
            return
        event, at = entry.event, entry.at
        match event:
            case Submitted():
                self._tasks[event.task.id] = (event.task, self._observer._draw())
            case Finished():
                self._finished(event, at)
            case NodeAdded():
                self._publish(EventType.NODE_DISCOVERED, event.endpoint.key, {"url": event.endpoint.url})
            case NodeRemoved():
                self._up.pop(event.node, None)
                self._publish(EventType.NODE_REMOVED, event.node, {})
            case NodeSeen():
                self._status(event.node, True, "")
            case NodeLost():
                if event.certain:
                    self._status(event.node, False, event.why)
        for action in entry.actions:
            match action:
                case Start():
                    self._started(action, at)
                case Abort():
                    self._aborted(action.attempt, at)
                case Complete():
                    self._tasks.pop(action.task, None)
                case Load():
                    self._publish(EventType.OLLAMA_MODEL_LOAD, action.node, {"model": action.model})

    def _started(self, start: Start, at: Micros) -> None:
        task, kept = self._tasks.get(start.task, (None, False))
        if task is None:  # submitted before the subscription
            return
        self._attempts[start.attempt] = (start.node, task, kept, at)
        details = _details(task) | {
            "attempt": start.attempt,
            "priority": task.priority,
            "reason": start.decision.reason,
            "predicted_ms": start.decision.predicted_us / 1000,
        }
        if start.items is not None:
            details["items"] = start.items.total()
        self._publish(EventType.OLLAMA_REQUEST, start.node, details, kept)

    def _finished(self, event: Finished, at: Micros) -> None:
        node, task, kept, since = self._attempts.pop(event.attempt, ("", None, False, 0))
        if task is None:
            return
        details = _details(task) | {"attempt": event.attempt, "latency_ms": (at - since) / 1000}
        if event.outcome.status is Status.OK:
            self._publish(EventType.OLLAMA_RESPONSE, node, details, kept)
            return
        details |= {"error": event.outcome.message, "outcome": event.outcome.status.value}
        severity = (
            "warning"
            if event.outcome.status
            in (
                Status.BUSY,
                Status.REFUSED,
                Status.MISSING,
                Status.UNABLE,
                Status.UNSUITED,
                Status.LOCKED,
                Status.NOT_SENT,
            )
            else "error"
        )
        self._publish(EventType.OLLAMA_ERROR, node, details, kept, severity)

    def _aborted(self, attempt: int, at: Micros) -> None:
        node, task, kept, since = self._attempts.pop(attempt, ("", None, False, 0))
        if task is not None:
            self._publish(EventType.OLLAMA_CANCELLED, node, _details(task) | {"latency_ms": (at - since) / 1000}, kept)

    def _status(self, node: str, up: bool, why: str) -> None:
        before = self._up.get(node)
        self._up[node] = up
        if before is not up and not (before is None and up):
            names = {None: "unknown", True: "up", False: "down"}
            details = {"old_status": names[before], "new_status": names[up]}
            severity = "info" if up else "warning"
            self._publish(EventType.NODE_STATUS_CHANGE, node, details | ({"why": why} if why else {}), True, severity)

    def _publish(
        self, kind: EventType, node: str, details: dict[str, Any], kept: bool = True, severity: str = "info"
    ) -> None:
        self._observer._keep(NetworkEvent(kind, _now(), node, details, severity), kept)


def _now() -> float:
    return time.time()


def _details(task: Task) -> dict[str, Any]:
    return {"task": task.id, "model": task.model, "operation": task.kind.value, "app": task.app}


def _check_severity(severity: str) -> int:
    if severity not in _LEVELS:
        raise BadInput(f"severity={short(severity)}; expected one of {', '.join(_LEVELS)}")
    return _SEVERITIES.index(severity)


_observers: list[NetworkObserver] = []
_making = threading.Lock()


def get_observer() -> NetworkObserver:
    """Return the observer of this process, which follows all its pools; constructed by the first call."""
    with _making:
        if not _observers:
            made = NetworkObserver()
            _observers.append(made)
            processes.on_engine(lambda engine: engine.journal.subscribe(_Follower(made)))
            started = {id(engine): pool for pool in processes.living() if (engine := getattr(pool, "_engine", None))}
            for pool in started.values():  # a synchronous pool shares its engine with an inner one
                journal = getattr(pool, "_engine").journal  # noqa: B009
                pool.read_state(lambda journal=journal: journal.subscribe(_Follower(made)))
        return _observers[0]


def log_ollama_request(backend: str, model: str, operation: str, **details: Any) -> None:
    """Log your own request to a node."""
    get_observer().log_event(EventType.OLLAMA_REQUEST, backend, {"model": model, "operation": operation, **details})


def log_ollama_response(backend: str, model: str, latency_ms: float, **details: Any) -> None:
    """Log the answer to your own request; `latency_ms` in milliseconds."""
    get_observer().log_event(EventType.OLLAMA_RESPONSE, backend, {"model": model, "latency_ms": latency_ms, **details})


def log_ollama_error(backend: str, model: str, error: str, **details: Any) -> None:
    """Log the failure of your own request. Never dropped by sampling."""
    details = {"model": model, "error": error, **details}
    get_observer().log_event(EventType.OLLAMA_ERROR, backend, details, "error")


def log_rpc_request(backend: str, model: str, **details: Any) -> None:
    """Log your own request to a worker of llama.cpp."""
    get_observer().log_event(EventType.RPC_REQUEST, backend, {"model": model, **details})


def log_rpc_response(backend: str, model: str, latency_ms: float, **details: Any) -> None:
    """Log the answer of a worker; `latency_ms` in milliseconds."""
    get_observer().log_event(EventType.RPC_RESPONSE, backend, {"model": model, "latency_ms": latency_ms, **details})


def log_rpc_error(backend: str, model: str, error: str, **details: Any) -> None:
    """Log the failure of a worker."""
    get_observer().log_event(EventType.RPC_ERROR, backend, {"model": model, "error": error, **details}, "error")


def log_node_health_check(backend: str, status: str, latency_ms: float, **details: Any) -> None:
    """Log a check of your own; `latency_ms` in milliseconds."""
    details = {"status": status, "latency_ms": latency_ms, **details}
    get_observer().log_event(EventType.NODE_HEALTH_CHECK, backend, details)


def log_node_status_change(backend: str, old_status: str, new_status: str, **details: Any) -> None:
    """Log a change that you have seen yourself."""
    details = {"old_status": old_status, "new_status": new_status, **details}
    get_observer().log_event(EventType.NODE_STATUS_CHANGE, backend, details, "warning")
