"""Events: what the scheduler receives. Nothing else changes its state.

Plain classes for the frequent ones (`core.value`), named tuples for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.core.hints import mypyc_attr
from sollol.core.types import Kind, Micros, NodeFacts, Outcome, RoutingStrategy, Task
from sollol.core.value import Value


class Submitted(Value):
    """Report a new task."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task


class ItemsAdded(NamedTuple):
    """Report the next items of a batch by their costs. Positions continue from the last event."""

    task: int
    costs: Sequence[int]
    closed: bool


@mypyc_attr(acyclic=True)
class FirstToken(Value):
    """Report that the caller has begun to receive this attempt's answer.

    Attributes:
        movable: Another node could continue it.
    """

    __slots__ = ("attempt", "movable")

    def __init__(self, attempt: int, movable: bool = False) -> None:
        self.attempt = attempt
        self.movable = movable


@mypyc_attr(acyclic=True)
class Responding(Value):
    """Report that a node has begun to answer, where the caller gets the answer whole."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt


@mypyc_attr(acyclic=True)
class Finished(Value):
    """Report the end of an attempt."""

    __slots__ = ("attempt", "outcome")

    def __init__(self, attempt: int, outcome: Outcome) -> None:
        self.attempt = attempt
        self.outcome = outcome


@mypyc_attr(acyclic=True)
class Cancelled(Value):
    """Report that the caller left, or that an operator ends the task for the reason `why`."""

    __slots__ = ("task", "why")

    def __init__(self, task: int, why: str = "") -> None:
        self.task = task
        self.why = why


class TaskFailed(NamedTuple):
    """Report a fault of this program outside the scheduler, after which the task cannot go on."""

    task: int
    error: Any  # an Exception; mypyc does not find a builtin in a named tuple


class NodeAdded(NamedTuple):
    """Report a new node."""

    endpoint: Endpoint


class NodeRemoved(NamedTuple):
    """Report that a node was taken out."""

    node: str


class NodeSeen(NamedTuple):
    """Report the lists of a node."""

    node: str
    facts: NodeFacts


class NodeLost(NamedTuple):
    """Report a failed probe.

    Attributes:
        certain: The connection was refused. Otherwise the node was silent, which may pass.
    """

    node: str
    why: str
    certain: bool = True


class NodeDrained(NamedTuple):
    """Keep new work away from a node, or let it come again. Running attempts end as usual.

    Attributes:
        why: The reason; a node gets work again when none is left.
    """

    node: str
    drained: bool
    why: str = "an operator keeps new work away"


class NodeOwned(NamedTuple):
    """Record the wishes of a node's owner.

    Attributes:
        wakeable: A packet starts it, so that it sleeps where others are down.
        budget: Most bytes of models in its memory; 0 for no bound.
    """

    node: str
    wakeable: bool
    budget: int


class GpuReported(NamedTuple):
    """Record what an agent reports about the GPUs of a node's machine.

    Attributes:
        total: Bytes of their memory, 0 without a GPU; None if there is no report.
        free: Bytes that no program uses; None if that is unknown.
    """

    node: str
    total: int | None
    free: int | None


class WakeRequested(NamedTuple):
    """Wake a node, if it sleeps, for the reason `why`."""

    node: str
    why: str


class LoadRequested(NamedTuple):
    """Load a model on a node for the reason `why`, unless the node cannot, or needs no load.

    Attributes:
        keep_alive: Ollama's keep-alive, such as "30m"; "" for the node's own.
    """

    node: str
    model: str
    kind: Kind
    options: str
    keep_alive: str
    why: str


class LoadEnded(NamedTuple):
    """Report the end of a load without a request."""

    node: str
    model: str
    outcome: Outcome


class UnloadRequested(NamedTuple):
    """Unload a model from a node for the reason `why`, unless it is in use or waited for."""

    node: str
    model: str
    why: str


class Retested(NamedTuple):
    """Report the rate that a `Retest` has measured.

    Attributes:
        per_s: Tokens, or cost units, per second; 0 if it was not answered.
        took_us: Time of its work; 0 if it was not answered.
    """

    node: str
    model: str
    per_s: float
    took_us: Micros = 0


class Silence(NamedTuple):
    """Describe a stream without a part for `silent_us`.

    Attributes:
        gap_us: Mean time between its parts.
        plain: It is text and nothing else.
        sure: Another node can continue it exactly, by model and text.
    """

    attempt: int
    silent_us: Micros
    gap_us: Micros
    plain: bool
    sure: bool


class Silent(NamedTuple):
    """Report all streams without a part for a while, at least one of them for long."""

    streams: tuple[Silence, ...]


class Refresh(NamedTuple):
    """Probe every node now: models were pulled, loaded or deleted."""


class Configure(NamedTuple):
    """Change settings. None leaves a setting as it is.

    Attributes:
        queue_bound: Most waiting tasks.
        strategy: Router of tasks without a mode; one of `Policies.strategies`.
        one_digest: Chats use one version of a model, as embeddings do.
        pinned_digests: Model to the digest, or the beginning of one, that embeddings use.
        used_digests: Model to the digest that embeddings have used before.
    """

    queue_bound: int | None = None
    strategy: RoutingStrategy | None = None
    one_digest: bool | None = None
    pinned_digests: Mapping[str, str] | None = None
    used_digests: Mapping[str, str] | None = None


class LearnedRestored(NamedTuple):
    """Restore what was learned before a restart: values of `core.learned.learned_values`."""

    values: Mapping[str, Any]


class Tick(NamedTuple):
    """Report that the moment of a WakeAt has come."""


Event = (
    Submitted
    | ItemsAdded
    | FirstToken
    | Responding
    | Finished
    | Cancelled
    | TaskFailed
    | NodeAdded
    | NodeRemoved
    | NodeSeen
    | NodeLost
    | NodeDrained
    | NodeOwned
    | GpuReported
    | WakeRequested
    | LoadRequested
    | LoadEnded
    | UnloadRequested
    | Retested
    | Silent
    | Refresh
    | Configure
    | LearnedRestored
    | Tick
)
