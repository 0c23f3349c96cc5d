"""Check the head of a request: its size, repeated headers, and the framing of its body. No I/O.

A head that two servers could parse as different requests is refused.
"""

from __future__ import annotations

import re
from typing import Final

TARGET_BYTES: Final = 16 * 1024
HEADERS: Final = 128
_TWO_SPACES: Final = re.compile(rb"[\r\n]*[^ \r\n]+ (?: |[^ \r\n]* {2})")  # accepted by llhttp
# Two different values of these would let two servers decide differently.
_ONCE: Final = frozenset(
    (b"host", b"authorization", b"content-type", b"origin", b"expect", b"x-api-key", b"transfer-encoding")
)
_NEVER_TWICE: Final = frozenset((b"host", b"transfer-encoding"))  # even with equal values


class Broken(Exception):
    """A request breaks a rule; the connection ends after the answer. Status 0: without an answer."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def check_request_line(data: bytes) -> None:
    """Check the line of a request.

    Raises:
        Broken: It has two spaces between its parts.
    """
    if _TWO_SPACES.match(data):
        raise Broken(400, "two spaces in the request line; expected one between its three parts")


def read_headers(raw: list[tuple[bytes, bytes]], version: str, bound: int) -> dict[bytes, bytes]:
    """Return the headers by their names.

    Args:
        bound: The most bytes of names and values; 0 for no check.

    Raises:
        Broken: There are too many, one is repeated, or the version is unknown.
    """
    headers = dict(raw)
    if len(headers) != len(raw):
        _check_repeated(raw)
    if len(raw) > HEADERS:
        raise Broken(431, f"more than {HEADERS} headers")
    if bound and sum(len(name) + len(value) for name, value in raw) > bound:
        raise Broken(431, f"the head of the request is larger than {bound} bytes")
    if version not in ("1.1", "1.0"):
        raise Broken(505, f"HTTP/{version} is not supported; use HTTP/1.1")
    return headers


def body_length(headers: dict[bytes, bytes], version: str) -> int:
    """Return the length of the body in bytes; -1 for chunks.

    Raises:
        Broken: The framing is not supported, or the Host header is missing.
    """
    if version == "1.1" and not headers.get(b"host"):
        raise Broken(400, "HTTP/1.1 needs a Host header")
    coding = headers.get(b"transfer-encoding")
    if coding is None:
        return int(headers.get(b"content-length", b"0"))
    if version == "1.0" or coding.lower() != b"chunked":
        raise Broken(400 if version == "1.0" else 501, "the only supported transfer coding is chunked, in HTTP/1.1")
    return -1


def without_upgrade(method: str, url: bytes, version: str, raw: list[tuple[bytes, bytes]]) -> bytes:
    """Return a head without its Upgrade header."""
    lines = [b"%b: %b\r\n" % header for header in raw if header[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), url, version.encode(), b"".join(lines))


def _check_repeated(raw: list[tuple[bytes, bytes]]) -> None:
    seen: dict[bytes, bytes] = {}
    for name, value in raw:
        before = seen.setdefault(name, value)
        differs = name in seen and before is not value and (before != value or name in _NEVER_TWICE)
        if differs and (name in _ONCE or name.startswith(b"x-sollol-")):
            raise Broken(400, f"the header {name.decode('latin-1')} came twice, with different values")
