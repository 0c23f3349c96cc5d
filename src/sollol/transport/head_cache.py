"""Recognise a message head that was parsed before.

A kept connection brings the same head again and again: only the length of the body differs (and of an answer, each
second, the date). Parsing one costs more than all the rest of reading a short message, because each header is a call
into Python. So a head that llhttp has accepted once is compared byte by byte; a head that differs in anything but the
digits of its Content-Length goes to llhttp.
"""

from __future__ import annotations

from typing import Final

DIGITS: Final = 15
_LENGTH: Final = b"\r\ncontent-length:"
_END: Final = b"\r\n\r\n"


class CachedHead:
    """A parsed head: the bytes `before` and `after` the digits of its Content-Length."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    def body(self, data: bytes) -> bytes | None:
        """Return the body if `data` is exactly one message with this head, else None."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        size = len(data)
        start = place = len(before)
        stop = min(size, start + DIGITS)
        length = 0
        while place < stop:  # compiled, this loop is a few times as fast as finding, slicing and converting
            digit = data[place] - 48
            if digit < 0 or digit > 9:
                break
            length = 10 * length + digit
            place += 1
        begin = place + len(after)
        if place == start or size - begin != length or data[place:begin] != after:
            return None
        if place - start > 1 and data[start] == 48:  # a leading zero makes another head
            return None
        return data[begin:]


def cache_head(data: bytes) -> CachedHead | None:
    """Return the head of `data`, which a parser has accepted; None unless it is one whole message with a length."""
    end = data.find(_END)
    place = data[: end + 2].lower().find(_LENGTH)
    if end < 0 or place < 0:
        return None
    start = place + len(_LENGTH)
    while data[start : start + 1] in (b" ", b"\t"):
        start += 1
    stop = data.find(b"\r", start)
    head = CachedHead(data[:start], data[stop : end + len(_END)])
    return head if head.body(data) is not None else None
