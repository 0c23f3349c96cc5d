"""The ledger of one batch: which items wait, which are under way, and who answers for each.

Every item is in exactly one state: waiting, under way, answered or refused. An item is under way in one attempt,
or, after a takeover, in several; the first answer wins. Only those contested items are tracked one by one,
so that a million items cost a million small integers and not a million objects.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from sollol.core.attempt import Attempt
from sollol.core.ranges import Ranges
from sollol.core.types import Micros, Task


class Piece:
    """Items that wait. `tries` and `failed_on` tell what became of them before; `alone`: not to be joined."""

    __slots__ = ("alone", "failed_on", "ranges", "tries")

    def __init__(
        self,
        ranges: Sequence[tuple[int, int]],
        tries: int = 0,
        failed_on: frozenset[str] = frozenset(),
        alone: bool = False,
    ) -> None:
        self.ranges: deque[tuple[int, int]] = deque(ranges)
        self.tries = tries
        self.failed_on = failed_on
        self.alone = alone


class Costs:
    """Prefix sums of item costs from a moving base: what lies below the lowest open item is forgotten."""

    __slots__ = ("_base", "_sums")

    def __init__(self) -> None:
        self._base = 0
        self._sums = [0]

    def extend(self, costs: Sequence[int]) -> None:
        total = self._sums[-1]
        sums = self._sums
        for cost in costs:
            total += cost
            sums.append(total)

    @property
    def total(self) -> int:
        """Cost of all items fed since the beginning."""
        return self._sums[-1]

    @property
    def end(self) -> int:
        return self._base + len(self._sums) - 1

    def between(self, lo: int, hi: int) -> int:
        return self._sums[hi - self._base] - self._sums[lo - self._base]

    def reach(self, lo: int, hi: int, budget: float) -> int:
        """The largest stop in (lo, hi] such that [lo, stop) costs at most `budget`; at least one item."""
        sums = self._sums
        first = lo - self._base
        stop = bisect_right(sums, sums[first] + budget, first + 1, hi - self._base + 1)
        return max(lo + 1, self._base + stop - 1)

    def forget_below(self, item: int) -> None:
        drop = item - self._base
        if drop > 65_536 and drop * 2 > len(self._sums):
            del self._sums[:drop]
            self._base = item


class Batch:
    """State of one batch task. Written by the scheduler only."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.costs = Costs()
        self.pending: deque[Piece] = deque()
        self.pending_cost = 0
        self.pending_count = 0
        self.live: dict[int, Attempt] = {}
        self.contested: dict[int, list[int]] = {}  # item -> live attempts that have it; [] once answered
        self.digest: str | None = None  # the version of the model that its vectors come from, once it has begun
        self.answered = 0
        self.refused = 0
        self.closed = False
        self.wanted_upto = 0  # feeding up to this position was already asked for
        self.refused_alone = 0  # single items refused before anything succeeded
        self.failures_in_a_row = 0
        self.failing_since: Micros = 0
        self.stuck_since: Micros | None = None
        self.look_at: Micros | None = None  # a takeover is to be considered again then
        self._since_forget = 0

    # --- feeding and cutting ---

    def feed(self, costs: Sequence[int], closed: bool) -> None:
        if costs:
            lo = self.costs.end
            self.costs.extend(costs)
            self._back(Piece([(lo, self.costs.end)]), front=False)
        self.closed = closed

    @property
    def done(self) -> bool:
        return self.closed and not self.pending_count and not self.live

    def cost_of(self, ranges: Sequence[tuple[int, int]]) -> int:
        return sum(self.costs.between(lo, hi) for lo, hi in ranges)

    def _back(self, piece: Piece, front: bool) -> None:
        last = self.pending[-1] if self.pending else None
        if not front and last is not None and not (last.alone or last.tries or piece.tries):
            last.ranges.extend(piece.ranges)
        elif front:
            self.pending.appendleft(piece)
        else:
            self.pending.append(piece)
        self.pending_count += sum(hi - lo for lo, hi in piece.ranges)
        self.pending_cost += self.cost_of(piece.ranges)

    def put_back(self, piece: Piece) -> None:
        """Items whose attempt failed go to the head of the line: they have waited longest."""
        self._back(piece, front=True)

    def cut(
        self, node: str, cost: float, count: int, others: Callable[[], frozenset[str]]
    ) -> tuple[Ranges, Piece] | None:
        """Take a chunk for a node: its items, and the piece they came from.

        None if all that waits has failed on this node and one of the `others` has not tried it yet."""
        for position, piece in enumerate(self.pending):
            if node not in piece.failed_on or others() <= piece.failed_on:
                break
            if position >= 8:
                return None
        else:
            return None
        taken: list[tuple[int, int]] = []
        budget, left = cost, count
        whole = piece.alone
        while piece.ranges and (whole or (left > 0 and (budget > 0 or not taken))):
            lo, hi = piece.ranges.popleft()
            stop = hi if whole else self.costs.reach(lo, min(hi, lo + left), budget)
            if not whole and taken and self.costs.between(lo, stop) > budget:
                piece.ranges.appendleft((lo, hi))
                break
            if stop < hi:
                piece.ranges.appendleft((stop, hi))
            taken.append((lo, stop))
            left -= stop - lo
            budget -= self.costs.between(lo, stop)
            if stop < hi:
                break
        if not piece.ranges:
            del self.pending[position]
        ranges = Ranges(taken)
        self.pending_count -= ranges.total()
        self.pending_cost -= self.cost_of(ranges)
        return ranges, piece

    # --- the ledger ---

    def begin(self, attempt: Attempt, ranges: Ranges) -> None:
        attempt.items = ranges
        attempt.uncovered = list(ranges)
        attempt.owed = ranges.total()
        self.live[attempt.id] = attempt

    def contest(self, thief: Attempt, victim: Attempt, ranges: Ranges) -> None:
        """`thief` tries items that `victim` has under way."""
        self.begin(thief, ranges)
        for item in ranges.items():
            self.contested.setdefault(item, [victim.id]).append(thief.id)

    def accept(self, attempt: Attempt) -> tuple[Ranges, list[Attempt]]:
        """An attempt was answered: (items that are new, attempts for which nothing is left to do)."""
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
                    other.owed -= 1
                    if other.owed == 0:
                        idle.append(other)
            self.contested[item] = []
        self.answered += len(fresh)
        return joined(fresh), idle

    def drop(self, attempt: Attempt) -> Ranges:
        """An attempt ended without an answer: the items that nobody has any more."""
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
        """Let go of costs below the lowest open item. Finding that costs time, so now and then."""
        self._since_forget += 1
        if self._since_forget < 256:
            return
        self._since_forget = 0
        lows = [piece.ranges[0][0] for piece in self.pending if piece.ranges]
        lows += [attempt.items[0][0] for attempt in self.live.values()]
        self.costs.forget_below(min(lows, default=self.costs.end))

    def invariants(self, in_line: bool) -> None:
        """Every item is in exactly one state, and what is counted is what is there."""
        waiting = [item for piece in self.pending for item in Ranges(piece.ranges).items()]
        under_way = [
            item for attempt in self.live.values() for item in attempt.items.items() if self.contested.get(item) != []
        ]
        assert len(waiting) == len(set(waiting)) == self.pending_count, "an item waits twice, or uncounted"
        assert self.pending_cost == sum(self.cost_of(piece.ranges) for piece in self.pending)
        assert not set(waiting) & set(under_way), "an item waits and is under way"
        open_items = len(waiting) + len(set(under_way))
        assert self.answered + self.refused + open_items == self.costs.end, "an item was lost or counted twice"
        assert in_line or not self.pending_count, "items wait and nobody will serve them"


def joined(items: Iterable[int]) -> Ranges:
    """Positions, in any order, as ranges."""
    out: list[tuple[int, int]] = []
    for item in sorted(items):
        if out and out[-1][1] == item:
            out[-1] = (out[-1][0], item + 1)
        else:
            out.append((item, item + 1))
    return Ranges(out)
