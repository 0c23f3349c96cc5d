"""Cut arrived bytes into the pieces that the parser gets, so that each request begins with a new piece.

The parser accepts two spaces in a request line and reports no positions. A head ends with an empty line, and so does a
body in chunks; a cut there makes it possible to check each request line, and to check the bounds between requests.
Small pieces also bound the work between two checks, since each header and each chunk is a call into Python.
"""

from __future__ import annotations

from typing import Final

from sollol.http_server.heads import check_request_line
from sollol.http_server.intake import Body

HEAD_BYTES: Final = 2048  # of heads, of which many may come together
CHUNKS_BYTES: Final = 1024  # of a body in chunks, each of which is a call
LONG_BYTES: Final = 4096  # of such a body while no chunk begins: extensions and trailers
END: Final = b"\r\n\r\n"


class Cutter:
    """Cut the bytes of one connection."""

    __slots__ = ("_last", "_line", "_most")

    def __init__(self) -> None:
        self._line = b""  # of a request, not complete
        self._last = b""  # up to three bytes of the same request before the next piece
        self._most = CHUNKS_BYTES

    def end(self, data: bytes, place: int, body: Body | None) -> int:
        """Return the end of the piece that begins at `place`, at most the length of `data`.

        Args:
            body: The body that is arriving.
        """
        if body is not None and body.left:
            return min(len(data), place + body.left)
        stop = min(len(data), place + (HEAD_BYTES if body is None else self._most))
        seam = (self._last + data[place : place + 3]).find(END) if self._last else -1
        if seam >= 0:
            return place + seam + len(END) - len(self._last)
        end = data.find(END, place, stop)
        return end + len(END) if end >= 0 else stop

    def check(self, piece: bytes, begins: bool) -> None:
        """Check a request line when it is complete.

        Args:
            begins: The piece is the beginning of a request.

        Raises:
            Broken: The line breaks a rule.
        """
        if begins:
            self._line = piece.lstrip(b"\r\n")
        elif self._line:
            self._line += piece
        if b"\n" in self._line:
            line, self._line = self._line, b""
            check_request_line(line)

    def parsed(self, piece: bytes, ends: bool, chunks: int) -> None:
        """Record a parsed piece.

        Args:
            ends: No request continues behind it.
            chunks: The chunks of a body that it contained.
        """
        self._last = b"" if ends else piece[-3:]
        self._most = CHUNKS_BYTES if chunks or ends else min(2 * self._most, LONG_BYTES)

    def restart(self) -> None:
        """Forget the bytes before the next piece."""
        self._last = b""
