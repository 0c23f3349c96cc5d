"""Permit pages on this machine, desktop programs and configured sites to read answers, as Ollama does.

A request of another origin is refused: a page can send a POST without permission to read its answer, and a POST makes
a node work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sollol.http_server.request import Request

_LOCAL: Final = re.compile(
    r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?|(app|file|tauri|vscode-webview|vscode-file)://.*"
)
_METHODS: Final = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_MAX_AGE_S: Final = "43200"


class Cors:
    """Check the Origin of requests."""

    def __init__(self, origins: Iterable[str]) -> None:
        """Add further origins, with `*` for any text, as in "https://*.example.org"."""
        self._own = [re.compile(".*".join(map(re.escape, origin.split("*")))) for origin in origins]

    def allows(self, origin: str) -> bool:
        """Check whether pages of an origin may read answers."""
        return bool(_LOCAL.fullmatch(origin)) or any(own.fullmatch(origin) for own in self._own)

    def admit(self, request: Request) -> bool:
        """Check whether to handle a request; if not, it is answered as a preflight or refused."""
        origin = request.header(b"origin")
        if not self.allows(origin):
            host = request.header(b"host")
            if origin.partition("://")[2] != host or not host:  # our own page
                request.answer(403, b"")
                return False
        request.origin = origin.encode("latin-1")
        if request.method == "OPTIONS" and b"access-control-request-method" in request.headers:
            requested = request.header(b"access-control-request-headers")
            headers = [("Access-Control-Allow-Methods", _METHODS), ("Access-Control-Max-Age", _MAX_AGE_S)]
            if requested and re.fullmatch(r"[A-Za-z0-9_,\- ]*", requested):
                headers.append(("Access-Control-Allow-Headers", requested))
            request.answer(204, b"", headers=headers)
            return False
        return True
