"""What the two pools have in common: nodes, settings, statistics. Starts nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from sollol.core.endpoint import DEFAULT_PORT, Endpoint, parse_endpoint
from sollol.errors import BadInput
from sollol.nodes.transport import Transport
from sollol.pool.engine import Engine
from sollol.pool.requests import (
    EMBED_FIELDS,
    accept_old,
    check_count,
    check_fields,
    check_model,
    check_priority,
    check_timeout,
)
from sollol.pool.views import NodeView, stats_of

PARALLEL_LEAST = 2  # tasks and machines from which running in parallel can be sooner


class PoolBase:
    def __init__(
        self,
        nodes: Iterable[Any] | Mapping[str, Any] | str | None = None,
        *,
        app_name: str | None = None,
        timeout: float | None = None,
        transport: Transport | None = None,
        seed: int | None = None,
        **old: Any,
    ) -> None:
        accept_old(type(self).__name__, old)
        self.app_name = app_name or ""
        self.timeout = check_timeout(timeout)
        self._endpoints: dict[str, Endpoint] = {}
        self._transport = transport
        self._seed = seed
        self._engine: Engine | None = None
        self._closed = False
        self._totals = {"total_requests": 0, "successful_requests": 0, "failed_requests": 0}
        for node in [nodes] if isinstance(nodes, (str, Mapping)) else nodes or ():
            endpoint = parse_endpoint(node)
            self._endpoints.setdefault(endpoint.key, endpoint)

    def _make_engine(self) -> Engine:
        transport = self._transport
        if transport is None:
            from sollol.nodes.http import HttpTransport

            transport = HttpTransport()
        return Engine(list(self._endpoints.values()), transport, self.app_name, self._seed)

    def _count(self, ok: bool) -> None:
        self._totals["total_requests"] += 1
        self._totals["successful_requests" if ok else "failed_requests"] += 1

    # --- nodes ---

    @property
    def nodes(self) -> list[NodeView]:
        """The pool's nodes, in the order in which they were added."""
        fleet = self._engine.scheduler.fleet.nodes if self._engine else {}
        return [NodeView(endpoint, fleet.get(key)) for key, endpoint in list(self._endpoints.items())]

    def _take_node(self, host: Any, port: int) -> Endpoint | None:
        endpoint = _endpoint(host, port)
        if endpoint.key in self._endpoints:
            return None
        self._endpoints[endpoint.key] = endpoint
        return endpoint

    def _drop_node(self, host: Any, port: int) -> str | None:
        key = _endpoint(host, port).key
        return key if self._endpoints.pop(key, None) else None

    def _find_node(self, node: str | None) -> list[Endpoint]:
        """The nodes a management call goes to: the one named, or all."""
        if node is None:
            return list(self._endpoints.values())
        key = parse_endpoint(node).key
        if key not in self._endpoints:
            raise BadInput(f"node={node!r} is not in the pool; expected one of {', '.join(self._endpoints) or 'none'}")
        return [self._endpoints[key]]

    def count_unique_physical_hosts(self) -> int:
        """How many machines the nodes stand on: several ports, or several addresses, of one machine count once."""
        from sollol.discovery import physical_hosts

        return len(set(physical_hosts(list(self._endpoints.values())).values()))

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """Whether `num_tasks` equal tasks would end sooner on all nodes than one after another on one."""
        check_count("num_tasks", num_tasks)
        healthy = [node for node in self.nodes if node.is_healthy]
        return num_tasks >= PARALLEL_LEAST and len(healthy) >= PARALLEL_LEAST

    def _bound(self, timeout: float | None) -> float | None:
        """The call's own bound in seconds, else the pool's; checked."""
        return check_timeout(self.timeout if timeout is None else timeout)

    # --- numbers ---

    def get_stats(self) -> dict[str, Any]:
        """A copy of the statistics: totals, `nodes_used`, and `node_performance` by "host:port"."""
        return stats_of(self._engine.scheduler if self._engine else None, dict(self._endpoints), dict(self._totals))

    @property
    def stats(self) -> dict[str, Any]:
        return self.get_stats()

    # --- batches ---

    def _batch_arguments(
        self,
        model: str,
        priority: int,
        use_adaptive: bool,
        max_workers: int | None,
        on_error: str,
        extra: dict[str, Any],
    ) -> tuple[dict[str, Any], int | None]:
        """Checked: the fields for the nodes, and the fixed number of requests in flight, or None."""
        check_model(model)
        check_priority(priority)
        check_fields("embed_batch", extra, EMBED_FIELDS)
        if on_error not in ("raise", "return"):
            raise BadInput(f"on_error={on_error!r}; expected 'raise' or 'return'")
        if max_workers is not None:
            check_count("max_workers", max_workers)
        elif not use_adaptive:
            max_workers = 2 * max(1, len(self._endpoints))
        if use_adaptive and max_workers is not None:
            warnings.warn("max_workers= has no effect with use_adaptive=True; pass use_adaptive=False", stacklevel=4)
            max_workers = None
        return {name: value for name, value in extra.items() if value is not None}, max_workers

    def __repr__(self) -> str:
        down = sum(not node.is_healthy for node in self.nodes)
        scheduler = self._engine.scheduler if self._engine else None
        running, waiting = (len(scheduler.attempts), scheduler.waiting()) if scheduler else (0, 0)
        lost = f" ({down} down)" if down else ""
        return f"<{type(self).__name__} {len(self._endpoints)} nodes{lost} · {running} running · {waiting} waiting>"


def _endpoint(host: Any, port: int) -> Endpoint:
    if isinstance(host, str) and "://" not in host and port != DEFAULT_PORT:
        return parse_endpoint({"host": host, "port": port})
    return parse_endpoint(host, default_port=port)


def configured_nodes() -> list[Any]:
    """Nodes from SOLLOL_NODES, the config file or OLLAMA_HOST."""
    from sollol.config import load_settings

    return list(load_settings().nodes)
