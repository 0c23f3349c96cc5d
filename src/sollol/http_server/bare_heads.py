"""Accept health checks whose lines end without a carriage return, on three routes.

A node accepts such lines, too. On all other routes they are refused, because two servers may parse them differently.
These requests have no body and change nothing.
"""

from __future__ import annotations

import re
from typing import Final

HEAD_BYTES: Final = 2048
_START: Final = re.compile(rb"(?:GET|HEAD) (?:/|/api/version|/api/tags) HTTP/1\.[01]\n")
_FRAMED: Final = re.compile(rb"^(?:content-length|transfer-encoding|upgrade|expect)\b", re.IGNORECASE | re.MULTILINE)


def collect(before: bytes, data: bytes) -> tuple[bytes, bytes | None]:
    """Return the bytes to keep until more arrive, and the bytes to parse.

    Args:
        before: The bytes kept by the last call.
        data: The bytes that arrived.

    Returns:
        The second is None while a head is incomplete.
    """
    if not before and not _START.match(data):
        return b"", data
    head = before + data
    if b"\r" in head or len(head) > HEAD_BYTES or _FRAMED.search(head):
        return b"", head  # the parser refuses it
    if not head.endswith(b"\n\n"):
        return (head, None) if b"\n\n" not in head else (b"", head)
    if b"\n\n" in head[:-2]:
        return b"", head
    return b"", head.replace(b"\n", b"\r\n")
