"""Serve the dashboard at /dashboard/, with the state of the gateway's own pool.

If keys are required, an admin key is the password of Basic authentication, which browsers send with each request.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from sollol.dashboard.feed import encode
from sollol.dashboard.page import page
from sollol.dashboard.site import HTML, security_headers, send_events
from sollol.gateway.auth import access
from sollol.gateway.context import Context
from sollol.gateway.routes import admin
from sollol.http_server.request import Request

ROOT: Final = "/dashboard/"
EXPLAIN: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/explain/([^/]+)")
SERIES: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/series/([0-9a-z]{1,8})")
CHALLENGE: Final = 'Basic realm="SOLLOL: any name, and an admin key as password"'


async def index(context: Context, request: Request) -> None:
    """Answer with the page."""
    access.check_admin(request, admin.SEE)
    found = page()
    request.answer(200, found.html, HTML, security_headers(found.policy))


async def events(context: Context, request: Request) -> None:
    """Stream a snapshot twice a second."""
    access.check_admin(request, admin.SEE)
    await send_events(context.feed, request)


async def series(context: Context, request: Request, span: str) -> None:
    """Answer with the work over time."""
    access.check_admin(request, admin.SEE)
    request.answer(
        200, encode(await asyncio.to_thread(context.pool.series, span))
    )  # a month of the store takes a while


async def redirected(context: Context, request: Request) -> None:
    """Send the browser to the page, whose addresses are relative."""
    request.answer(307, b"", HTML, [("Location", ROOT)])
