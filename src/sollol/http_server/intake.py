"""Bound the memory of request bodies, and choose the connections that may send theirs.

The bytes of arriving bodies are counted over all connections. Above the limit, the largest body that waits is refused,
so large bodies do not keep small ones out. Bodies that are being read may fill the size of one whole body while the
others use little. A complete body is counted until its request is answered.

Bodies that are large, or costly to parse (cut into small chunks), are read a few at a time: each connection reads up
to 256 KiB in a turn of the loop, and two hundred such reads would delay all other requests. The others wait unread in
the kernel, where flow control stops their senders. A connection that has read for a second, or 32 MiB, goes to the end
of the line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sollol.http_server.connection import ClientConnection
    from sollol.http_server.limits import ServerLimits

MB: Final = 1024 * 1024
SMALL_COST: Final = 64 * 1024  # a body up to this cost is read without waiting in line
SMALL_PIECE: Final = 16 * 1024  # smaller pieces are joined with others
PIECE_COST: Final = 256  # added for each piece, for the call of the parser
READERS: Final = 2  # large bodies that are read or decoded at the same time
TURN_COST: Final = 32 * 1024 * 1024
TURN_S: Final = 1.0
ALONE: Final = 8  # readers may exceed the limit if the others hold at most an eighth of it


class Body:
    """Collect the pieces of an arriving body.

    The pieces are joined once at the end, because one growing buffer would be copied many times.
    """

    __slots__ = ("_pieces", "_small", "began", "counted", "left", "paused_at", "pieces", "size", "wire")

    def __init__(self, began: float, left: int) -> None:
        self.began = began
        self.left = left  # bytes to come, of a body of known length; 0 for chunks
        self.size = 0
        self.pieces = 0  # that arrived
        self.wire = 0  # bytes that arrived, with the framing of chunks
        self.counted = 0  # bytes that the intake has counted
        self.paused_at = 0.0  # time at which reading was paused; 0 while it is read
        self._pieces: list[bytes] = []
        self._small = bytearray()

    def add(self, piece: bytes) -> None:
        """Append a piece."""
        if len(piece) < SMALL_PIECE and self._pieces:
            self._small += piece
            if len(self._small) < SMALL_PIECE:
                return
            piece = b""
        if self._small:
            self._pieces.append(bytes(self._small))
            self._small.clear()
        if piece:
            self._pieces.append(piece)

    @property
    def cost(self) -> int:
        """Return the cost of reading so far, in bytes."""
        return self.size + PIECE_COST * self.pieces

    def take_pieces(self) -> list[bytes]:
        """Return and clear the pieces."""
        pieces, self._pieces = self._pieces, []
        if self._small:
            pieces.append(bytes(self._small))
        return pieces


class Intake:
    """Count the bodies of one server, and give connections their turns to read."""

    def __init__(self, limits: ServerLimits) -> None:
        self.apply(limits)
        self.arriving = 0
        self.held = 0  # bytes of complete bodies whose requests are not answered yet
        self._bodies: dict[ClientConnection, int] = {}
        self._turns: dict[ClientConnection, tuple[float, int]] = {}  # time and cost at the start of each turn
        self._line: dict[ClientConnection, None] = {}
        self._decoding = 0  # complete bodies that are decoded or wait for it

    def apply(self, limits: ServerLimits) -> None:
        """Use these limits from now on."""
        self.arriving_bytes = limits.max_arriving_mb * MB
        self.body_bytes = limits.max_body_mb * MB
        self.held_bytes = max(limits.max_held_mb, limits.max_body_mb) * MB  # the largest body always has room

    @property
    def readers(self) -> int:
        """Return the number of connections that have a turn."""
        return len(self._turns)

    def grown(self, connection: ClientConnection, size: int) -> None:
        """Record the size in bytes of the body arriving on `connection`; refuse the largest above the limit."""
        self.arriving += size - self._bodies.get(connection, 0)
        self._bodies[connection] = size
        while self.arriving > self.arriving_bytes:
            others = [one for one in self._bodies if one not in self._turns]
            waiting = sum(self._bodies[one] for one in others)
            are_few = waiting <= self.arriving_bytes // ALONE
            if are_few and self.arriving - waiting <= self.body_bytes:
                return
            largest = max(self._bodies if are_few else others, key=self._bodies.__getitem__)
            self.forget(largest)
            largest.no_room()

    def forget(self, connection: ClientConnection, is_whole: bool = False) -> None:
        """Remove a connection whose body has ended, and give its turn to the next.

        Args:
            connection: The connection.
            is_whole: The body is complete; the next turn then waits until its decoding is counted.
        """
        self.arriving -= self._bodies.pop(connection, 0)
        self._line.pop(connection, None)
        if self._turns.pop(connection, None) is None:
            return
        if is_whole:  # `decodes` is called in the next turn of the loop
            connection.loop.call_soon(connection.loop.call_soon, self._next)
        else:
            self._next()

    def may_read(self, connection: ClientConnection, cost: int, now: float) -> bool:
        """Check whether `connection` may read; if not, put it in line and call its `go_on` later."""
        turn = self._turns.get(connection)
        if turn is not None:
            if not self._line or (now - turn[0] < TURN_S and cost - turn[1] < TURN_COST):
                return True
            del self._turns[connection]
            self._line[connection] = None
            self._next()
            return False
        if len(self._turns) + self._decoding < READERS and not self._line:
            self._turns[connection] = (now, cost)
            return True
        self._line[connection] = None
        return False

    def _next(self) -> None:
        while self._line and len(self._turns) + self._decoding < READERS:
            connection = next(iter(self._line))
            del self._line[connection]
            self._turns[connection] = (connection.loop.time(), connection.body_cost)
            connection.loop.call_soon(connection.go_on)

    def tick(self, now: float) -> None:
        """End the turns of connections that send nothing while others wait."""
        if self._line:
            for connection, (since, _) in list(self._turns.items()):
                if now - since >= TURN_S and connection in self._turns:
                    connection.wait_in_line()
                    del self._turns[connection]
                    self._line[connection] = None
            self._next()

    def decodes(self) -> None:
        """Keep the turn of a complete large body until it is decoded."""
        self._decoding += 1

    def decoded(self) -> None:
        """End the turn of a decoded body."""
        self._decoding -= 1
        self._next()

    def hold(self, size: int) -> bool:
        """Count `size` bytes of a complete body until `release`; return False where there is no room."""
        if self.held + size > self.held_bytes:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        """Subtract `size` bytes of an answered request."""
        self.held -= size
