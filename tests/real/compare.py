"""Send a request byte by byte, and compare two answers in what clients go by."""

from __future__ import annotations

import json
import re
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.real.table import Case

WAIT_S = 60.0
_VARIES = re.compile(r"request_id|created|created_at|total_duration|load_duration|\w+_eval_\w+|id|context|eval_\w+")


class Seen(NamedTuple):
    """An answer: its status, the headers that clients go by, and what its body tells."""

    status: int
    kind: str
    location: str
    allow: tuple[str, ...]
    body: Any


def ask(url: str, case: Case, chat: str, embed: str) -> Seen:
    """Send the request on a connection of its own."""
    parts = urlsplit(url)

    def filled(text: bytes) -> bytes:
        for name, model in (("chat", chat), ("embed", embed)):
            text = text.replace(b"{%b}" % name.encode(), model.encode())
            text = text.replace(b"{%b}" % name.upper().encode(), model.upper().encode())
        return text

    body = filled(case.body)
    lines = [f"{case.method} {case.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in case.headers), "", ""]
    with socket.create_connection((parts.hostname or "", parts.port or 80), WAIT_S) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    return _read(raw, case)


def _read(raw: bytes, case: Case) -> Seen:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    status = int(first.split()[1])
    if case.loose:
        return Seen(status, "", "", (), None)
    kind = headers.get("content-type", "").partition(";")[0]
    allow = tuple(sorted(headers.get("allow", "").split(", ")))
    return Seen(status, kind, headers.get("location", ""), allow, _told(body, status))


def _joined(body: bytes) -> bytes:
    found = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        found, body = found + rest[:length], rest[length + 2 :] if length else b""
    return found


def _told(body: bytes, status: int) -> Any:
    """Of an error its words, of a good answer the names of its fields: its texts differ from call to call."""
    try:
        found = json.loads(body)
    except ValueError:
        return body
    if status >= 400:
        return {name: value for name, value in found.items() if not _VARIES.fullmatch(name)}
    return sorted(name for name in found if not _VARIES.fullmatch(name)) if isinstance(found, dict) else type(found)
