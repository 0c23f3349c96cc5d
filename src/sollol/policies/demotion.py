"""Judge whether a replica has become much slower than it was.

It may have fallen to the CPU, or others use its GPU. One slow answer is a straggler, which 2 % of the requests of a
healthy node can be. Two in a row are hardly chance.
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import MILLISECOND, SECOND, Micros

SLOWER: Final = 4.0  # times slower than before; a model on the CPU is about 20 times slower
IN_ROW: Final = 2
SLOWER_LEAST: Final[Micros] = 20 * MILLISECOND  # and so much longer: a busy machine delays short work by as much
RETEST: Final[Micros] = 60 * SECOND


class DemotionByRate:
    """Compare the rate of each answer with the rate before.

    Args:
        slower: Times slower than before, from which on an answer is evidence.
        in_row: Such answers in a row.
        retest_us: Time between two tests whether a demoted replica is fast again.
    """

    __slots__ = ("_in_row", "_retest_us", "_slower")

    def __init__(self, *, slower: float = SLOWER, in_row: int = IN_ROW, retest_us: Micros = RETEST) -> None:
        self._slower = slower
        self._in_row = in_row
        self._retest_us = retest_us

    def is_slow(self, took_us: Micros, predicted_us: Micros) -> bool:
        """Check that an answer that took so long is evidence."""
        return took_us >= self._slower * predicted_us + SLOWER_LEAST

    def demotes(self, in_row: int) -> bool:
        """Check that so many slow answers in a row mean a slow replica."""
        return in_row >= self._in_row

    def is_due(self, since_us: Micros) -> bool:
        """Check that a demoted replica should be tested, `since_us` after the last test."""
        return since_us >= self._retest_us
