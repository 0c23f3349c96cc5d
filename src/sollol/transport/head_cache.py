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
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        size = len(data)
        start = place = len(before)
        stop = min(size, start + DIGITS)
        length = 0
        while place < stop:  # compiled, a few times as quick as finding, slicing and converting
            digit = data[place] - 48
            if digit < 0 or digit > 9:
                break
            length = 10 * length + digit
            place += 1
        begin = place + len(after)
        if place == start or size - begin != length or data[place:begin] != after:
            return None
        if place - start > 1 and data[start] == 48:  # a leading zero: another head, as text
            return None
        return data[begin:]


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
