"""Events: what the scheduler receives. Nothing else changes its state.

Plain classes for the frequent ones (`core.value`), named tuples for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.core.hints import mypyc_attr
from sollol.core.types import Micros, NodeFacts, Outcome, RoutingStrategy, Task
from sollol.core.value import Value


class Submitted(Value):
    """A caller wants this done."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task = task


class ItemsAdded(NamedTuple):
    """The next items of a batch, by their costs; their positions follow those fed before."""

    task: int
    costs: Sequence[int]
    closed: bool


@mypyc_attr(acyclic=True)
class FirstToken(Value):
    """The caller has begun to receive this attempt's answer. `movable`: another node could go on with it."""

    __slots__ = ("attempt", "movable")

    def __init__(self, attempt: int, movable: bool = False) -> None:
        self.attempt = attempt
        self.movable = movable


@mypyc_attr(acyclic=True)
class Responding(Value):
    """A node has begun to answer an attempt whose caller wants the answer whole."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt


@mypyc_attr(acyclic=True)
class Finished(Value):
    __slots__ = ("attempt", "outcome")

    def __init__(self, attempt: int, outcome: Outcome) -> None:
        self.attempt = attempt
        self.outcome = outcome


@mypyc_attr(acyclic=True)
class Cancelled(Value):
    """The caller left."""

    __slots__ = ("task",)

    def __init__(self, task: int) -> None:
        self.task = task


class TaskFailed(NamedTuple):
    """This task cannot go on, by a fault of this program outside of the scheduler."""

    task: int
    error: Any  # an Exception; mypyc does not find a builtin in a named tuple


class NodeAdded(NamedTuple):
    endpoint: Endpoint


class NodeRemoved(NamedTuple):
    node: str


class NodeSeen(NamedTuple):
    node: str
    facts: NodeFacts


class NodeLost(NamedTuple):
    """A probe failed. `certain`: nothing listens there; otherwise it was only silent, which may pass."""

    node: str
    why: str
    certain: bool = True


class Silence(NamedTuple):
    """A stream of which nothing came for `silent_us`; `gap_us` lie between its parts on the mean. `plain`: it is text
    and nothing else. `sure`: another node can go on with it exactly, as far as the model and the text decide."""

    attempt: int
    silent_us: Micros
    gap_us: Micros
    plain: bool
    sure: bool


class Silent(NamedTuple):
    """All streams of which nothing came for a while; at least one of them for long."""

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


class Tick(NamedTuple):
    """A moment asked for with WakeAt has come."""


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
    | Silent
    | Refresh
    | Configure
    | Tick
)
