"""Decide which model of a node may start work next. All models of a node form one order (`core.turns`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sollol.core.queue import AGEING
from sollol.core.types import Micros

if TYPE_CHECKING:
    from sollol.core.lane import Lane

COLD_PATIENCE: Final = 2  # loads that a task waits for a model in use, before it may put that one out


def has_turn(lane: Lane, at: Micros) -> bool:
    """Check that no other model of the node has it, or goes before this one."""
    node, turns = lane.node, lane.node.turns
    if not lane.heavy and node.heavy_lanes >= turns.at_once:
        return False
    if node.heavy_lanes and node.memory.is_tight and _would_swap(lane):
        return False
    if turns.open:
        return True
    # A model at work may fill its slots before it makes room for one of the same priority.
    fills = lane.heavy > 0 and lane.turn_starts < lane.limiter.limit
    for other in node.lanes.values():
        if other is not lane and not other.heavy and is_waited_for(other) and _goes_before(other, lane, fills, at):
            return False
    return True


def _would_swap(lane: Lane) -> bool:
    """Check that another model of the node is at work and one of the two puts out the other."""
    for other in lane.node.lanes.values():
        if other is not lane and other.heavy and (other.is_loading or not lane.is_loaded):
            return True
    return False


def is_waited_for(lane: Lane) -> bool:
    """Check whether work that takes turns waits for this replica."""
    market = lane.market
    return bool(market.line.waiting) and (lane.waiters > 0 or market.batches > 0)


def _goes_before(lane: Lane, other: Lane, fills: bool, at: Micros) -> bool:
    """Check that the work waiting for `lane` starts before more of `other`. `fills`: that one has the turn."""
    if not lane.has_slot(at):
        return False
    priority, since, app, arrived = lane.market.line.head(at)
    if not other.market.line.waiting:
        return not fills
    theirs, their_since, their_app, _ = other.market.line.head(at)
    turns = lane.node.turns
    if priority != theirs:
        age, their_age = turns.age_us(priority, since, at), turns.age_us(theirs, their_since, at)
        return (priority - theirs) * AGEING + age - their_age > 0
    if fills:
        return False
    if not lane.is_loaded and at - arrived < COLD_PATIENCE * lane.startup_us():
        return False  # a load, and the one that brings the other model back, must serve more than one call
    return turns.goes_before(app, lane.model, their_app, other.model)
