"""Parse streamed answers into the bytes that may be relayed now, and the outcome at the end.

The client receives a node's bytes unchanged, in whole events. The end of an answer is held back until it is complete:
if the node dies between its last word and its last mark, another node can resume the answer.

An ordinary event is recognised by its beginning and a mark in it, with a few searches for bytes. The marks contain
quotes or line ends, which JSON escapes, so no text can look like them. All other events are decoded.
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
CONTINUES: Final = b'"done":false}\n'
_PART: Final = re.compile(rb"^[ \t\r]*+[^:\s]", re.MULTILINE)  # the beginning of a line that is no comment
_IDLE: Final = re.compile(rb"\n\n(?=[:\s])")  # the end of an event before a comment or a blank line
HELD_BYTES: Final = 1 << 24  # limit of one event, and of all that is held back


class StreamParser(Protocol):
    """Parse one streamed answer."""

    @property
    def ended(self) -> Outcome | None:
        """The outcome of the answer; None before its end."""
        ...

    @property
    def tail(self) -> bytes:
        """The bytes that are held back until the answer is settled."""
        ...

    @property
    def count(self) -> int:
        """The number of parts so far."""
        ...

    def feed(self, piece: bytes) -> bytes:
        """Parse a piece and return the bytes that may be relayed now."""
        ...

    def close(self, clean: bool = True) -> Outcome:
        """Return the outcome at the end of the connection. `clean`: the body ended as HTTP requires."""
        ...


class EventSplitter:
    """Split pieces of any size into whole events, each with its end."""

    __slots__ = ("_end", "_rest", "size")

    def __init__(self, end: bytes) -> None:
        self._end = end
        self._rest: list[bytes] = []  # joined once at an end, so that a long event of many pieces is copied once
        self.size = 0  # bytes of the incomplete event

    def gather(self, piece: bytes) -> bytes:
        """Return the kept bytes and this piece, if it completes an event; else keep it and return b""."""
        end, rest = self._end, self._rest
        if rest:
            # An end of two bytes may be split between two pieces.
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

    def split(self, piece: bytes) -> list[bytes]:
        """Return the events that this piece completes."""
        events = self.gather(piece).split(self._end)
        self.keep(events.pop())
        return [event + self._end for event in events]

    def rest(self) -> bytes:
        """Return the bytes of the incomplete event."""
        return b"".join(self._rest)


class LineParser:
    """Parse NDJSON: one part a line; the last has `"done":true`, or is an error.

    A stream whose lines lack `done`, which Ollama's have, is complete at a clean end.
    """

    __slots__ = ("_blanks", "_clear", "_marked", "_splitter", "count", "ended", "tail")

    def __init__(self) -> None:
        self._blanks = 0  # bytes of blank lines since the last part
        self._splitter = EventSplitter(b"\n")
        self._clear = True  # no incomplete line: the next piece may be whole lines
        self._marked = False  # a line had `done`
        self.ended: Outcome | None = None
        self.tail = b""
        self.count = 0

    def feed(self, piece: bytes) -> bytes:
        """Parse a piece and return the bytes that may be relayed now."""
        if self._clear and piece.startswith(b"{") and piece.endswith(CONTINUES):  # by far the most
            lines = 1 if piece.find(b"\n") == len(piece) - 1 else piece.count(b"\n")
            if lines == 1 or piece.count(CONTINUES) == lines:
                self.count += lines
                self._marked = True
                self._blanks = 0
                return piece
        if self.ended is not None:
            return b""
        relayed: list[bytes] = []
        if not self._splitter.size:
            size = len(piece)
            piece = piece.lstrip()
            self._blanks += size - len(piece)
            if are_too_many(self._blanks, self.count):
                self.ended = _too_blank(self._blanks)
                return b""
        for line in self._splitter.split(without_blanks(piece)):
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
            relayed.append(line)
        if self.ended is None and self._splitter.size > HELD_BYTES:
            self.ended = _too_long()
        self._clear = not self._splitter.size and self.ended is None
        return b"".join(relayed)

    def close(self, clean: bool = True) -> Outcome:
        """Return the outcome at the end of the connection."""
        ended = self.ended
        rest = self._splitter.rest()
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


class EventKind(enum.Enum):
    """The position of an event in its answer."""

    CONTINUES = enum.auto()
    MAY_END = enum.auto()  # the last event, unless more follow
    ENDS = enum.auto()  # it has the reason of the end; the last mark follows
    ENDED = enum.auto()


# Judges the data of an event. An outcome that is not OK: the answer has failed. Raises DecodeError.
Judge = Callable[[bytes], tuple[EventKind, Outcome | None]]


class EventParser:
    """Parse server-sent events."""

    __slots__ = (
        "_clear",
        "_has_event",
        "_head",
        "_held",
        "_held_size",
        "_idle",
        "_judge",
        "_kind",
        "_mark",
        "_seal",
        "_splitter",
        "_spoiled",
        "_timing",
        "_usual",
        "_usual_end",
        "_varies",
        "count",
        "ended",
    )

    def __init__(
        self, head: bytes, judge: Judge, seal: bytes, mark: bytes = b"", spoiled: bytes = b"", varies: bytes = b""
    ) -> None:
        """Set how ordinary events are recognised.

        Args:
            head: The beginning of an ordinary event.
            judge: Judges the data of all other events.
            seal: The last mark of an answer, added if only it is missing.
            mark: Bytes that an ordinary event contains.
            spoiled: Bytes that an ordinary event with `mark` does not contain.
            varies: The end of the part that all events of one second share; that part shows the field of `spoiled`.
        """
        self._head = head
        self._mark = mark
        self._spoiled = spoiled
        self._varies = varies
        self._usual = b""  # the beginning of the last ordinary event
        self._usual_end = mark + b"}]}\n\n"
        self._judge = judge
        self._seal = seal
        self._splitter = EventSplitter(b"\n\n")
        self._clear = True  # nothing is kept or held back: the next piece may be whole events
        self._held: list[bytes] = []
        self._held_size = 0
        self._idle = 0  # bytes of comments and blank lines since the last event
        self._kind = EventKind.CONTINUES
        self._timing: Timing | None = None
        self._has_event = False  # an event arrived that is more than a comment
        self.ended: Outcome | None = None
        self.count = 0

    @property
    def tail(self) -> bytes:
        """The events that are held back."""
        return b"".join(self._held)

    def feed(self, piece: bytes) -> bytes:
        """Parse a piece and return the bytes that may be relayed now."""
        if self._clear and self._is_ordinary(piece):
            self.count += 1
            self._idle = 0
            return piece
        if self.ended is not None:
            return b""
        relayed: list[bytes] = []
        over = False
        data = self._splitter.gather(piece)
        at = 0
        while at < len(data) and not over:
            at = self._skip_idle(data, at, relayed)
            if are_too_many(self._idle, self.count + self._has_event):
                self.ended = _too_blank(self._idle)
                over = True
                break
            found = _IDLE.search(data, at)
            end = found.end() if found is not None else data.rfind(b"\n\n", at) + 2
            if end < at + 2:  # no event is whole
                self._splitter.keep(data[at:])
                break
            for event in data[at : end - 2].split(b"\n\n"):
                self._idle = 0
                over = self._take(event + b"\n\n", relayed)
                if over:
                    break
            at = end
        if not over and self._splitter.size + self._held_size > HELD_BYTES:
            self.ended = _too_long()
            over = True
        self._clear = not (over or self._held or self._splitter.size)
        return b"".join(relayed)

    def _is_ordinary(self, piece: bytes) -> bool:
        """Check for one complete event that does not end the answer."""
        head, mark, usual = self._head, self._mark, self._usual
        if (
            usual
            and piece.startswith(usual)
            and piece.endswith(self._usual_end)
            and piece.find(b"\n", len(usual)) == len(piece) - 2
        ):
            return True
        ordinary = (
            piece.startswith(head)
            and piece.find(b"\n", len(head)) == len(piece) - 2
            and piece.endswith(b"}\n\n")
            and (not mark or (mark in piece and self._spoiled not in piece))
        )
        if ordinary and self._varies:
            begins, varies, _ = piece.partition(self._varies)
            if varies and self._spoiled[:-1] in begins:
                self._usual = begins + varies
            else:  # events of another layout
                self._varies = self._usual = b""
        return ordinary

    def _skip_idle(self, data: bytes, at: int, relayed: list[bytes]) -> int:
        """Relay the comments and blank lines at `at`; return the position after them."""
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
        elif self._has_event or self.count:  # before the first event they are no part of the answer
            relayed.append(data[at:end])
        return end

    def _take(self, event: bytes, relayed: list[bytes]) -> bool:
        """Relay an event, or hold it back; return True at the end of the answer."""
        kind: EventKind = EventKind.CONTINUES
        self._has_event = True
        if not self._is_ordinary(event):
            kind, failure = self._judged(event)
            if failure is not None:
                self.ended = failure
                self._held.append(event)  # the client may receive this error
                return True
        elif self._kind is not EventKind.ENDS:
            self.count += 1
        if kind is EventKind.CONTINUES and self._kind is not EventKind.ENDS:
            relayed += self._held
            self._held = []
            self._held_size = 0
            self._kind = kind
            relayed.append(event)
            return False
        self._held.append(event)
        self._held_size += len(event)
        if kind in (EventKind.ENDS, EventKind.MAY_END) and self._kind is not EventKind.ENDS:
            self._kind = kind
        if kind is not EventKind.ENDED:
            return False
        self.ended = self._success()
        return True

    def _judged(self, event: bytes) -> tuple[EventKind, Outcome | None]:
        """Return the kind of an event that is not ordinary, and an outcome if the answer has failed."""
        if _is_comment(event):
            return EventKind.CONTINUES, None
        data = data_of(event)
        try:
            kind, outcome = self._judge(data)
        except msgspec.DecodeError as error:
            why = f"an event of the answer is not in the format of its API: {error}: {event[:80]!r}"
            return EventKind.CONTINUES, Outcome(Status.FAILED, why, 200)
        if outcome is None:
            # A node that drops a late error ends the answer without a reason.
            if kind is EventKind.ENDED and self._kind is not EventKind.ENDS:
                return kind, Outcome(Status.FAILED, "the answer ended without a reason", 200)
            return kind, None
        if outcome.status is not OK:
            return kind, outcome
        self._timing = outcome.timing
        return kind, None

    def _success(self) -> Outcome:
        return Outcome(OK, "", 200, self._timing or Timing(tokens=self.count))

    def close(self, clean: bool = True) -> Outcome:
        """Return the outcome at the end of the connection."""
        ended = self.ended
        if ended is None and self._kind is EventKind.ENDS:  # only the last mark is missing
            self._held.append(self._seal)
            self.ended = ended = self._success()
        self._clear = False
        return ended or CUT


def _is_comment(event: bytes) -> bool:
    return (event.startswith(b":") or not event.strip()) and not data_of(event)


def data_of(event: bytes) -> bytes:
    """Return the data of an event, b"" for none."""
    head, _, rest = event.partition(b"data: ")
    data = rest.rstrip(b"\n")
    if b"\n" not in data and (not head or head.startswith(b"event: ")):
        return data
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
