"""Keep the results of parsing a head, for later requests with the same head on a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sollol.http_server.request import Request, has_ours
from sollol.transport.head_cache import CachedHead

if TYPE_CHECKING:
    from sollol.http_server.server import HttpServer


class KnownRequest:
    """Hold the parsed head of a request, its route, and the limits under which it was accepted."""

    __slots__ = ("head", "headers", "limits", "max_body_bytes", "method", "plain", "route", "target", "version")

    def __init__(self, head: CachedHead, request: Request, server: HttpServer) -> None:
        self.head = head
        self.method = request.method
        self.target = request.target
        self.version = request.version
        self.headers = {name: value for name, value in request.headers.items() if name != b"content-length"}
        self.plain = not has_ours(request.headers)
        self.route = server.settled(request)
        self.limits = server.limits
        self.max_body_bytes = server.limits.max_body_bytes
