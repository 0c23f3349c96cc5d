"""Define the faults of a node as switches, for tests, schedules and the command line.

A schedule calls `apply(node, event)`; a test calls the methods of SimNode. Shares are drawn from the node's own seeded
random numbers, one draw a request, so the same run has the same victims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Wrong = Literal["missing-vector", "extra-vector", "dimension", "not-a-number", "not-json", "empty-object"]

_ACTIONS = """
    die revive freeze thaw black_hole reachable slow error_rate busy_above cut_after late_error_after
    stall_after wrong stragglers lose_gpu regain_gpu fall_to_cpu hang_loads go_on_loading heal
"""
ACTIONS = tuple(_ACTIONS.split())


@dataclass
class Faults:
    """Hold the switches that act inside a request. None and 0 are off."""

    error_share: float = 0.0
    error_when: Literal["before", "after"] = "before"
    error_status: int = 500
    busy_over: int | None = None
    cut_after: int | None = None
    late_error_after: int | None = None
    stall_after: int | None = None
    wrong: Wrong | None = None
    straggler_share: float = 0.0
    straggler_factor: float = 10.0


class FaultEvent(NamedTuple):
    """Describe one fault of a schedule.

    Attributes:
        at_s: Seconds after the start.
        action: Name of a method of SimNode.
        node: Key of the node; "" for every node.
        args: Keyword arguments of the method.
    """

    at_s: float
    action: str
    node: str = ""
    args: tuple[tuple[str, Any], ...] = ()


def parse_events(data: list[dict[str, Any]]) -> list[FaultEvent]:
    """Parse a schedule from JSON, ordered by time.

    An entry is like `{"at_s": 3, "do": "slow", "factor": 4, "node": "host:port"}`. Raises ValueError for an unknown
    action.
    """
    events = []
    for entry in data:
        args = dict(entry)
        at_s, action, node = float(args.pop("at_s")), str(args.pop("do")), str(args.pop("node", ""))
        if action not in ACTIONS:
            raise ValueError(f"fault {action!r} is unknown; expected one of {', '.join(ACTIONS)}")
        events.append(FaultEvent(at_s, action, node, tuple(args.items())))
    return sorted(events, key=lambda event: event.at_s)


def apply(node: Any, event: FaultEvent) -> None:
    """Apply a fault to a node. Raises TypeError if the action does not take these arguments."""
    if event.action not in ACTIONS:
        raise ValueError(f"fault {event.action!r} is unknown; expected one of {', '.join(ACTIONS)}")
    getattr(node, event.action)(**dict(event.args))
