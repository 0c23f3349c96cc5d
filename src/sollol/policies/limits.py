"""How many requests may a (node, model) have in flight? Learned, because no API of Ollama reports it.

A node with one slot queues a second request without a word, so more in flight only lengthens answers; a node
with OLLAMA_NUM_PARALLEL=4, or one whose encoding overlaps with HTTP, finishes more. What tells them apart is
throughput: work done per time the lane was busy. Start at 1; when others wait, try one more; keep it while throughput
rises by GAIN, twice; otherwise step back and wait, longer each time, before trying again. Halve when the node says
503 or does not answer in time. (Netflix concurrency-limits asks latency instead; an LLM's depends on its input.)
"""

from __future__ import annotations

from typing import Final

from sollol.core.types import SECOND, Micros

GAIN: Final = 1.15  # of 1.2 to 1.5 measured where a second list overlaps, against the noise of unequal requests
MAXIMUM: Final = 32
WINDOW: Final = 6  # answers per judgement, times the limit under judgement
TRIAL: Final = 4  # answers after which a trial without any gain ends
CHEAP: Final[Micros] = 3 * SECOND  # a window so short is a cheap trial: it need not be put off
HOLD: Final = 8  # windows to wait after a step back; doubles up to HOLD_MAX
HOLD_MAX: Final = 128


class ThroughputLimiter:
    __slots__ = (
        "_base",
        "_base_rate",
        "_below",
        "_busy_us",
        "_count",
        "_hold",
        "_next_hold",
        "_sure",
        "_work",
        "limit",
        "maximum",
        "proven",
    )

    def __init__(self, initial: int = 1, maximum: int = MAXIMUM) -> None:
        self.limit = initial
        self.proven = initial
        self.maximum = maximum
        self._base = initial  # the limit that was good in the last window, and its throughput
        self._base_rate = 0.0
        self._sure = True  # a second window has confirmed the gain over the limit below
        self._below = 0.0  # the throughput there
        self._hold = HOLD
        self._next_hold = HOLD
        self._reset()

    def _reset(self) -> None:
        self._work = 0.0
        self._busy_us = 0
        self._count = 0

    def sample(self, amount: float, busy_us: Micros, inflight: int, dropped: bool, wanted: bool) -> None:
        if dropped:
            self._step_back(max(1, self.limit // 2))
            return
        if inflight < self.limit:  # the limit was not what held it back: this says nothing of the limit
            return
        self._work += amount
        self._busy_us += busy_us
        self._count += 1
        rate = self._work / max(1, self._busy_us)
        if self.limit > self._base and self._count == TRIAL and rate <= self._base_rate:
            self._step_back(self._base)  # no gain at all: do not wait for the whole window
        elif self._count >= WINDOW * self.limit:
            self._judge(rate, wanted)
            self._reset()

    def _judge(self, rate: float, wanted: bool) -> None:
        if self.limit > self._base:
            if rate > self._base_rate * GAIN:
                self._sure, self._below, self.proven = False, self._base_rate, self._base
                self._base, self._base_rate = self.limit, rate
                self._next_hold = HOLD
            else:
                self._step_back(self._base)
                return
        elif not self._sure and rate < self._below * GAIN:  # it was luck
            self._step_back(self._base - 1)
            return
        else:
            self._sure = True
            self.proven = self._base
            self._base_rate = rate
        self._hold -= HOLD if self._busy_us < CHEAP else 1
        if self._hold <= 0 and self.limit < self.maximum and wanted:
            self.limit = self._base + 1

    def _step_back(self, limit: int) -> None:
        self.limit = self._base = self.proven = limit
        self._sure = True
        self._hold = self._next_hold
        self._next_hold = min(2 * self._next_hold, HOLD_MAX)
        self._reset()
