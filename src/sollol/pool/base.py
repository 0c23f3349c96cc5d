"""Common part of both pools: nodes, settings, statistics. Starts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from sollol.core.endpoint import DEFAULT_PORT, Endpoint, parse_endpoint, with_key
from sollol.core.types import RoutingMode, RoutingStrategy
from sollol.engine.engine import Engine
from sollol.errors import BadInput, SollolError
from sollol.observe.snapshot import NodeView
from sollol.observe.totals import Totals
from sollol.pool import keywords, processes
from sollol.pool.call_types import Node
from sollol.pool.callers_trace import current_trace
from sollol.pool.displays import PoolDisplays, open_store
from sollol.pool.node_list import NodeList
from sollol.pool.requests import OLD_KEYWORDS
from sollol.transport.base import Transport
from sollol.version import __version__
from sollol.workload.call_options import CallOptions, call_options
from sollol.workload.validation import (
    check_count,
    check_digests,
    check_flag,
    check_mixed_digests,
    check_mode,
    check_strategy,
    check_timeout,
    short,
)

if TYPE_CHECKING:
    from sollol.config import OtelSettings, Settings

T = TypeVar("T")
BY_SETTINGS: Final = "by the settings"


DISCOVER_S = 2.0  # time limit of the search of a constructor
PARALLEL_LEAST = 2  # least tasks and machines for a gain of parallel execution


class PoolBase(PoolDisplays):
    """Nodes, settings and statistics of a pool."""

    def __init__(
        self,
        nodes: Iterable[Any] | Mapping[str, Any] | str | None = None,
        *,
        routing_mode: RoutingMode | str | None = None,
        routing_strategy: RoutingStrategy | str | None = None,
        app_name: str | None = None,
        timeout: float | None = None,
        on_mixed_digests: str = "allow",
        digests: Mapping[str, str] | None = None,
        transport: Transport | None = None,
        seed: int | None = None,
        **old: Any,
    ) -> None:
        if old.get("discover_all_nodes") and not nodes:
            nodes = _discovered(old.pop("discover_all_nodes"), old.pop("exclude_localhost", False))
        keywords.accept_old(type(self).__name__, old, OLD_KEYWORDS)
        self.app_name = (_settings().app_name or "") if app_name is None else app_name
        self.timeout = check_timeout(timeout)
        self._mode = check_mode(routing_mode)
        self._mode_here: ContextVar[RoutingMode | None] = ContextVar("sollol_mode", default=None)
        self._strategy = check_strategy(routing_strategy or RoutingStrategy.INTELLIGENT)
        self._one_digest = check_mixed_digests(on_mixed_digests) == "one"
        self._pinned = check_digests(digests)
        self._used_digests: dict[str, str] = {}
        self._share_contexts = True
        self._endpoints: dict[str, Endpoint] = {}
        self._transport = transport
        self._seed = seed
        self._engine: Engine | None = None
        self._store: tuple[Path, float, int] | None = None
        self._journal_path: Path | None = None
        self._notes: dict[str, dict[str, Any]] = {}  # values that programs wrote into the statistics of nodes
        self._redis: str | None = None  # a URL, "" for none; None: by the settings
        self._otel: OtelSettings | Literal["by the settings"] | None = BY_SETTINGS
        self._home: asyncio.AbstractEventLoop | None = None  # the event loop of an AsyncOllamaPool's engine
        self._closed = False
        self.totals = Totals()
        for node in [nodes] if isinstance(nodes, (str, Mapping)) else nodes or ():
            endpoint = parse_endpoint(node)
            self._endpoints.setdefault(endpoint.key, endpoint)
        self._made = False  # an engine exists or existed with `_transport`
        processes.watch(self)

    def _running(self) -> Engine:
        """Return the engine; construct it at the first call.

        Raises:
            SollolError: The pool is closed.
        """
        raise NotImplementedError

    def _make_engine(self) -> Engine:
        transport: Any = self._transport
        if transport is None:
            from sollol.transport.http import HttpTransport

            transport = HttpTransport()
        elif self._made:  # its connections belong to another process or to an event loop that has ended
            renewed = getattr(transport, "renewed", None)
            transport = renewed() if renewed is not None else transport
        self._made = True
        engine = Engine(
            list(self._endpoints.values()), transport, self.app_name, self._seed, journal_path=self._journal_path
        )
        engine.use_strategy(self._strategy)
        engine.use_digests(self._one_digest, self._pinned, self._used_digests)
        engine.share_contexts = self._share_contexts
        if self._store is not None:
            engine.use_store(open_store(*self._store))
        redis, otel = self._redis, self._otel
        if redis is None or otel == BY_SETTINGS:
            settings = _settings()
            engine.observe(settings.observer_sampling)
            redis = settings.redis if redis is None else redis
            otel = settings.otel if otel == BY_SETTINGS else otel
        if redis:
            engine.use_redis(redis, __version__)
        if isinstance(otel, tuple):
            engine.use_otel(otel, __version__)
        processes.announce(engine)
        return engine

    # --- processes ---

    def _leave_process(self) -> Any:
        """Drop and return the engine; the next call constructs a new one. Called in the child of a fork."""
        left = (self._engine, self._home, self._transport)
        self._engine = self._home = None
        self.totals = Totals()
        return left

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments that make the same pool elsewhere. Connections and statistics stay here."""
        if self._transport is not None:
            raise SollolError(
                f"{type(self).__name__}: a pool with a transport= of its own cannot be pickled or copied; "
                "make the pool where it is used"
            )
        return {
            "nodes": list(self._endpoints.values()),
            "routing_mode": self._mode,
            "routing_strategy": self._strategy,
            "app_name": self.app_name,
            "timeout": self.timeout,
            "on_mixed_digests": "one" if self._one_digest else "allow",
            "digests": self._pinned,
            "used": dict(self._used_digests),
            "seed": self._seed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        used = state.pop("used")
        PoolBase.__init__(self, **state)
        self._used_digests.update(used)

    def count(self, ok: bool) -> None:
        """Count one finished call."""
        self.totals.count(ok)

    # --- modes ---

    @property
    def routing_mode(self) -> RoutingMode | None:
        """The mode of calls without one; None: by completion time, without hedging."""
        return self._mode_here.get() or self._mode

    def set_routing_mode(self, mode: RoutingMode | str | None) -> None:
        """Set the mode of calls without one.

        FAST: completion time, and hedging of late calls. RELIABLE: failures count. ASYNC: leaves fast nodes to others.
        None: completion time.
        """
        self._mode = check_mode(mode)

    @contextmanager
    def mode(self, mode: RoutingMode | str) -> Iterator[None]:
        """Use this mode for calls inside the block, in this thread or task."""
        token = self._mode_here.set(check_mode(mode))
        try:
            yield
        finally:
            self._mode_here.reset(token)

    @property
    def routing_strategy(self) -> RoutingStrategy:
        """The rule that routes calls without a mode."""
        return self._strategy

    @routing_strategy.setter
    def routing_strategy(self, strategy: RoutingStrategy | str) -> None:
        self._strategy = check_strategy(strategy)
        if self._engine is not None:
            self._engine.use_strategy(self._strategy)

    @property
    def share_contexts(self) -> bool:
        """Whether a call may use a model in memory with a larger `num_ctx` than its own."""
        return self._share_contexts

    @share_contexts.setter
    def share_contexts(self, share: bool) -> None:
        self._share_contexts = check_flag("share_contexts", share)
        if self._engine is not None:
            self._engine.share_contexts = share

    def use_digests(self, on_mixed_digests: str, digests: Mapping[str, str] | None) -> None:
        """Set the policy for nodes with different versions of a model, and the pinned versions."""
        self._one_digest = check_mixed_digests(on_mixed_digests) == "one"
        self._pinned = check_digests(digests)
        if self._engine is not None:
            self._engine.use_digests(self._one_digest, self._pinned, self._used_digests)

    def _split(
        self, priority: Any, call: Mapping[str, Any], *, typed: bool = True
    ) -> tuple[CallOptions, dict[str, Any]]:
        """Separate the validated constraints of a call from the fields of its body. `typed`: it has a `task_type`."""
        fields = dict(call)
        timeout, mode, hedge, node = (fields.pop(name, None) for name in ("timeout", "mode", "hedge", "node"))
        task_type = fields.pop("task_type", None) if typed else None
        gpu = fields.pop("requires_gpu", False)
        return self._call_options(priority, timeout, mode, hedge, task_type, node, gpu), fields

    def _call_options(self, priority: Any, timeout: Any, mode: Any = None, *more: Any) -> CallOptions:
        """Validate the options of a call, with the pool's defaults."""
        found = call_options(
            priority,
            self.timeout if timeout is None else timeout,
            self.routing_mode if mode is None else mode,
            *more,
        )
        trace = current_trace()
        return found if trace is None else found._replace(trace=trace)

    # --- nodes ---

    @property
    def nodes(self) -> list[NodeView]:
        """The pool's nodes, in the order of their addition. Changes of the list change the pool."""
        return NodeList(map(self._node_view, list(self._endpoints.values())), self._append_node, self.remove_node)

    @nodes.setter
    def nodes(self, nodes: Iterable[Any]) -> None:
        wanted = [node if isinstance(node, NodeView) else parse_endpoint(node) for node in nodes]
        for key in self._endpoints.keys() - {node.key for node in wanted}:
            self.remove_node(self._endpoints[key].url)
        for node in wanted:
            self._append_node(node.endpoint if isinstance(node, NodeView) else node)

    def _node_view(self, endpoint: Endpoint) -> NodeView:
        nodes = self._engine.scheduler.view().nodes if self._engine else {}
        return NodeView(endpoint, nodes.get(endpoint.key))

    def _append_node(self, node: Any) -> NodeView | None:
        """Add a node; return None if it was in the pool."""
        endpoint = parse_endpoint(node)
        return self._node_view(endpoint) if self.add_node(endpoint.url) is not False else None

    def add_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Add a node; return False if it is in the pool already."""
        raise NotImplementedError

    def remove_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Remove a node; return False if it was not in the pool."""
        raise NotImplementedError

    def _register_node(self, host: Any, port: int, api_key: str | None = None) -> Endpoint | None:
        endpoint = _endpoint(host, port)
        if api_key is not None:
            endpoint = with_key(endpoint, api_key)
        if endpoint.key in self._endpoints:
            return None
        self._endpoints[endpoint.key] = endpoint
        return endpoint

    def _unregister_node(self, host: Any, port: int) -> str | None:
        key = _endpoint(host, port).key
        return key if self._endpoints.pop(key, None) else None

    def drain_node(self, node: str, drained: bool = True) -> None:
        """Keep new work away from a node; with `drained=False` let it come again. Running calls end as usual.

        Raises:
            BadInput: The node is not in the pool.
        """
        (endpoint,) = self._find_node(node)
        if self._engine is not None:
            self._engine.drain(endpoint.key, drained)

    def _find_node(self, node: Node | None) -> list[Endpoint]:
        """Return the nodes of a management call: the named one, or all."""
        if node is None:
            return list(self._endpoints.values())
        key = parse_endpoint(node).key
        if key not in self._endpoints:
            raise BadInput(
                f"node={short(node)} is not in the pool; expected one of {', '.join(self._endpoints) or 'none'}"
            )
        return [self._endpoints[key]]

    def count_unique_physical_hosts(self) -> int:
        """Return the number of machines; several ports or addresses of one machine count once."""
        return _machines(list(self._endpoints.values()))

    def should_use_parallel_execution(self, num_tasks: int) -> bool:
        """Check whether `num_tasks` equal tasks would end sooner on all nodes than in turn on one.

        Several nodes of one machine share its processors and GPUs, so healthy machines are counted.
        """
        check_count("num_tasks", num_tasks)
        healthy = [node.endpoint for node in self.nodes if node.is_healthy]
        enough = num_tasks >= PARALLEL_LEAST and len(healthy) >= PARALLEL_LEAST
        return enough and _machines(healthy) >= PARALLEL_LEAST

    def __repr__(self) -> str:
        down = sum(not node.is_healthy for node in self.nodes)
        scheduler = self._engine.scheduler if self._engine else None
        running, waiting = (len(scheduler.view().attempts), scheduler.view().waiting()) if scheduler else (0, 0)
        lost = f" ({down} down)" if down else ""
        return f"<{type(self).__name__} {len(self._endpoints)} nodes{lost} · {running} running · {waiting} waiting>"


def _discovered(value: Any, exclude_localhost: Any) -> list[dict[str, Any]]:
    """Search the network for a constructor with `discover_all_nodes=True` and without nodes."""
    from sollol.discovery import discover_ollama_nodes

    check_flag("discover_all_nodes", value)
    check_flag("exclude_localhost", exclude_localhost)
    return discover_ollama_nodes(timeout=DISCOVER_S, exclude_localhost=exclude_localhost, discover_all_nodes=True)


def _machines(endpoints: list[Endpoint]) -> int:
    from sollol.discovery import physical_hosts

    return len(set(physical_hosts(endpoints).values()))


def _endpoint(host: Any, port: int) -> Endpoint:
    if isinstance(host, str) and "://" not in host and port != DEFAULT_PORT:
        return parse_endpoint({"host": host, "port": port})
    return parse_endpoint(host, default_port=port)


def _settings() -> Settings:
    from sollol.config import load_settings

    return load_settings()


def configured_nodes() -> list[Any]:
    """Return the nodes of SOLLOL_NODES, the config file or OLLAMA_HOST."""
    settings = _settings()
    return list(settings.nodes) or [settings.ollama_host] * (settings.ollama_host is not None)
