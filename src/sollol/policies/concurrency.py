"""Limit the requests in flight on one (node, model). Learned: no API of Ollama reports its slots.

A node with one slot queues a second request silently, so more in flight only lengthens answers; a node with
OLLAMA_NUM_PARALLEL=4 works on four at once. One request beyond the proven limit is a trial. Evidence, the best first:

1. First tokens. A trial whose answer begins while all others are being answered has a slot of its own. Then the limit
   doubles, so 64 slots are found within six first tokens. One that does not begin in time waits inside the node: it is
   withdrawn, at no cost, and the next trial comes HOLD answers later.
2. The timings of an answer. The rest of `total_duration`, without load, prefill and decode, was a wait in the node. A
   node far away needs more in flight than it works on, to cover the round trip.
3. Decode rates. Slots may share one rate: if N times the rate of each is hardly more than the rate of one, the lower
   limit returns, since late binding and priorities are worth more than that.
4. Throughput, where an answer has no timings: work done per busy time, compared over windows.

Anchors: Netflix concurrency-limits (Vegas: queue = limit x wait / latency), TCP slow start (doubling).
"""

from __future__ import annotations

import math
from typing import Final

from sollol.core.state.estimators import Mean
from sollol.core.types import MILLISECOND, SECOND, Micros

UNBOUNDED: Final = 1_000_000
# Of a doubling: 1.2 to 1.5 is measured where a second list overlaps, 1.08 where two slots share one rate.
GAIN: Final = 1.15
HOLD: Final = 1.2  # lengths of an answer until the next trial, after one that waited in the node
BARREN: Final[Micros] = 10 * SECOND  # longer, while no answer comes: the node may hang
SHARED_HOLD: Final = 20.0  # the same after slots turned out to share one rate; doubles up to SHARED_HOLD_MAX
SHARED_HOLD_MAX: Final = 320.0
SHARED_LEAST: Final = 3  # answers at a limit before its rate is judged
RECENT: Final = 20.0  # lengths of an answer for which a rate at a lower limit is comparable
PROOFS: Final = 2  # answers in a row that did not wait: one may have come just when another ended
WAIT_LEAST: Final[Micros] = 20 * MILLISECOND
WAIT_SHARE: Final = 0.3  # of the time an answer took in its slot, that it may have waited for it
PACE_DRIFT: Final = 1.02  # by which the best pace of embedding is forgotten with each answer
FIRST_WINDOW: Final = 4  # answers, times the limit, before the first comparison
WINDOW: Final = 6  # answers per comparison of throughput, times the limit under judgement
TRIAL: Final = 4  # answers after which a trial without any gain ends
STRONG: Final = 0.8  # of the gain that independent slots would give: accepted after a short window
CHEAP: Final[Micros] = 3 * SECOND  # a window so short is a cheap trial: it need not be put off
WINDOWS: Final = 8  # windows to wait after a step back; doubles up to WINDOWS_MAX
WINDOWS_MAX: Final = 128


class LearnedLimit:
    """Learn how many requests a (node, model) works on at once.

    Args:
        initial: Requests in flight before anything is known.
        maximum: Bound of the limit.
        gain: Least growth of the common rate for a doubling of the requests in flight.
        hold: Lengths of an answer between two trials.
        barren_us: Added to that while no answer comes.
        wait_least_us: Least wait inside the node that counts.
        wait_share: And as a share of the answer.
    """

    __slots__ = (
        "_barren_us",
        "_base",
        "_base_rate",
        "_below",
        "_busy_us",
        "_count",
        "_depth",
        "_doubles",
        "_exponent",
        "_hold_lengths",
        "_hold_until",
        "_is_barren",
        "_length_us",
        "_next_windows",
        "_pace",
        "_proofs",
        "_shared_hold",
        "_shared_until",
        "_sums",
        "_sure",
        "_wait_least_us",
        "_wait_share",
        "_windows",
        "_work",
        "limit",
        "maximum",
        "proven",
        "slots",
    )

    def __init__(
        self,
        initial: int = 1,
        maximum: int = UNBOUNDED,
        *,
        gain: float = GAIN,
        hold: float = HOLD,
        barren_us: Micros = BARREN,
        wait_least_us: Micros = WAIT_LEAST,
        wait_share: float = WAIT_SHARE,
    ) -> None:
        self._exponent = math.log2(gain)
        self._hold_lengths = hold
        self._barren_us = barren_us
        self._wait_least_us = wait_least_us
        self._wait_share = wait_share
        self.limit = initial
        self.proven = initial
        self.slots = initial  # that worked at once, though they may share one rate
        self.maximum = maximum
        self._doubles = True  # the next trial doubles the limit; after a refusal it adds one
        self._hold_until: Micros = 0
        self._proofs = 0  # answers in a row that had a slot of their own beyond the proven ones
        self._is_barren = False  # no answer has come since a trial was refused
        self._length_us = Mean()  # of an answer in its slot
        self._shared_hold = SHARED_HOLD
        self._shared_until: Micros = 0  # more than `proven` are known to share one rate
        self._sums: dict[int, _RateAt] = {}  # by the power of two of the requests in flight
        self._depth = Mean()  # requests in flight that keep a distant node busy, for each slot
        self._pace = 0.0  # least microseconds of node time per cost unit of an embedding
        # Comparison of throughput over windows:
        self._base = initial  # the limit that was good in the last window, and its throughput
        self._base_rate = 0.0
        self._below = 0.0  # the throughput at the proven limit, below the base
        self._sure = True  # a second window has confirmed the gain
        self._windows = 1  # until the next trial
        self._next_windows = WINDOWS
        self._reset()

    def _reset(self) -> None:
        self._work = 0.0
        self._busy_us = 0
        self._count = 0

    # --- first tokens ---

    def responded(self, responding: int, waited: bool, now: Micros) -> None:
        """Record that an answer began while `responding` requests, itself included, were being answered."""
        if responding > self.slots:
            self.slots = responding
        if now < self._shared_until:
            return
        if responding > self.proven:
            self._prove(responding)
            if responding >= self.limit:
                self._doubles = True
                self._open()
        elif waited:  # it began only when another call had ended
            self.refused(responding, True, now)

    def refused(self, responding: int, trial: bool, now: Micros) -> None:
        """Record that a request waited inside the node while `responding` others were being answered."""
        self.slots = max(1, min(self.slots, responding))
        if not trial and responding < self.proven:
            self._shrink(responding)
            self._base_rate = 0.0
        self.limit = self.proven
        self._doubles = False
        self._is_barren = True
        self._hold(self._hold_lengths, now)

    def restore(self, limit: int, now: Micros) -> None:
        """Restore a limit that was proven before a restart; the next trial comes after the usual time."""
        self._prove(limit)
        self.slots = max(self.slots, self.proven)
        self.limit = self.proven
        self._hold(self._hold_lengths, now)

    def reopen(self, now: Micros) -> None:
        """Allow the next trial if its time has come."""
        if self.limit != self.proven or now < self._hold_until + (self._barren_us if self._is_barren else 0):
            return
        self._open()

    def _open(self) -> None:
        self.limit = min(self.maximum, self.proven + (self.proven if self._doubles else 1))

    def _prove(self, limit: int) -> None:
        self.proven = self._base = min(limit, self.maximum)
        self._base_rate = 0.0
        self._sure = True
        if self.limit < self.proven:
            self.limit = self.proven
        self._reset()

    def _shrink(self, limit: int) -> None:
        self.limit = self.proven = self._base = max(1, limit)
        self._doubles = False
        self._sure = True
        self._reset()

    def _hold(self, lengths: float, now: Micros) -> None:
        self._hold_until = now + round(lengths * (self._length_us.value or SECOND))

    # --- timings ---

    def answered(
        self, inflight: float, elapsed_us: Micros, wait_us: Micros, rate: float, now: Micros, concurrent: int = 0
    ) -> None:
        """Record a chat or generate answer that came with timings.

        Args:
            inflight: Mean number of requests in flight while it ran.
            elapsed_us: Time from sending to the end of the answer.
            wait_us: Time it waited inside the node for a slot.
            rate: Its tokens per µs of decoding, 0 if unknown.
            now: The present moment.
            concurrent: Requests in flight when it was sent, itself included, if it did not wait; else 0.
        """
        served_us = max(1, elapsed_us - wait_us)
        self._length_us.add(served_us)
        self._is_barren = False
        self._proofs = self._proofs + 1 if concurrent > self.proven else 0
        if self._proofs >= PROOFS and now >= self._shared_until:  # answers too short to be seen overlapping
            self._prove(concurrent)
            if concurrent >= self.limit:
                self._doubles = True
                self._open()
        if wait_us > max(self._wait_least_us, self._wait_share * served_us):
            fits = round(inflight * served_us / elapsed_us)
            if fits < self.proven:
                self._shrink(fits)
                self._base_rate = 0.0
                self.slots = self.proven
                self._hold(self._hold_lengths, now)
        elif rate > 0:
            self._compare(inflight, rate, now)

    def _compare(self, inflight: float, rate: float, now: Micros) -> None:
        """Return to a lower limit if the requests in flight share one rate."""
        level = round(math.log2(max(1.0, inflight)))
        here = self._sums.get(level)
        if here is None:
            here = self._sums[level] = _RateAt()
        here.add(inflight, inflight * rate, now)
        if level == 0 or here.count < SHARED_LEAST or self.proven == 1:
            return
        oldest = now - round(RECENT * (self._length_us.value or 0.0))
        lowest = True
        for lower in range(level):
            other = self._sums.get(lower)
            if other is None or not (lowest or other.seen_us >= oldest):
                continue
            lowest = False
            if here.rate < other.rate * (here.inflight / other.inflight) ** self._exponent:
                self._shrink(round(other.inflight))
                self._base_rate = 0.0
                self._hold(self._shared_hold, now)
                self._shared_until = self._hold_until
                self._shared_hold = min(2 * self._shared_hold, SHARED_HOLD_MAX)
                del self._sums[level]
                return

    def embedded(self, inflight: float, elapsed_us: Micros, inside_us: Micros, cost: float, now: Micros) -> None:
        """Record an embedding answer.

        Args:
            inflight: Mean number of requests in flight while it ran.
            elapsed_us: Time from sending to the end of the answer.
            inside_us: Its `total_duration` without load.
            cost: Cost units of its input.
            now: The present moment.
        """
        pace = inside_us / max(1.0, cost)
        self._pace = min(pace, self._pace * PACE_DRIFT) if self._pace else pace
        served_us = max(1.0, self._pace * max(1.0, cost))
        wait_us = max(0.0, inside_us - served_us)
        self._length_us.add(elapsed_us - wait_us)
        if wait_us > max(float(self._wait_least_us), served_us):
            fits = round(inflight * (elapsed_us - wait_us) / elapsed_us)
            if fits < self.proven:
                self._shrink(fits)
                self._base_rate = 0.0
            return
        self._depth.add((elapsed_us - wait_us) / served_us)
        depth = round(self._depth.value or 1.0)
        if depth > self.proven:
            self._prove(depth)

    # --- throughput ---

    def sample(self, amount: float, busy_us: Micros, inflight: int, dropped: bool, wanted: bool) -> None:
        """Compare the work done per busy time. See `core.policy.Limiter`."""
        if dropped:
            self._step_back(max(1, self.limit // 2))
            return
        if inflight < self.limit:  # the limit did not hold it back: no evidence about the limit
            return
        self._work += amount
        self._busy_us += busy_us
        self._count += 1
        rate = self._work / max(1, self._busy_us)
        if self.limit > self._base and self._base_rate:
            gain = self.limit / self._base - 1
            if self._count == max(TRIAL, self.limit) and rate <= self._base_rate:
                self._step_back(self._base)  # no gain at all: do not wait for the whole window
                return
            if self._count >= 2 * self.limit and rate >= self._base_rate * (1 + STRONG * gain):
                self._prove(self.limit)
                self._base_rate = rate
                if wanted:
                    self._doubles = True
                    self._open()
                return
        if self._count >= (WINDOW if self._base_rate else FIRST_WINDOW) * self.limit:
            self._judge(rate, wanted)
            self._reset()

    def _judge(self, rate: float, wanted: bool) -> None:
        if self.limit > self._base and self._base_rate:
            if rate > self._base_rate * (self.limit / self._base) ** self._exponent:  # used if the next window agrees
                self._sure, self._below, self.proven = False, self._base_rate, self._base
                self._base, self._base_rate = self.limit, rate
                self._next_windows = WINDOWS
            else:
                self._step_back(self._base)
                return
        elif not self._sure and rate < self._below * (self._base / self.proven) ** self._exponent:  # it was luck
            self._step_back(self.proven)
            return
        else:
            self._sure = True
            self._base_rate = rate
            self._base = self.proven = self.limit
        self._windows -= WINDOWS if self._busy_us < CHEAP else 1
        if self._windows <= 0 and wanted:
            self.limit = min(self.maximum, self._base + 1)

    def _step_back(self, limit: int) -> None:
        self._shrink(limit)
        self._windows = self._next_windows
        self._next_windows = min(2 * self._next_windows, WINDOWS_MAX)


class _RateAt:
    """Hold the tokens per µs of all requests together, at about one number in flight."""

    __slots__ = ("_inflight", "_rate", "count", "seen_us")

    def __init__(self) -> None:
        self._inflight = Mean()
        self._rate = Mean()
        self.count = 0
        self.seen_us: Micros = 0

    @property
    def inflight(self) -> float:
        return self._inflight.value or 1.0

    @property
    def rate(self) -> float:
        return self._rate.value or 0.0

    def add(self, inflight: float, rate: float, now: Micros) -> None:
        """Add an answer. One far off counts in part: a straggler is no slow node."""
        usual = self._rate.value
        if usual:
            rate = min(max(rate, usual / 2), usual * 2)
        self._inflight.add(inflight)
        self._rate.add(rate)
        self.count += 1
        self.seen_us = now
