"""Serve the dashboard's routes on the HTTP server that the gateway uses, too."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from sollol.dashboard.feed import Feed, encode
from sollol.dashboard.page import page
from sollol.dashboard.source import OverviewSource
from sollol.errors import BadInput, SollolError
from sollol.http_server.host_guard import HostGuard
from sollol.http_server.limits import ServerLimits
from sollol.http_server.request import SSE, Request
from sollol.http_server.server import HttpServer
from sollol.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from sollol.version import __version__

log: Final = logging.getLogger("sollol.dashboard")
HTML: Final = "text/html; charset=utf-8"
LIMITS: Final = ServerLimits(max_body_mb=1, max_arriving_mb=1, max_held_mb=1, max_connections=128)
EXPLAIN: Final = re.compile(r"/api/explain/([0-9]{1,18})")
SERIES: Final = re.compile(r"/api/series/([0-9a-z]{1,8})")
Handler = Callable[[Request], Awaitable[None]]


class Site(HttpServer):
    """Serve the page, snapshots, events and explanations of a source; all routes only read."""

    def __init__(self, source: OverviewSource, feed: Feed, hosts: HostGuard) -> None:
        super().__init__(LIMITS)
        self.feed = feed
        self._source = source
        self._hosts = hosts
        self._headers = b"".join(
            f"{name}: {value}\r\n".encode("latin-1") for name, value in security_headers(page().policy)
        )
        self._routes: dict[str, Handler] = {
            "/": self._index,
            "/api/snapshot": self._snapshot,
            "/api/events": self._events,
            "/api/history": self._history,
            "/healthz": self._health,
            "/metrics": self._metrics,
            "/health": self._health,  # its name in older versions
            "/api/applications": self._applications,
        }

    def header_lines(self) -> bytes:
        """Return the lines that close every answer to other sites."""
        return self._headers

    def decide(self, request: Request) -> None:
        """Refuse foreign hosts, unknown paths, and all methods but GET and HEAD."""
        request.takes_body = False
        found, handler = None, self._routes.get(request.path)
        for pattern, answer in ((EXPLAIN, self._explain), (SERIES, self._series)):
            if handler is None and (found := pattern.fullmatch(request.path)):
                handler = answer
        if not self._hosts.allows(request.headers.get(b"host")):
            request.refuse(403, "this name is not served here; use the address that the dashboard was started with")
        elif handler is None:
            request.refuse(404, "")
        elif request.method not in ("GET", "HEAD"):
            request.refuse(405, "", [("Allow", "GET, HEAD")])
        else:
            request.parts = found.groups() if found else ()
            request.route = handler

    def handle(self, request: Request) -> None:
        """Answer in a task that is cancelled when the client leaves."""
        request.on_gone = self.spawn(self._answer(request)).cancel

    async def _answer(self, request: Request) -> None:
        try:
            await request.route(request)
        except BadInput as error:
            request.refuse(404, str(error))
        except SollolError as error:
            request.refuse(503, str(error))
        except Exception as error:
            log.error("in %s %s: %s", request.method, request.path, error, exc_info=error)
            if request.has_begun:
                request.cut()
            else:
                request.refuse(500, "the dashboard failed at this request; see its log")

    async def _index(self, request: Request) -> None:
        request.answer(200, page().html, HTML)

    async def _snapshot(self, request: Request) -> None:
        request.answer(200, encode(await self._source.overview()))

    async def _explain(self, request: Request) -> None:
        request.answer(200, encode(await self._source.explain(int(request.parts[0]))))

    async def _series(self, request: Request) -> None:
        request.answer(200, encode(await self._source.series(request.parts[0])))

    async def _history(self, request: Request) -> None:
        request.answer(200, encode(await self._source.history(*history_query(request))))

    async def _health(self, request: Request) -> None:
        request.answer(200, encode({"status": "ok", "version": __version__}))

    async def _metrics(self, request: Request) -> None:
        request.answer(200, await self._source.metrics(), METRICS_TYPE)

    async def _applications(self, request: Request) -> None:
        shown = getattr(await self._source.overview(), "applications", None) or {}
        found = shown.get("processes", [])
        request.answer(200, encode({"applications": found, "total": len(found)}))

    async def _events(self, request: Request) -> None:
        await send_events(self.feed, request)


def history_query(request: Request) -> tuple[str, int | None]:
    """Return the filter, and the row before the requested ones, of `?filter=…&before=…`.

    Raises:
        BadInput: `before` is no number.
    """
    before = request.query.get("before", "")
    if before and not (before.isascii() and before.isdigit() and len(before) < 19):
        raise BadInput(f"before={before[:40]!r} is no row; expected `next` of an earlier answer")
    return request.query.get("filter", ""), int(before) if before else None


def security_headers(policy: str) -> list[tuple[str, str]]:
    """Return headers by which a browser runs only the page's own script, shows no frame and caches nothing."""
    return [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ]


async def send_events(feed: Feed, request: Request) -> None:
    """Stream a feed to a client until either ends; answer 503 where too many listen."""
    if not feed.take_place():
        request.refuse(503, "too many listeners; close other tabs", [("Retry-After", "5")])
        return
    try:
        request.begin(200, SSE)
        async for frame in feed.frames():
            if not request.write(frame):
                await request.drained()
        request.end()
    finally:
        feed.leave()
