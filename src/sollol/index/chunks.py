"""Cut text into overlapping pieces at paragraphs, sentences and words.

An embedding loses precision when a piece holds several thoughts, and a fact across a cut is found by neither half. So
pieces end at the last paragraph, else sentence, else word boundary that fits, and each repeats the end of the one
before it (`overlap`). A word is cut only if it alone is too long.

The text may arrive in slices, so a file of any size needs memory for a few pieces only. A cut reads at most `size + 1`
characters ahead, and is made only when those are there or the text has ended. Therefore the pieces do not depend on the
slices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sollol.errors import BadInput

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
# The full stops of Chinese and Japanese (U+3002, U+FF01, U+FF1F) have no space after them.
_SENTENCE = re.compile(r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]|\n\s*")
_SPACE = re.compile(r"\s+")
_NO_SPACE = re.compile(r"\S")


class Cut(NamedTuple):
    """Sizes of pieces in characters. Consecutive pieces share at most `overlap`."""

    size: int = 1000
    overlap: int = 150

    def checked(self) -> Cut:
        """Return these sizes.

        Raises:
            BadInput: A size is out of range.
        """
        if self.size < 1:
            raise BadInput(f"--chunk-size {self.size}: expected at least 1 character")
        if self.overlap < 0:
            raise BadInput(f"--overlap {self.overlap}: expected 0 or more characters")
        if self.overlap > self.size // 2:
            raise BadInput(
                f"--overlap {self.overlap} is more than half of --chunk-size {self.size}; "
                f"expected at most {self.size // 2}"
            )
        return self


class Chunk(NamedTuple):
    """A piece of text without surrounding space; `start` is its offset in the whole text."""

    text: str
    start: int


def chunks(slices: Iterable[str], cut: Cut) -> Iterator[Chunk]:
    """Cut a text that arrives in slices. Memory: one slice and one piece."""
    buffer, base = "", 0  # `base` is the offset of buffer[0] in the whole text
    for piece in slices:
        buffer += piece
        at = _skip_space(buffer, 0)
        while len(buffer) - at > cut.size + 1:
            end = _end(buffer, at, cut)
            yield Chunk(buffer[at:end].rstrip(), base + at)
            at = _skip_space(buffer, _next_start(buffer, at, end, cut))
        buffer, base = buffer[at:], base + at
    at = _skip_space(buffer, 0)
    while at < len(buffer):
        end = _end(buffer, at, cut)
        yield Chunk(buffer[at:end].rstrip(), base + at)
        at = end if end == len(buffer) else _skip_space(buffer, _next_start(buffer, at, end, cut))


def _skip_space(text: str, at: int) -> int:
    found = _NO_SPACE.search(text, at)
    return found.start() if found else len(text)


def _end(text: str, start: int, cut: Cut) -> int:
    """Return the end (exclusive) of the piece that begins at `start`."""
    limit = start + cut.size
    if len(text) <= limit:
        return len(text)
    half = start + max(cut.overlap + 1, cut.size // 2)
    for boundary in (_PARAGRAPH, _SENTENCE):
        if end := _last_boundary(boundary, text, start, half, limit):
            return end
    if text[limit].isspace():
        return limit
    return _last_boundary(_SPACE, text, start, start + cut.overlap + 1, limit) or limit


def _last_boundary(boundary: re.Pattern[str], text: str, start: int, low: int, high: int) -> int:
    """Return the end of the last match within [start, high] that ends at `low` or later, or 0."""
    last = 0
    for match in boundary.finditer(text, max(low - 4, start), high):
        if match.end() >= low:
            last = match.end()
    return last


def _next_start(text: str, start: int, end: int, cut: Cut) -> int:
    """Return the start of the next piece: at most `overlap` before `end`, at the beginning of a word if possible."""
    earliest = max(end - cut.overlap, start + 1)
    if earliest >= end:
        return end
    if text[earliest - 1].isspace() and not text[earliest].isspace():
        return earliest
    for match in _SPACE.finditer(text, earliest, end):
        if match.end() < end:
            return match.end()
    at_boundary = text[end - 1].isspace() or text[end].isspace()
    return end if at_boundary else earliest
