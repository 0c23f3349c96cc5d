"""One model on one node: its slots, its rates, its breaker, and its attempts.

A replica is nominal while its node is up, its breaker closed, its model loaded, no slot draining or paused, and it does
not only fail. Then its load and its rates decide alone, and a decision skips all other checks. Code that changes one of
these facts calls `flag_off_nominal()`; the group checks again before the next decision. A replica wrongly off nominal
costs time; one wrongly nominal would cost answers, so the invariants check it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sollol.core.model_order import has_turn
from sollol.core.policy import Breaker, Limiter
from sollol.core.prefix_cache import read_prompt
from sollol.core.state.attempt import Attempt
from sollol.core.state.breakers import FAULTS, ReplicaBreaker
from sollol.core.state.estimators import Mean, Rate
from sollol.core.state.evidence import ListLimit
from sollol.core.types import NEVER, OK, SECOND, Key, Micros, Outcome, PrefixHash, Status, Task, Timing

if TYPE_CHECKING:
    from sollol.core.state.model_replicas import ModelReplicas
    from sollol.core.state.node import Node

# Rates follow changes within about this much busy time: long against jitter, short against a node that slows.
RATE_MEMORY: Final[Micros] = 4 * SECOND
LOAD_UNKNOWN: Final[Micros] = 3 * SECOND  # where not even the size is known
DISPLACED: Final[Micros] = 60 * SECOND  # a model used within this time will be used again
OUTLIER: Final = 2.0  # times slower than usual that one answer may count
CPU_SLOWER: Final = 20.0  # measured: a model that silently fell back to the CPU
SPEED_EVERY: Final = 8  # answers between two comparisons of the node's speed, after the first few
FAILED_TIMES: Final = 2.0  # times the usual latency that a failure counts, at least
FAILED_MOST: Final = 10.0  # and at most
FADES: Final[Micros] = 10 * SECOND  # in which half of what failures added fades
COLD: Final = 0.1  # a prompt of which at most this share was read before teaches how fast a node reads


class Replica:
    """Hold the state of one model on one node."""

    __slots__ = (
        "answers",
        "area_at",
        "area_us",
        "attempts",
        "breaker",
        "busy_answers",
        "contradicted",
        "cost_inflight",
        "decode",
        "done_cost",
        "draining",
        "embedded",
        "failed",
        "faults",
        "good_latency",
        "group",
        "key",
        "last_end_us",
        "last_good_us",
        "latency",
        "left_until",
        "limit",
        "limiter",
        "list_limit",
        "loaded_by_us",
        "loading_until",
        "measured_slowness",
        "model",
        "node",
        "nominal",
        "occupies_gpu",
        "options",
        "options_used_us",
        "overhead",
        "paused_until",
        "prefill",
        "prompt_cost",
        "prompt_cost_reused",
        "prompts",
        "proven",
        "rank",
        "reliability",
        "responded_us",
        "responding",
        "single_faults",
        "soonest_us",
        "starts_in_turn",
        "waiters",
        "warm",
        "work",
    )

    def __init__(self, node: Node, group: ModelReplicas, limiter: Limiter, breaker: Breaker) -> None:
        self.node = node
        self.key = node.key
        self.group = group
        self.model = group.model
        self.limiter = limiter
        self.breaker = ReplicaBreaker(breaker, node.faults)
        self.limit, self.proven = limiter.limit, limiter.proven  # copies for nominal replicas, without a look-up
        self.attempts: dict[Key, Attempt] = {}
        self.nominal = False
        self.rank = 0  # among the replicas of its model, the fastest first
        self.occupies_gpu = 0  # of them that would be in another model's way
        self.starts_in_turn = 0  # of them that began since another model had the node
        self.soonest_us = NEVER  # when the first of them should end
        self.responding = 0  # of them whose answer has begun
        self.responded_us: Micros = 0  # when the last one began
        self.waiters = 0  # single tasks that wait for this replica rather than start on another
        self.area_us = 0.0  # calls in flight, summed over time
        self.area_at: Micros = 0
        self.cost_inflight = 0.0
        self.paused_until: Micros = 0
        self.busy_answers = 0
        self.last_end_us: Micros = 0
        self.last_good_us: Micros = -1  # when its last good answer came
        self.list_limit = ListLimit()  # of chunks
        self.single_faults = 0  # chunks of one item that failed in a row
        self.loaded_by_us = False  # an answer came since the node was last seen without the model
        self.work = Rate(RATE_MEMORY)  # embedding: cost units per µs, whole replica
        self.prefill = Rate(RATE_MEMORY)  # tokens per microsecond
        self.decode = Rate(RATE_MEMORY)
        self.overhead = Mean()  # µs of a request beyond the node's own timings
        self.reliability = Mean(0.05)  # share of attempts that ended well
        self.measured_slowness = 1.0  # where it ran when its rates were measured: see `slowness`
        self.options = ""  # runner options of its last load, by our own requests
        self.options_used_us: Micros = 0
        self.loading_until: Micros = 0  # a load without a request is under way
        self.warm: dict[
            PrefixHash, int
        ] = {}  # beginning of a prompt -> the number of the prompt that it was read with last
        self.prompts = 0
        self.prompt_cost = 0.0  # of prompts with a known beginning
        self.prompt_cost_reused = 0.0  # the part of it that was read recently
        self.draining: list[Micros] = []  # slots whose caller left in prefill: busy until then
        self.left_until: Micros = 0  # a prompt whose caller left may be read so long (`core.cancelled_prefill`)
        self.latency = Mean()  # microseconds per answered call, failures penalised
        self.good_latency = Mean()  # and of good answers only
        self.faults = 0  # failures in a row
        self.contradicted = 0  # refusals in a row that another node contradicted
        self.answers = 0
        self.embedded = 0  # items of batches
        self.failed = 0
        self.done_cost = 0.0

    # --- may it take work? ---

    def flag_off_nominal(self) -> None:
        """Record that one of the nominal conditions may not hold."""
        self.nominal = False
        if self.group.replicas.get(self.key) is self:
            self.group.off_nominal[self.key] = self

    def is_nominal(self, now: Micros) -> bool:
        """Check all nominal conditions."""
        return (
            self.node.up is True
            and self.breaker.closed
            and self.loaded_by_us
            and self.paused_until <= now
            and not (self.draining and self.still_draining(now))
            and (self.answers > 0 or not self.failed)
            and self.slowness() <= 2 * self.measured_slowness
        )

    @property
    def running(self) -> int:
        """Return the requests in flight."""
        return len(self.attempts)

    def free(self, now: Micros, occupies_gpu: bool = True) -> bool:
        """Check that a slot is free.

        Args:
            occupies_gpu: The work would slow another model of this node.
        """
        if occupies_gpu and len(self.node.replicas) > 1 and not has_turn(self, now):
            return False
        return self.has_slot(now)

    def ready(self, now: Micros) -> bool:
        """Check for a proven free slot: a second attempt must not wait behind another request."""
        return len(self.attempts) < self.proven and self.free(now)

    def has_slot(self, now: Micros) -> bool:
        """Check that a request would be sent on, whatever other models of the node do."""
        node = self.node
        if self.nominal:
            return len(self.attempts) < self.limit
        return (
            node.up is True
            and len(self.attempts) + (len(self.still_draining(now)) if self.draining else 0) < self.limiter.limit
            and self.paused_until <= now
            and (self.breaker.closed or self.breaker.admits(now))
        )

    def still_draining(self, now: Micros) -> list[Micros]:
        """Return when the slots of abandoned prompts are free again."""
        self.draining = [until for until in self.draining if until > now]
        return self.draining

    def usable(self, now: Micros) -> bool:
        """Check that it takes work, now or when a slot frees."""
        return self.node.up is True and (bool(self.attempts) or self.breaker.closed or self.breaker.admits(now))

    def slowness(self) -> float:
        """Return how many times slower it must be expected to be: it may run on the CPU."""
        loaded = self.node.loaded.get(self.model)
        share = loaded.gpu_share if loaded is not None else None
        return 1.0 if share is None else 1.0 + (CPU_SLOWER - 1.0) * (1.0 - share)

    def suits(self, task: Task) -> bool:
        """Check the caller's `only` and `gpu` constraints."""
        if task.only is not None and self.node.key not in task.only:
            return False
        loaded = self.node.loaded.get(self.model) if task.gpu else None
        return loaded is None or loaded.size <= 0 or loaded.size_vram > 0

    @property
    def digest(self) -> str:
        """Return the version of the model on this node; "" if it is not listed."""
        return self.node.digests.get(self.model, "")

    @property
    def is_loaded(self) -> bool:
        """Return whether the model is in memory."""
        return self.loaded_by_us or self.model in self.node.loaded

    @property
    def is_loading(self) -> bool:
        """Check that an attempt in flight has to load the model first."""
        for attempt in self.attempts.values():  # noqa: SIM110  compiled, a generator expression is slow
            if attempt.loads:
                return True
        return False

    def in_memory(self, options: str) -> bool:
        """Check that work with these runner options needs no load."""
        return self.is_loaded and self.matches(options)

    def startup_us(self, options: str | None = None) -> Micros:
        """Return the µs before the first work: 0 for a model in memory with these `options`."""
        if self.is_loaded and (options is None or self.matches(options)):
            return 0
        return self.load_us()

    def load_us(self) -> Micros:
        """Return the µs that loading the model here should take."""
        size = self.node.models.get(self.model, 0)
        return self.node.load_time.predict(size) if size > 0 else LOAD_UNKNOWN

    def matches(self, options: str) -> bool:
        """Check that the runner in memory has these options, as far as recorded or listed."""
        if self.options_used_us or options == self.options:
            return options == self.options
        held = self.node.loaded.get(self.model)  # loaded by others: of its options, the node lists the context
        if held is None or held.context_length <= 0:
            return False
        return options == f"num_ctx={held.context_length}"

    def backlog(self, now: Micros) -> float:
        """Return the cost units in flight that are not done, by the clock and the rate."""
        rate = self.work.read()
        if rate is None or not self.attempts:
            return self.cost_inflight
        since = min((a.started_us for a in self.attempts.values()), default=now)
        return max(0.0, self.cost_inflight - rate * (now - max(since, self.last_end_us)))

    def displaces(self, options: str, now: Micros) -> bool:
        """Check that these options would reload a model that was just used with others."""
        return self.is_loaded and options != self.options and now - self.options_used_us < DISPLACED

    def wait_us(self, now: Micros, occupies_gpu: bool = True) -> Micros:
        """Predict the µs until its work would begin here.

        A slot on trial does not count: a node with one slot accepts a second request and lets it wait.
        """
        node = self.node
        if occupies_gpu and not self.occupies_gpu and node.active_models >= node.concurrency.limit:
            return max(self._own_wait_us(now), node.wait_us(now))
        over = len(self.attempts) - self.proven
        if not self.nominal or over > 0:
            return self._own_wait_us(now)
        if over < 0:
            return 0
        if self.soonest_us >= now:
            return self.soonest_us - now
        return min([attempt.expected_end(now) for attempt in self.attempts.values()]) - now

    def _own_wait_us(self, now: Micros) -> Micros:
        over = len(self.attempts) - self.limiter.proven
        ends = [attempt.expected_end(now) for attempt in self.attempts.values()]
        if self.draining and (draining := self.still_draining(now)):
            over += len(draining)
            ends += draining
        wait = self.paused_until - now
        if over >= 0:
            wait = max(wait, sorted(ends)[over] - now)
        return max(0, wait)

    def read(self, prefix: tuple[tuple[PrefixHash, int], ...]) -> int:
        """Record a prompt. Return the cost units of it that were read recently."""
        return read_prompt(self, prefix)

    # --- attempts ---

    def add(self, attempt: Attempt) -> None:
        """Record the start of an attempt."""
        running = len(self.attempts)
        if not self.is_loaded:
            attempt.loads = True
            self.node.loads(self.model)
        attempt.trial = running >= self.proven
        attempt.inflight = running + 1
        attempt.idle_since_us = self.last_end_us
        self._integrate(attempt.started_us)
        attempt.area_us = self.area_us
        self.attempts[attempt.key] = attempt
        if attempt.due_us < self.soonest_us:
            self.soonest_us = attempt.due_us
        task, node, group = attempt.task, self.node, self.group
        if attempt.occupies_gpu:
            self.occupies_gpu += 1
            if self.occupies_gpu == 1:
                node.active_models += 1
                self.starts_in_turn = 0
            self.starts_in_turn += 1
            if len(node.replicas) > 1:
                service_us = attempt.due_us - attempt.started_us
                node.concurrency.charge(task.priority, task.app, self.model, service_us, attempt.started_us)
            if node.active_models > 1:
                node.mark_overlapped()
        if task.options != self.options:
            group.options_changed(self, task.options)
            self.options = task.options
            self.warm.clear()
        self.options_used_us = attempt.started_us
        if task.prefix:
            attempt.warm_cost = self.read(task.prefix)
            self.prompt_cost += task.cost
            self.prompt_cost_reused += min(attempt.warm_cost, task.cost)
        limit = self.limit if self.nominal else self.limiter.limit
        if len(self.attempts) >= limit and self.key in group.with_capacity:
            del group.with_capacity[self.key]
        self.cost_inflight += attempt.cost
        node.running += 1
        group.inflight_cost += attempt.cost

    def _integrate(self, now: Micros) -> None:
        """Add the requests in flight over time up to now."""
        self.area_us += len(self.attempts) * (now - self.area_at)
        self.area_at = now

    def limit_changed(self) -> None:
        """Copy the limit after evidence was recorded."""
        self.limit, self.proven = self.limiter.limit, self.limiter.proven
        if len(self.attempts) < self.limit and self.group.replicas.get(self.key) is self:
            self.group.with_capacity[self.key] = self

    def remove(self, attempt: Attempt, now: Micros) -> None:
        """Record the end of an attempt."""
        node, group = self.node, self.group
        self._integrate(now)
        del self.attempts[attempt.key]
        if attempt.responding:
            self.responding -= 1
        if attempt.due_us <= self.soonest_us:
            soonest = NEVER
            for other in self.attempts.values():
                if other.due_us < soonest:
                    soonest = other.due_us
            self.soonest_us = soonest
        if attempt.occupies_gpu:
            self.occupies_gpu -= 1
            if not self.occupies_gpu:
                node.active_models -= 1
        if group.replicas.get(self.key) is self:
            group.with_capacity[self.key] = self
        self.cost_inflight -= attempt.cost
        node.running -= 1
        group.inflight_cost -= attempt.cost

    # --- evidence ---

    def sample(self, amount: float, busy_us: Micros, inflight: int, dropped: bool, wanted: bool) -> None:
        """Record throughput. See `Limiter.sample`."""
        self.limiter.sample(amount, busy_us, inflight, dropped, wanted)
        self.limit_changed()

    def settle(self) -> None:
        """Mark the replica as nominal."""
        self.nominal = True
        self.limit, self.proven = self.limiter.limit, self.limiter.proven

    def record(self, now: Micros, outcome: Outcome) -> None:
        """Record an outcome, in its own breaker and in the one of its node."""
        self.breaker.own.record(now, outcome)
        faults = self.node.faults
        if outcome.status is OK:
            self.faults = self.contradicted = 0
        elif outcome.status is Status.REFUSED:
            self.faults = 0
        elif outcome.status in FAULTS:
            self.faults += 1
        if faults.record(self.model, now, outcome):
            for replica in self.node.replicas.values():
                replica.flag_off_nominal()

    def penalised(self, elapsed_us: Micros) -> None:
        """Record a failure as an answer of twice the usual time, or of its own time."""
        usual = self.good_latency.value or float(SECOND)
        self.latency.add(min(max(float(elapsed_us), FAILED_TIMES * usual), FAILED_MOST * usual))

    def latency_us(self, now: Micros) -> float:
        """Return the µs per request. What failures add fades; 0 without an answer."""
        mean = self.latency.value or 0.0
        good = self.good_latency.value or 0.0
        if mean <= good:
            return mean
        halvings = min(max(0, now - self.last_end_us) / FADES, 60.0)
        return good + (mean - good) / math.pow(2.0, halvings)

    def measured_work(self, now: Micros, cost: float, working_us: Micros) -> None:
        """Record an embedding, with the µs since the replica was last idle or done."""
        self.measured_slowness = self.slowness()
        before = self.work.read() or 0.0
        self.work.add(cost, working_us)
        self.group.rate_changed(before, self.work.read() or 0.0, now)
        self.done_cost += cost

    def measured_tokens(self, timing: Timing, warm: float, elapsed_us: Micros) -> None:
        """Record an answer's own timings.

        Args:
            warm: Share of the prompt that the node need not have read again.
            elapsed_us: Time of the answer by our clock.
        """
        slowness = self.slowness()
        if slowness > 2 * self.measured_slowness or 2 * slowness < self.measured_slowness:
            self.decode, self.prefill = Rate(RATE_MEMORY), Rate(RATE_MEMORY)  # it runs elsewhere now
        self.measured_slowness = slowness
        if timing.prompt_us > 0 and timing.prompt_tokens > 0 and warm <= COLD:
            self.prefill.add(timing.prompt_tokens, timing.prompt_us, OUTLIER)
        if timing.decode_us > 0 and timing.tokens > 0:
            self.decode.add(timing.tokens, timing.decode_us, OUTLIER)
            if self.decode.value and (self.answers < SPEED_EVERY or not self.answers % SPEED_EVERY):
                self.node.speed.add(self.decode.value / self.group.typical().decode)
        besides = elapsed_us - timing.load_us - timing.prompt_us - timing.decode_us
        self.overhead.add(float(besides) if besides > 0 else 0.0)
        self.group.samples += 1

    def measured_load(self, timing: Timing) -> None:
        """Record the time of a load."""
        size = self.node.models.get(self.model, 0)
        if size > 0:
            self.node.load_time.add(size, timing.load_us)

    def __repr__(self) -> str:
        return f"<Lane {self.model} on {self.node.key} {len(self.attempts)}/{self.limiter.limit}>"
