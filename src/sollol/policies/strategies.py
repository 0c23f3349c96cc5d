"""Choose a replica by other rules than the least predicted completion time: the modes and the strategies.

Each predicts as `policies.routing` does, and minimises another number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sollol.core.state.replica import Replica
from sollol.core.types import EMBED, Micros, RoutingMode, RoutingStrategy, Task
from sollol.policies.routing import CompletionRouter


class ReliableRouter(CompletionRouter):
    """Choose by completion time, where a failure costs a second try.

    score = finish / share of attempts that ended well there, squared: a failed try is paid twice, by the time lost and
    by starting again elsewhere. A node without a history counts as one that fails now and then.
    """

    __slots__ = ()
    by_finish = False
    UNPROVEN = 0.8

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        shares = [replica.reliability.read() for replica in replicas]
        return [
            finish / max(0.1, self.UNPROVEN if share is None else share) ** 2
            for finish, share in zip(finishes, shares, strict=True)
        ]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        share = replicas[chosen].reliability.read()
        listed = "no history" if share is None else f"{share:.0%} of its answers good"
        return f"finishes first of {len(replicas)} when failures count ({listed})"


class SparingRouter(CompletionRouter):
    """Choose the slowest free node for background work, so that fast nodes stay free.

    Only nodes that would finish within SLOWER_MOST times the best. If none is free, wait for the best of them.
    """

    __slots__ = ()
    by_finish = False
    wide = True
    SLOWER_MOST = 20.0

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        bound = min(finishes) * self.SLOWER_MOST
        occupies_gpu = task.kind is not EMBED
        return [
            1 / max(finish, 1.0) if finish <= bound and replica.free(now, occupies_gpu) else finish
            for finish, replica in zip(finishes, replicas, strict=True)
        ]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        return f"leaves faster nodes free ({len(replicas)} candidates)"


class LatencyRouter(CompletionRouter):
    """Choose the least mean time per request so far, whatever the task."""

    __slots__ = ()
    by_finish = False

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        return [replica.latency_us(now) + replica.wait_us(now) for replica in replicas]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        return "least latency so far"


class LeastLoadedRouter(CompletionRouter):
    """Choose the node with the fewest requests in flight."""

    __slots__ = ()
    by_finish = False
    wide = True

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        return [float(replica.node.running) for replica in replicas]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        return f"{replicas[chosen].node.running} requests under way there"


class FairRouter(CompletionRouter):
    """Give every node the same number of requests over time."""

    __slots__ = ()
    by_finish = False
    wide = True

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        return [float(replica.node.attempted + replica.node.running) for replica in replicas]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        return f"{replicas[chosen].node.attempted} requests had so far"


class RoundRobinRouter(CompletionRouter):
    """Choose the next free node in turn."""

    __slots__ = ("_last",)
    by_finish = False
    wide = True

    def __init__(self) -> None:
        super().__init__()
        self._last = ""

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        keys = [replica.key for replica in replicas]
        start = next((i for i, key in enumerate(keys) if key == self._last), -1) + 1
        free = [
            i for i in (*range(start, len(replicas)), *range(start)) if replicas[i].free(now, task.kind is not EMBED)
        ]
        if not free:
            return finishes
        self._last = keys[free[0]]
        return [0.0 if i == free[0] else 1.0 for i in range(len(replicas))]

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        return "next in turn"


def router_of(strategy: RoutingStrategy) -> CompletionRouter:
    """Return the router of a strategy."""
    match strategy:
        case RoutingStrategy.ROUND_ROBIN:
            return RoundRobinRouter()
        case RoutingStrategy.LATENCY_FIRST:
            return LatencyRouter()
        case RoutingStrategy.LEAST_LOADED:
            return LeastLoadedRouter()
        case RoutingStrategy.FAIRNESS:
            return FairRouter()
        case RoutingStrategy.INTELLIGENT:
            return CompletionRouter()


MODES: Final[Mapping[RoutingMode, CompletionRouter]] = {
    RoutingMode.RELIABLE: ReliableRouter(),
    RoutingMode.ASYNC: SparingRouter(),
}
