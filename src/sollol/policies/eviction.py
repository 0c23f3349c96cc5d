"""Price what a load costs the users of the models that it evicts.

They load their model again, which evicts the next one, and nodes would trade their models for ever. So an evicted model
counts by its use, and most where it has no other node, or where the model to be loaded has one.
"""

from __future__ import annotations

import math
from typing import Final

from sollol.core.types import SECOND, Micros

PUT_OUT: Final = 3  # loads that follow from evicting a model in use: it comes back, and evicts the next one
KEPT: Final = 20  # the same where the evicted model is in memory nowhere else, or the loaded one is elsewhere
FADES: Final[Micros] = 5 * SECOND  # in which a model that is not used any more counts by a third as much


class EvictionByUse:
    """Count the loads that follow from an eviction, by how recently the model was used.

    Args:
        put_out: Loads that follow from evicting a model in use.
        kept: The same where one of the two models has a place elsewhere and the other has none.
        fades_us: Time without use in which the count falls to a third.
    """

    __slots__ = ("_fades_us", "_kept", "_put_out")

    def __init__(self, *, put_out: float = PUT_OUT, kept: float = KEPT, fades_us: Micros = FADES) -> None:
        self._put_out = put_out
        self._kept = kept
        self._fades_us = fades_us

    def loads(self, idle_us: Micros, alone: bool, replaceable: bool, waiting: int) -> float:
        """Return the loads that the users of an evicted model pay.

        Args:
            idle_us: Time since the evicted model was used; 0 while it is at work.
            alone: No other node has the evicted model in memory.
            replaceable: Another node has the model that is to be loaded.
            waiting: Requests that run on the evicted replica, or wait for its model.
        """
        used = math.exp(-idle_us / self._fades_us)
        loads = 1 + used * (self._kept if alone or replaceable else self._put_out)
        return loads + waiting if alone else loads
