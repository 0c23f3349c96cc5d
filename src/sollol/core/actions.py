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
    """Send this task, or these items of it, to this node. `observe`: report when it begins to answer."""

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
    """Close this attempt's connection; nothing will be heard of it any more. `outcome`: LEFT, or why it is moved.

    `withdrawn`: it only waited in the node's own queue, and its task waits here again."""

    __slots__ = ("attempt", "outcome", "withdrawn")

    def __init__(self, attempt: int, outcome: Outcome, withdrawn: bool = False) -> None:
        self.attempt = attempt
        self.outcome = outcome
        self.withdrawn = withdrawn


class Accept(NamedTuple):
    """Of the answer that just finished, these items are the first to arrive: keep them."""

    task: int
    attempt: int
    items: Ranges


class Refuse(NamedTuple):
    """These items will not be tried again."""

    task: int
    items: Ranges
    outcome: Outcome


class ItemsRequested(NamedTuple):
    """The batch could use about this many more items."""

    task: int
    items: int


@mypyc_attr(acyclic=True)
class Complete(Value):
    """The task is over. `attempt` answered it (None for a batch, or where `outcome` is a failure)."""

    __slots__ = ("attempt", "outcome", "task", "tried")

    def __init__(
        self, task: int, outcome: Outcome, attempt: int | None = None, tried: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.task = task
        self.outcome = outcome
        self.attempt = attempt
        self.tried = tried


class Load(NamedTuple):
    """Bring a model into this node's memory, with these runner options, and then ask the node how it is."""

    node: str
    model: str
    kind: Kind
    options: str


class Probe(NamedTuple):
    """Ask this node how it is; the answer comes back as NodeSeen or NodeLost."""

    node: str


class DigestChosen(NamedTuple):
    """Embeddings of a model use this version from now on; `Configure` restores it after a restart."""

    model: str
    digest: str


class Notice(NamedTuple):
    """Tell the operator this sentence."""

    text: str


class SchedulerFault(NamedTuple):
    """An exception came out of the scheduler. `task`: that was being handled (0 for none), and is settled."""

    task: int
    error: Any  # an Exception; mypyc does not find a builtin in a named tuple


@mypyc_attr(acyclic=True)
class WakeAt(Value):
    """Send a Tick at this moment. A later one may be dropped in favour of an earlier one."""

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
    | Probe
    | WakeAt
    | DigestChosen
    | Notice
    | SchedulerFault
)
