"""Serve the metrics at an address of their own, and check who may read them.

A scraper often comes from another machine than the clients do, and should reach nothing but the metrics.
"""

from __future__ import annotations

from typing import Any, Final

from sollol.engine.engine import Engine
from sollol.errors import SollolError
from sollol.gateway.auth import admission
from sollol.gateway.auth.access import check_admin
from sollol.gateway.auth.keys import Keyring
from sollol.gateway.formats.error_responses import status_of
from sollol.gateway.settings import MetricsSettings
from sollol.http_server.host_guard import HostGuard, is_loopback
from sollol.http_server.limits import ServerLimits
from sollol.http_server.request import Request
from sollol.http_server.server import HttpServer
from sollol.observe.metrics import CONTENT_TYPE
from sollol.version import __version__

PATH: Final = "/metrics"
LIMITS: Final = ServerLimits(max_body_mb=1, max_arriving_mb=1, max_held_mb=1, max_connections=64)


def check_reader(settings: MetricsSettings, keyring: Keyring, request: Request, *, required: bool) -> None:
    """Check that a request with an identified key may read the metrics.

    Raises:
        ResponseError: 401 without a key that is needed, 403 without admin rights.
    """
    if settings.keys == "none":
        return
    if required and request.key is None:
        admission.identify(keyring, request, public=False, challenge="Bearer", required=True)
    if settings.keys == "admin":
        check_admin(request, "read the metrics")


class MetricsServer(HttpServer):
    """Answer GET /metrics, and nothing else. On an address that other machines reach, it needs a key in any case."""

    def __init__(self, settings: MetricsSettings, keyring: Keyring, engine: Engine) -> None:
        super().__init__(LIMITS)
        self.settings = settings
        self._keyring = keyring
        self._engine = engine
        self._is_local = is_loopback(settings.address[0])
        self._hosts = HostGuard(settings.address[0]) if self._is_local else None

    def decide(self, request: Request) -> None:
        """Refuse other paths and methods, foreign hosts, and readers without a right."""
        request.takes_body = False
        if self._hosts is not None and not self._hosts.allows(request.headers.get(b"host")):
            request.refuse(403, "this name is not served here; use the address in [metrics]")
        elif request.path != PATH:
            request.refuse(404, f"only {PATH} is served here")
        elif request.method not in ("GET", "HEAD"):
            request.refuse(405, "", [("Allow", "GET, HEAD")])
        else:
            try:
                admission.identify(self._keyring, request, public=True, challenge="Bearer")
                required = self._keyring.required or not self._is_local
                check_reader(self.settings, self._keyring, request, required=required)
            except SollolError as error:
                status, headers = status_of(error)
                request.refuse(status, str(getattr(error, "error", error)), headers)
            else:
                request.route = self

    def proves(self, request: Request) -> bool:
        """Check whether a complete request shows that its connection is no stranger's."""
        return request.key is not None

    def settled(self, request: Request) -> Any:
        """Return None: each request's key is checked."""
        return None

    def handle(self, request: Request) -> None:
        """Answer with the metrics."""
        request.answer(200, self._engine.metrics(__version__), CONTENT_TYPE)
