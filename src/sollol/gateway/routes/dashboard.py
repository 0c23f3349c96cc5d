"""The dashboard at /dashboard/ of the gateway: the same page, fed by the gateway's own pool.

Where keys are asked for, it asks for an admin key as the password of Basic authentication, which browsers send along
with every request of the page.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sollol.dashboard.feed import encode
from sollol.dashboard.guard import security_headers
from sollol.dashboard.page import page
from sollol.dashboard.site import HTML, send_events
from sollol.gateway.auth import access
from sollol.gateway.routes import admin as own
from sollol.http_server.request import Request

if TYPE_CHECKING:
    from sollol.gateway.app import Gateway

ROOT: Final = "/dashboard/"
EXPLAIN: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/explain/([^/]+)")
SERIES: Final[re.Pattern[str]] = re.compile(r"/dashboard/api/series/([0-9a-z]{1,8})")
CHALLENGE: Final = 'Basic realm="SOLLOL: any name, and an admin key as password"'


async def index(gateway: Gateway, request: Request) -> None:
    """Answer with the page."""
    access.admin(request, own.SEE)
    found = page()
    request.answer(200, found.html, HTML, security_headers(found.policy))


async def events(gateway: Gateway, request: Request) -> None:
    """Stream a snapshot twice a second."""
    access.admin(request, own.SEE)
    await send_events(gateway.feed, request)


async def series(gateway: Gateway, request: Request, span: str) -> None:
    """Answer with the work over time."""
    access.admin(request, own.SEE)
    request.answer(200, encode(gateway.pool.series(span)))


async def redirected(gateway: Gateway, request: Request) -> None:
    """Send the browser to the page, whose addresses are relative."""
    request.answer(307, b"", HTML, [("Location", ROOT)])
