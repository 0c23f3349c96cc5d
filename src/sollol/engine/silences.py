"""Notice streams of which nothing comes: every LOOK_S one look at how much each has received so far.

A look costs the same however fast the streams are, where a timer for each would cost with every part of an answer.
Time in which the consumer was behind, or in which the loop of this program stood still, is no silence of a node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sollol.core.events import Silence, Silent
from sollol.duties import Duties

log = logging.getLogger("sollol")
LOOK_S = 0.5
TOLD_S = 2.0  # silence from which on a stream is reported beside those that may have stalled
LEAST_S = 8.0  # of which at least one must have lasted so long; see sollol.core.stall_detection


class Watched(Protocol):
    """A stream under way."""

    def received_parts(self) -> int:
        """How many parts have come so far; negative while the consumer is behind."""
        ...

    def nature(self) -> tuple[bool, bool]:
        """Whether it is plain text so far, and whether it is certain that another node can go on with it."""
        ...


class _Stream:
    __slots__ = ("began", "changed", "count", "first", "watched")

    def __init__(self, watched: Watched, at: float) -> None:
        self.watched = watched
        self.began = self.changed = at
        self.count = self.first = watched.received_parts()


class Silences:
    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[Silent], None], duties: Duties) -> None:
        self._loop = loop
        self._report = report
        self._streams: dict[int, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._on_time = duties.guarded("the watch over silent streams", self._look)

    def watch(self, attempt: int, watched: Watched) -> None:
        now = self._loop.time()
        self._streams[attempt] = _Stream(watched, now)
        if self._timer is None:
            self._looked = now
            self._timer = self._loop.call_later(LOOK_S, self._on_time)

    def forget(self, attempt: int) -> None:
        self._streams.pop(attempt, None)

    def close(self) -> None:
        self._streams.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._streams:
            return
        now = self._loop.time()
        ours = max(0.0, now - self._looked - 2 * LOOK_S)  # this loop stood still: what came lies unread
        self._looked = now
        self._timer = self._loop.call_later(LOOK_S, self._on_time)
        for attempt, stream in list(self._streams.items()):
            try:
                count = stream.watched.received_parts()
            except Exception:  # what cannot be asked is not watched; the others are
                log.exception("the stream of attempt %d is not watched any more", attempt)
                del self._streams[attempt]
                continue
            if count != stream.count or count < 0:
                stream.count, stream.changed = count, now
            else:
                stream.changed += ours
        if any(now - stream.changed >= LEAST_S for stream in self._streams.values()):
            self._report(Silent(tuple(self._silent(now))))

    def _silent(self, now: float) -> list[Silence]:
        found = []
        for attempt, stream in self._streams.items():
            silent_s = now - stream.changed
            if silent_s >= min(TOLD_S, LEAST_S):
                try:
                    plain, sure = stream.watched.nature()
                except Exception:
                    log.exception("it is not known whether the stream of attempt %d can go on elsewhere", attempt)
                    plain = sure = False
                gap_s = (stream.changed - stream.began) / max(1, stream.count - stream.first)
                found.append(Silence(attempt, round(silent_s * 1e6), round(gap_s * 1e6), plain, sure))
        return found
