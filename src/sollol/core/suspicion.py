"""Judge whose fault a failed chunk is: an item of it, its length, or the node.

A node answers a list as a whole, so one bad text fails all texts that were sent with it. The failure of a chunk
therefore counts against its items first. They are split in halves until an item stands alone (binary splitting: one
request for each halving, since a half that succeeds leaves the fault in the other). An item that fails alone is bad
if its node does other work between two failures; if not, a text that it has answered before is sent as a control.
"""

from __future__ import annotations

import math
from typing import Final

from sollol.core.types import NEVER, Micros, Outcome

SURE: Final = 1e-6  # chance that a good item is refused because of errors at random
TRIES_LEAST: Final = 2  # failures before an item is refused, however reliable its nodes are
TRIES_MOST: Final = 12  # at 30 % random errors, 1 item in 2 million fails so often
SHRINK: Final = 4  # a node that failed a list gets lists so many times shorter until it succeeds
CONTROL_AFTER: Final = 3  # single items that a node fails in a row, before it gets a control
HOLD: Final = 16  # lists of the learned length that succeed, before a longer one is tried
HOLD_MAX: Final = 4096


class FailureEvidence:
    """Hold what counts against some items: requests that had them and failed."""

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
        """Return the doubt after one more failure, on a node whose last good answer came at `good_us`."""
        least = {**self.least, node: min(count, self.least.get(node, count))}
        since_us = self.since_us if self.tries else now
        witnessed = self.witnessed or good_us > since_us
        return FailureEvidence(self.tries + 1, since_us, outcome, least, witnessed, self.alone + (count == 1))


NO_EVIDENCE: Final = FailureEvidence(0, NEVER, None, {})


class ListLimit:
    """Bound the number of items a node is sent at once, as far as its failures tell.

    `limit` shrinks with the second failure in a row and recovers with successes. `maximum` is learned from lists that
    failed although each of their items was good; it grows again after HOLD good lists of that length."""

    __slots__ = ("_failed", "_good", "_hold", "limit", "maximum")

    def __init__(self) -> None:
        self.limit = NEVER
        self.maximum = NEVER
        self._failed = False
        self._good = 0
        self._hold = HOLD

    def failed(self, count: int) -> None:
        if not self._failed:  # one alone is most likely an item's fault
            self._failed = True
            return
        self.limit = max(1, min(self.limit, count) // SHRINK)

    def succeeded(self, count: int) -> None:
        self._failed = False
        self.limit = max(self.limit, SHRINK * count)
        if count >= self.maximum:
            self._good += 1
            if self._good >= self._hold:
                self._good = 0
                self.maximum *= 2
        self.limit = min(self.limit, self.maximum)

    def too_long(self, count: int) -> None:
        """A list of `count` good items has failed."""
        if self.maximum < NEVER:
            self._hold = min(4 * self._hold, HOLD_MAX)
        self.maximum = max(1, min(self.maximum, count // 2))
        self.limit = min(self.limit, self.maximum)
        self._good = 0


def tries_needed(good: int, vanished: int) -> int:
    """Return how many failures prove that an item is bad.

    `good`: requests of the batch that succeeded. `vanished`: failed requests whose items were all good."""
    random = (vanished + 2) / (good + vanished + 4)  # with 2 of 4 beforehand: few requests prove little
    return max(TRIES_LEAST, min(TRIES_MOST, math.ceil(math.log(SURE) / math.log(random))))
