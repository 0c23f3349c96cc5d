"""Detect stalled streams: every LOOK_S, compare how much each stream has received.

One timer for all costs the same at any speed; a timer for each would cost with every part of an answer. Time in which
the consumer was behind, or in which this program's loop stood still, is no silence of a node.
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
REPORTED_S = 2.0  # silence after which a stream is reported beside stalled ones
LEAST_S = 8.0  # at least one stream must be silent for this long; see sollol.core.stall_detection


class WatchedStream(Protocol):
    """A stream in flight."""

    def received_parts(self) -> int:
        """Return the number of received parts; negative while the consumer is behind."""
        ...

    def resumable(self) -> tuple[bool, bool]:
        """Return (True if it is plain text so far, True if another node can certainly resume it)."""
        ...


class _Stream:
    __slots__ = ("began", "changed", "count", "first", "watched")

    def __init__(self, watched: WatchedStream, at: float) -> None:
        self.watched = watched
        self.began = self.changed = at
        self.count = self.first = watched.received_parts()


class StreamWatch:
    """Detection of stalled streams. `report` receives the silent ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[Silent], None], duties: Duties) -> None:
        self._loop = loop
        self._report = report
        self._streams: dict[int, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0
        self._on_time = duties.guarded("the watch over silent streams", self._look)

    def watch(self, attempt: int, watched: WatchedStream) -> None:
        """Start watching the stream of an attempt."""
        now = self._loop.time()
        self._streams[attempt] = _Stream(watched, now)
        if self._timer is None:
            self._looked = now
            self._timer = self._loop.call_later(LOOK_S, self._on_time)

    def forget(self, attempt: int) -> None:
        """Stop watching the stream of an attempt."""
        self._streams.pop(attempt, None)

    def close(self) -> None:
        """Stop watching all streams."""
        self._streams.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._streams:
            return
        now = self._loop.time()
        ours = max(0.0, now - self._looked - 2 * LOOK_S)  # this loop stood still, and received parts are unread
        self._looked = now
        self._timer = self._loop.call_later(LOOK_S, self._on_time)
        for attempt, stream in list(self._streams.items()):
            try:
                count = stream.watched.received_parts()
            except Exception:  # a failing stream is dropped; the others are still watched
                log.exception("checking the stream of attempt %d failed: it is no longer watched", attempt)
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
            if silent_s >= min(REPORTED_S, LEAST_S):
                try:
                    plain, sure = stream.watched.resumable()
                except Exception:
                    log.exception("checking whether the stream of attempt %d is resumable failed", attempt)
                    plain = sure = False
                gap_s = (stream.changed - stream.began) / max(1, stream.count - stream.first)
                found.append(Silence(attempt, round(silent_s * 1e6), round(gap_s * 1e6), plain, sure))
        return found
