"""Estimate, from failed chunks, which items are suspect and how long a list a node takes."""

from __future__ import annotations

from typing import Final

from sollol.core.types import NEVER, Micros, Outcome

SHRINK: Final = 4  # times shorter lists for a node that failed two in a row
HOLD: Final = 16  # lists of the learned length that succeed, before a longer one is tried
HOLD_MAX: Final = 4096


class FailureEvidence:
    """Record the failed requests that had some items."""

    __slots__ = ("alone", "least", "outcome", "since_us", "tries", "witnessed")

    def __init__(
        self,
        tries: int,
        since_us: Micros,
        outcome: Outcome | None,
        least: dict[str, int],
        witnessed: bool = False,
        alone: int = 0,
    ) -> None:
        self.tries = tries  # failed requests that had these items
        self.alone = alone  # of them, those that had only one item
        self.since_us = since_us  # when the first of them failed
        self.outcome = outcome  # of the last of them
        self.least = least  # node -> items of the shortest list that failed there
        self.witnessed = witnessed  # between two of the failures, the node of the later one did other work

    def and_failed(self, node: str, good_us: Micros, count: int, outcome: Outcome, now: Micros) -> FailureEvidence:
        """Return the evidence after one more failure, on a node whose last good answer came at `good_us`."""
        least = {**self.least, node: min(count, self.least.get(node, count))}
        since_us = self.since_us if self.tries else now
        witnessed = self.witnessed or good_us > since_us
        return FailureEvidence(self.tries + 1, since_us, outcome, least, witnessed, self.alone + (count == 1))


NO_EVIDENCE: Final = FailureEvidence(0, NEVER, None, {})


class ListLimit:
    """Learn how many items a node takes in one request.

    `limit` shrinks with the second failure in a row and recovers with successes. `maximum` is learned from lists that
    failed although each of their items was good. It doubles after `hold` good lists of that length.
    """

    __slots__ = ("_failed", "_good", "_hold", "_hold_most", "_shrink", "limit", "maximum")

    def __init__(self, shrink: int = SHRINK, hold: int = HOLD, hold_most: int = HOLD_MAX) -> None:
        self.limit = NEVER
        self.maximum = NEVER
        self._failed = False
        self._good = 0
        self._shrink = shrink
        self._hold = hold
        self._hold_most = hold_most

    def failed(self, count: int) -> None:
        """Record a failed list of `count` items. One alone is most likely an item's fault."""
        if not self._failed:
            self._failed = True
            return
        self.limit = max(1, min(self.limit, count) // self._shrink)

    def succeeded(self, count: int) -> None:
        """Record an answered list of `count` items."""
        self._failed = False
        self.limit = max(self.limit, self._shrink * count)
        if count >= self.maximum:
            self._good += 1
            if self._good >= self._hold:
                self._good = 0
                self.maximum *= 2
        self.limit = min(self.limit, self.maximum)

    def too_long(self, count: int) -> None:
        """Record a failed list of `count` items that were all good."""
        if self.maximum < NEVER:
            self._hold = min(4 * self._hold, self._hold_most)
        self.maximum = max(1, min(self.maximum, count // 2))
        self.limit = min(self.limit, self.maximum)
        self._good = 0
