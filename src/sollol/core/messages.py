"""Events go into the scheduler, actions come out. Nothing else crosses that line.

Structs of msgspec for those that every request has (`core.types` says why), tuples for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from sollol.core.endpoint import Endpoint
from sollol.core.types import Decision, Kind, Micros, NodeFacts, Outcome, Ranges, Task

# --- events ---------------------------------------------------------------------------------------------


class Submitted(msgspec.Struct, frozen=True):
    """A caller wants this done."""

    task: Task


class Fed(NamedTuple):
    """The next items of a batch, by their costs; their positions follow those fed before."""

    task: int
    costs: Sequence[int]
    closed: bool


class FirstToken(msgspec.Struct, frozen=True, gc=False):
    """The caller has begun to receive this attempt's answer. `movable`: another node could go on with it."""

    attempt: int
    movable: bool = False


class Finished(msgspec.Struct, frozen=True, gc=False):
    attempt: int
    outcome: Outcome


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The caller left."""

    task: int


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


class Tick(NamedTuple):
    """A moment asked for with WakeAt has come."""


Event = Submitted | Fed | FirstToken | Finished | Cancelled | NodeAdded | NodeRemoved | NodeSeen | NodeLost | Tick

# --- actions --------------------------------------------------------------------------------------------


class Start(msgspec.Struct, frozen=True, gc=False):
    """Send this task, or these items of it, to this node."""

    attempt: int
    task: int
    node: str
    decision: Decision
    items: Ranges | None = None


class Abort(msgspec.Struct, frozen=True, gc=False):
    """Close this attempt's connection; nothing will be heard of it any more."""

    attempt: int


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


class Want(NamedTuple):
    """The batch could use about this many more items."""

    task: int
    items: int


class Settle(msgspec.Struct, frozen=True, gc=False):
    """The task is over. `attempt` answered it (None for a batch, or where `outcome` is a failure)."""

    task: int
    outcome: Outcome
    attempt: int | None = None
    tried: tuple[tuple[str, str], ...] = ()


class Load(NamedTuple):
    """Bring a model into this node's memory, with these runner options, and then ask the node how it is."""

    node: str
    model: str
    kind: Kind
    options: str


class Probe(NamedTuple):
    """Ask this node how it is; the answer comes back as NodeSeen or NodeLost."""

    node: str


class WakeAt(msgspec.Struct, frozen=True, gc=False):
    """Send a Tick at this moment. A later one may be dropped in favour of an earlier one."""

    at: Micros


Action = Load | Start | Abort | Accept | Refuse | Want | Settle | Probe | WakeAt
