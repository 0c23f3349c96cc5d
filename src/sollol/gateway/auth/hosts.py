"""Check the Host of requests, and redirect paths that are not in normal form."""

from __future__ import annotations

import ipaddress
import posixpath
import socket
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

from sollol.http_server.request import Request, type_line

_OWN_SUFFIXES: Final = (".localhost", ".local", ".internal")
_IN_PATHS: Final = "/:@!$&'()*+,;=-._~"  # characters that are not encoded


def is_own_host(host: bytes, allowed: Iterable[str] = ()) -> bool:
    """Check that a Host is an address, localhost, a local name, or one of those allowed.

    The name of another site shows that its page reached this server through DNS rebinding.
    """
    name = host.rsplit(b":", 1)[0] if host[-1:] != b"]" else host
    if name in (b"localhost", b"127.0.0.1"):
        return True
    text = name.decode("latin-1").lower().strip("[]")
    if text.endswith(_OWN_SUFFIXES) or text in ("localhost", socket.gethostname().lower()):
        return True
    if any(text == other or (other.startswith("*.") and text.endswith(other[1:])) for other in allowed):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def refuse_host(request: Request) -> None:
    """Refuse a request for another host."""
    host = request.header(b"host")[:200]
    request.refuse(
        403,
        f"this gateway listens on loopback, and the request is for the host {host!r}; if a proxy before it sends that, "
        f"add the host to allowed_hosts in [gateway]",
    )


def clean(path: str) -> str:
    """Return a path without empty parts, `.` and `..`, as Go's server does."""
    found = posixpath.normpath("/" + path.lstrip("/"))
    return found + "/" if path.endswith("/") and found != "/" else found


def redirect(request: Request, status: int, path: str) -> None:
    """Redirect the client to another path of this server, in a node's wording."""
    query = request.target.partition("?")[2]
    where = quote(path, safe=_IN_PATHS) + (f"?{query}" if query else "")
    page, kind = b"", b""
    if request.method in ("GET", "HEAD"):
        kind = type_line("text/html; charset=utf-8")
        words = {301: "Moved Permanently", 307: "Temporary Redirect"}[status]
        shown = where.replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;").replace("<", "&lt;")
        page = f'<a href="{shown}">{words}</a>.\n\n'.encode()
    request.answer_with(status, page, kind, b"Location: " + where.encode("ascii", "replace") + b"\r\n")


def quoted(path: str) -> str:
    """Return a path in its encoded form."""
    return quote(path, safe=_IN_PATHS)
