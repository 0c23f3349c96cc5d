"""Stop using a (node, model) after consecutive faults: closed, open, half-open.

Consecutive, not a share: a node that fails 30 % of its requests at random still does 70 % of its work, and should go
on; one that fails `threshold` times in a row almost surely does none. An open breaker admits one trial after a pause
that grows with every failed trial. Errors of the caller (4xx), a full load queue (503) and a caller who left do not
count.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import OK, SECOND, Micros, Outcome, Status

THRESHOLD: Final = 4  # at 30 % random errors this opens by accident once in 120 requests, for a second
PAUSE: Final[Micros] = 1 * SECOND
LONGER: Final = 3  # times, after each trial that failed
PAUSE_MAX: Final[Micros] = 30 * SECOND
_FAULTS: Final = frozenset({Status.FAILED, Status.TIMEOUT, Status.UNREACHABLE})


class ConsecutiveBreaker:
    """Open after consecutive faults; admit one trial after a pause that grows up to a bound.

    Source: Nygard, "Release It!", ch. 5; the pause as in gRPC's connection back-off.
    """

    __slots__ = (
        "_failures",
        "_first_pause",
        "_longer",
        "_open_until",
        "_pause",
        "_pause_most",
        "_threshold",
        "_trial",
        "closed",
    )

    def __init__(
        self,
        threshold: int = THRESHOLD,
        pause_us: Micros = PAUSE,
        longer: int = LONGER,
        pause_most_us: Micros = PAUSE_MAX,
    ) -> None:
        self._threshold = threshold
        self._first_pause = self._pause = pause_us
        self._longer = longer
        self._pause_most = pause_most_us
        self._failures = 0
        self._open_until: Micros | None = None
        self._trial = False
        self.closed = True

    def admits(self, now: Micros) -> bool:
        """Check that a request may be sent now."""
        return self._open_until is None or (now >= self._open_until and not self._trial)

    def retry_at(self) -> Micros | None:
        """Return when the next trial is admitted; None while closed or during a trial."""
        return None if self._trial else self._open_until

    def begin(self, now: Micros) -> None:
        """Record that an attempt starts."""
        if self._open_until is not None:
            self._trial = True

    def record(self, now: Micros, outcome: Outcome) -> None:
        """Record the outcome of an attempt."""
        if outcome.status is OK:
            if self._failures or not self.closed:
                self._close()
        elif outcome.status in _FAULTS:
            self._failures += 1
            if self._trial or self._failures == self._threshold:
                self._open(now)
        elif outcome.status is Status.REFUSED:
            self._close()
        self._trial = False

    def trip(self, now: Micros) -> None:
        """Open at once."""
        self._trial = False
        if self._open_until is None or now >= self._open_until:
            self._failures = max(self._failures, self._threshold)
            self._open(now)

    def postpone(self, now: Micros, longer: bool) -> None:
        """End a trial that another node has overtaken.

        Args:
            longer: It was long overdue, so the pause grows.
        """
        self._trial = False
        if self._open_until is None:
            return
        if longer:
            self._open(now)
        else:
            self._open_until = now + self._pause

    def _open(self, now: Micros) -> None:
        self._open_until = now + self._pause
        self.closed = False
        self._pause = min(self._longer * self._pause, self._pause_most)

    def _close(self) -> None:
        self._failures = 0
        self._pause = self._first_pause
        self._open_until = None
        self.closed = True
