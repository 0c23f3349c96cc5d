"""The routes. Imported only where starlette and uvicorn are installed."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sollol.dashboard.feed import Feed, encode
from sollol.dashboard.guard import Guard, Hosts, security_headers
from sollol.dashboard.page import page
from sollol.dashboard.source import Source
from sollol.errors import BadInput, SollolError
from sollol.version import __version__

CONNECTIONS = 128
GRACE_S = 1


class Events:
    """`/api/events`: snapshots as server-sent events, about one a second."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._feed.take_place():
            answer: Response = _problem(503, "too many listeners; close other tabs", {"Retry-After": "5"})
            await answer(scope, receive, send)
            return
        try:
            headers = {"X-Accel-Buffering": "no"}  # a proxy in front must not gather frames
            answer = StreamingResponse(self._feed.frames(), media_type="text/event-stream", headers=headers)
            await answer(scope, receive, send)
        finally:
            self._feed.leave()


def make_app(source: Source, feed: Feed, hosts: Hosts) -> Starlette:
    """The dashboard as an ASGI application."""

    async def index(request: Request) -> Response:
        return HTMLResponse(page().html)

    async def snapshot(request: Request) -> Response:
        try:
            return Response(encode(await source.snapshot()), media_type="application/json")
        except SollolError as error:
            return _problem(503, str(error))

    async def explain(request: Request) -> Response:
        try:
            return Response(encode(await source.explain(request.path_params["id"])), media_type="application/json")
        except BadInput as error:
            return _problem(404, str(error))
        except SollolError as error:
            return _problem(503, str(error))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/api/snapshot", snapshot),
            Route("/api/events", Events(feed), methods=["GET"]),
            Route("/api/explain/{id:int}", explain),
            Route("/healthz", health),
        ],
        middleware=[Middleware(Guard, hosts=hosts, headers=security_headers(page().policy))],
    )


def _problem(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)


class Server(uvicorn.Server):
    """Runs in a thread, on a socket that listens already. Streams end before the connections are waited for."""

    def __init__(self, app: Starlette, feed: Feed) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        # Passed to Config, this would silence the access log of every other uvicorn in this process.
        config.access_log = False
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._feed.close()
        await super().shutdown(sockets)
