"""Judge whether a failed chunk is the fault of an item or of its node.

A node answers a list as a whole, so one bad text fails all texts of its request. The failure of a chunk counts against
its items first. They are split in halves until an item stands alone (binary splitting). An item that fails alone is
bad if its node does other work between two failures. If it does none, a text that was answered before is sent as a
control.
"""

from __future__ import annotations

import math
from typing import Final

from sollol.core.state.evidence import FailureEvidence
from sollol.core.types import Micros, Status

SURE: Final = 1e-6  # chance that a good item is refused because of random errors
TRIES_LEAST: Final = 2  # failures before an item is refused, however reliable its nodes are
TRIES_MOST: Final = 12  # at 30 % random errors, 1 item in 2 million fails so often
CONTROL_AFTER: Final = 3  # single items that a node fails in a row, before it gets a control
HOPELESS: Final = 24  # failures before a batch that never succeeded is given up
HOPELESS_LEAST: Final = 6  # failures that suffice, if they took the patience of the batch


class ItemSuspicion:
    """Refuse an item when its failures can hardly be random.

    Args:
        sure: Accepted probability that a good item is refused.
    """

    __slots__ = ("_hopeless", "_hopeless_least", "_sure", "_tries_least", "_tries_most", "control_after")

    def __init__(
        self,
        *,
        sure: float = SURE,
        tries_least: int = TRIES_LEAST,
        tries_most: int = TRIES_MOST,
        control_after: int = CONTROL_AFTER,
        hopeless: int = HOPELESS,
        hopeless_least: int = HOPELESS_LEAST,
    ) -> None:
        self.control_after = control_after
        self._tries_most = tries_most
        self._sure = sure
        self._tries_least = tries_least
        self._hopeless = hopeless
        self._hopeless_least = hopeless_least

    def is_hopeless(self, failures: int, lasted_us: Micros, patience_us: Micros) -> bool:
        """Check that a batch without any success is given up."""
        return failures >= self._hopeless or (failures >= self._hopeless_least and lasted_us > patience_us)

    def tries_needed(self, good: int, random: int) -> int:
        """Return how many failures prove that an item is bad.

        Args:
            good: Requests of the batch that succeeded.
            random: Failed requests whose items turned out to be good.
        """
        rate = (random + 2) / (good + random + 4)  # prior of 2 in 4: few requests prove little
        return max(self._tries_least, min(self._tries_most, math.ceil(math.log(self._sure) / math.log(rate))))

    def is_bad(self, evidence: FailureEvidence, good: int, random: int) -> bool:
        """Check that an item has failed alone, often enough, on a node that works."""
        if evidence.outcome is None or not evidence.alone:
            return False
        if evidence.outcome.status is Status.REFUSED or evidence.alone >= self._tries_most:
            return True
        # Where requests fail at random, a failure that other items shared proves nothing of this one.
        tries = evidence.alone if random else evidence.tries
        return evidence.witnessed and tries >= self.tries_needed(good, random)
