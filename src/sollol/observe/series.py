"""Work over time: what each node did in each interval of the last minutes and the last hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from sollol.core.view import SchedulerView
from sollol.observe.request_record import RequestRecord

SAMPLES_MOST: Final = 300  # first-token times kept of one interval
SPREAD_MOST: Final = 300  # intervals over which the tokens of one answer are spread


class IntervalWork:
    """Count the work of one node in one interval."""

    __slots__ = ("errors", "items", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.tokens = 0.0
        self.items = 0.0


class Interval:
    """Hold the work of all nodes in one interval."""

    __slots__ = ("failed", "first_token_s", "nodes", "number", "running", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number  # start, in intervals since 1970
        self.nodes: dict[str, IntervalWork] = {}
        self.first_token_s: list[float] = []
        self.failed = 0  # requests without an answer
        self.waiting = 0
        self.running = 0

    def of(self, node: str) -> IntervalWork:
        """Return the counters of a node."""
        found = self.nodes.get(node)
        if found is None:
            found = self.nodes[node] = IntervalWork()
        return found


class Series:
    """Keep the last `size` intervals of `step_s` seconds."""

    def __init__(self, step_s: float, size: int) -> None:
        self.step_s = step_s
        self._intervals: deque[Interval] = deque(maxlen=size)
        self._by_number: dict[int, Interval] = {}

    def add(self, record: RequestRecord) -> None:
        """Count a finished request. Its tokens are spread over the time in which the node wrote them."""
        interval = self._at(record.at)
        if interval is None:
            return
        if not record.ok:
            interval.failed += 1
        for attempt in record.attempts:
            if attempt.outcome not in ("ok", "left"):
                interval.of(attempt.node).errors += 1
        if not record.node or record.items:
            return
        interval.of(record.node).requests += 1
        if record.first_token_s is not None and len(interval.first_token_s) < SAMPLES_MOST:
            interval.first_token_s.append(record.first_token_s)
        if record.tokens_out:
            self._spread(record.node, record.tokens_out, record.at - record.decode_s, record.at)

    def _spread(self, node: str, tokens: float, since: float, until: float) -> None:
        first, last = int(since / self.step_s), int(until / self.step_s)
        if first == last:
            self._by_number[last].of(node).tokens += tokens
            return
        numbers = range(max(first, last - SPREAD_MOST), last + 1)
        for number in numbers:
            interval = self._by_number.get(number)
            if interval is not None:
                interval.of(node).tokens += tokens / len(numbers)

    def sample(self, at: float, items: dict[str, float], waiting: int, running: int) -> None:
        """Record the present: texts embedded since the last sample by node, and the sizes of the queue."""
        interval = self._at(at)
        if interval is None:
            return
        interval.waiting, interval.running = max(interval.waiting, waiting), max(interval.running, running)
        for node, number in items.items():
            interval.of(node).items += number

    def _at(self, at: float) -> Interval | None:
        """Return the interval of a moment; None if it is older than what is kept."""
        number = int(at / self.step_s)
        found = self._by_number.get(number)
        if found is not None:
            return found
        newest = self._intervals[-1].number if self._intervals else number - 1
        for missing in range(max(newest + 1, number - (self._intervals.maxlen or 0) + 1), number + 1):
            if len(self._intervals) == self._intervals.maxlen:
                del self._by_number[self._intervals[0].number]
            made = Interval(missing)
            self._intervals.append(made)
            self._by_number[missing] = made
        return self._by_number.get(number)

    def newest(self, number: int) -> list[Interval]:
        """Return the last `number` intervals, the oldest first."""
        return list(self._intervals)[-number:]

    def columns(self, nodes: Iterable[str], newest: int = 0) -> dict[str, Any]:
        """Return the series as columns: times, totals, and rates per second by node. `newest`: only so many."""
        intervals, nodes = self.newest(newest), list(nodes)
        rows = [[interval.nodes.get(node) for interval in intervals] for node in nodes]

        def rates(name: str) -> list[list[float]]:
            return [[round(getattr(w, name) / self.step_s, 2) if w else 0 for w in row] for row in rows]

        return {
            "step_s": self.step_s,
            "at": [interval.number * self.step_s for interval in intervals],
            "nodes": nodes,
            "requests": rates("requests"),
            "tokens": rates("tokens"),
            "items": rates("items"),
            "errors": rates("errors"),
            "failed": [interval.failed for interval in intervals],
            "waiting": [interval.waiting for interval in intervals],
            "running": [interval.running for interval in intervals],
            "first_token_p50_s": [quantile(interval.first_token_s, 0.5) for interval in intervals],
            "first_token_p95_s": [quantile(interval.first_token_s, 0.95) for interval in intervals],
        }


class ItemCounter:
    """Count the texts that were embedded since the last call."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}

    def since(self, view: SchedulerView) -> dict[tuple[str, str], float]:
        """Return the texts by (node, model)."""
        now = {(key, model): r.embedded for key, node in view.nodes.items() for model, r in node.replicas.items()}
        found = {replica: float(number - self._before.get(replica, 0)) for replica, number in now.items()}
        self._before = now
        return {replica: number for replica, number in found.items() if number > 0}


def quantile(samples: list[float], share: float) -> float | None:
    """Return a quantile of samples, None without one."""
    if not samples:
        return None
    return round(sorted(samples)[min(len(samples) - 1, int(share * len(samples)))], 4)
