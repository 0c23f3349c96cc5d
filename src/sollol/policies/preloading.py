"""Decide when to load a model on an idle node before any request is sent there.

Each request alone rather waits for a warm node than for a load. A load serves all that follow, too. Waiting until the
time lost equals the price of a load costs at most twice what foresight would (ski rental, Karlin et al. 1988).
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import Micros

PRICE: Final = 1.0  # times the load that tasks must have waited, in sum


class SkiRentalPreloader:
    """Load once the tasks have waited, in sum, as long as the load takes.

    Args:
        price: Loads that the tasks must have waited. Zero loads at once.
    """

    __slots__ = ("_price",)

    def __init__(self, price: float = PRICE) -> None:
        self._price = price

    def loads(self, waited_us: Micros, load_us: Micros) -> bool:
        """Check that the time lost pays for a load."""
        return waited_us >= self._price * load_us
