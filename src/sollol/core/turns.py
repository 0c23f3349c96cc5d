"""How many models of one node should be at work at the same time?

Those that share a GPU only slow each other, so they take turns; those on two GPUs do not. It is tried once in
TURNS_HOLD answers, when another model is waited for, and kept if an answer beside another model's is written at
least at ALONE of the usual rate.
"""

from __future__ import annotations

from typing import Final

from sollol.core.estimate import Mean

# Answers of a node before another of its models may try to work beside; four times as many each time.
TURNS_HOLD: Final = 100
TURNS_LEAST: Final = 3  # answers that tell
TURNS_MOST: Final = 4
ALONE: Final = 0.8


class Turns:
    __slots__ = ("_answers", "_hold", "_ratio", "_settled", "at_once")

    def __init__(self) -> None:
        self.at_once = 1
        self._settled = 1  # known to be good; beyond it is a trial
        self._answers = 0
        self._hold = TURNS_HOLD
        self._ratio = Mean()

    def answered(self, wanted: bool) -> None:
        """An answer came. `wanted`: another model of the node is waited for."""
        self._answers += 1
        if wanted and self._answers >= self._hold and self.at_once == self._settled < TURNS_MOST:
            self.at_once += 1
            self._ratio = Mean()

    def beside(self, ratio: float) -> None:
        """An answer beside another model's was written at so much of the usual rate."""
        if self.at_once == self._settled:
            return
        self._ratio.add(ratio)
        if self._ratio.count < TURNS_LEAST:
            return
        good = (self._ratio.value or 0.0) >= ALONE
        self._settled = self.at_once = self.at_once if good else self._settled
        self._hold = TURNS_HOLD if good else 4 * self._hold
        self._answers = 0
