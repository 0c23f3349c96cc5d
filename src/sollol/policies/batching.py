"""How much of a batch does a free slot take? Guided self-scheduling with measured rates.

The fluid bound of n items over nodes of rates r is n / sum(r): every node busy until the same last moment. What
loses against it is (a) overhead per request, which wants large chunks, (b) nodes that end at different moments,
and work lost when a node dies, which want small ones. So a chunk is sized in time, not in items: TARGET while much
is left, then SHARE of the time that is left (factoring), so that the last chunks are tiny and all end together.
A node that would not finish even one item before the others have done all leaves it to them.
A node of unknown rate gets a few items first: an item costs it as little as possible to tell how fast it is.
Source: Polychronopoulos and Kuck 1987 (GSS), Hummel et al. 1992 (factoring), Flynn Hummel 1996 (weighted).
"""

from __future__ import annotations

from sollol.core.policy import BatchView, ChunkRetry
from sollol.core.types import MILLISECOND, Micros, Outcome, Status

TARGET: Micros = 300 * MILLISECOND  # a request costs 1 to 3 ms: at most 1 %; and it is what a dying node loses
SHARE = 0.5
FLOOR: Micros = 10 * MILLISECOND  # no chunk shorter than this for the sake of balance
FIRST_ITEMS = 4
MARGIN: Micros = 5 * MILLISECOND  # what a takeover costs at least: a request
RETRIES = 4  # times that a chunk is not answered in time, before it is split to find the item that causes it
TRIES_MAX = 12  # of a single item that is not answered in time


class GuidedBatcher:
    __slots__ = ()

    def item_budget(self, view: BatchView) -> tuple[int, int]:
        mean = view.pending_cost / view.pending_count
        if view.replica_rate is None:
            fair = -(-view.pending_count // (2 * max(1, view.replicas)))
            return view.pending_cost, max(1, min(FIRST_ITEMS, fair))
        if view.closed and self._better_left(view, mean):
            return 0, 0
        horizon = float(TARGET)
        if view.closed:
            horizon = min(horizon, SHARE * view.pending_cost / max(view.total_rate, view.replica_rate))
        cost = view.replica_rate * max(horizon, FLOOR) / view.slots
        return round(max(cost, 1)), view.pending_count

    def _better_left(self, view: BatchView, mean: float) -> bool:
        assert view.replica_rate is not None
        others = view.total_rate - view.replica_rate
        if view.replica_rate >= view.best_rate or others <= 0:
            return False
        own = view.replica_startup_us + (view.replica_backlog + mean) / view.replica_rate
        left = view.pending_cost + max(0.0, view.inflight_cost - view.replica_backlog)
        # Work is not fluid: the others need a whole item's time more than the bound, twice with queueing.
        return own > left / others + 2 * mean / view.best_rate

    def takeover(self, cost: float, rate: float, startup_us: Micros, remaining_us: Micros) -> bool:
        return startup_us + cost / rate + MARGIN < 0.9 * remaining_us

    def again(self, outcome: Outcome, tries: int, count: int) -> ChunkRetry:
        if outcome.status in (Status.FAILED, Status.REFUSED):
            return ChunkRetry.SPLIT  # the items are suspected before the node
        if outcome.status is not Status.TIMEOUT or tries < RETRIES:
            return ChunkRetry.RETRY
        if count > 1:
            return ChunkRetry.SPLIT
        return ChunkRetry.REFUSE if tries >= TRIES_MAX else ChunkRetry.RETRY
