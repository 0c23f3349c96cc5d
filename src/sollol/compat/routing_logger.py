"""A log of routing: decisions of the pools of this process, and events that a program adds."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from typing import Any, Final

from sollol.compat.network_observer import EventType, NetworkEvent, get_observer
from sollol.compat.redis_lines import RedisLines

CHANNEL: Final = "sollol:routing_events"
STREAM: Final = "sollol:routing_stream"
log: Final = logging.getLogger("sollol.routing")


def get_instance_id() -> str:
    """Return a name of this process: host and process id."""
    return f"{socket.gethostname()}_{os.getpid()}"


class RoutingEventLogger:
    """Write routing events to the logger `sollol.routing`, and as JSON to a Redis and to stdout on request.

    Args:
        redis_client: A client of the package redis.
        channel: The channel of Redis.
        stream_key: The stream of Redis.
        enabled: False drops all events.
        console_output: Print events.
    """

    ROUTE_DECISION = "ROUTE_DECISION"
    TASK_QUEUED = "TASK_QUEUED"
    TASK_START = "TASK_START"
    TASK_COMPLETE = "TASK_COMPLETE"
    WORKER_LOAD = "WORKER_LOAD"
    FALLBACK_TRIGGERED = "FALLBACK_TRIGGERED"
    MODEL_SWITCH = "MODEL_SWITCH"
    CACHE_HIT = "CACHE_HIT"
    COORDINATOR_START = "COORDINATOR_START"
    COORDINATOR_STOP = "COORDINATOR_STOP"
    RPC_BACKEND_SELECTED = "RPC_BACKEND_SELECTED"
    OLLAMA_NODE_SELECTED = "OLLAMA_NODE_SELECTED"

    def __init__(
        self,
        redis_client: Any = None,
        channel: str = CHANNEL,
        stream_key: str = STREAM,
        enabled: bool = True,
        console_output: bool = False,
    ) -> None:
        self.enabled = enabled
        self.console_output = console_output
        self.instance_id = get_instance_id()
        self._lines = None if redis_client is None else RedisLines(redis_client, channel, stream_key)

    @property
    def redis_available(self) -> bool:
        """True if events go to a Redis, and the last one arrived."""
        return self._lines is not None and self._lines.available

    def log_event(self, event_type: str, **fields: Any) -> None:
        """Write one event; fields that are None are left out."""
        if not self.enabled:
            return
        given = {name: value for name, value in fields.items() if value is not None}
        event = {"timestamp": time.time(), "instance_id": self.instance_id, "event_type": event_type, **given}
        log.info("%s %s", event_type, given)
        if self.console_output:
            print(json.dumps(event, default=str), flush=True)
        if self._lines is not None:
            self._lines.put(event)

    def log_route_decision(self, model: str, backend: str, reason: str, cached: bool = False, **metadata: Any) -> None:
        """Write a decision."""
        kind = self.CACHE_HIT if cached else self.ROUTE_DECISION
        self.log_event(kind, model=model, backend=backend, reason=reason, **metadata)

    def log_task_queued(self, task_id: str, model: str, worker: str | None = None, **metadata: Any) -> None:
        """Write that a task waits."""
        self.log_event(self.TASK_QUEUED, task_id=task_id, model=model, worker=worker, **metadata)

    def log_task_start(self, task_id: str, model: str, worker: str, **metadata: Any) -> None:
        """Write the start of a task."""
        self.log_event(self.TASK_START, task_id=task_id, model=model, worker=worker, **metadata)

    def log_task_complete(
        self, task_id: str, model: str, worker: str, duration: float, success: bool = True, **metadata: Any
    ) -> None:
        """Write the end of a task; `duration` in seconds."""
        self.log_event(
            self.TASK_COMPLETE,
            task_id=task_id,
            model=model,
            worker=worker,
            duration=duration,
            success=success,
            **metadata,
        )

    def log_worker_load(
        self,
        worker: str,
        active_tasks: int,
        cpu_percent: float | None = None,
        memory_mb: float | None = None,
        **metadata: Any,
    ) -> None:
        """Write the load of a worker."""
        self.log_event(
            self.WORKER_LOAD,
            worker=worker,
            active_tasks=active_tasks,
            cpu_percent=cpu_percent,
            memory_mb=memory_mb,
            **metadata,
        )

    def log_fallback(self, model: str, from_backend: str, to_backend: str, reason: str, **metadata: Any) -> None:
        """Write a move to another node."""
        self.log_event(
            self.FALLBACK_TRIGGERED,
            model=model,
            from_backend=from_backend,
            to_backend=to_backend,
            reason=reason,
            **metadata,
        )

    def log_model_switch(self, from_model: str, to_model: str, backend: str, **metadata: Any) -> None:
        """Write a change of the loaded model."""
        self.log_event(self.MODEL_SWITCH, from_model=from_model, to_model=to_model, backend=backend, **metadata)

    def log_coordinator_start(self, model: str, rpc_backends: int, **metadata: Any) -> None:
        """Write the start of a coordinator."""
        self.log_event(self.COORDINATOR_START, model=model, rpc_backends=rpc_backends, **metadata)

    def log_coordinator_stop(self, model: str, **metadata: Any) -> None:
        """Write the end of a coordinator."""
        self.log_event(self.COORDINATOR_STOP, model=model, **metadata)

    def log_rpc_backend_selected(self, backend_host: str, backend_port: int, reason: str, **metadata: Any) -> None:
        """Write the choice of a worker."""
        self.log_event(self.RPC_BACKEND_SELECTED, backend=f"{backend_host}:{backend_port}", reason=reason, **metadata)

    def log_ollama_node_selected(self, node_url: str, reason: str, model: str, **metadata: Any) -> None:
        """Write the choice of a node."""
        self.log_event(self.OLLAMA_NODE_SELECTED, node_url=node_url, reason=reason, model=model, **metadata)


_loggers: list[RoutingEventLogger] = []


def get_routing_logger(redis_client: Any = None, console_output: bool | None = None) -> RoutingEventLogger:
    """Return the logger of this process, which also writes every decision of the pools.

    The arguments count for the first call; `console_output` for later ones, too. SOLLOL_ROUTING_LOG=false turns it off.
    """
    if not _loggers:
        enabled = os.environ.get("SOLLOL_ROUTING_LOG", "true").lower() not in ("false", "0", "no", "off")
        made = RoutingEventLogger(redis_client, enabled=enabled, console_output=bool(console_output))
        _loggers.append(made)
        get_observer().subscribe(_follower(made))
    elif console_output is not None:
        _loggers[0].console_output = console_output
    return _loggers[0]


def enable_console_routing_log() -> None:
    """Print the routing events of this process."""
    get_routing_logger(console_output=True)


def _follower(made: RoutingEventLogger) -> Any:
    def follow(event: NetworkEvent) -> None:
        details = event.details
        if event.event_type is EventType.OLLAMA_REQUEST and "reason" in details:
            more = {
                name: details[name] for name in ("task", "operation", "priority", "predicted_ms") if name in details
            }
            made.log_route_decision(details.get("model", ""), event.backend, details["reason"], **more)

    return follow
