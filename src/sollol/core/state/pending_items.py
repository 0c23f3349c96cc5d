"""Items of a batch that wait, with what became of them before."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from sollol.core.state.evidence import NO_EVIDENCE, FailureEvidence


class PendingItems:
    """Hold items that wait and what became of them before.

    Attributes:
        tries: Failed attempts of them.
        failed_on: Nodes where they failed.
        alone: They are not merged with others.
        suspect: One of them made a request fail, so they are tried in halves.
        evidence: Their failures.
    """

    __slots__ = ("alone", "evidence", "failed_on", "ranges", "suspect", "tries")

    def __init__(
        self,
        ranges: Sequence[tuple[int, int]],
        tries: int = 0,
        failed_on: frozenset[str] = frozenset(),
        alone: bool = False,
        evidence: FailureEvidence = NO_EVIDENCE,
        suspect: bool = False,
    ) -> None:
        self.ranges: deque[tuple[int, int]] = deque(ranges)
        self.tries = tries
        self.failed_on = failed_on
        self.alone = alone
        self.evidence = evidence
        self.suspect = suspect

    @property
    def clean(self) -> bool:
        """Return whether nothing counts against these items."""
        return not (self.suspect or self.alone or self.tries or self.failed_on)

    def total(self) -> int:
        """Return the number of items."""
        return sum(hi - lo for lo, hi in self.ranges)

    def take(self, count: int) -> list[tuple[int, int]]:
        """Remove and return the first `count` items."""
        taken: list[tuple[int, int]] = []
        while self.ranges and count > 0:
            lo, hi = self.ranges.popleft()
            if hi - lo > count:
                self.ranges.appendleft((lo + count, hi))
                hi = lo + count
            taken.append((lo, hi))
            count -= hi - lo
        return taken

    def take_at(self, place: int) -> list[tuple[int, int]]:
        """Remove and return the item at a place."""
        for position, (lo, hi) in enumerate(self.ranges):
            if place < hi - lo:
                item = lo + place
                del self.ranges[position]
                for part in ((item + 1, hi), (lo, item)):
                    if part[0] < part[1]:
                        self.ranges.insert(position, part)
                return [(item, item + 1)]
            place -= hi - lo
        raise IndexError(place)
