"""Starting and stopping: a thread of its own with its own loop, beside whatever the program does.

The port is taken in the caller's thread, so that one that is in use is told at once. No signal handler is installed
and no logger is set up: those are the program's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sollol.dashboard.guard import WILDCARDS, Hosts
from sollol.dashboard.source import Source, source_of
from sollol.errors import BadInput, SollolError
from sollol.pool.keywords import accept_old

if TYPE_CHECKING:
    from sollol.dashboard.app import Server

DEFAULT_PORT = 8080
STOP_S = 5.0
_log = logging.getLogger("sollol.dashboard")


class CannotListen(SollolError):
    """The address is taken, not this machine's, or not allowed."""


class NotInstalled(SollolError):
    """The packages of the extra `dashboard` are missing."""


class UnifiedDashboard:
    """A live page of a pool. `run()` blocks, `start()` does not; a context manager.

    with UnifiedDashboard(pool, 8080) as dashboard:
        print(dashboard.url)

    `pool`: an OllamaPool, an AsyncOllamaPool, a router with a `.pool`, or None: the nodes of the settings, watched
    without a pool. Port 0 picks a free one. Keywords of older versions have no effect.
    """

    def __init__(self, pool: Any = None, port: int = DEFAULT_PORT, *, host: str = "127.0.0.1", **old: Any) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
            raise BadInput(f"port={port!r}; expected a number from 0 (any free one) to 65535")
        accept_old("UnifiedDashboard", old, frozenset(old))
        self._pool, self._port, self._host = pool, port, host
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it; with port 0, from the start on."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> str:
        """Serve in the background; the URL. Raises CannotListen, or NotInstalled without the extra."""
        if self.running:
            return self.url
        app = _installed()
        source = source_of(self._pool)
        feed = app.Feed(source.snapshot)
        listening = _listen(self._host, self._port)
        self._port = listening.getsockname()[1]
        self._server = app.Server(app.make_app(source, feed, Hosts(self._host)), feed)
        self._thread = threading.Thread(
            target=_serve, args=(self._server, listening, source), name="sollol-dashboard", daemon=True
        )
        self._thread.start()
        return self.url

    def run(self) -> None:
        """Serve until `stop()` is called, or Ctrl-C is pressed."""
        self.start()
        try:
            while self.running:
                self.wait(0.5)  # bounded, because Windows delivers Ctrl-C only in between
        finally:
            self.stop()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def stop(self) -> None:
        """End every stream and give the port back. Under a second; more than once is fine."""
        if self._server is not None:
            self._server.should_exit = True
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
    """Serve a dashboard until it is interrupted; made for a daemon thread, or a program of its own.

    Returns `{"started": True, "url"}` at the end, or at once `{"started": False, "url", "reason"}` if the port cannot
    be had: the program that wanted to show itself goes on.
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


def _serve(server: Server, listening: socket.socket, source: Source) -> None:
    async def main() -> None:
        try:
            await server.serve([listening])
        finally:
            await source.aclose()

    asyncio.run(main())


def _installed() -> Any:
    try:
        from sollol.dashboard import app
    except ImportError as error:
        raise NotInstalled(
            f"the dashboard needs packages that are not installed ({error}). "
            "In SOLLOL's checkout:  pip install '.[dashboard]'"
        ) from error
    return app


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = next(_usable(found))
        return socket.create_server(address[:2], family=family)
    except (OSError, StopIteration) as error:
        hint = "choose another port (0: any free one)" if host in ("127.0.0.1", *WILDCARDS) else "check host and port"
        raise CannotListen(f"cannot listen on {host or '0.0.0.0'}, port {port}: {_why(error)}; {hint}") from error


def _why(error: OSError | StopIteration) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # `create_server` says in its own text the address again
    return getattr(error, "strerror", None) or "no such address"


def _usable(found: Iterable[Any]) -> Any:
    """The addresses of a name, IPv4 first: `localhost` is reached by more clients so."""
    internet = [row for row in found if row[0] in (socket.AF_INET, socket.AF_INET6)]
    return iter(sorted(internet, key=lambda row: row[0] != socket.AF_INET))
