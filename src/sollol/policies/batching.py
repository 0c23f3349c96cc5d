"""Size the chunks of a batch: guided self-scheduling with measured rates.

The fluid bound of n items over nodes of rates r is n / sum(r): every node busy until the same last moment. Two things
lose against it: (a) overhead per request, which favours large chunks; (b) nodes that end at different moments, and work
lost when a node dies, which favour small ones. So a chunk is sized in time, not in items: `target_us` while much is
left, then `share` of the time that is left (factoring), so that the last chunks are tiny and all end together. A node
that would not finish even one item before the others have done all leaves it to them. A node of unknown rate gets a few
items first.

Source: Polychronopoulos and Kuck 1987 (GSS), Hummel et al. 1992 (factoring), Flynn Hummel 1996 (weighted).
"""

from __future__ import annotations

from sollol.core.policy import BatchView, ChunkRetry
from sollol.core.types import MILLISECOND, Micros, Outcome, Status

TARGET: Micros = 300 * MILLISECOND  # a request costs 1 to 3 ms: at most 1 %; and a dying node loses this much
SHARE = 0.5
FLOOR: Micros = 10 * MILLISECOND  # no chunk shorter than this for the sake of balance
FIRST_ITEMS = 4
RETRIES = 4  # times that a chunk is not answered in time, before it is split to find the item that causes it
TRIES_MAX = 12  # of a single item that is not answered in time


class GuidedBatcher:
    """Size chunks by the time that they take on a node."""

    __slots__ = ("_first_items", "_floor_us", "_retries", "_share", "_target_us", "_tries_most")

    def __init__(
        self,
        *,
        target_us: Micros = TARGET,
        share: float = SHARE,
        floor_us: Micros = FLOOR,
        first_items: int = FIRST_ITEMS,
        retries: int = RETRIES,
        tries_most: int = TRIES_MAX,
    ) -> None:
        self._target_us = target_us
        self._share = share
        self._floor_us = floor_us
        self._first_items = first_items
        self._retries = retries
        self._tries_most = tries_most

    def item_budget(self, view: BatchView) -> tuple[int, int]:
        """Return the cost and the count of the next chunk."""
        mean = view.pending_cost / view.pending_count
        if view.replica_rate is None:
            fair = -(-view.pending_count // (2 * max(1, view.replicas)))
            return view.pending_cost, max(1, min(self._first_items, fair))
        if view.closed and self._better_left(view, mean):
            return 0, 0
        horizon = float(self._target_us)
        if view.closed:
            horizon = min(horizon, self._share * view.pending_cost / max(view.total_rate, view.replica_rate))
        cost = view.replica_rate * max(horizon, self._floor_us) / view.slots
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

    def again(self, outcome: Outcome, tries: int, count: int) -> ChunkRetry:
        """Return what to do with a failed chunk."""
        if outcome.status in (Status.FAILED, Status.REFUSED):
            return ChunkRetry.SPLIT  # the items are suspected before the node
        if outcome.status is not Status.TIMEOUT or tries < self._retries:
            return ChunkRetry.RETRY
        if count > 1:
            return ChunkRetry.SPLIT
        return ChunkRetry.REFUSE if tries >= self._tries_most else ChunkRetry.RETRY
