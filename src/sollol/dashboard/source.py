"""Read the snapshots that a dashboard shows: of a pool, of a router's pool, or of nodes alone.

A pool runs on another thread's loop and may be busy there, so each read has a daemon thread. A pool that does not
answer costs the page a frame and does not stop the server.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from sollol.dashboard.watch import Watch
from sollol.duties import future_of, in_thread
from sollol.errors import BadInput, SollolError
from sollol.observe.overview import Overview

PATIENCE_S = 5.0
READERS = 8  # threads that may wait for the pool at once


class OverviewSource(Protocol):
    """Give a dashboard its snapshots and explanations, on the dashboard's loop."""

    async def overview(self) -> Overview | dict[str, Any]:
        """Return the present state in the shape of `pool.overview()`."""
        ...

    async def series(self, span: str) -> dict[str, Any]:
        """Return the work over time in the shape of `pool.series()`."""
        ...

    async def history(self, words: str, before: int | None) -> dict[str, Any]:
        """Return finished requests in the shape of `pool.history()`."""
        ...

    async def explain(self, task_id: int) -> dict[str, Any]:
        """Return why a request was sent to its node."""
        ...

    async def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        ...

    async def aclose(self) -> None:
        """Release the source."""
        ...


def source_of(router: Any) -> OverviewSource:
    """Return the source of a pool, or of a router with a pool; None probes the nodes of the settings.

    Raises:
        BadInput: The router has neither a snapshot nor a pool.
    """
    if router is not None and not hasattr(router, "snapshot"):
        if not hasattr(router, "pool"):
            raise BadInput(f"{router!r} cannot be shown; expected a pool, a router with a .pool, or None")
        router = router.pool
    if router is None:
        from sollol.pool.base import configured_nodes

        return Watch(configured_nodes())
    if isinstance(router, Watch):
        return router
    return PoolSource(router)


class PoolSource:
    """Read a pool from outside its thread."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._reading: set[Future[Any]] = set()
        self._woken = False

    async def overview(self) -> Overview | dict[str, Any]:
        """Return the pool's overview, or its snapshot if it has none."""
        self._wake()
        read = getattr(self._pool, "read_overview", None) or getattr(self._pool, "overview", self._pool.snapshot)
        found: Overview | dict[str, Any] = await self._apart(read)
        return found

    async def series(self, span: str) -> dict[str, Any]:
        """Return the pool's work over time."""
        found: dict[str, Any] = await self._apart(lambda: self._pool.series(span))
        return found

    async def history(self, words: str, before: int | None) -> dict[str, Any]:
        """Return the pool's finished requests."""
        found: dict[str, Any] = await self._apart(lambda: self._pool.history(words, before=before))
        return found

    async def explain(self, task_id: int) -> dict[str, Any]:
        """Return the pool's explanation of a request."""
        found: dict[str, Any] = await self._apart(lambda: self._pool.explain(task_id))
        return found

    async def metrics(self) -> bytes:
        """Return the pool's metrics."""
        found: bytes = await self._apart(lambda: self._pool.metrics())
        return found

    async def aclose(self) -> None:
        """Leave the pool open, because it belongs to its user."""

    def _wake(self) -> None:
        """Start the probes of a pool that was never used, so that its nodes do not all show as unknown."""
        ready = getattr(self._pool, "wait_ready", None)
        if not self._woken and ready is not None and not inspect.iscoroutinefunction(ready):
            in_thread("sollol-dashboard-wake", lambda: _quietly(ready))
        self._woken = True

    async def _apart(self, call: Callable[[], Any]) -> Any:
        if len(self._reading) >= READERS:
            raise SollolError("the pool does not answer")
        future = future_of("sollol-dashboard-read", call)
        self._reading.add(future)
        future.add_done_callback(self._reading.discard)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise SollolError(f"the pool has not answered for {PATIENCE_S:g} s") from None


def _quietly(ready: Callable[[], None]) -> None:
    try:
        ready()
    except SollolError:  # the pool was closed meanwhile
        pass
