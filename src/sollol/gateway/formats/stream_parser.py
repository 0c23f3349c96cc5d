"""A streamed answer on its way through: what may be passed on now, and how it stands.

An answer is passed on as the bytes that came, but not its end: that waits until the whole end is there, so that a node
that dies between its last word and its last mark is no failure that the client sees. Nor is half an event passed on:
nobody could go on from there.

An ordinary event is known by how it begins and by a mark in it, which costs a few searches for bytes. The marks hold
quotes or line ends, which are escaped inside of JSON: no text can look like them. Whatever is not ordinary is decoded.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from sollol.backends.ollama import are_too_many, judge_line, without_blanks
from sollol.core.types import OK, Outcome, Status, Timing

CUT: Final = Outcome(Status.FAILED, "the answer ended before it was complete")
GOES_ON: Final = b'"done":false}\n'
_PART: Final = re.compile(rb"^[ \t\r]*+[^:\s]", re.MULTILINE)  # the beginning of a line that is no comment
_IDLE: Final = re.compile(rb"\n\n(?=[:\s])")  # the end of an event before a comment or a blank line
HELD_BYTES: Final = 1 << 24  # of one event, and of all that is held back


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


class Cutter:
    """Pieces in any cutting become whole events, each with its end."""

    __slots__ = ("_end", "_rest", "size")

    def __init__(self, end: bytes) -> None:
        self._end = end
        self._rest: list[bytes] = []  # joined once an end is there: a long event costs its length, however it is cut
        self.size = 0  # bytes of the event that is not whole

    def gather(self, piece: bytes) -> bytes:
        """Return what was kept with this piece, once an end is in it; b"" before."""
        end, rest = self._end, self._rest
        if rest:
            # An end of two bytes may itself have been cut through.
            if end not in piece and end not in rest[-1][-1:] + piece[:1]:
                self.keep(piece)
                return b""
            piece = b"".join(rest) + piece
            self._rest = []
            self.size = 0
        return piece

    def keep(self, piece: bytes) -> None:
        """Keep the beginning of an event."""
        if piece:
            self._rest.append(piece)
            self.size += len(piece)

    def cut(self, piece: bytes) -> list[bytes]:
        """Return the events that are whole with this piece."""
        events = self.gather(piece).split(self._end)
        self.keep(events.pop())
        return [event + self._end for event in events]

    def rest(self) -> bytes:
        return b"".join(self._rest)


class LineReader:
    """NDJSON: a line a part; the last has `"done":true`, or is an error.

    Where no line says whether it is the last, which Ollama's always do, a clean end is the end."""

    __slots__ = ("_blanks", "_clear", "_cutter", "_marked", "count", "ended", "tail")

    def __init__(self) -> None:
        self._blanks = 0  # bytes of blank lines since the last part
        self._cutter = Cutter(b"\n")
        self._clear = True  # nothing is left over: the next piece may be lines of its own
        self._marked = False  # a line has said that it is not the last
        self.ended: Outcome | None = None
        self.tail = b""
        self.count = 0

    def feed(self, piece: bytes) -> bytes:
        if self._clear and piece.startswith(b"{") and piece.endswith(GOES_ON):  # by far the most
            lines = 1 if piece.find(b"\n") == len(piece) - 1 else piece.count(b"\n")
            if lines == 1 or piece.count(GOES_ON) == lines:
                self.count += lines
                self._marked = True
                self._blanks = 0
                return piece
        if self.ended is not None:
            return b""
        passed: list[bytes] = []
        if not self._cutter.size:
            size = len(piece)
            piece = piece.lstrip()
            self._blanks += size - len(piece)
            if are_too_many(self._blanks, self.count):
                self.ended = _too_blank(self._blanks)
                return b""
        for line in self._cutter.cut(without_blanks(piece)):
            if not line.strip():
                continue
            self._blanks = 0
            ended = judge_line(line)
            if ended is not None:
                self.ended = ended
                self.tail = line
                break
            self.count += 1
            self._marked = self._marked or b'"done"' in line
            passed.append(line)
        if self.ended is None and self._cutter.size > HELD_BYTES:
            self.ended = _too_long()
        self._clear = not self._cutter.size and self.ended is None
        return b"".join(passed)

    def close(self, clean: bool = True) -> Outcome:
        ended = self.ended
        rest = self._cutter.rest()
        if ended is None and rest.strip():  # a last line without its end
            self.ended = ended = judge_line(rest)
            self.tail = rest
        if ended is None and clean and self.count and not self._marked:
            self.ended = ended = Outcome(OK, "", 200, Timing(tokens=self.count))
        self._clear = False
        return ended or CUT


def _too_blank(size: int) -> Outcome:
    return Outcome(Status.FAILED, f"{size} bytes of blank lines and comments came in a row", 200)


def _too_long() -> Outcome:
    return Outcome(Status.FAILED, f"a part of the answer is longer than {HELD_BYTES} bytes", 200)


class Sign(enum.Enum):
    """What an event says of the answer."""

    GOES_ON = enum.auto()
    MAY_END = enum.auto()  # the end, unless more follows
    ENDS = enum.auto()  # the reason to end is told; the last mark is still to come
    ENDED = enum.auto()


# Of an event's data. An Outcome that is not OK: the answer has failed. Raises DecodeError.
Judge = Callable[[bytes], tuple[Sign, Outcome | None]]


class EventReader:
    """Server-sent events."""

    __slots__ = (
        "_clear",
        "_cutter",
        "_head",
        "_held",
        "_held_size",
        "_idle",
        "_judge",
        "_like",
        "_like_end",
        "_mark",
        "_seal",
        "_sign",
        "_spoilt",
        "_spoke",
        "_told",
        "_varies",
        "count",
        "ended",
    )

    def __init__(
        self, head: bytes, judge: Judge, seal: bytes, mark: bytes = b"", spoilt: bytes = b"", varies: bytes = b""
    ) -> None:
        """An ordinary event begins with `head`, bears `mark` and not `spoilt`; what others say is asked of `judge`.
        `seal`: the last mark, which is put there if only it is missing. `varies`: what events of one second share
        ends with it, and has in it what `spoilt` is about."""
        self._head = head
        self._mark = mark
        self._spoilt = spoilt
        self._varies = varies
        self._like = b""  # how the last ordinary event began
        self._like_end = mark + b"}]}\n\n"
        self._judge = judge
        self._seal = seal
        self._cutter = Cutter(b"\n\n")
        self._clear = True  # nothing is left over or held back: the next piece may be events of its own
        self._held: list[bytes] = []
        self._held_size = 0
        self._idle = 0  # bytes of comments and blank lines since the last event
        self._sign = Sign.GOES_ON
        self._told: Timing | None = None
        self._spoke = False  # an event has come that is more than a comment
        self.ended: Outcome | None = None
        self.count = 0

    @property
    def tail(self) -> bytes:
        return b"".join(self._held)

    def feed(self, piece: bytes) -> bytes:
        if self._clear and self._is_ordinary(piece):
            self.count += 1
            self._idle = 0
            return piece
        if self.ended is not None:
            return b""
        passed: list[bytes] = []
        over = False
        data = self._cutter.gather(piece)
        at = 0
        while at < len(data) and not over:
            at = self._pass_idle(data, at, passed)
            if are_too_many(self._idle, self.count + self._spoke):
                self.ended = _too_blank(self._idle)
                over = True
                break
            found = _IDLE.search(data, at)
            end = found.end() if found is not None else data.rfind(b"\n\n", at) + 2
            if end < at + 2:  # no event is whole
                self._cutter.keep(data[at:])
                break
            for event in data[at : end - 2].split(b"\n\n"):
                self._idle = 0
                over = self._hear(event + b"\n\n", passed)
                if over:
                    break
            at = end
        if not over and self._cutter.size + self._held_size > HELD_BYTES:
            self.ended = _too_long()
            over = True
        self._clear = not (over or self._held or self._cutter.size)
        return b"".join(passed)

    def _is_ordinary(self, piece: bytes) -> bool:
        """One whole event that goes on."""
        head, mark, like = self._head, self._mark, self._like
        if (
            like
            and piece.startswith(like)
            and piece.endswith(self._like_end)
            and piece.find(b"\n", len(like)) == len(piece) - 2
        ):
            return True
        ordinary = (
            piece.startswith(head)
            and piece.find(b"\n", len(head)) == len(piece) - 2
            and piece.endswith(b"}\n\n")
            and (not mark or (mark in piece and self._spoilt not in piece))
        )
        if ordinary and self._varies:
            begins, varies, _ = piece.partition(self._varies)
            if varies and self._spoilt[:-1] in begins:
                self._like = begins + varies
            else:  # its events are made otherwise
                self._varies = self._like = b""
        return ordinary

    def _pass_idle(self, data: bytes, at: int, passed: list[bytes]) -> int:
        """Pass on the comments and blank lines at `at`, in one step; return where they end."""
        found = _PART.search(data, at)
        if found is not None:
            end = found.start()
        else:
            end = max(at, data.rfind(b"\n") + 1)
            if not data[end:].strip():
                end = len(data)
        if end == at:
            return at
        self._idle += end - at
        if self._held:
            self._held.append(data[at:end])
            self._held_size += end - at
        elif self._spoke or self.count:  # else they are no beginning of an answer
            passed.append(data[at:end])
        return end

    def _hear(self, event: bytes, passed: list[bytes]) -> bool:
        """Pass it on, or hold it back; True if the answer has ended."""
        sign: Sign = Sign.GOES_ON
        self._spoke = True
        if not self._is_ordinary(event):
            sign, failure = self._asked(event)
            if failure is not None:
                self.ended = failure
                self._held.append(event)  # what it says may be the caller's to read
                return True
        elif self._sign is not Sign.ENDS:
            self.count += 1
        if sign is Sign.GOES_ON and self._sign is not Sign.ENDS:
            passed += self._held
            self._held = []
            self._held_size = 0
            self._sign = sign
            passed.append(event)
            return False
        self._held.append(event)
        self._held_size += len(event)
        if sign in (Sign.ENDS, Sign.MAY_END) and self._sign is not Sign.ENDS:
            self._sign = sign
        if sign is not Sign.ENDED:
            return False
        self.ended = self._good()
        return True

    def _asked(self, event: bytes) -> tuple[Sign, Outcome | None]:
        """What an event says that is not ordinary; an Outcome if the answer has failed."""
        if _is_comment(event):
            return Sign.GOES_ON, None
        data = data_of(event)
        try:
            sign, outcome = self._judge(data)
        except msgspec.DecodeError as error:
            why = f"an event of the answer is not what its API says: {error}: {event[:80]!r}"
            return Sign.GOES_ON, Outcome(Status.FAILED, why, 200)
        if outcome is None:
            if sign is Sign.ENDED and self._sign is not Sign.ENDS:  # so ends what a late error was swallowed in
                return sign, Outcome(Status.FAILED, "the answer ended without a reason", 200)
            return sign, None
        if outcome.status is not OK:
            return sign, outcome
        self._told = outcome.timing
        return sign, None

    def _good(self) -> Outcome:
        return Outcome(OK, "", 200, self._told or Timing(tokens=self.count))

    def close(self, clean: bool = True) -> Outcome:
        ended = self.ended
        if ended is None and self._sign is Sign.ENDS:  # all is said; only the last mark is missing
            self._held.append(self._seal)
            self.ended = ended = self._good()
        self._clear = False
        return ended or CUT


def _is_comment(event: bytes) -> bool:
    return (event.startswith(b":") or not event.strip()) and not data_of(event)


def data_of(event: bytes) -> bytes:
    """The data of an event; b"" for none."""
    head, _, rest = event.partition(b"data: ")
    data = rest.rstrip(b"\n")
    if b"\n" not in data and (not head or head.startswith(b"event: ")):
        return data
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
