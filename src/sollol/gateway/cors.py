"""Pages of which sites may read our answers. As Ollama: those on this machine and desktop programs; others by setting.

A request that names a foreign origin is refused, not only left without permission: a page can send a POST that it may
not read, and a POST makes a node work.
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
    def __init__(self, origins: Iterable[str]) -> None:
        """`origins`: further ones, with `*` for anything, as in "https://*.example.org"."""
        self._own = [re.compile(".*".join(map(re.escape, origin.split("*")))) for origin in origins]

    def allows(self, origin: str) -> bool:
        return bool(_LOCAL.fullmatch(origin)) or any(own.fullmatch(origin) for own in self._own)

    def admit(self, request: Request) -> bool:
        """True: go on. Otherwise it is answered: a preflight, or one from a site that is not allowed."""
        origin = request.header(b"origin")
        if not self.allows(origin):
            host = request.header(b"host")
            if origin.partition("://")[2] != host or not host:  # our own page
                request.answer(403, b"")
                return False
        request.origin = origin.encode("latin-1")
        if request.method == "OPTIONS" and b"access-control-request-method" in request.headers:
            asked = request.header(b"access-control-request-headers")
            headers = [("Access-Control-Allow-Methods", _METHODS), ("Access-Control-Max-Age", _MAX_AGE_S)]
            if asked and re.fullmatch(r"[A-Za-z0-9_,\- ]*", asked):
                headers.append(("Access-Control-Allow-Headers", asked))
            request.answer(204, b"", headers=headers)
            return False
        return True
