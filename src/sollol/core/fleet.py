"""The fleet: every node, what is known of it, and the ledger of what runs where.

A `Lane` is one (node, model): the thing that has slots, rates and a breaker. Lanes of a model stand in a
`Market`, which knows who has the model and who has room, so that an event touches the lanes it concerns and
not the whole fleet. Only the scheduler writes here.
"""

from __future__ import annotations

from collections.abc import Mapping

from sollol.core.endpoint import Endpoint
from sollol.core.estimate import Mean, Rate
from sollol.core.policy import Breaker, Limiter
from sollol.core.types import (
    SECOND,
    Decision,
    LoadedModel,
    Micros,
    Ranges,
    Task,
    Timing,
)

# Rates follow changes within about this much busy time: long against jitter, short against a node that slows.
RATE_MEMORY: Micros = 4 * SECOND
# Bytes per microsecond assumed for reading a model from disk, before one load was measured.
LOAD_BANDWIDTH = 1_000.0
LOAD_UNKNOWN: Micros = 3 * SECOND  # where not even the size is known


class Attempt:
    """One request under way: what it is, when it began, and when it should end."""

    __slots__ = (
        "cost",
        "decision",
        "due_us",
        "failed_on",
        "id",
        "items",
        "lane",
        "owed",
        "started",
        "started_us",
        "task",
        "tries",
        "uncovered",
    )

    def __init__(
        self,
        id: int,
        task: Task,
        lane: Lane,
        cost: float,
        started_us: Micros,
        due_us: Micros,
        decision: Decision,
    ) -> None:
        self.id = id
        self.task = task
        self.lane = lane
        self.cost = cost
        self.started_us = started_us
        self.due_us = due_us
        self.decision = decision
        self.started = False  # the caller has seen a part of the answer
        self.items = Ranges()
        self.uncovered: list[tuple[int, int]] = []  # items that no other attempt has taken over
        self.owed = 0  # items not answered by anyone yet
        self.tries = 0  # how often these items have failed before, and where
        self.failed_on: frozenset[str] = frozenset()

    def expected_end(self, at: Micros) -> Micros:
        """When it should end, seen from now: once overdue, half as long again as it has taken so far."""
        return self.due_us if at <= self.due_us else at + (at - self.started_us) // 2

    def __repr__(self) -> str:
        return f"<Attempt {self.id} of task {self.task.id} on {self.lane.node.key}>"


class Lane:
    """One model on one node."""

    __slots__ = (
        "answers",
        "attempts",
        "breaker",
        "busy_answers",
        "cost_inflight",
        "decode",
        "done_cost",
        "embedded",
        "failed",
        "last_end_us",
        "latency",
        "limiter",
        "loaded_by_us",
        "market",
        "model",
        "node",
        "paused_until",
        "prefill",
        "tokens_out",
        "work",
    )

    def __init__(self, node: NodeState, market: Market, limiter: Limiter, breaker: Breaker) -> None:
        self.node = node
        self.market = market
        self.model = market.model
        self.limiter = limiter
        self.breaker = breaker
        self.attempts: dict[int, Attempt] = {}
        self.cost_inflight = 0.0
        self.paused_until: Micros = 0
        self.busy_answers = 0
        self.last_end_us: Micros = 0
        self.loaded_by_us = False  # an answer came since the node was last seen without the model
        self.work = Rate(RATE_MEMORY)  # embedding: cost units per microsecond, whole lane
        self.prefill = Rate(RATE_MEMORY)  # tokens per microsecond
        self.decode = Rate(RATE_MEMORY)
        self.tokens_out = Mean()
        self.latency = Mean()  # microseconds per answered call, failures penalised
        self.answers = 0
        self.embedded = 0  # items of batches
        self.failed = 0
        self.done_cost = 0.0

    def free(self, at: Micros) -> bool:
        return (
            self.node.usable
            and len(self.attempts) < self.limiter.limit
            and self.paused_until <= at
            and self.breaker.admits(at)
        )

    def usable(self, at: Micros) -> bool:
        """Can it be expected to take work, now or when a slot frees?"""
        return self.node.usable and (bool(self.attempts) or self.breaker.admits(at))

    @property
    def is_loaded(self) -> bool:
        return self.loaded_by_us or self.model in self.node.loaded

    def startup_us(self) -> Micros:
        """Time before the first work: zero for a model in memory, else reading it from disk."""
        if self.is_loaded:
            return 0
        size = self.node.models.get(self.model, 0)
        bandwidth = self.node.load_bandwidth.read()
        if size <= 0:
            return LOAD_UNKNOWN
        return round(size / (bandwidth or LOAD_BANDWIDTH))

    def backlog(self, at: Micros) -> float:
        """Cost units in flight that are still to be done, by the clock rather than by hope."""
        rate = self.work.read()
        if rate is None or not self.attempts:
            return self.cost_inflight
        since = min((a.started_us for a in self.attempts.values()), default=at)
        return max(0.0, self.cost_inflight - rate * (at - max(since, self.last_end_us)))

    def add(self, attempt: Attempt) -> None:
        self.attempts[attempt.id] = attempt
        self.cost_inflight += attempt.cost
        self.node.running += 1
        self.market.inflight_cost += attempt.cost

    def remove(self, attempt: Attempt) -> None:
        del self.attempts[attempt.id]
        self.cost_inflight -= attempt.cost
        self.node.running -= 1
        self.market.inflight_cost -= attempt.cost

    def measured_work(self, at: Micros, cost: float, working_us: Micros) -> None:
        """An embedding ended: its work took the time since this lane was last known to be idle or done."""
        before = self.work.read() or 0.0
        self.work.add(cost, working_us)
        self.market.rate_changed(before, self.work.read() or 0.0, at)
        self.done_cost += cost

    def measured_tokens(self, timing: Timing) -> None:
        if timing.prompt_us > 0 and timing.prompt_tokens > 0:
            self.prefill.add(timing.prompt_tokens, timing.prompt_us)
        if timing.decode_us > 0 and timing.tokens > 0:
            self.decode.add(timing.tokens, timing.decode_us)
            self.tokens_out.add(timing.tokens)

    def measured_load(self, timing: Timing, least_us: Micros) -> None:
        size = self.node.models.get(self.model, 0)
        if not self.is_loaded and timing.load_us > least_us and size > 0:
            self.node.load_bandwidth.add(size, timing.load_us)
        self.loaded_by_us = True

    def __repr__(self) -> str:
        return f"<Lane {self.model} on {self.node.key} {len(self.attempts)}/{self.limiter.limit}>"


class NodeState:
    """One Ollama server. `up` is None until the first probe or answer."""

    __slots__ = (
        "asked_us",
        "attempted",
        "down_since",
        "endpoint",
        "failed",
        "key",
        "lanes",
        "load_bandwidth",
        "loaded",
        "lost_why",
        "models",
        "next_probe_us",
        "probe_backoff_us",
        "probing",
        "running",
        "silences",
        "succeeded",
        "up",
        "up_since",
        "version",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.key = endpoint.key
        self.up: bool | None = None
        self.lost_why = "not seen yet"
        self.version = ""
        self.models: Mapping[str, int] = {}  # on disk: name -> bytes
        self.loaded: Mapping[str, LoadedModel] = {}
        self.lanes: dict[str, Lane] = {}
        self.running = 0
        self.up_since: Micros = 0
        self.down_since: Micros = 0
        self.next_probe_us: Micros = 0
        self.probe_backoff_us: Micros = 0
        self.probing = False
        self.asked_us: Micros = -1
        self.silences = 0
        self.load_bandwidth = Rate(60 * SECOND)
        self.attempted = 0
        self.succeeded = 0
        self.failed = 0

    @property
    def usable(self) -> bool:
        return self.up is True

    def __repr__(self) -> str:
        state = {True: "up", False: "down", None: "unknown"}[self.up]
        return f"<Node {self.key} {state} · {self.running} running>"


class Market:
    """All lanes of one model, in order of arrival, and sums over them that would cost too much to add up each time."""

    __slots__ = ("best_rate", "inflight_cost", "lanes", "model", "samples", "total_rate")

    def __init__(self, model: str) -> None:
        self.model = model
        self.lanes: dict[str, Lane] = {}
        self.total_rate = 0.0  # known work rates of the usable lanes, units per microsecond
        self.best_rate = 0.0
        self.inflight_cost = 0.0
        self.samples = 0

    def usable(self, at: Micros) -> list[Lane]:
        return [lane for lane in self.lanes.values() if lane.usable(at)]

    def recount(self, at: Micros) -> None:
        """Sum the rates afresh: after a node came or went, and against the drift of many additions."""
        rates = [lane.work.read() or 0.0 for lane in self.usable(at)]
        self.total_rate = sum(rates)
        self.best_rate = max(rates, default=0.0)
        self.samples = 0

    def rate_changed(self, before: float, after: float, at: Micros) -> None:
        self.samples += 1
        if self.samples >= 256:
            self.recount(at)
            return
        self.total_rate += after - before
        self.best_rate = max(self.best_rate, after)


class Fleet:
    """Nodes by key and markets by model."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.markets: dict[str, Market] = {}
