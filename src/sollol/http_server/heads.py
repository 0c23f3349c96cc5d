"""What a head may say: how long it is, what comes once, and how the body behind it is framed. No I/O.

What two readers could take for different requests is refused.
"""

from __future__ import annotations

import re
from typing import Final

TARGET_BYTES: Final = 16 * 1024
HEADERS: Final = 128
_TWO_SPACES: Final = re.compile(rb"[\r\n]*[^ \r\n]+ (?: |[^ \r\n]* {2})")  # which llhttp would take
# A second one of these would be a second opinion about who asks, or of whom.
_ONCE: Final = frozenset(
    (b"host", b"authorization", b"content-type", b"origin", b"expect", b"x-api-key", b"transfer-encoding")
)
_NEVER_TWICE: Final = frozenset((b"host", b"transfer-encoding"))  # also with the same value


class Broken(Exception):
    """The request breaks a rule: the answer, and then the end of the connection."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def check_request_line(data: bytes) -> None:
    """Check the beginning of a request. Raises Broken."""
    if _TWO_SPACES.match(data):
        raise Broken(400, "two spaces in the request line; expected one between its three parts")


def read_headers(raw: list[tuple[bytes, bytes]], version: str, bound: int) -> dict[bytes, bytes]:
    """Return the headers by their names. `bound`: of their bytes; 0 where they cannot be too many. Raises Broken."""
    headers = dict(raw)
    if len(headers) != len(raw):
        _check_repeated(raw)
    if len(raw) > HEADERS:
        raise Broken(431, f"more than {HEADERS} headers")
    if bound and sum(len(name) + len(value) for name, value in raw) > bound:
        raise Broken(431, f"the head of the request is larger than {bound} bytes")
    if version not in ("1.1", "1.0"):
        raise Broken(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
    return headers


def body_length(headers: dict[bytes, bytes], version: str) -> int:
    """Return how long the body is; -1 for chunks. Raises Broken for a framing that is not taken here."""
    if version == "1.1" and not headers.get(b"host"):
        raise Broken(400, "HTTP/1.1 needs a Host header")
    coding = headers.get(b"transfer-encoding")
    if coding is None:
        return int(headers.get(b"content-length", b"0"))
    if version == "1.0" or coding.lower() != b"chunked":
        raise Broken(400 if version == "1.0" else 501, "the only transfer coding taken here is chunked, in HTTP/1.1")
    return -1


def without_upgrade(method: str, url: bytes, version: str, raw: list[tuple[bytes, bytes]]) -> bytes:
    """Return a head again, without the protocol that it offers."""
    lines = [b"%b: %b\r\n" % header for header in raw if header[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), url, version.encode(), b"".join(lines))


def _check_repeated(raw: list[tuple[bytes, bytes]]) -> None:
    seen: dict[bytes, bytes] = {}
    for name, value in raw:
        before = seen.setdefault(name, value)
        differs = name in seen and before is not value and (before != value or name in _NEVER_TWICE)
        if differs and (name in _ONCE or name.startswith(b"x-sollol-")):
            raise Broken(400, f"the header {name.decode('latin-1')} came twice, with different values")
