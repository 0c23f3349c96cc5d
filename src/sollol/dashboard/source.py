"""What a dashboard shows: a pool, the pool of a router, or nodes alone.

A pool lives on another thread's loop and may be busy there, so it is read from a thread of its own that the process
does not wait for at its end. A pool that does not answer costs the page a frame, never the server.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any, Protocol

from sollol.dashboard.watch import Watch
from sollol.duties import in_thread
from sollol.errors import BadInput, SollolError

PATIENCE_S = 5.0
READERS = 8  # threads that wait for the pool at once; more would only wait as well


class Source(Protocol):
    """Lives on the dashboard's loop."""

    async def snapshot(self) -> dict[str, Any]: ...
    async def explain(self, task_id: int) -> dict[str, Any]: ...
    async def aclose(self) -> None: ...


def source_of(router: Any) -> Source:
    """The source behind what a user passed. None: the nodes of the settings, asked directly."""
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
    """A pool, read from outside its thread."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._readers = 0
        self._asked = False

    async def snapshot(self) -> dict[str, Any]:
        self._wake()
        found: dict[str, Any] = await self._apart(self._pool.snapshot)
        return found

    async def explain(self, task_id: int) -> dict[str, Any]:
        found: dict[str, Any] = await self._apart(lambda: self._pool.explain(task_id))
        return found

    async def aclose(self) -> None:
        """The pool belongs to its user."""

    def _wake(self) -> None:
        """A pool that was never used has asked no node yet, and would show none as up."""
        ready = getattr(self._pool, "wait_ready", None)
        if not self._asked and ready is not None and not inspect.iscoroutinefunction(ready):
            in_thread("sollol-dashboard-wake", lambda: _quietly(ready))
        self._asked = True

    async def _apart(self, call: Callable[[], Any]) -> Any:
        if self._readers >= READERS:
            raise SollolError("the pool does not answer")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            self._readers -= 1
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        def work() -> None:
            try:
                value, error = call(), None
            except Exception as problem:
                value, error = None, problem
            try:
                loop.call_soon_threadsafe(settle, value, error)
            except RuntimeError:  # the dashboard has ended meanwhile
                pass

        self._readers += 1
        threading.Thread(target=work, name="sollol-dashboard-read", daemon=True).start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await future
        except TimeoutError:
            raise SollolError(f"the pool has not answered for {PATIENCE_S:g} s") from None


def _quietly(ready: Callable[[], None]) -> None:
    try:
        ready()
    except SollolError:  # closed meanwhile: there is nothing to wake
        pass
