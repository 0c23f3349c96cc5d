"""Normalise paths, and redirect requests for others."""

from __future__ import annotations

import posixpath
from typing import Final
from urllib.parse import quote

from sollol.http_server.request import Request, type_line

_UNENCODED: Final = "/:@!$&'()*+,;=-._~"


def normal_path(path: str) -> str:
    """Return a path without empty parts, `.` and `..`, as Go's server does."""
    found = posixpath.normpath("/" + path.lstrip("/"))
    return found + "/" if path.endswith("/") and found != "/" else found


def redirect(request: Request, status: int, path: str) -> None:
    """Redirect the client to another path of this server, in a node's wording."""
    query = request.target.partition("?")[2]
    where = quote(path, safe=_UNENCODED) + (f"?{query}" if query else "")
    page, kind = b"", b""
    if request.method in ("GET", "HEAD"):
        kind = type_line("text/html; charset=utf-8")
        words = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
        shown = where.replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;").replace("<", "&lt;")
        page = f'<a href="{shown}">{words}</a>.\n\n'.encode()
    request.answer_with(status, page, kind, b"Location: " + where.encode("ascii", "replace") + b"\r\n")


def quoted(path: str) -> str:
    """Return a path in its encoded form."""
    return quote(path, safe=_UNENCODED)
