"""Actions: what the scheduler returns for an event. The dispatcher carries them out in order.

Plain classes for the frequent ones (`core.value`), named tuples for the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sollol.core.hints import mypyc_attr
from sollol.core.state.ranges import Ranges
from sollol.core.types import Cause, Decision, Kind, Micros, Outcome
from sollol.core.value import Value


@mypyc_attr(acyclic=True)
class Start(Value):
    """Send a task, or these items of it, to a node.

    Attributes:
        observe: Report when the node begins to answer.
        cause: The reason for the attempt.
    """

    __slots__ = ("attempt", "cause", "decision", "items", "node", "observe", "task")

    def __init__(
        self,
        attempt: int,
        task: int,
        node: str,
        decision: Decision,
        items: Ranges | None = None,
        observe: bool = False,
        cause: Cause = Cause.FIRST,
    ) -> None:
        self.attempt = attempt
        self.task = task
        self.node = node
        self.decision = decision
        self.items = items
        self.observe = observe
        self.cause = cause


@mypyc_attr(acyclic=True)
class Abort(Value):
    """Close the connection of an attempt and ignore what still arrives.

    Attributes:
        outcome: LEFT, or why the attempt moves to another node.
        withdrawn: It only waited in the node's own queue; its task waits here again.
    """

    __slots__ = ("attempt", "outcome", "withdrawn")

    def __init__(self, attempt: int, outcome: Outcome, withdrawn: bool = False) -> None:
        self.attempt = attempt
        self.outcome = outcome
        self.withdrawn = withdrawn


class Accept(NamedTuple):
    """Keep these items of the answer that just finished; they are the first to arrive."""

    task: int
    attempt: int
    items: Ranges


class Refuse(NamedTuple):
    """Fail these items for good."""

    task: int
    items: Ranges
    outcome: Outcome


class ItemsRequested(NamedTuple):
    """Request about this many more items of a batch from its source."""

    task: int
    items: int


@mypyc_attr(acyclic=True)
class Complete(Value):
    """End a task.

    Attributes:
        attempt: The attempt that answered; None for a batch, or after a failure.
        tried: Nodes, each with the reason why it did not answer.
    """

    __slots__ = ("attempt", "outcome", "task", "tried")

    def __init__(
        self, task: int, outcome: Outcome, attempt: int | None = None, tried: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.task = task
        self.outcome = outcome
        self.attempt = attempt
        self.tried = tried


class Load(NamedTuple):
    """Load a model into a node's memory with these runner options, then probe the node."""

    node: str
    model: str
    kind: Kind
    options: str
    keep_alive: str = ""


class Unload(NamedTuple):
    """Unload a model from a node's memory, then probe the node."""

    node: str
    model: str


class Wake(NamedTuple):
    """Send the packet that starts a sleeping node."""

    node: str


class Retest(NamedTuple):
    """Generate a few tokens, or embed, on a node to measure its rate; the result comes back as Retested.

    Attributes:
        kind: EMBED to embed, else to generate.
        cost: Cost units of the texts to embed.
    """

    node: str
    model: str
    options: str
    kind: Kind = Kind.GENERATE
    cost: int = 0


class Probe(NamedTuple):
    """Read a node's lists; the result comes back as NodeSeen or NodeLost."""

    node: str


class DigestChosen(NamedTuple):
    """Record that embeddings of a model use this version; `Configure` restores it after a restart."""

    model: str
    digest: str


class Notice(NamedTuple):
    """Show this sentence to the operator."""

    text: str


class SchedulerException(NamedTuple):
    """Log an exception of the scheduler.

    Attributes:
        task: The task that it settled; 0 for none.
    """

    task: int
    error: Any  # an Exception; mypyc does not find a builtin in a named tuple


@mypyc_attr(acyclic=True)
class WakeAt(Value):
    """Send a Tick at this moment. An earlier one may replace it."""

    __slots__ = ("at",)

    def __init__(self, at: Micros) -> None:
        self.at = at


Action = (
    Load
    | Start
    | Abort
    | Accept
    | Refuse
    | ItemsRequested
    | Complete
    | Unload
    | Wake
    | Retest
    | Probe
    | WakeAt
    | DigestChosen
    | Notice
    | SchedulerException
)
