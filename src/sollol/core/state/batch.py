"""Track the items of one batch: waiting, in flight, answered or refused.

An item is in flight in one attempt or, after a takeover, in several; the first answer wins. Only contested items are
tracked one by one, so that a million items cost a million small integers and not a million objects.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sollol.core.state.pending_items import PendingItems
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt
from sollol.core.types import NEVER, Micros, Task

GOLDEN: Final = 0.618034  # multiples of it, less their whole part, are spread evenly
NOBODY: Final[frozenset[str]] = frozenset()


class Costs:
    """Prefix sums of item costs. Sums below the lowest open item are dropped."""

    __slots__ = ("_base", "_sums")

    def __init__(self) -> None:
        self._base = 0
        self._sums = [0]

    def extend(self, costs: Sequence[int]) -> None:
        """Add the costs of further items."""
        total = self._sums[-1]
        sums = self._sums
        for cost in costs:
            total += cost
            sums.append(total)

    @property
    def total(self) -> int:
        """Return the cost of all items so far."""
        return self._sums[-1]

    @property
    def mean(self) -> float:
        """Return the mean cost of an item, at least 1."""
        return max(1.0, self.total / max(1, self.end))

    @property
    def end(self) -> int:
        """Return the position after the last item."""
        return self._base + len(self._sums) - 1

    def between(self, lo: int, hi: int) -> int:
        """Return the cost of the items in [lo, hi)."""
        return self._sums[hi - self._base] - self._sums[lo - self._base]

    def reach(self, lo: int, hi: int, budget: float) -> int:
        """Return the largest stop in (lo, hi] such that [lo, stop) costs at most `budget`; at least one item."""
        sums = self._sums
        first = lo - self._base
        stop = bisect_right(sums, sums[first] + budget, first + 1, hi - self._base + 1)
        return max(lo + 1, self._base + stop - 1)

    def forget_below(self, item: int) -> None:
        """Drop sums below an item, when there are many."""
        drop = item - self._base
        if drop > 65_536 and drop * 2 > len(self._sums):
            del self._sums[:drop]
            self._base = item


class Batch:
    """Hold the state of one batch task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.costs = Costs()
        self.pending: deque[PendingItems] = deque()
        self.longest = 0  # cost of its largest item so far
        self.pending_cost = 0
        self.pending_count = 0
        self.live: dict[int, Attempt] = {}
        self.contested: dict[int, list[int]] = {}  # item -> live attempts that have it; [] once answered
        self.digest: str | None = None  # the version of the model that its vectors come from, once it has begun
        self.held = 0  # items held back until the other half of them has ended
        self.failed_segments = 0  # that wait, and failed somewhere
        self.answered = 0
        self.refused = 0
        self.good = 0  # requests that succeeded
        self.vanished = 0  # failed requests whose items were all good
        self.known_good: int | None = None  # an item that was answered, whose text is kept as a control
        self.closed = False
        self.wanted_upto = 0  # items up to this position were already requested
        self.refused_on: set[str] = set()  # nodes that refused the call as such
        self.refused_alone = 0  # single items refused before anything succeeded
        self.failed_on: set[str] = set()  # nodes that have failed one of its requests
        self.failures_in_a_row = 0
        self.fresh_failures = 0  # of items that had not failed before
        self.failing_since: Micros = 0
        self.stuck_since: Micros | None = None
        self.look_at: Micros | None = None  # a takeover is to be considered again then
        self._since_forget = 0

    # --- feeding and cutting ---

    def feed(self, costs: Sequence[int], closed: bool) -> None:
        """Add items by their costs."""
        if costs:
            lo = self.costs.end
            self.costs.extend(costs)
            self.longest = max(self.longest, *costs)
            self._back(PendingItems([(lo, self.costs.end)]), front=False)
        self.closed = closed

    @property
    def done(self) -> bool:
        """Return whether all items have ended and no more will come."""
        return self.closed and not self.pending_count and not self.live

    def cost_of(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Return the cost of the items in these ranges."""
        return sum(self.costs.between(lo, hi) for lo, hi in ranges)

    def _back(self, segment: PendingItems, front: bool) -> None:
        last = self.pending[-1] if self.pending else None
        if not front and last is not None and last.clean and segment.clean:
            self.pending_count += segment.total()
            self.pending_cost += self.cost_of(segment.ranges)
            last.ranges.extend(segment.ranges)
            return
        if front:
            self.pending.appendleft(segment)
        else:
            self.pending.append(segment)
        self.pending_count += segment.total()
        self.failed_segments += bool(segment.failed_on)
        self.pending_cost += self.cost_of(segment.ranges)

    def put_back(self, segment: PendingItems, front: bool = True) -> None:
        """Queue items whose attempt failed, by default before all others."""
        self._back(segment, front)

    def cut(
        self,
        node: str,
        cost: float,
        count: int,
        others: Callable[[], frozenset[str]],
        longest: int = NEVER,
        sample: bool = False,
    ) -> tuple[Ranges, PendingItems] | None:
        """Remove a chunk for a node. Return its items and their PendingItems, or None.

        None if all items have failed on this node and one of the `others` has not tried them yet.

        Args:
            longest: Most items that the node takes at once.
            sample: Take one item from anywhere, since the first ones all failed.
        """
        known = others() if self.failed_segments else NOBODY
        for segment in self.pending:
            if node not in segment.failed_on or known <= segment.failed_on:
                break
        else:
            return None
        if segment.suspect:
            ranges = Ranges(segment.take(min(max(1, segment.total() // 2), longest)))
        elif segment.alone and segment.total() <= longest:
            ranges = Ranges(segment.take(longest))
        elif sample and segment.clean:
            total = segment.total()
            ranges = Ranges(segment.take_at(int(self.failures_in_a_row * GOLDEN % 1.0 * total)))
        else:
            ranges = self._fill(segment, cost, min(count, longest))
        if not segment.ranges:
            self.pending.remove(segment)
        self._left(ranges, segment)
        if segment.suspect and segment.ranges:
            self.pending.remove(segment)
            self._left(Ranges(segment.ranges), segment)
            self.held += segment.total()
        return ranges, segment

    def _left(self, ranges: Ranges, segment: PendingItems) -> None:
        """Subtract items that no longer wait."""
        self.pending_count -= ranges.total()
        self.pending_cost -= self.cost_of(ranges)
        if segment.failed_on and (not segment.ranges or segment.suspect):
            self.failed_segments = sum(1 for other in self.pending if other.failed_on)

    def _fill(self, first: PendingItems, cost: float, count: int) -> Ranges:
        """Take up to `count` items of up to `cost`, also from clean ones behind the first."""
        taken: list[tuple[int, int]] = []
        budget, left = cost, count
        segment = first
        while left > 0 and (budget > 0 or not taken):
            if not segment.ranges:
                following = self._clean_after(segment) if segment.clean else None
                if following is None:
                    break
                if segment is not first:
                    self.pending.remove(segment)
                segment = following
            lo, hi = segment.ranges.popleft()
            stop = self.costs.reach(lo, min(hi, lo + left), budget)
            if taken and self.costs.between(lo, stop) > budget:
                segment.ranges.appendleft((lo, hi))
                break
            if stop < hi:
                segment.ranges.appendleft((stop, hi))
            taken.append((lo, stop))
            left -= stop - lo
            budget -= self.costs.between(lo, stop)
            if stop < hi:
                break
        if segment is not first and not segment.ranges:
            self.pending.remove(segment)
        return joined_ranges(taken)

    def _clean_after(self, segment: PendingItems) -> PendingItems | None:
        """Return the next items, if nothing counts against them."""
        place = self.pending.index(segment) + 1
        following = self.pending[place] if place < len(self.pending) else None
        return following if following is not None and following.clean else None

    def release(self, attempt: Attempt, suspect: bool) -> None:
        """Queue the other half that was held back for an attempt.

        Args:
            suspect: The fault must be in it.
        """
        segment = attempt.other_half
        if segment is None:
            return
        attempt.other_half = None
        self.held -= segment.total()
        if suspect:
            self._back(segment, front=True)
        else:
            self._back(PendingItems(segment.ranges), front=True)

    # --- attempts ---

    def begin(self, attempt: Attempt, ranges: Ranges) -> None:
        """Record that an attempt has these items in flight."""
        attempt.items = ranges
        attempt.uncovered = list(ranges)
        attempt.unanswered_items = ranges.total()
        self.live[attempt.id] = attempt

    def contest(self, thief: Attempt, victim: Attempt, ranges: Ranges) -> None:
        """Record that `thief` tries items that `victim` has in flight."""
        self.begin(thief, ranges)
        for item in ranges.items():
            self.contested.setdefault(item, [victim.id]).append(thief.id)

    def accept(self, attempt: Attempt) -> tuple[Ranges, list[Attempt]]:
        """Record an answer. Return the new items, and the attempts without work left."""
        del self.live[attempt.id]
        if not self.contested:
            self.answered += attempt.items.total()
            return attempt.items, []
        fresh: list[int] = []
        idle: list[Attempt] = []
        for item in attempt.items.items():
            owners = self.contested.get(item)
            if owners is None:
                fresh.append(item)
                continue
            if not owners:
                continue
            fresh.append(item)
            for other_id in owners:
                other = self.live.get(other_id)
                if other is not None:
                    other.unanswered_items -= 1
                    if other.unanswered_items == 0:
                        idle.append(other)
            self.contested[item] = []
        self.answered += len(fresh)
        return joined(fresh), idle

    def drop(self, attempt: Attempt) -> Ranges:
        """Remove a failed attempt. Return the items that no other attempt has."""
        del self.live[attempt.id]
        orphans: list[int] = []
        for item in attempt.items.items():
            owners = self.contested.get(item)
            if owners is None:
                orphans.append(item)
            elif attempt.id in owners:
                owners.remove(attempt.id)
                if not owners:
                    del self.contested[item]
                    orphans.append(item)
                elif len(owners) == 1:
                    holder = self.live[owners[0]]
                    holder.uncovered = list(joined({*Ranges(holder.uncovered).items(), item}))
        self._tidy()
        return joined(orphans)

    def _tidy(self) -> None:
        if not self.live:
            self.contested.clear()

    def forget(self) -> None:
        """Drop the costs below the lowest open item, now and then."""
        self._since_forget += 1
        if self._since_forget < 256:
            return
        self._since_forget = 0
        lows = [segment.ranges[0][0] for segment in self.pending if segment.ranges]
        lows += [attempt.items[0][0] for attempt in self.live.values()]
        lows += [a.other_half.ranges[0][0] for a in self.live.values() if a.other_half is not None]
        self.costs.forget_below(min(lows, default=self.costs.end))

    def invariants(self, in_line: bool) -> None:
        """Check that each item is in one state and that the counts agree."""
        waiting = [item for segment in self.pending for item in Ranges(segment.ranges).items()]
        under_way = [
            item for attempt in self.live.values() for item in attempt.items.items() if self.contested.get(item) != []
        ]
        assert len(waiting) == len(set(waiting)) == self.pending_count, "an item waits twice, or uncounted"
        assert self.pending_cost == sum(self.cost_of(segment.ranges) for segment in self.pending)
        assert not set(waiting) & set(under_way), "an item waits and is under way"
        held = [
            item for a in self.live.values() if a.other_half is not None for item in Ranges(a.other_half.ranges).items()
        ]
        assert len(held) == self.held, "an item is held back uncounted"
        assert not set(held) & {*waiting, *under_way}, "an item is held back and elsewhere"
        assert self.failed_segments == sum(1 for segment in self.pending if segment.failed_on)
        open_items = len(waiting) + len(set(under_way)) + len(held)
        assert self.answered + self.refused + open_items == self.costs.end, "an item was lost or counted twice"
        assert in_line or not self.pending_count, "items wait and no node will serve them"


def joined_ranges(ranges: list[tuple[int, int]]) -> Ranges:
    """Return ranges in order, with neighbours joined."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if out and out[-1][1] == lo:
            out[-1] = (out[-1][0], hi)
        else:
            out.append((lo, hi))
    return Ranges(out)


def joined(items: Iterable[int]) -> Ranges:
    """Return positions as ranges."""
    out: list[tuple[int, int]] = []
    for item in sorted(items):
        if out and out[-1][1] == item:
            out[-1] = (out[-1][0], item + 1)
        else:
            out.append((item, item + 1))
    return Ranges(out)
