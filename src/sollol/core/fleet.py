"""The fleet: every node, what is known of it, and the ledger of what runs where.

A `Lane` is one (node, model): it has slots, rates and a breaker. Lanes of a model stand in a `core.market.Market`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sollol.core.endpoint import Endpoint
from sollol.core.estimate import Lengths, Mean, Rate
from sollol.core.policy import Breaker, Limiter
from sollol.core.turns import Turns
from sollol.core.types import (
    SECOND,
    Decision,
    Kind,
    LoadedModel,
    Micros,
    Ranges,
    Task,
    Timing,
)

if TYPE_CHECKING:
    from sollol.core.market import Market

# Rates follow changes within about this much busy time: long against jitter, short against a node that slows.
RATE_MEMORY: Micros = 4 * SECOND
# Bytes per microsecond assumed for reading a model from disk, before one load was measured.
LOAD_BANDWIDTH = 1_000.0
LOAD_UNKNOWN: Micros = 3 * SECOND  # where not even the size is known
DISPLACED: Micros = 60 * SECOND  # a model used within this time will be wanted again
OUTLIER = 2.0  # times slower than usual that one answer may count
CPU_SLOWER = 20.0  # measured: a model that silently fell back to the CPU
COLD = 0.1  # a prompt of which at most this share was read before teaches how fast a node reads


class Attempt:
    """One request under way: what it is, when it began, and when it should end."""

    __slots__ = (
        "beside",
        "cost",
        "decision",
        "due_us",
        "failed_on",
        "heavy",
        "id",
        "items",
        "lane",
        "movable",
        "owed",
        "resumed",
        "started",
        "started_us",
        "task",
        "tries",
        "uncovered",
        "warm_cost",
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
        self.heavy = task.batch or task.kind is not Kind.EMBED  # else too short to be in another model's way
        self.beside = False  # another model of its node was at work in the meantime
        self.movable = True  # it can go on elsewhere if this node fails
        self.resumed = False  # it goes on with an answer that another node began
        self.warm_cost = 0  # of its prompt, in cost units, that the node had read just before
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
        "draining",
        "embedded",
        "failed",
        "heavy",
        "last_end_us",
        "latency",
        "limiter",
        "loaded_by_us",
        "loading_until",
        "market",
        "model",
        "node",
        "options",
        "options_used_us",
        "overhead",
        "paused_until",
        "prefill",
        "rank",
        "reliability",
        "warm",
        "work",
    )

    def __init__(self, node: NodeState, market: Market, limiter: Limiter, breaker: Breaker) -> None:
        self.node = node
        self.market = market
        self.model = market.model
        self.limiter = limiter
        self.breaker = breaker
        self.attempts: dict[int, Attempt] = {}
        self.rank = 0  # among the lanes of its market, the fastest first
        self.heavy = 0  # of them that would be in another model's way
        self.cost_inflight = 0.0
        self.paused_until: Micros = 0
        self.busy_answers = 0
        self.last_end_us: Micros = 0
        self.loaded_by_us = False  # an answer came since the node was last seen without the model
        self.work = Rate(RATE_MEMORY)  # embedding: cost units per microsecond, whole lane
        self.prefill = Rate(RATE_MEMORY)  # tokens per microsecond
        self.decode = Rate(RATE_MEMORY)
        self.overhead = Mean()  # microseconds of a call that the node's own timings do not tell
        self.reliability = Mean(0.05)  # share of attempts that ended well
        self.options = ""  # runner options it was loaded with, as far as we know
        self.options_used_us: Micros = 0
        self.loading_until: Micros = 0  # a load without a request is under way
        self.warm: deque[tuple[int, ...]] = deque(maxlen=4)  # beginnings of the prompts that it read last
        self.draining: list[Micros] = []  # slots whose caller left in prefill: busy until then
        self.latency = Mean()  # microseconds per answered call, failures penalised
        self.answers = 0
        self.embedded = 0  # items of batches
        self.failed = 0
        self.done_cost = 0.0

    def free(self, at: Micros, heavy: bool = True) -> bool:
        """Is there a slot for one more? `heavy`: work that would be in the way of another model's on this node."""
        node, breaker = self.node, self.breaker
        return (
            node.up is True
            and (not heavy or self.heavy > 0 or node.heavy_lanes < node.turns.at_once)
            and len(self.attempts) + (len(self.still_draining(at)) if self.draining else 0) < self.limiter.limit
            and self.paused_until <= at
            and (breaker.closed or breaker.admits(at))
        )

    def still_draining(self, at: Micros) -> list[Micros]:
        """When the slots end whose callers left while the node read their prompts (it reads on to the end)."""
        self.draining = [until for until in self.draining if until > at]
        return self.draining

    def usable(self, at: Micros) -> bool:
        """Can it be expected to take work, now or when a slot frees?"""
        return self.node.up is True and (bool(self.attempts) or self.breaker.closed or self.breaker.admits(at))

    def slowness(self) -> float:
        """How many times slower than others it must be expected to be before it was tried: it may run on the CPU."""
        loaded = self.node.loaded.get(self.model)
        if loaded is None or loaded.size <= 0:
            return 1.0
        return 1.0 + (CPU_SLOWER - 1.0) * (1.0 - min(1.0, loaded.size_vram / loaded.size))

    def suits(self, task: Task) -> bool:
        """May this task go here, by what its caller said of nodes?"""
        if task.only is not None and self.node.key not in task.only:
            return False
        loaded = self.node.loaded.get(self.model) if task.gpu else None
        return loaded is None or loaded.size <= 0 or loaded.size_vram > 0

    @property
    def is_loaded(self) -> bool:
        return self.loaded_by_us or self.model in self.node.loaded

    def startup_us(self, options: str | None = None) -> Micros:
        """Time before the first work: zero for a model in memory with these `options`, else reading it from disk."""
        if self.is_loaded and (options is None or options == self.options):
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

    def displaces(self, options: str, at: Micros) -> bool:
        """Would these options put out a model that somebody used just now with others?"""
        return self.is_loaded and options != self.options and at - self.options_used_us < DISPLACED

    def wait_us(self, at: Micros, heavy: bool = True) -> Micros:
        """How long until a slot is free here, as far as predictions tell."""
        node = self.node
        if heavy and not self.heavy and node.heavy_lanes >= node.turns.at_once:
            return max(self._own_wait_us(at), node.wait_us(at))
        return self._own_wait_us(at)

    def _own_wait_us(self, at: Micros) -> Micros:
        over = len(self.attempts) - self.limiter.limit
        if over < 0 and not self.draining:
            return max(0, self.paused_until - at)
        ends = [attempt.expected_end(at) for attempt in self.attempts.values()]
        if over == 0 and not self.draining:
            return max(0, self.paused_until - at, min(ends) - at)
        ends.sort()
        if self.draining and (draining := self.still_draining(at)):
            over += len(draining)
            ends = sorted([*ends, *draining])
        wait = self.paused_until - at
        if over >= 0:
            wait = max(wait, ends[over] - at)
        return max(0, wait)

    def warm_cost(self, prefix: tuple[tuple[int, int], ...]) -> int:
        """How much of a prompt, in cost units, this lane has read just before."""
        for mark, cost in reversed(prefix):
            for marks in self.warm:
                if mark in marks:
                    return cost
        return 0

    def add(self, attempt: Attempt) -> None:
        self.attempts[attempt.id] = attempt
        task = attempt.task
        if attempt.heavy:
            self.heavy += 1
            self.node.heavy_lanes += self.heavy == 1
            if self.node.heavy_lanes > 1:
                self.node.all_beside()
        if task.options != self.options:
            self.market.options_changed(self, task.options)
            self.options = task.options
            self.warm.clear()
        self.options_used_us = attempt.started_us
        if task.prefix:
            attempt.warm_cost = self.warm_cost(task.prefix)
            self.warm.append(tuple(mark for mark, _ in task.prefix))
            self.market.remember(task.prefix, self)
        if len(self.attempts) >= self.limiter.limit:
            self.market.roomy.pop(self.node.key, None)
        self.cost_inflight += attempt.cost
        self.node.running += 1
        self.market.inflight_cost += attempt.cost

    def remove(self, attempt: Attempt) -> None:
        del self.attempts[attempt.id]
        if attempt.heavy:
            self.heavy -= 1
            self.node.heavy_lanes -= self.heavy == 0
        if self.market.lanes.get(self.node.key) is self:
            self.market.roomy[self.node.key] = self
        self.cost_inflight -= attempt.cost
        self.node.running -= 1
        self.market.inflight_cost -= attempt.cost

    def measured_work(self, at: Micros, cost: float, working_us: Micros) -> None:
        """An embedding ended: its work took the time since this lane was last known to be idle or done."""
        before = self.work.read() or 0.0
        self.work.add(cost, working_us)
        self.market.rate_changed(before, self.work.read() or 0.0, at)
        self.done_cost += cost

    def measured_tokens(self, timing: Timing, warm: float, elapsed_us: Micros) -> None:
        """An answer's own timings. `warm`: the share of its prompt that the node need not have read again."""
        if timing.prompt_us > 0 and timing.prompt_tokens > 0 and warm <= COLD:
            self.prefill.add(timing.prompt_tokens, timing.prompt_us, OUTLIER)
        if timing.decode_us > 0 and timing.tokens > 0:
            self.decode.add(timing.tokens, timing.decode_us, OUTLIER)
            self.node.speed.add((self.decode.read() or 0.0) / self.market.typical().decode)
        told = timing.load_us + timing.prompt_us + timing.decode_us
        self.overhead.add(max(0, elapsed_us - told))
        self.market.samples += 1

    def measured_load(self, timing: Timing, least_us: Micros) -> None:
        size = self.node.models.get(self.model, 0)
        if timing.load_us > least_us and size > 0:
            self.node.load_bandwidth.add(size, timing.load_us)
        self.loaded_by_us = True

    def __repr__(self) -> str:
        return f"<Lane {self.model} on {self.node.key} {len(self.attempts)}/{self.limiter.limit}>"


class NodeState:
    """One Ollama server. `up` is None until the first probe or answer."""

    __slots__ = (
        "asked_us",
        "attempted",
        "digests",
        "down_since",
        "endpoint",
        "failed",
        "heavy_lanes",
        "held_bytes",
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
        "speed",
        "succeeded",
        "turns",
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
        self.digests: Mapping[str, str] = {}
        self.loaded: Mapping[str, LoadedModel] = {}
        self.held_bytes = 0  # of the largest model that was ever seen wholly in its GPU
        self.lanes: dict[str, Lane] = {}
        self.running = 0
        self.heavy_lanes = 0  # models at work
        self.turns = Turns()
        self.speed = Mean()  # of its models, as shares of what is typical for them
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

    def wait_us(self, at: Micros) -> Micros:
        """How long until one of the models at work here has nothing to do."""
        ends = [
            max(attempt.expected_end(at) for attempt in lane.attempts.values() if attempt.heavy)
            for lane in self.lanes.values()
            if lane.heavy
        ]
        over = len(ends) - self.turns.at_once
        return max(0, sorted(ends)[over] - at) if 0 <= over < len(ends) else 0

    def all_beside(self) -> None:
        for lane in self.lanes.values():
            for attempt in lane.attempts.values():
                attempt.beside = True

    def in_use(self, at: Micros) -> bool:
        """Has a model of it been used just now, which a load might put out?"""
        return any(lane.answers and at - lane.last_end_us < DISPLACED for lane in self.lanes.values() if lane.is_loaded)

    def __repr__(self) -> str:
        state = {True: "up", False: "down", None: "unknown"}[self.up]
        return f"<Node {self.key} {state} · {self.running} running>"


class Fleet:
    """Nodes by key, markets by model, and how long answers usually are."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.markets: dict[str, Market] = {}
        self.lengths = Lengths()
