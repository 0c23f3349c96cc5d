"""Nodes, the models on them, and the requests in flight there: objects that refer to each other.

A `Node` has a `Replica` for each model; a `ModelReplicas` has those of one model on all nodes; a replica has its
`Attempt`s. They stand in one file because each reads fields of the others. Functions over them are in other files:
`in_flight` (the start and end of an attempt), `shortlist` (the replicas worth comparing), `memory` (what a load evicts)
and `core.measurements`.

A replica is nominal while its node is up, its breaker closed, its model loaded, no slot draining or paused, and it does
not only fail. Then its load and its rates decide alone, and a decision skips all other checks. Code that changes one of
these facts calls `flag_off_nominal()`; the group checks again before the next decision. A replica wrongly off nominal
costs time; one wrongly nominal would cost answers, so the invariants check it.

Over 400 lines, because the classes refer to each other (`docs/decisions/house.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sollol.core.capacity import Breaker, Limiter, ModelLimiter
from sollol.core.endpoint import Endpoint
from sollol.core.runner_options import UNKNOWN, context_for, parse
from sollol.core.state.breakers import FAULTS, NodeFaults, ReplicaBreaker
from sollol.core.state.estimators import KINDS_MAX, Length, Mean, Rate
from sollol.core.state.evidence import NO_EVIDENCE, ListLimit
from sollol.core.state.incapability import Incapabilities
from sollol.core.state.loaded_runner import LoadedRunner
from sollol.core.state.loading import LoadTimeEstimator, MemoryFit
from sollol.core.state.model_settings import ModelSettings
from sollol.core.state.pending_items import PendingItems
from sollol.core.state.queue import AGEING_INTERVAL, WaitQueue
from sollol.core.state.ranges import Ranges
from sollol.core.types import (
    EMBED,
    NEVER,
    OK,
    SECOND,
    Cause,
    Decision,
    Key,
    Kind,
    LoadedModel,
    Micros,
    Outcome,
    PrefixHash,
    Status,
    Task,
    TaskType,
)

NOTHING: Final = Ranges()
NOWHERE: Final[frozenset[str]] = frozenset()

# Rates follow changes within about this much busy time: long against jitter, short against a node that slows.
RATE_MEMORY: Final[Micros] = 4 * SECOND
LOAD_UNKNOWN: Final[Micros] = 3 * SECOND  # where not even the size is known
DISPLACED: Final[Micros] = 60 * SECOND  # a model used within this time will be used again
OUTLIER: Final = 2.0  # times slower than usual that one answer may count
CPU_SLOWER: Final = 20.0  # measured: a model that silently fell back to the CPU
SPEED_EVERY: Final = 8  # answers between two comparisons of the node's speed, after the first few
FAILED_TIMES: Final = 2.0  # times the usual latency that a failure counts, at least
FAILED_MOST: Final = 10.0  # and at most
FADES: Final[Micros] = 10 * SECOND  # in which the penalty for failures halves
COLD: Final = 0.1  # a prompt of which at most this share was read before teaches how fast a node reads
SHORTLIST: Final = 24  # replicas compared for one decision; all, if there are no more
PREFIXES_MAX: Final = 10_000  # beginnings of conversations remembered for a model: bounds their memory
LIST_WAIT: Final[Micros] = SECOND // 4  # for a list of the models in memory, which takes milliseconds
RANK_EVERY: Final = 16  # answers between two rankings, at least half the number of replicas
RANK_OFTEN: Final = 64  # first answers, after each of which they are

# Assumed before anything was measured anywhere; the first answers replace them.
TOKENS_OUT: Final = 128.0
BYTES_PER_TOKEN: Final = 4.0
PREFILL: Final = 200e-6  # tokens per microsecond
DECODE: Final = 20e-6
WORK: Final = 2_000e-6  # cost units per microsecond


class GpuEvidence(NamedTuple):
    """Hold whether a model runs wholly on a GPU, None for unknown, with the source and the reason."""

    on_gpu: bool | None
    source: str
    why: str


class Attempt:
    """Hold one request in flight: its replica, its prediction, and its items."""

    def __init__(
        self,
        id: int,
        task: Task,
        replica: Replica,
        cost: float,
        started_us: Micros,
        due_us: Micros,
        decision: Decision,
        cause: Cause = Cause.FIRST,
    ) -> None:
        self.id = id
        self.key: Key = id
        self.task = task
        self.replica = replica
        self.cost = cost
        self.started_us = started_us
        self.due_us = due_us
        self.decision = decision
        self.cause = cause
        self.delivering = False  # the caller has seen a part of the answer
        self.occupies_gpu = task.batch or task.kind is not EMBED  # else too short to be in another model's way
        self.overlapped = False  # another model of its node was at work in the meantime
        self.movable = True  # it can go on elsewhere if this node fails
        self.resumed = False  # it goes on with an answer that another node began
        self.behind_prefill = False  # sent while the node may still have read an abandoned prompt
        self.loads = False  # it has to load the model first
        self.options = task.options  # the runner options that are sent
        self.idle_since_us: Micros = 0  # when its replica had answered last
        self.inflight = 1  # calls on its replica when it was sent, itself included
        self.trial = False  # sent beyond the slots that are proven, to find out whether there are more
        self.observed = False  # its job reports when the node begins to answer
        self.responding = False  # the node has begun to answer; assumed of one that is not observed
        self.area_us = 0.0  # calls in flight on its replica, summed over time, when it began
        self.warm_cost = 0  # of its prompt, in cost units, that the node had read just before
        self.items = NOTHING
        self.uncovered: Sequence[tuple[int, int]] = ()  # items that no other attempt has taken over
        self.unanswered_items = 0  # items not answered by anyone yet
        self.tries = 0  # how often these items have failed before, and where
        self.failed_on = NOWHERE
        self.evidence = NO_EVIDENCE  # failures of these items
        self.suspect = False  # one of these items, or of `rest`, made a request fail
        self.other_half: PendingItems | None = (
            None  # the other half of suspect items: held back until this one has ended
        )
        self.control = False  # it sends an item answered before, to test the node

    def expected_end(self, now: Micros) -> Micros:
        """Return the expected end. Once overdue, half as long again as it has taken so far."""
        return self.due_us if now <= self.due_us else now + self.remaining_us(now)

    def remaining_us(self, now: Micros) -> Micros:
        """Return the µs that a late attempt is expected to need: half of what it has taken."""
        return (now - self.started_us) // 2

    def first_response_us(self) -> Micros:
        """Return the predicted µs to the first token, or to the whole answer."""
        return self.decision.first_response_us(self.task.stream)

    def first_us(self) -> Micros:
        """Return the predicted µs to the first token in a free slot, without the wait for one."""
        known = self.decision.prediction_for(self.replica.key)
        return self.decision.first_us if known is None else max(0, self.decision.first_us - round(known.wait_us))

    def __repr__(self) -> str:
        return f"<Attempt {self.id} of task {self.task.id} on {self.replica.node.key}>"


class Replica(LoadedRunner):
    """Hold the state of one model on one node."""

    def __init__(self, node: Node, group: ModelReplicas, limiter: Limiter, breaker: Breaker) -> None:
        held = node.loaded.get(group.model)
        super().__init__(held.context_length if held is not None else 0)
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
        self.slow_in_row = 0  # answers much slower than before (`core.demotion`)
        self.rate_before = 0.0  # tokens, or cost units, per microsecond, before it was demoted
        self.demoted_kind = Kind.GENERATE  # of the work that is slow
        self.demoted_us: Micros = 0  # since when it is much slower than before; 0 if it is not
        self.retested_us: Micros = 0
        self.measured_slowness = 1.0  # where it ran when its rates were measured: see `slowness`
        self.loading_until: Micros = 0  # a load without a request is under way, by its prediction
        self.loading_since: Micros = 0
        self.loading_options = ""
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
            and not self.node.drained
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
        if occupies_gpu and len(self.node.replicas) > 1 and not self.has_turn(now):
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
            and not node.drained
            and not self.is_barred(now)
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
        node = self.node
        if node.up is not True or node.drained or self.is_barred(now):
            return False
        return bool(self.attempts) or self.breaker.closed or self.breaker.admits(now)

    def is_barred(self, now: Micros) -> bool:
        """Check that work here would need a load, on a node where loads hang, or beyond the owner's budget."""
        node = self.node
        if not (node.loads_barred_until or node.budget):
            return False
        if node.budget and not self.is_loaded and node.models.get(self.model, 0) > node.budget:
            return True
        return node.loads_barred_until > now and (self.is_loading or not self.is_loaded)

    def is_barred_for(self, task: Task, now: Micros) -> bool:
        """Check that a task would load the model on a node where loads hang, perhaps in place of its runner."""
        return self.node.loads_barred_until > now and not self.in_memory(task)

    def slowness(self) -> float:
        """Return how many times slower it must be expected to be: it may run on the CPU."""
        loaded = self.node.loaded.get(self.model)
        share = loaded.gpu_share if loaded is not None else None
        return 1.0 if share is None else 1.0 + (CPU_SLOWER - 1.0) * (1.0 - share)

    def suits(self, task: Task) -> bool:
        """Check the caller's `only` and `gpu` constraints."""
        if task.only is not None and self.node.key not in task.only:
            return False
        return not task.gpu or self.is_on_gpu() is True

    def is_on_gpu(self) -> bool | None:
        """Return whether the whole model runs, or would run, on a GPU; None if nothing proves either."""
        return self.gpu_evidence().on_gpu

    def gpu_evidence(self) -> GpuEvidence:
        """Return whether the whole model runs, or would run, on a GPU, by the best evidence.

        A GPU that an agent reports need not be one that Ollama uses, so an agent can only disprove.
        """
        node, size = self.node, self.node.models.get(self.model, 0)
        if self.demoted_us:
            return GpuEvidence(False, "timings", "it became many times slower than before")
        loaded = node.loaded.get(self.model)
        if loaded is not None and loaded.size > 0:
            return GpuEvidence(loaded.gpu_share == 1.0, "/api/ps", f"it runs on {loaded.processor}")
        total, free = node.gpu_total, node.gpu_free
        if total is not None and (size > total or not total):
            why = f"its GPU has {total / 1e9:.1f} GB" if total else "its machine has no GPU"
            return GpuEvidence(False, "agent", why)
        if free is not None and size > free + sum([held.size_vram for held in node.loaded.values()]):
            return GpuEvidence(None, "agent", f"other programs leave {free / 1e9:.1f} GB of its GPU")
        if 0 < size <= node.held_bytes:
            return GpuEvidence(True, "/api/ps", "a model of its size was seen on the GPU")
        return GpuEvidence(None, "", "nothing shows that it runs on a GPU")

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

    def in_memory(self, task: Task) -> bool:
        """Check that a task needs no load."""
        return self.serves(task.options, task.bytes_kept())

    def serves(self, options: str, longest: int = 0) -> bool:
        """Check that a runner is in memory that serves these options. `longest`: as in `context_for`."""
        return self.is_loaded and self.context_for(options, longest) is not None

    def startup_us(self, options: str | None = None) -> Micros:
        """Return the µs before the first work: 0 for a model in memory with these `options`."""
        is_ready = self.is_loaded if options is None else self.serves(options)
        return 0 if is_ready else self.load_us()

    def startup_for(self, task: Task) -> Micros:
        """Return the µs before the first work of a task."""
        return 0 if self.in_memory(task) else self.load_us()

    def load_us(self) -> Micros:
        """Return the µs that loading the model here should take."""
        size = self.node.models.get(self.model, 0)
        return self.node.load_time.predict(size) if size > 0 else LOAD_UNKNOWN

    def delays_reload(self, task: Task, now: Micros) -> bool:
        """Check that a task would load the model again, and should wait until the runner is unused or listed.

        The node itself waits until the runner is unused. An outstanding list may show that no load is necessary.
        """
        if self.options in (task.options, UNKNOWN) or self.in_memory(task):
            return False
        return bool(self.attempts) or self._awaits_list(now)

    def _awaits_list(self, now: Micros) -> bool:
        if self.context or not self.options_answered_us or not self.is_loaded:
            return False
        asked = self.node.probing and now - self.node.asked_us < LIST_WAIT
        return asked and not parse(self.options).context

    def hold_options(self, options: str, now: Micros) -> None:
        """Record that the runner in memory has these options, or will have them once it is loaded."""
        self.group.options_changed(self, options)
        self.set_options(options, now)
        self.warm.clear()

    def gone(self) -> None:
        """Record that the model has left the memory, unless a request is loading it."""
        self.loaded_by_us = False
        if not self.attempts and self.options != UNKNOWN:
            self.hold_options(UNKNOWN, 0)

    def see_context(self, listed: int, requested_us: Micros) -> None:
        """Compare the context that its node lists, by a list requested at `requested_us`, with what is recorded."""
        if self.is_contradicted(listed, requested_us):
            self.hold_options(UNKNOWN, 0)
            self.context = listed
            self.flag_off_nominal()

    def backlog(self, now: Micros) -> float:
        """Return the cost units in flight that are not done, by the clock and the rate."""
        rate = self.work.read()
        if rate is None or not self.attempts:
            return self.cost_inflight
        since = min((a.started_us for a in self.attempts.values()), default=now)
        return max(0.0, self.cost_inflight - rate * (now - max(since, self.last_end_us)))

    def displaces(self, options: str, now: Micros) -> bool:
        """Check that these options would reload a model whose users would then load it again."""
        if not self.is_loaded or now - self.options_used_us >= DISPLACED:
            return False
        return not self.serves_after(options)

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

    def limit_changed(self) -> None:
        """Copy the limit after evidence was recorded."""
        self.limit, self.proven = self.limiter.limit, self.limiter.proven
        if len(self.attempts) < self.limit and self.group.replicas.get(self.key) is self:
            self.group.with_capacity[self.key] = self

    # --- the order of the models of a node (`policies.model_concurrency`) ---

    def has_turn(self, now: Micros) -> bool:
        """Check that no other model of the node has the turn, or goes before this one."""
        node, concurrency = self.node, self.node.concurrency
        if not self.occupies_gpu and node.active_models >= concurrency.limit:
            return False
        if node.active_models and node.memory.is_tight and self._would_swap():
            return False
        if concurrency.unordered:
            return True
        # A model at work may fill its slots before it makes room for one of the same priority.
        fills = self.occupies_gpu > 0 and self.starts_in_turn < self.limiter.limit
        for other in node.replicas.values():
            if (
                other is not self
                and not other.occupies_gpu
                and other.is_waited_for()
                and other._goes_before(self, fills, now)
            ):
                return False
        return True

    def _would_swap(self) -> bool:
        """Check that another model of the node is at work and one of the two evicts the other."""
        for other in self.node.replicas.values():
            if other is not self and other.occupies_gpu and (other.is_loading or not self.is_loaded):
                return True
        return False

    def is_waited_for(self) -> bool:
        """Check that work which takes turns waits for this self."""
        group = self.group
        return bool(group.queue.waiting) and (self.waiters > 0 or group.batches > 0)

    def _goes_before(self, other: Replica, fills: bool, now: Micros) -> bool:
        """Check that the work waiting here starts before more of `other`.

        Args:
            fills: `other` has the turn and may fill its slots.
        """
        if not self.has_slot(now):
            return False
        priority, since, app, arrived = self.group.queue.head(now)
        if not other.group.queue.waiting:
            return not fills
        theirs, their_since, their_app, _ = other.group.queue.head(now)
        concurrency = self.node.concurrency
        if priority != theirs:
            age, their_age = concurrency.age_us(priority, since, now), concurrency.age_us(theirs, their_since, now)
            return (priority - theirs) * AGEING_INTERVAL + age - their_age > 0
        if fills:
            return False
        if not self.is_loaded and concurrency.waits_for_load(now - arrived, self.startup_us()):
            return False
        return concurrency.goes_before(app, self.model, their_app, other.model)

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
        """Return the µs per request; 0 without an answer. The penalty for failures fades."""
        mean = self.latency.value or 0.0
        good = self.good_latency.value or 0.0
        if mean <= good:
            return mean
        halvings = min(max(0, now - self.last_end_us) / FADES, 60.0)
        return good + (mean - good) / math.pow(2.0, halvings)

    def __repr__(self) -> str:
        return f"<Replica {self.model} on {self.node.key} {len(self.attempts)}/{self.limiter.limit}>"


class Node:
    """Hold the state of one server. `up` is None until the first probe or answer."""

    def __init__(self, endpoint: Endpoint, concurrency: ModelLimiter) -> None:
        self.endpoint = endpoint
        self.key = endpoint.key
        self.up: bool | None = None
        self.lost_why = "not seen yet"
        self.drained = False  # new work is kept away
        self.drained_for: list[str] = []  # the reasons
        self.budget = 0  # most bytes of models, by its owner's wish; 0 for no bound
        self.wakeable = False  # a packet starts it (`core.sleep`)
        self.asleep = False
        self.waking_us: Micros = 0  # since when it boots; 0 if it does not
        self.wake_failed_us: Micros = -NEVER  # when it was last woken in vain
        self.boot = Mean()  # µs from the packet to the first answer
        self.version = ""
        self.models: Mapping[str, int] = {}  # on disk: name -> bytes
        self.digests: Mapping[str, str] = {}
        self.loaded: Mapping[str, LoadedModel] = {}
        self.gpu_seen = False  # a model was seen in the memory of its GPU
        self.held_bytes = 0  # of the largest model that was ever seen wholly in its GPU
        self.gpu_total: int | None = None  # bytes of its GPUs by an agent, 0 without one; None if none reports
        self.gpu_free: int | None = None  # of them that no program uses
        self.replicas: dict[str, Replica] = {}
        self.running = 0
        self.active_models = 0  # models at work
        self.concurrency = concurrency
        self.faults = NodeFaults()
        self.incapable = Incapabilities()
        self.speed = Mean()  # of its models, as shares of their typical rates
        self.up_since: Micros = 0
        self.down_since: Micros = 0
        self.next_probe_us: Micros = 0
        self.probe_backoff_us: Micros = 0
        self.probing = False
        self.asked_us: Micros = -1
        self.silences = 0
        self.load_time = LoadTimeEstimator()
        self.load_ended_us: Micros = 0  # when the last load ended
        self.loads_barred_until: Micros = 0  # a load hangs: it gets no others until then (`core.load_watch`)
        self.loads_barred_why = ""
        self.hung_loads = 0  # in a row
        self.memory = MemoryFit()
        self.denied: set[str] = set()  # models that are in its last list and that it answered 404 for
        self.listed: Mapping[str, int] = {}  # models in memory at the last look, and their bytes
        self.listed_us: Micros = 0
        self.put_out: set[str] = set()  # models that we unloaded; no evidence of what fits
        # True: it reads an abandoned prompt to its end. False: it stops at the next batch. None: untested.
        self.reads_on: bool | None = None
        self.attempted = 0
        self.succeeded = 0
        self.failed = 0

    @property
    def usable(self) -> bool:
        """Return whether the node is up."""
        return self.up is True

    def wait_us(self, now: Micros) -> Micros:
        """Return the µs until one of the models at work here is idle."""
        ends = [
            max(attempt.expected_end(now) for attempt in replica.attempts.values() if attempt.occupies_gpu)
            for replica in self.replicas.values()
            if replica.occupies_gpu
        ]
        over = len(ends) - self.concurrency.limit
        return max(0, sorted(ends)[over] - now) if 0 <= over < len(ends) else 0

    def mark_overlapped(self) -> None:
        """Mark all attempts in flight: two models are at work."""
        for replica in self.replicas.values():
            for attempt in replica.attempts.values():
                attempt.overlapped = True

    def last_use(self, model: str) -> Micros:
        """Return when a model in memory was last used."""
        replica = self.replicas.get(model)
        return 0 if replica is None else max(replica.last_end_us, replica.options_used_us)

    def used(self, now: Micros) -> frozenset[str]:
        """Return the models that were used within DISPLACED, or are at work."""
        return frozenset(
            model
            for model, replica in self.replicas.items()
            if replica.attempts or (replica.answers and now - replica.last_end_us < DISPLACED)
        )

    def in_use(self, now: Micros) -> bool:
        """Check that a model here was used recently, which a load might evict."""
        return any(
            replica.answers and now - replica.last_end_us < DISPLACED
            for replica in self.replicas.values()
            if replica.is_loaded
        )

    def __repr__(self) -> str:
        state = {True: "up", False: "down", None: "unknown"}[self.up]
        return f"<Node {self.key} {state} · {self.running} running>"


class TypicalRates(NamedTuple):
    """Hold middle and best rates of the measured replicas, for those without measurements."""

    work: float = WORK
    best_work: float = WORK
    prefill: float = PREFILL
    best_prefill: float = PREFILL
    decode: float = DECODE
    best_decode: float = DECODE
    slowness: float = 1.0  # of the fastest place that was measured: 1 on a GPU, CPU_SLOWER on a CPU


class ModelReplicas:
    """Hold the replicas of one model, its queue, and the digest that embeddings use."""

    def __init__(self, model: str, settings: ModelSettings, queue: WaitQueue | None = None) -> None:
        self.model = model
        self.replicas: dict[str, Replica] = {}
        self.with_capacity: dict[str, Replica] = {}  # replicas with fewer requests in flight than their limit
        self.off_nominal: dict[str, Replica] = {}  # replicas that may not be nominal (`core.state.replica`)
        self.demoted: dict[str, Replica] = {}  # replicas that became much slower (`core.demotion`)
        self.queue = WaitQueue() if queue is None else queue  # tasks that wait for this model
        self.total_rate = 0.0  # sum of the work rates of usable replicas, cost units per µs
        self.best_rate = 0.0
        self.inflight_cost = 0.0
        self._token_cost = Rate(600 * SECOND)  # cost units per token of a prompt
        self.tokens_per_cost = 1 / BYTES_PER_TOKEN  # and the reverse
        self.digest = settings.used.get(model, "")  # the version that embeddings use (`core.model_versions`)
        self.mixed = False  # nodes have others, too
        self.checked = 0  # use for which the digests were checked since the last change
        self.notice = ""  # the last one about different digests
        self.tasks = 0  # that are not settled
        self.samples = 0
        self.batches = 0  # that are open
        self.loads_barred_until: Micros = 0  # on a node of it, at most
        self.full_until: Micros = 0  # all slots were taken just now, and no trial was worth it
        self.rescan_after: Micros = 0  # the waiting tasks were compared in vain just before
        self.rescan_planned = False
        self.cold_wait_us: Micros = 0  # time that tasks have waited while a node was idle that would have to load
        self._settings = settings
        self._lengths: dict[tuple[str, TaskType], Length] = {}  # by application and type of task
        self._app, self._type = "", TaskType.CHAT  # of the last task; the next one is often like it
        self._length: Length | None = None
        self._counted = 0  # samples seen by the last recount, and by the last ranking
        self._ranked_at = -1
        self.ranked: list[Replica] = []
        self._typical = TypicalRates()
        self.all: list[Replica] = []
        self.prefix_hashes: dict[
            PrefixHash, Replica
        ] = {}  # beginning of a conversation -> the replica that read it last
        self._by_options: dict[str, dict[str, Replica]] = {}

    # --- replicas ---

    def put(self, replica: Replica) -> None:
        """Add a replica."""
        self.replicas[replica.key] = replica
        self.all = list(self.replicas.values())
        self.checked = 0
        replica.flag_off_nominal()
        if len(replica.attempts) < replica.limiter.limit:
            self.with_capacity[replica.key] = replica
        self._ranked_at = -1

    def drop(self, key: str) -> None:
        """Remove the replica of a node."""
        replica = self.replicas.pop(key, None)
        self.all = list(self.replicas.values())
        self.with_capacity.pop(key, None)
        self.checked = 0
        self.off_nominal.pop(key, None)
        self.demoted.pop(key, None)
        if replica is not None:
            self._forget_options(replica)
        self._ranked_at = -1

    def usable(self, now: Micros) -> list[Replica]:
        """Return the replicas that take work, now or when a slot frees."""
        return [replica for replica in self.replicas.values() if replica.usable(now)]

    def digest_for(self, task: Task) -> str:
        """Return the only version of the model that may answer this task; "" for any."""
        if task.kind is not EMBED and not self._settings.one_digest:
            return ""
        if task.only is None:
            return self.digest
        replicas = [replica for key in task.only if (replica := self.replicas.get(key)) is not None and replica.node.up]
        has = not replicas or any(replica.digest in ("", self.digest) for replica in replicas)
        return self.digest if has or self.model in self._settings.pinned else chosen(replicas)

    def suits(self, replica: Replica, task: Task, digest: str) -> bool:
        """Check that this task may go to this replica.

        Args:
            digest: The version that the task needs; "" for any.
        """
        return replica.suits(task) and (not digest or replica.digest in ("", digest))

    def _forget_options(self, replica: Replica) -> None:
        replicas = self._by_options.get(replica.options)
        if replicas is not None:
            replicas.pop(replica.node.key, None)
            if not replicas:
                del self._by_options[replica.options]

    def options_changed(self, replica: Replica, options: str) -> None:
        """Record the runner options that a replica is loaded with."""
        self._forget_options(replica)
        if options:
            self._by_options.setdefault(options, {})[replica.node.key] = replica

    def serving(self, task: Task) -> Iterable[Replica]:
        """Return replicas whose runner was loaded by our own requests, and serves this task without a load."""
        for options, replicas in self._by_options.items():
            if options == task.options or context_for(task.options, options, 0, 0, task.bytes_kept()) is not None:
                yield from replicas.values()

    def load_options(self, task: Task) -> str:
        """Return the runner options of a load for a task: the largest context that serves it elsewhere, or its own."""
        held = [replica.options for replica in self.serving(task)]
        return max(held, key=lambda options: parse(options).context, default=task.options)

    # --- typical values ---

    def typical(self) -> TypicalRates:
        """Return the typical rates of this model."""
        self.rank()
        return self._typical

    def rank(self) -> None:
        """Compute the typical rates again, and the order of speed, after enough answers."""
        every = max(RANK_EVERY if self.samples >= RANK_OFTEN else 1, len(self.replicas) // 2)
        if self._ranked_at >= 0 and self.samples - self._ranked_at < every:
            return
        self._ranked_at = self.samples
        replicas = list(self.replicas.values())
        self._typical = typical = TypicalRates(
            *_middle([replica.work.read() for replica in replicas], WORK),
            *_middle([replica.prefill.read() for replica in replicas], PREFILL),
            *_middle([replica.decode.read() for replica in replicas], DECODE),
            min([replica.measured_slowness for replica in replicas if replica.decode.value], default=1.0),
        )
        if len(replicas) > SHORTLIST:
            self.ranked = sorted(replicas, key=lambda replica: _usual_time(replica, typical))
            for rank, replica in enumerate(self.ranked):
                replica.rank = rank

    def expected_tokens(self, task: Task) -> float:
        """Predict the tokens of the answer to a task."""
        tokens = self.length(task).read() or TOKENS_OUT
        limit = task.tokens_out
        return tokens if limit is None or limit < 0 else min(tokens, float(limit))

    def length(self, task: Task) -> Length:
        """Return the estimator for answers to such tasks."""
        last = self._length
        if last is not None and task.type is self._type and task.app == self._app:
            return last
        kind = task.app, task.type
        found = self._lengths.get(kind)
        if found is None:
            if len(self._lengths) > KINDS_MAX:
                self._lengths.clear()
            found = self._lengths[kind] = self._settings.lengths.of(task.app, task.type, self.model)
        self._app, self._type, self._length = task.app, task.type, found
        return found

    def measured_prompt(self, cost: int, tokens: int) -> None:
        """Record the tokens of a prompt of `cost` units."""
        self._token_cost.add(cost, tokens)
        self.tokens_per_cost = 1 / (self._token_cost.value or BYTES_PER_TOKEN)

    # --- sums for batches ---

    def recount(self, now: Micros) -> None:
        """Sum the rates again, after a node came or went, and against rounding drift."""
        rates = [replica.work.read() or 0.0 for replica in self.usable(now)]
        self.total_rate = sum(rates)
        self.best_rate = max(rates, default=0.0)
        self._counted = self.samples
        self.checked = 0

    def rate_changed(self, before: float, after: float, now: Micros) -> None:
        """Update the sums after the rate of one replica has changed."""
        self.samples += 1
        if self.samples - self._counted >= 256:
            self.recount(now)
            return
        self.total_rate += after - before
        self.best_rate = max(self.best_rate, after)


def _middle(values: list[float | None], default: float) -> tuple[float, float]:
    known = sorted(value for value in values if value)
    return (known[len(known) // 2], known[-1]) if known else (default, default)


def _usual_time(replica: Replica, typical: TypicalRates) -> float:
    """Return the µs of a usual task, for sorting. An untried replica counts as the best."""
    if not replica.answers and not replica.failed:
        return 0.0
    decode, work = replica.decode.read(), replica.work.read()
    if decode:
        return replica.startup_us() + TOKENS_OUT / decode + 2 * TOKENS_OUT / (replica.prefill.read() or typical.prefill)
    return replica.startup_us() + TOKENS_OUT * BYTES_PER_TOKEN / (work or typical.work)


def chosen(replicas: Iterable[Replica]) -> str:
    """Return the digest with the most capacity, by measured rates, then by nodes; "" for none."""
    capacity: dict[str, list[float]] = {}
    for replica in replicas:
        if replica.digest:
            sums = capacity.setdefault(replica.digest, [0.0, 0.0])
            sums[0] += replica.work.read() or 0.0
            sums[1] += 1.0
    return max(capacity, key=lambda digest: capacity[digest], default="")
