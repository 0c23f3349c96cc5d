"""Bodies of requests, while they arrive and while they are held: how much memory they have, and who may send.

A body is counted while it arrives, over all connections together. When there is no room for more, the largest one is
refused, so that no small one is ever kept out by large ones; one alone may be as large as a body may be. A whole body
is counted until its request is answered.

Bodies that are large, or costly to parse (cut into small chunks), arrive a few at a time: each connection reads up to
256 KiB in a turn of the loop, and two hundred of these would stop everybody else. The others wait unread in the kernel,
where flow control holds their senders. Who has had a turn for a second, or for 4 MiB, goes to the end of the line.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sollol.gateway.wire import ClientConnection

SMALL_COST: Final = 64 * 1024  # of a body that arrives without standing in line
PIECE_COST: Final = 64  # of each piece, besides its bytes: a call of the parser
READERS: Final = 4  # large bodies that arrive at the same time
TURN_COST: Final = 4 * 1024 * 1024
TURN_S: Final = 1.0
ALONE: Final = 8  # a body is alone if the others have at most an eighth of the room


class Body:
    """The body of one request on its way. Bytes are kept once: a BytesIO gives them away without a copy."""

    __slots__ = ("_buffer", "_first", "began", "counted", "left", "paused_at", "pieces", "size", "wire")

    def __init__(self, began: float, left: int) -> None:
        self.began = began
        self.left = left  # of a body whose length is known; 0 for chunks
        self.size = 0
        self.pieces = 0
        self.wire = 0  # bytes that came for it, with the framing of its chunks
        self.counted = 0  # bytes that the intake knows of
        self.paused_at = 0.0  # since when it has not been read; 0: it is read
        self._first = b""
        self._buffer: BytesIO | None = None

    def add(self, piece: bytes) -> None:
        """Keep a piece."""
        if self._buffer is not None:
            self._buffer.write(piece)
        elif not self._first:
            self._first = piece
        else:
            self._buffer = BytesIO()
            self._buffer.write(self._first)
            self._buffer.write(piece)
            self._first = b""

    @property
    def cost(self) -> int:
        return self.size + PIECE_COST * self.pieces

    def whole(self) -> bytes:
        return self._first if self._buffer is None else self._buffer.getvalue()


class Intake:
    """All bodies of one gateway."""

    def __init__(self, arriving_bytes: int, held_bytes: int) -> None:
        self.arriving_bytes = arriving_bytes  # the bounds
        self.held_bytes = held_bytes
        self.arriving = 0
        self.held = 0  # of whole requests that are not answered yet
        self._bodies: dict[ClientConnection, int] = {}
        self._turns: dict[ClientConnection, tuple[float, int]] = {}  # who reads: since when, and the cost at that time
        self._line: dict[ClientConnection, None] = {}

    @property
    def readers(self) -> int:
        return len(self._turns)

    def grown(self, connection: ClientConnection, size: int) -> None:
        """The body that arrives on `connection` has this size now. The largest of all may have to give way."""
        self.arriving += size - self._bodies.get(connection, 0)
        self._bodies[connection] = size
        while self.arriving > self.arriving_bytes:
            largest = max(self._bodies, key=self._bodies.__getitem__)
            if self.arriving - self._bodies[largest] <= self.arriving_bytes // ALONE:
                return
            self.forget(largest)
            largest.no_room()

    def forget(self, connection: ClientConnection) -> None:
        """Nothing arrives on `connection` any more."""
        self.arriving -= self._bodies.pop(connection, 0)
        self._line.pop(connection, None)
        if self._turns.pop(connection, None) is not None:
            self._next()

    def may_read(self, connection: ClientConnection, cost: int, now: float) -> bool:
        """Check whose turn it is. False: `connection` stands in line; its `go_on` is called when its turn comes."""
        turn = self._turns.get(connection)
        if turn is not None:
            if not self._line or (now - turn[0] < TURN_S and cost - turn[1] < TURN_COST):
                return True
            del self._turns[connection]
            self._line[connection] = None
            self._next()
            return False
        if len(self._turns) < READERS and not self._line:
            self._turns[connection] = (now, cost)
            return True
        self._line[connection] = None
        return False

    def _next(self) -> None:
        while self._line and len(self._turns) < READERS:
            connection = next(iter(self._line))
            del self._line[connection]
            self._turns[connection] = (connection.loop.time(), connection.body_cost)
            connection.loop.call_soon(connection.go_on)

    def tick(self, now: float) -> None:
        """End the turns of those that let others wait and send nothing."""
        if self._line:
            for connection, (since, _) in list(self._turns.items()):
                if now - since >= TURN_S and connection in self._turns:
                    connection.wait_in_line()
                    del self._turns[connection]
                    self._line[connection] = None
            self._next()

    def hold(self, size: int) -> bool:
        """Count a whole body until `release`. False: there is no room for it."""
        if self.held + size > self.held_bytes:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size
