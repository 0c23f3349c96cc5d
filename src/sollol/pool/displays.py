"""Show and record what a pool does: statistics, snapshots, explanations, store, journal, Redis."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from sollol.config import OtelSettings
from sollol.core.endpoint import Endpoint
from sollol.core.types import RoutingMode, RoutingStrategy
from sollol.engine.engine import Engine
from sollol.errors import BadInput, SollolError
from sollol.observe.history import row_of
from sollol.observe.overview import Overview, Verdict
from sollol.observe.request_filter import matcher
from sollol.observe.request_record import RequestRecord
from sollol.observe.rows import CallTotals, Snapshot
from sollol.observe.snapshot import EngineState, explained, snapshot_of, stats_of
from sollol.observe.totals import Totals
from sollol.pool.statistics import Statistics, with_notes
from sollol.version import __version__
from sollol.workload.validation import short

if TYPE_CHECKING:
    from sollol.observe.store import Store

T = TypeVar("T")

SPANS = ("5m", "1h")
STORED_SPANS = ("1d", "30d")
NOTES_MOST = 1_000  # nodes
NO_CACHE = {"enabled": False, "size": 0, "max_size": 0, "hits": 0, "misses": 0, "hit_rate": 0.0}
UNUSED = Verdict("info", "The pool was not used yet.")
HISTORY_MOST = 1_000
READ_S = 5.0  # wait of a reader on another thread for the pool's loop


class PoolDisplays:
    """Read the state of a pool from any thread, and choose what is kept of it."""

    app_name: str
    totals: Totals
    _engine: Engine | None
    _home: asyncio.AbstractEventLoop | None
    _endpoints: dict[str, Endpoint]
    _store: tuple[Path, float, int] | None
    _journal_path: Path | None
    _redis: str | None
    _notes: dict[str, dict[str, Any]]
    _otel: OtelSettings | Literal["by the settings"] | None

    @property
    def routing_mode(self) -> RoutingMode | None:
        """The routing mode of calls without one."""
        raise NotImplementedError

    @property
    def routing_strategy(self) -> RoutingStrategy:
        """The routing strategy of calls without a mode."""
        raise NotImplementedError

    def _state(self) -> EngineState | None:
        return self._engine.state() if self._engine is not None else None

    def get_stats(self) -> dict[str, Any]:
        """Return a copy of the statistics: totals, `nodes_used`, and `node_performance` by "host:port"."""
        found: dict[str, Any] = msgspec.to_builtins(
            self.read_state(lambda: stats_of(self._state(), dict(self._endpoints), self.totals))
        )
        found |= {
            "node_performance": with_notes(found["node_performance"], self._notes),
            "nodes_configured": len(self._endpoints),
            "routing_strategy": self.routing_strategy.value,
            "intelligent_routing_enabled": self.routing_strategy is RoutingStrategy.INTELLIGENT,
            "cache": dict(NO_CACHE),
        }
        return Statistics(found, self._keep_note)

    def _keep_note(self, node: str, values: Mapping[str, Any]) -> None:
        """Keep what a program writes into the statistics of a node."""
        if node not in self._notes and len(self._notes) >= NOTES_MOST:
            raise BadInput(
                f"pool.stats['node_performance'][{short(node)}]: notes for {NOTES_MOST} nodes are kept at most"
            )
        self._notes.setdefault(node, {}).update(values)

    def read_state(self, read: Callable[[], T]) -> T:
        """Run `read` on the loop that alone changes the engine's state; return its result."""
        home = self._home
        if home is None or not home.is_running() or home is _loop_here():
            return read()

        async def there() -> T:
            return read()

        reading = asyncio.run_coroutine_threadsafe(there(), home)
        try:
            return reading.result(READ_S)
        except TimeoutError:
            reading.cancel()
            raise SollolError(f"the pool's event loop has not answered for {READ_S:g} s") from None

    @property
    def stats(self) -> dict[str, Any]:
        """A copy of the statistics, see `get_stats`."""
        return self.get_stats()

    def explain(self, task_id: int) -> dict[str, Any]:
        """Return the decision of a call: candidates, terms of their predictions, attempts, times in milliseconds.

        A waiting call has its position and predicted start instead of times.

        Raises:
            BadInput: The id is unknown, or too old (the last 1,000 calls are kept).
        """
        engine = self._engine
        found = (
            self.read_state(lambda: explained(engine.state(), task_id)) if engine and isinstance(task_id, int) else None
        )
        if found is None:
            raise BadInput(
                f"task_id={short(task_id)} is unknown; expected the id of one of the last 1,000 calls (r.routing.id)"
            )
        return found

    def snapshot(self, *, app: str | None = None) -> dict[str, Any]:
        """Return nodes, waiting and running tasks, recent calls and calibration, as plain values for displays.

        Args:
            app: Return only the tasks and calls of this application; nodes and totals are of all.
        """
        found: dict[str, Any] = msgspec.to_builtins(self.read_snapshot(app))
        return found

    def read_snapshot(self, app: str | None = None) -> Snapshot:
        """Return the same as a structure, for faces that serve others."""
        return self.read_state(lambda: self._snapshot(app))

    def _snapshot(self, app: str | None = None) -> Snapshot:
        totals, faults = self.totals, self._engine.dispatcher.faults if self._engine else 0
        counted = CallTotals(totals.successful + totals.failed, totals.successful, totals.failed, faults)
        mode, strategy = self.routing_mode, self.routing_strategy
        return snapshot_of(self._state(), dict(self._endpoints), counted, mode, strategy, self.app_name, app)

    def overview(self) -> dict[str, Any]:
        """Return the snapshot with a verdict in one sentence, findings, events, and the work of the last seconds."""
        found: dict[str, Any] = msgspec.to_builtins(self.read_overview())
        return found

    def read_overview(self) -> Overview:
        """Return the same as a structure, for faces that serve others."""
        engine = self._engine
        if engine is None:
            shown = msgspec.structs.asdict(self.read_snapshot())
            return Overview(**shown, verdict=UNUSED, findings=[], events=[], latest=None, spans=[])
        feed = engine.redis_feed
        applications = None if feed is None else feed.applications()
        return self.read_state(lambda: engine.monitor().report(self._snapshot(), self._spans(), applications))

    def series(self, span: str = "5m") -> dict[str, Any]:
        """Return the work of each node over a span, as columns: "5m", "1h", and with a store "1d" and "30d".

        Raises:
            BadInput: There is no such span, or the pool was not used yet.
        """
        engine, spans = self._engine, self._spans()
        if span not in spans or engine is None:
            expected = f"one of {', '.join(spans)}" if engine is not None else "a pool that was used"
            raise BadInput(f"span={short(span)}; expected {expected}")
        if span not in SPANS and engine.storing is not None:
            return engine.storing.store.series(span, list(self._endpoints), time.time())
        return self.read_state(lambda: engine.monitor().series(span, list(self._endpoints)))

    def history(
        self, words: str = "", *, before: int | None = None, most: int = 100, app: str | None = None
    ) -> dict[str, Any]:
        """Return finished requests, newest first: those of the store, else the last 1,000 of this process.

        Args:
            words: A filter: words, and `model:` `node:` `app:` `kind:` `failed` `late`.
            before: `next` of the previous answer, for older requests.
            most: Number of requests, at most 1,000.
            app: Return only the requests of this application.

        Returns:
            `rows` (times in milliseconds), `next` (None at the end) and `stored` (whether a store was read).
        """
        engine, most = self._engine, max(1, min(most, HISTORY_MOST))
        if engine is None:
            return {"rows": [], "next": None, "stored": False}
        fits = matcher(words)

        def wanted(record: RequestRecord) -> bool:
            return (app is None or record.app == app) and fits(record)

        if engine.storing is None:
            records = [
                record for record in reversed(self.read_state(engine.recorder.history.records)) if wanted(record)
            ]
            return {
                "rows": msgspec.to_builtins([row_of(record) for record in records[:most]]),
                "next": None,
                "stored": False,
            }
        found = engine.storing.store.search(wanted, most, before)
        return {
            "rows": msgspec.to_builtins([row_of(record) for _, record in found]),
            "next": found[-1][0] if len(found) == most else None,
            "stored": True,
        }

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format, for a program with an HTTP server of its own.

        Raises:
            BadInput: The pool was not used yet.
        """
        engine = self._engine
        if engine is None:
            raise BadInput("metrics: the pool was not used yet; call it after the first request")
        return self.read_state(lambda: engine.metrics(__version__))

    def _spans(self) -> tuple[str, ...]:
        return SPANS if self._engine is None or self._engine.storing is None else (*SPANS, *STORED_SPANS)

    def use_store(self, path: str | os.PathLike[str], *, days: float = 30.0, requests: int = 100_000) -> None:
        """Keep history and what was learned in a SQLite file, and restore what was learned from it.

        Args:
            path: The file. Two programs must not use the same one.
            days: Age of the oldest sums by minute.
            requests: Number of finished requests, without prompts.

        Raises:
            SollolError: The file cannot be opened.
        """
        self._store = (Path(path).expanduser(), days, requests)
        engine = self._engine
        if engine is not None:
            store = open_store(*self._store)
            self.read_state(lambda: engine.use_store(store))

    def use_redis(self, url: str | None) -> None:
        """Publish requests and presence in this Redis instead of that of the settings; None: in none.

        To be called before the first use.

        Raises:
            BadInput: The pool is in use already.
        """
        if self._engine is not None:
            raise BadInput("use_redis: the pool is in use already; call it before the first request")
        self._redis = url or ""

    def use_otel(self, endpoint: str | None = None, *, enabled: bool = True) -> None:
        """Send spans and metrics to this OTLP/HTTP receiver instead of to that of the settings.

        To be called before the first use.

        Args:
            endpoint: Its base URL; None: by the variables of OpenTelemetry.
            enabled: False sends none.

        Raises:
            BadInput: The pool is in use already.
        """
        if self._engine is not None:
            raise BadInput("use_otel: the pool is in use already; call it before the first request")
        self._otel = OtelSettings(endpoint) if enabled else None

    def record_journal(self, path: str | os.PathLike[str]) -> None:
        """Write all events of the scheduler to a file, for `sollol replay`. To be called before the first use.

        Raises:
            BadInput: The pool is in use already.
        """
        if self._engine is not None:
            raise BadInput("record_journal: the pool is in use already; call it before the first request")
        self._journal_path = Path(path).expanduser()


def open_store(path: Path, days: float, requests: int) -> Store:
    """Return an opened store.

    Raises:
        SollolError: The file cannot be opened.
    """
    import sqlite3

    from sollol.observe.store import Store

    try:
        return Store(path, days=days, requests=requests)
    except (OSError, sqlite3.Error) as error:
        raise SollolError(f"the store {path} cannot be opened: {error}; choose another path") from error


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
