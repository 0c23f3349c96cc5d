"""A streamed answer on its way through: what may be passed on now, and how it stands.

An answer is passed on as the bytes that came, but not its end: that waits until the whole end is there, so that a node
that dies between its last word and its last mark is no failure that the client sees. An ordinary piece costs a few
searches for bytes; nothing is decoded before something looks like an end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol

from sollol.core.types import How, Outcome, Timing
from sollol.nodes.dialect import judge_line

CUT: Final = Outcome(How.FAILED, "the answer ended before it was complete")


class Reader(Protocol):
    @property
    def ended(self) -> Outcome | None:
        """How the answer ended; None while it goes on."""
        ...

    @property
    def tail(self) -> bytes:
        """What is held back, to be sent when the answer is settled."""
        ...

    @property
    def count(self) -> int:
        """Parts that came so far."""
        ...

    def feed(self, piece: bytes) -> bytes:
        """What of it, and of what was held back, may be passed on."""
        ...

    def close(self, clean: bool = True) -> Outcome:
        """The connection has ended. `clean`: as HTTP ends an answer."""
        ...


class LineReader:
    """NDJSON: a line a part; the last has `"done":true`, or is an error.

    Where no line says whether it is the last, which Ollama's always do, a clean end is the end."""

    __slots__ = ("_marked", "_rest", "count", "ended", "tail")

    def __init__(self) -> None:
        self._rest = b""
        self._marked = False
        self.ended: Outcome | None = None
        self.tail = b""
        self.count = 0

    def feed(self, piece: bytes) -> bytes:
        if not self.count:
            self._marked = b'"done"' in piece
        if not self._rest and _is_line(piece):  # by far the most
            self.count += 1
            return piece
        if self.ended is not None:
            return b""
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        passed = []
        for line in lines:
            if not line.strip():
                continue
            ended = judge_line(line)
            if ended is not None:
                self.ended = ended
                self.tail = line + b"\n"
                break
            self.count += 1
            passed.append(line + b"\n")
        return b"".join(passed)

    def close(self, clean: bool = True) -> Outcome:
        ended = self.ended
        if ended is None and self._rest.strip():  # a last line without its end
            self.ended = ended = judge_line(self._rest)
            self.tail = self._rest + b"\n"
        if ended is None and clean and self.count and not self._marked:
            self.ended = ended = Outcome(How.OK, "", 200, Timing(tokens=self.count))
            self.tail = b""
        return ended or CUT


def _is_line(piece: bytes) -> bool:
    """One whole line that ends nothing."""
    return (
        piece.endswith(b"}\n")
        and piece.startswith(b"{")
        and piece.find(b"\n") == len(piece) - 1
        and b'"done":true' not in piece
        and b'"error"' not in piece
        and b'"done": true' not in piece
    )


class Sign(enum.Enum):
    """What an event says of the answer."""

    GOES_ON = enum.auto()
    MAY_END = enum.auto()  # the end, unless more follows
    ENDS = enum.auto()  # the reason to end is told; the last mark is still to come
    ENDED = enum.auto()


Judge = Callable[[bytes], tuple[Sign, Outcome | None]]  # an Outcome that is not OK: the answer has failed


class EventReader:
    """Server-sent events. `plain`: marks of an event that a look is worth; `judge`: what such an event says."""

    __slots__ = ("_held", "_judge", "_marks", "_rest", "_seal", "_sign", "_tokens", "count", "ended")

    def __init__(self, marks: tuple[bytes, ...], judge: Judge, seal: bytes) -> None:
        """`seal`: the last mark, which is put there if only it is missing."""
        self._marks = marks
        self._judge = judge
        self._seal = seal
        self._rest = b""
        self._held: list[bytes] = []
        self._sign = Sign.GOES_ON
        self._tokens: Timing | None = None
        self.ended: Outcome | None = None
        self.count = 0

    @property
    def tail(self) -> bytes:
        return b"".join(self._held)

    def feed(self, piece: bytes) -> bytes:
        if not (self._rest or self._held) and piece.endswith(b"\n\n") and not self._is_marked(piece):
            self.count += piece.count(b"\n\n")
            return piece
        if self.ended is not None:
            return b""
        events = (self._rest + piece).split(b"\n\n")
        self._rest = events.pop()
        passed: list[bytes] = []
        for event in events:
            if self._hear(event, passed):
                break
        return b"".join(passed)

    def _is_marked(self, piece: bytes) -> bool:
        for mark in self._marks:  # noqa: SIM110 - a generator costs twice as much
            if mark in piece:
                return True
        return False

    def _hear(self, event: bytes, passed: list[bytes]) -> bool:
        """Pass it on, or hold it back; True if the answer has ended."""
        whole = event + b"\n\n"
        sign: Sign = Sign.GOES_ON
        outcome: Outcome | None = None
        if self._is_marked(event):
            sign, outcome = self._judge(event)
        if outcome is not None and outcome.how is not How.OK:
            self.ended = outcome
            return True
        if outcome is not None:
            self._tokens = outcome.timing
        if sign is Sign.GOES_ON and self._sign is not Sign.ENDS:
            passed += self._held
            self._held = []
            self._sign = sign
            self.count += 1
            passed.append(whole)
            return False
        self._held.append(whole)
        if sign in (Sign.ENDS, Sign.MAY_END) and self._sign is not Sign.ENDS:
            self._sign = sign
        if sign is not Sign.ENDED:
            return False
        self.ended = self._good()
        return True

    def _good(self) -> Outcome:
        return Outcome(How.OK, "", 200, self._tokens or Timing(tokens=self.count))

    def close(self, clean: bool = True) -> Outcome:
        ended = self.ended
        if ended is None and self._sign is Sign.ENDS:  # all is said; only the last mark is missing
            self._held.append(self._seal)
            self.ended = ended = self._good()
        return ended or CUT


def data_of(event: bytes) -> bytes:
    """The data of an event."""
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
