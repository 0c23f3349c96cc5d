"""The head of a message, to be known again without a parser.

A connection that is kept open brings the same head again and again: only the length of the body differs (and of an
answer, each second, the date). Parsing one costs more than all the rest of reading a short message, because each
header is a call into Python. So a head that llhttp has taken once is compared, byte by byte; whatever differs in
anything but the digits of its Content-Length goes to llhttp.
"""

from __future__ import annotations

from typing import Final

DIGITS: Final = 15
_LENGTH: Final = b"\r\ncontent-length:"
_END: Final = b"\r\n\r\n"


class KnownHead:
    """`before` and `after` the digits of its Content-Length."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    def body(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole message with this head, and nothing more; else None."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        end = data.find(b"\r", start, start + DIGITS)
        if end < 0 or not data.startswith(self._after, end):
            return None
        digits = data[start:end]
        body = data[end + len(self._after) :]
        return body if digits.isdigit() and int(digits) == len(body) else None


def known_head(data: bytes) -> KnownHead | None:
    """Of `data`, which a parser has taken for whole messages; None if it is not one whole message with a length."""
    end = data.find(_END)
    place = data[: end + 2].lower().find(_LENGTH)
    if end < 0 or place < 0:
        return None
    start = place + len(_LENGTH)
    while data[start : start + 1] in (b" ", b"\t"):
        start += 1
    stop = data.find(b"\r", start)
    head = KnownHead(data[:start], data[stop : end + len(_END)])
    return head if head.body(data) is not None else None
