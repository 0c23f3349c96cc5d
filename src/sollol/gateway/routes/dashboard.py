"""Serve the dashboard at /dashboard/, with the state of the gateway's own pool.

If keys are required, a page takes a key and keeps a session in a cookie. A key in the header Authorization works as
everywhere. A key without admin rights may read its own application (`gateway.own_view`).
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

from sollol.dashboard.feed import encode
from sollol.dashboard.page import login_page, page
from sollol.dashboard.site import HTML, history_query, security_headers, send_events
from sollol.errors import BadInput
from sollol.gateway.auth import access
from sollol.gateway.context import Context
from sollol.gateway.own_view import own_view
from sollol.gateway.routes import admin
from sollol.gateway.settings_in_force import settings_in_force
from sollol.http_server.request import Request

ROOT: Final = "/dashboard/"
EXPLAIN: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/explain/([^/]+)")
SERIES: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/series/([0-9a-z]{1,8})")


async def index(context: Context, request: Request) -> None:
    """Answer with the page, or with the one that takes a key."""
    if context.keyring.required and request.key is None:
        found = login_page()
        request.answer(401, found.html, HTML, [*security_headers(found.policy), ("Cache-Control", "no-store")])
        return
    found = page()
    request.answer(200, found.html, HTML, security_headers(found.policy))


async def login(context: Context, request: Request) -> None:
    """Open a session for the key in the header Authorization."""
    if request.key is None:
        raise BadInput("this gateway requires no key; open /dashboard/")
    is_secure = request.header(b"x-forwarded-proto") == "https"
    cookie = context.sessions.open(request.key, ROOT, is_secure, time.time())
    request.answer(204, b"", headers=[("Set-Cookie", cookie), ("Cache-Control", "no-store")])


async def logout(context: Context, request: Request) -> None:
    """End the session of a browser."""
    cookie = context.sessions.close(request.header(b"cookie"), ROOT)
    request.answer(204, b"", headers=[("Set-Cookie", cookie)])


async def events(context: Context, request: Request) -> None:
    """Stream a snapshot twice a second."""
    key = request.key
    await send_events(context.feed if key is None or key.admin else context.own_feeds.of(key), request)


async def snapshot(context: Context, request: Request) -> None:
    """Answer with the present state."""
    key = request.key
    if key is None or key.admin:
        request.answer(200, encode(context.overview()))
    else:
        request.answer(200, encode(own_view(context.pool, key, context.keyring.required)))


async def series(context: Context, request: Request, span: str) -> None:
    """Answer with the work over time."""
    access.check_admin(request, admin.VIEW_OTHERS)
    found = await asyncio.to_thread(context.pool.series, span)  # a month of the store takes a while
    request.answer(200, encode(found))


async def history(context: Context, request: Request) -> None:
    """Answer with finished requests of the store, newest first."""
    words, before = history_query(request)
    app = None if request.key is None or request.key.admin else request.key.app
    found = await asyncio.to_thread(context.pool.history, words, before=before, app=app)
    request.answer(200, encode(found))


async def settings(context: Context, request: Request) -> None:
    """Answer with the settings in force and where each came from."""
    access.check_admin(request, "see the settings")
    request.answer(200, encode({"settings": settings_in_force(context.settings)}))


async def redirected(context: Context, request: Request) -> None:
    """Send the browser to the page, whose addresses are relative."""
    request.answer(307, b"", HTML, [("Location", ROOT)])
