"""Bodies of requests, while they arrive and while they are held: how much memory they have, and who may send.

A body is counted while it arrives, over all connections together. When there is no room for more, the largest of those
that wait is refused, so that no small one is ever kept out by large ones. Those that are being read may take as much
as one body may, if others take little. A whole body is counted until its request is answered.

Bodies that are large, or costly to parse (cut into small chunks), arrive a few at a time: each connection reads up to
256 KiB in a turn of the loop, and two hundred of these would stop everybody else. The others wait unread in the kernel,
where flow control holds their senders. Who has had a turn for a second, or for 32 MiB, goes to the end of the line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sollol.http_server.connection import ClientConnection
    from sollol.http_server.limits import ServerLimits

MB: Final = 1024 * 1024
SMALL_COST: Final = 64 * 1024  # of a body that arrives without standing in line
SMALL_PIECE: Final = 16 * 1024  # below which a piece is put together with others
PIECE_COST: Final = 256  # of each piece, besides its bytes: a call of the parser
READERS: Final = 2  # large bodies that arrive, or are decoded, at the same time
TURN_COST: Final = 32 * 1024 * 1024
TURN_S: Final = 1.0
ALONE: Final = 8  # those who read are alone if the others have at most an eighth of the room


class Body:
    """The body of one request on its way: its pieces, the small ones put together, joined once when it is whole.

    One buffer that grows would be copied again and again.
    """

    __slots__ = ("_pieces", "_small", "began", "counted", "left", "paused_at", "pieces", "size", "wire")

    def __init__(self, began: float, left: int) -> None:
        self.began = began
        self.left = left  # of a body whose length is known; 0 for chunks
        self.size = 0
        self.pieces = 0  # that came
        self.wire = 0  # bytes that came for it, with the framing of its chunks
        self.counted = 0  # bytes that the intake knows of
        self.paused_at = 0.0  # since when it has not been read; 0: it is read
        self._pieces: list[bytes] = []
        self._small = bytearray()

    def add(self, piece: bytes) -> None:
        """Keep a piece."""
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
        return self.size + PIECE_COST * self.pieces

    def whole(self) -> bytes:
        """Return the body, which can be done once."""
        pieces, self._pieces = self._pieces, []
        if self._small:
            pieces.append(bytes(self._small))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Intake:
    """All bodies of one gateway."""

    def __init__(self, limits: ServerLimits) -> None:
        self.apply(limits)
        self.arriving = 0
        self.held = 0  # of whole requests that are not answered yet
        self._bodies: dict[ClientConnection, int] = {}
        self._turns: dict[ClientConnection, tuple[float, int]] = {}  # who reads: since when, and the cost at that time
        self._line: dict[ClientConnection, None] = {}
        self._decoding = 0  # whole, and being decoded or waiting for that

    def apply(self, limits: ServerLimits) -> None:
        self.arriving_bytes = limits.max_arriving_mb * MB
        self.body_bytes = limits.max_body_mb * MB
        self.held_bytes = max(limits.max_held_mb, limits.max_body_mb) * MB  # a body of any size has room

    @property
    def readers(self) -> int:
        return len(self._turns)

    def grown(self, connection: ClientConnection, size: int) -> None:
        """The body that arrives on `connection` has this size now. The largest of all may have to give way."""
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
        """Nothing arrives on `connection` any more. `is_whole`: others wait until it is known what becomes of it."""
        self.arriving -= self._bodies.pop(connection, 0)
        self._line.pop(connection, None)
        if self._turns.pop(connection, None) is None:
            return
        if is_whole:  # it will count as being decoded in the next turn of the loop
            connection.loop.call_soon(connection.loop.call_soon, self._next)
        else:
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
        """End the turns of those that let others wait and send nothing."""
        if self._line:
            for connection, (since, _) in list(self._turns.items()):
                if now - since >= TURN_S and connection in self._turns:
                    connection.wait_in_line()
                    del self._turns[connection]
                    self._line[connection] = None
            self._next()

    def decodes(self) -> None:
        """A large body is whole, and keeps its turn until it is decoded."""
        self._decoding += 1

    def decoded(self) -> None:
        self._decoding -= 1
        self._next()

    def hold(self, size: int) -> bool:
        """Count a whole body until `release`. False: there is no room for it."""
        if self.held + size > self.held_bytes:
            return False
        self.held += size
        return True

    def release(self, size: int) -> None:
        self.held -= size
