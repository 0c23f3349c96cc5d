"""Start and stop a dashboard in a thread and an event loop of its own.

The port is bound in the caller's thread, so that a port in use raises there at once. The dashboard installs no signal
handler and sets up no logger: those belong to the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterable
from typing import Any

from sollol.dashboard.feed import Feed
from sollol.dashboard.site import Site
from sollol.dashboard.source import OverviewSource, source_of
from sollol.duties import Duties
from sollol.errors import BadInput, SollolError
from sollol.http_server.host_guard import HostGuard
from sollol.pool.keywords import accept_old
from sollol.transport.outbox import Outbox

DEFAULT_PORT = 8080
WILDCARDS = ("", "0.0.0.0", "::")
STOP_S = 5.0
GRACE_S = 0.3  # for answers under way at the end
_log = logging.getLogger("sollol.dashboard")


class CannotListen(SollolError):
    """Report an address that is in use, not this machine's, or not permitted."""


class UnifiedDashboard:
    """Serve a live page of a pool. `run()` blocks, `start()` does not; it is a context manager.

        with UnifiedDashboard(pool, 8080) as dashboard:
            print(dashboard.url)

    Args:
        pool: An OllamaPool, an AsyncOllamaPool, or a router with a `.pool`. None watches the nodes of the settings
            without a pool.
        port: The TCP port; 0 picks a free one.
        host: The address to listen on.
        old: Keywords of older versions, which have no effect.
    """

    def __init__(self, pool: Any = None, port: int = DEFAULT_PORT, *, host: str = "127.0.0.1", **old: Any) -> None:
        pool, port = old.pop("router", pool), old.pop("dashboard_port", port)  # their names in older versions
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise BadInput(f"port={port!r}; expected a number from 0 (any free one) to 65535")
        accept_old("UnifiedDashboard", old, frozenset(old))
        self._pool, self._port, self._host = pool, port, host
        self._running: Running | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Return the page's URL for a browser on this machine; port 0 is replaced at the start."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def running(self) -> bool:
        """Check whether the dashboard is being served."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str:
        """Serve in the background and return the URL.

        Raises:
            CannotListen: The address cannot be bound.
        """
        if self.running:
            return self.url
        source = source_of(self._pool)
        listening = _listen(self._host, self._port)
        self._port = listening.getsockname()[1]
        self._running = Running(source, HostGuard(self._host), listening)
        self._thread = threading.Thread(target=self._running.serve, name="sollol-dashboard", daemon=True)
        self._thread.start()
        return self.url

    def run(self, host: str | None = None, **old: Any) -> None:
        """Serve until `stop()` is called, or Ctrl-C is pressed. `host`: another address to listen on."""
        accept_old("UnifiedDashboard.run", old, frozenset(["debug", "allow_fallback"]))
        if host is not None and not self.running:
            self._host = host
        self.start()
        try:
            while self.running:
                self.wait(0.5)  # bounded, because Windows delivers Ctrl-C only in between
        finally:
            self.stop()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the dashboard has ended, at most for `timeout_s` seconds."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def stop(self) -> None:
        """End every stream and release the port, within a second. It may be called more than once."""
        if self._running is not None:
            self._running.stop()
        if self._thread is not threading.current_thread():
            self.wait(STOP_S)

    def __enter__(self) -> UnifiedDashboard:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_unified_dashboard(
    router: Any = None, dashboard_port: int = DEFAULT_PORT, *, host: str = "127.0.0.1", **old: Any
) -> dict[str, Any]:
    """Serve a dashboard until it is interrupted, in a daemon thread or as a program of its own.

    Returns:
        `{"started": True, "url"}` at the end, or at once `{"started": False, "url", "reason"}` if the port cannot be
        bound. It does not raise, because the calling program works without a dashboard.
    """
    accept_old("run_unified_dashboard", old, frozenset(old))
    dashboard = UnifiedDashboard(router, dashboard_port, host=host)
    try:
        dashboard.run()
    except CannotListen as error:
        _log.warning("No dashboard: %s", error)
        return {"started": False, "url": dashboard.url, "reason": str(error)}
    except KeyboardInterrupt:
        pass
    return {"started": True, "url": dashboard.url}


class Running:
    """Serve one dashboard in an event loop of its own."""

    def __init__(self, source: OverviewSource, hosts: HostGuard, listening: socket.socket) -> None:
        self.feed = Feed(source.overview)
        self._source = source
        self._hosts = hosts
        self._listening = listening
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()

    def serve(self) -> None:
        """Serve until `stop` is called."""
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    def stop(self) -> None:
        """End the serving, from any thread. It may be called more than once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._end.set)

    async def _serve(self) -> None:
        site = Site(self._source, self.feed, self._hosts)
        duties = Duties()
        try:
            await site.listen(duties, Outbox(self._loop), sock=self._listening)
            await self._end.wait()
        finally:
            self.feed.close()
            await site.close(GRACE_S)
            await duties.aclose()
            await self._source.aclose()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = next(_usable(found))
        return socket.create_server(address[:2], family=family)
    except (OSError, StopIteration) as error:
        hint = "choose another port (0: any free one)" if host in ("127.0.0.1", *WILDCARDS) else "check host and port"
        raise CannotListen(f"cannot listen on {host or '0.0.0.0'}, port {port}: {_reason(error)}; {hint}") from error


def _reason(error: OSError | StopIteration) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # the text of `create_server` repeats the address
    return getattr(error, "strerror", None) or "no such address"


def _usable(found: Iterable[Any]) -> Any:
    """Return the addresses of a name, IPv4 first, because more clients reach `localhost` by IPv4."""
    internet = [row for row in found if row[0] in (socket.AF_INET, socket.AF_INET6)]
    return iter(sorted(internet, key=lambda row: row[0] != socket.AF_INET))
