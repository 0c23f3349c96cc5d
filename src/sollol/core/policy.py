"""The questions that a policy answers. `core` declares them; `policies` answers; `pool` brings the two together.

Each is one question (tower, Netflix concurrency-limits): what only one implementation needs, it keeps to itself.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sollol.core.types import Decision, Micros, Outcome, RoutingMode, RoutingStrategy, Task

if TYPE_CHECKING:
    from sollol.core.state.replica import Replica


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
        """The best of `lanes` (at least one), busy ones included: if the choice has no free slot, the task waits.

        `ahead` is what tasks before it in the line have already claimed of each node."""
        ...


class Limiter(Protocol):
    """How many requests may be in flight on one (node, model)? Only what it is told may change that.

    Each method records one kind of evidence; an implementation may ignore those that it has no use for."""

    @property
    def limit(self) -> int: ...
    @property
    def proven(self) -> int:
        """So many of them are known to be worked on at once; the others are a trial, and may wait inside the node."""
        ...

    @property
    def slots(self) -> int:
        """The calls that the node was seen to work on at once, even where that pays only for short ones."""
        ...

    def sample(self, amount: float, busy_us: Micros, inflight: int, dropped: bool, wanted: bool) -> None:
        """A request ended: `amount` of work in `busy_us` of the lane's time, with `inflight` under way.

        `dropped`: the node refused the load, or did not answer in time. `wanted`: others wait for a slot."""
        ...

    def responded(self, responding: int, waited: bool, now: Micros) -> None:
        """Record that a call began its answer while `responding` calls, itself included, were being answered.

        `waited`: it was sent beyond the proven limit, and its first token came late."""
        ...

    def refused(self, responding: int, trial: bool, now: Micros) -> None:
        """Record that a call waited inside the node while `responding` others were being answered."""
        ...

    def reopen(self, now: Micros) -> None:
        """Allow the next trial if its time has come. Called while tasks wait."""
        ...

    def answered(
        self, inflight: float, elapsed_us: Micros, wait_us: Micros, rate: float, now: Micros, concurrent: int = 0
    ) -> None:
        """Record an answer that came with timings: the mean calls in flight, its time, its wait in the node, and its
        tokens per microsecond of decoding (0 if unknown). `beside`: the calls in flight when it was sent, itself
        included, if it did not wait."""
        ...

    def embedded(self, inflight: float, elapsed_us: Micros, inside_us: Micros, cost: float, now: Micros) -> None:
        """Record an embedding of `cost` units that took the node `inside_us`."""
        ...


class Breaker(Protocol):
    """May this (node, model) be tried now?"""

    closed: bool
    """It admits everything: looked at for every lane of every decision, so an attribute spares a call."""

    def admits(self, now: Micros) -> bool: ...
    def retry_at(self) -> Micros | None:
        """When it will next admit a trial, or None while closed."""
        ...

    def begin(self, now: Micros) -> None:
        """An attempt starts: an open breaker lets only one trial through."""
        ...

    def record(self, now: Micros, outcome: Outcome) -> None: ...
    def trip(self, now: Micros) -> None:
        """It hangs, by more evidence than one call: open at once."""
        ...

    def postpone(self, now: Micros, longer: bool) -> None:
        """A trial was given up because another node was sooner. `longer`: long after it should have been heard."""
        ...


class Retrier(Protocol):
    """Try a task again? The delay in microseconds, or None for no."""

    def again(self, task: Task, outcome: Outcome, tried: int, now: Micros) -> Micros | None: ...
    def deposit(self, task: Task) -> None:
        """A task was submitted: the budget grows with the traffic."""
        ...


class BatchView(NamedTuple):
    """What a batching policy may look at. Costs in cost units, rates in units per microsecond."""

    pending_cost: int
    pending_count: int
    inflight_cost: float  # on all lanes of the model, this batch's and others'
    closed: bool  # no more items will come
    replica_rate: float | None
    replica_backlog: float
    replica_startup_us: Micros
    slots: int
    total_rate: float
    best_rate: float
    replicas: int


class ChunkRetry(enum.Enum):
    RETRY = "retry"
    SPLIT = "split"
    REFUSE = "refuse"


class Batcher(Protocol):
    """How much of a batch should a free slot take?"""

    def item_budget(self, view: BatchView) -> tuple[int, int]:
        """(cost, count): a chunk stops at whichever is reached first; (0, 0) leaves it to the others."""
        ...

    def takeover(self, cost: float, rate: float, startup_us: Micros, remaining_us: Micros) -> bool:
        """Would an idle node finish this work clearly before the one that has it, expected in `left_us`?"""
        ...

    def again(self, outcome: Outcome, tries: int, count: int) -> ChunkRetry:
        """What to do with a chunk of `count` items that has failed `tries` times.

        SPLIT makes its items suspect: they are tried in halves until one is found, or all were good."""
        ...


class Hedger(Protocol):
    """Send a second copy of a slow request? When, and is there budget for it?"""

    def deposit(self, task: Task) -> None:
        """A task that may be hedged was submitted."""
        ...

    def learn(self, task: Task, decision: Decision, elapsed_us: Micros) -> None:
        """An attempt gave its first token, or its answer if that comes whole, after `elapsed_us`."""
        ...

    def after(self, task: Task, decision: Decision) -> Micros | None:
        """How long to wait for the first attempt before a second is sent; None for never."""
        ...

    def withdraw(self) -> bool:
        """Take one second copy from the budget; False if there is none left."""
        ...


class Policies(NamedTuple):
    """The bundle of answers a scheduler is built with. `modes`: routers of the modes that have their own."""

    router: Router
    batcher: Batcher
    retrier: Retrier
    hedger: Hedger
    limiter: Callable[[], Limiter]
    breaker: Callable[[], Breaker]
    modes: Mapping[RoutingMode, Router] = {}
    strategies: Mapping[RoutingStrategy, Router] = {}
    hedgers: Mapping[str, Hedger] = {}  # those that a task can name
