"""Protocols of the policies. `core` declares them, `policies` implements them, `engine` bundles them.

Each is one question (tower, Netflix concurrency-limits): an implementation keeps its own state to itself.

Over 400 lines, because it has all questions that a mode can answer otherwise, with their arguments.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from sollol.core.capacity import Breaker, Limiter, ModelLimiter
from sollol.core.state.evidence import FailureEvidence
from sollol.core.state.replica import Replica
from sollol.core.types import Decision, Micros, Outcome, RoutingMode, RoutingStrategy, Task


class ReplicaView(Protocol):
    """Show the part of a replica that a routing policy of your own needs. `Replica` has it."""

    key: str
    model: str
    limit: int
    answers: int
    failed: int

    @property
    def running(self) -> int:
        """Return the requests in flight."""
        ...

    def free(self, now: Micros, occupies_gpu: bool = True) -> bool:
        """Check that a slot is free."""
        ...

    def wait_us(self, now: Micros, occupies_gpu: bool = True) -> Micros:
        """Predict the µs until a slot is free."""
        ...

    def startup_us(self, options: str | None = None) -> Micros:
        """Return the µs that a load takes; 0 for a model in memory with these options."""
        ...

    def latency_us(self, now: Micros) -> float:
        """Return the mean µs per request; 0 without an answer."""
        ...


class Router(Protocol):
    """Choose the replica for a task.

    Attributes:
        wide: The router must see every replica; others get a shortlist where there are many.
        by_finish: It always chooses the replica with the least predicted finish, as `Decision.predictions` show. A task
            that waits for a busy replica is then compared again only after a change that could improve its choice.
    """

    wide: bool
    by_finish: bool

    def choose(
        self,
        task: Task,
        replicas: Sequence[Replica],
        reserved_us: Mapping[str, Micros],
        now: Micros,
        rng: random.Random,
    ) -> Decision:
        """Return the best of `replicas` (at least one). Busy ones compete, and then the task waits.

        Args:
            reserved_us: Time that tasks before it in the queue have reserved on each node.
        """
        ...


class Retrier(Protocol):
    """Decide whether a failed task is tried again."""

    def again(self, task: Task, outcome: Outcome, tried: int, now: Micros) -> Micros | None:
        """Return the µs to wait before the next try, or None to give up."""
        ...

    def deposit(self, task: Task) -> None:
        """Record a submitted task: the budget grows with the traffic."""
        ...


class BatchView(NamedTuple):
    """Describe a batch and a replica for a batching policy. Costs in cost units, rates in units per µs."""

    pending_cost: int
    pending_count: int
    inflight_cost: float  # on all replicas of the model, of this batch and others
    closed: bool  # no more items will come
    replica_rate: float | None
    replica_backlog: float
    replica_startup_us: Micros
    slots: int
    total_rate: float
    best_rate: float
    replicas: int


class ChunkRetry(enum.Enum):
    """Name what happens to a failed chunk."""

    RETRY = "retry"
    SPLIT = "split"
    REFUSE = "refuse"


class Batcher(Protocol):
    """Decide how much of a batch a free slot takes."""

    def item_budget(self, view: BatchView) -> tuple[int, int]:
        """Return (cost, count): a chunk ends at whichever comes first; (0, 0) takes nothing."""
        ...

    def again(self, outcome: Outcome, tries: int, count: int) -> ChunkRetry:
        """Return what to do with a chunk of `count` items that has failed `tries` times.

        SPLIT makes its items suspect: they are tried in halves until one is found, or all were good.
        """
        ...


class TakeoverPolicy(Protocol):
    """Decide when an idle node repeats, at the end of a batch, what another has in flight."""

    def pays(self, cost: float, rate: float, startup_us: Micros, remaining_us: Micros) -> bool:
        """Check that an idle node would finish this work clearly before `remaining_us`."""
        ...

    def repeats(self, waited_us: Micros, tries: int) -> bool:
        """Check that a node which failed these items may try them once more."""
        ...

    def look_again_us(self, left_us: Micros, predicted_us: Micros) -> Micros:
        """Return the µs until the next look at an attempt that should end in `left_us`."""
        ...


class OverlapPolicy(Protocol):
    """Decide when a request starts beside others rather than wait for them."""

    def overlaps(self, service_us: Micros, wait_us: Micros, running: int, priority: int, highest: int) -> bool:
        """Check that a request starts beside others on a busy node.

        Args:
            service_us: Time that it takes there alone.
            wait_us: Time until it would start otherwise.
            running: Requests in flight on its replica.
            priority: Its priority.
            highest: Highest priority at work on the node.
        """
        ...

    def tries_slot(self, service_us: Micros, wait_us: Micros) -> bool:
        """Check that the wait is long enough to test for one more slot."""
        ...


class PrefillPolicy(Protocol):
    """Predict how long a slot stays taken after its caller left while the node read the prompt."""

    def taken_us(self, rest_us: Micros, rate: float, reads_on: bool | None) -> Micros:
        """Return the µs that the slot stays taken; less than `rest_us` on an untested node is a test.

        Args:
            rest_us: Time until the whole prompt would be read.
            rate: Tokens of a prompt that the node reads per µs.
            reads_on: Whether the node reads an abandoned prompt to its end; None if untested.
        """
        ...


class Hedger(Protocol):
    """Decide when a slow request gets a second attempt, within a budget."""

    def deposit(self, task: Task) -> None:
        """Record a submitted task that may be hedged."""
        ...

    def learn(self, task: Task, decision: Decision, elapsed_us: Micros) -> None:
        """Record the µs until the first token of a stream, or until a whole answer."""
        ...

    def after(self, task: Task, decision: Decision) -> Micros | None:
        """Return the µs to wait before a second attempt; None for never."""
        ...

    def withdraw(self) -> bool:
        """Take one second attempt from the budget. Return False if it is empty."""
        ...


class HedgeBenefit(Protocol):
    """Decide whether a second attempt of a late request pays. `check_us`: time between two checks."""

    check_us: Micros

    def record(self, task: Task, first: bool) -> None:
        """Record whether the second attempt answered first, or would have."""
        ...

    def pays(self, task: Task, remaining_us: Micros, takes_us: Micros, busy: float) -> bool:
        """Check that it saves more than it takes from others. `busy`: probability that its node is needed."""
        ...

    def replaces(self, task: Task, remaining_us: Micros, takes_us: Micros) -> bool:
        """Check that the first attempt should be given up when the second is late, too."""
        ...

    def restarts(self, task: Task, waited_us: Micros, delay_us: Micros, restarts: int) -> bool:
        """Check that the request should be sent to its own node again."""
        ...


class LatenessPolicy(Protocol):
    """Judge how late a request is. All arguments are microseconds."""

    def probes(self, overdue_us: Micros, predicted_us: Micros, quiet_us: Micros) -> bool:
        """Check that its node should be probed. `quiet_us`: since the last probe."""
        ...

    def is_late(self, waited_us: Micros, first_response_us: Micros) -> bool:
        """Check that the first response is clearly overdue."""
        ...

    def hangs(self, waited_us: Micros, first_response_us: Micros, overdue_us: Micros, resumed: bool) -> bool:
        """Check that it should be repeated on, or moved to, another node."""
        ...

    def suspects(self, waited_us: Micros, first_response_us: Micros, stream: bool) -> bool:
        """Check that a caller who left had waited long enough to count it against the node."""
        ...

    def slot_wait_us(self, first_us: Micros, predicted_us: Micros, trial: bool) -> Micros:
        """Return the µs without a response after which a request is taken to wait for a slot inside its node.

        Args:
            first_us: Predicted time to the first token in a free slot.
            predicted_us: Predicted time to the whole answer.
            trial: All proven slots are answering. Otherwise the prompts before it may be long.
        """
        ...

    def is_given_up(self, waited_us: Micros, predicted_us: Micros) -> bool:
        """Check that a chunk of a batch has taken so long that it is closed and sent again."""
        ...


class ProbePolicy(Protocol):
    """Decide when nodes are probed, and when silence makes a node down.

    Attributes:
        idle_after_us: Time without a task after which there is no work.
        newcomers_us: Time that the first task waits for the answers of new nodes.
        retry_us: Pause after a silent probe of a node that is up.
    """

    idle_after_us: Micros
    newcomers_us: Micros
    retry_us: Micros

    def every_us(self, idle: bool) -> Micros:
        """Return the µs between two probes of a node that is up."""
        ...

    def is_down(self, silences: int) -> bool:
        """Check that so many probes in a row without an answer make a node down."""
        ...

    def pause_us(self, before_us: Micros) -> Micros:
        """Return the µs until a node that is down is probed again; `before_us`: the last pause, or 0."""
        ...


class StallPolicy(Protocol):
    """Decide after how much silence a stream moves to another node."""

    def patience_us(self, gap_us: Micros, patient: bool) -> Micros:
        """Return the µs. `gap_us`: mean time between parts. `patient`: its runner works, or no node is free."""
        ...


class SuspicionPolicy(Protocol):
    """Judge whether failed items or their node are at fault.

    Attributes:
        control_after: Single items that a node fails in a row, before it gets a text known to be good.
    """

    control_after: int

    def is_hopeless(self, failures: int, lasted_us: Micros, patience_us: Micros) -> bool:
        """Check that a batch without any success is given up."""
        ...

    def is_bad(self, evidence: FailureEvidence, good: int, random: int) -> bool:
        """Check that a single item is at fault.

        Args:
            evidence: Its failures.
            good: Requests of the batch that succeeded.
            random: Failed requests whose items turned out to be good.
        """
        ...


class WakingPolicy(Protocol):
    """Decide when a sleeping node is woken.

    Attributes:
        boot_us: Time of a boot before one was measured.
        give_up_us: Time after which a node that was woken counts as asleep again.
    """

    boot_us: Micros
    give_up_us: Micros

    def wakes(self, wait_us: Micros, boot_us: Micros, since_failure_us: Micros) -> bool:
        """Check that a node should be woken, by the predicted wait of the last task in the queue."""
        ...


class DemotionPolicy(Protocol):
    """Judge whether a replica has become much slower than it was."""

    def is_slow(self, took_us: Micros, predicted_us: Micros) -> bool:
        """Check that an answer that took so long is evidence."""
        ...

    def demotes(self, in_row: int) -> bool:
        """Check that so many slow answers in a row mean a slow replica."""
        ...

    def is_due(self, since_us: Micros) -> bool:
        """Check that a demoted replica should be tested, `since_us` after the last test."""
        ...


class LoadWatchPolicy(Protocol):
    """Judge how late a load is."""

    def late_after_us(self, predicted_us: Micros) -> Micros:
        """Return the µs after which another node should load the model, too."""
        ...

    def hangs(self, elapsed_us: Micros, predicted_us: Micros, measured: bool) -> bool:
        """Check that the node should get no further loads. `measured`: it has loaded models before."""
        ...

    def is_overtaken(self, elapsed_us: Micros, predicted_us: Micros, other_us: Micros) -> bool:
        """Check that a late load hangs, since another node has needed only `other_us`."""
        ...

    def pause_us(self, hung: int) -> Micros:
        """Return the µs without loads after so many loads that hung in a row."""
        ...

    def deadline_us(self, size: int, predicted_us: Micros, measured: bool) -> Micros:
        """Return the µs after which a load of `size` bytes is given up."""
        ...


class EvictionPolicy(Protocol):
    """Price what a load costs the users of the models that it evicts."""

    def loads(self, idle_us: Micros, alone: bool, replaceable: bool, waiting: int) -> float:
        """Return the loads that the users of an evicted model pay.

        Args:
            idle_us: Time since the evicted model was used; 0 while it is at work.
            alone: No other node has the evicted model in memory.
            replaceable: Another node has the model that is to be loaded.
            waiting: Requests that run on the evicted replica, or wait for its model.
        """
        ...


class Preloader(Protocol):
    """Decide when a model is loaded on an idle node in advance."""

    def loads(self, waited_us: Micros, load_us: Micros) -> bool:
        """Check that the time that tasks have waited pays for a load."""
        ...


class Policies(NamedTuple):
    """Bundle the policies of a scheduler.

    Attributes:
        modes: Routers of the modes that have their own.
        strategies: Routers of the strategies that have their own; the others use `router`.
        hedgers: Hedging policies that a task can name.
    """

    router: Router
    batcher: Batcher
    retrier: Retrier
    hedger: Hedger
    limiter: Callable[[], Limiter]
    breaker: Callable[[], Breaker]
    hedge_benefit: HedgeBenefit
    lateness: LatenessPolicy
    probing: ProbePolicy
    stalls: StallPolicy
    suspicion: SuspicionPolicy
    takeover: TakeoverPolicy
    overlap: OverlapPolicy
    prefill: PrefillPolicy
    preloader: Preloader
    load_watch: LoadWatchPolicy
    demotion: DemotionPolicy
    waking: WakingPolicy
    model_limiter: Callable[[], ModelLimiter]
    modes: Mapping[RoutingMode, Router] = {}
    strategies: Mapping[RoutingStrategy, Router] = {}
    hedgers: Mapping[str, Hedger] = {}  # those that a task can name
