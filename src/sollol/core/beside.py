"""Start a call beside others rather than let it wait: a short one, or one that may find a free slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sollol.core.lane import Lane
from sollol.core.trials import reopen
from sollol.core.turns import TURNS_MOST
from sollol.core.types import SECOND, Decision, Micros, Task
from sollol.core.value import replaced

# A call that would wait so long, and so many times what it takes itself, may find out whether there are more slots.
WAITS_LONG: Final[Micros] = SECOND // 20
WAITS_TIMES: Final = 2


def beside(task: Task, lane: Lane, decision: Decision, ahead: Mapping[str, Micros], at: Micros) -> Decision | None:
    """Decide to start a short call beside long answers rather than wait for the end of one.

    The node may be at work for another model, or have slots that share one rate: each is half as fast meanwhile. That
    is worth it for a call that takes less than it would wait; the work of the node stays the same. A call of lower
    priority waits. Returns the decision with the time it takes then, or None."""
    if not _has_room(task, lane, at):
        return None
    wait_us = lane.wait_us(at)
    own_us = decision.predicted_us - wait_us - ahead.get(lane.key, 0)
    if not _pays(task, lane, own_us, wait_us):
        return None
    reason = f"{decision.reason}, beside a long answer"
    return replaced(decision, predicted_us=2 * own_us, first_us=min(decision.first_us, 2 * own_us), reason=reason)


def may_start_beside(task: Task, lane: Lane, own_us: Micros, at: Micros) -> bool:
    """Check whether a call that waits for a replica should be asked again: else one behind it would start first."""
    return _has_room(task, lane, at) and _pays(task, lane, own_us, lane.wait_us(at))


def _has_room(task: Task, lane: Lane, at: Micros) -> bool:
    """Check that the node is at work, and could take the call besides."""
    running = len(lane.attempts)
    if running:
        return lane.limit <= running < lane.limiter.slots and lane.is_steady(at) and lane.options == task.options
    return 0 < lane.node.heavy_lanes < TURNS_MOST and lane.has_slot(at) and lane.in_memory(task.options)


def _pays(task: Task, lane: Lane, own_us: Micros, wait_us: Micros) -> bool:
    """Check that the call takes less than it would wait, and that nothing of a higher priority is slowed."""
    if not 0 < own_us <= wait_us // (1 + len(lane.attempts)):
        return False
    for other in lane.node.lanes.values():
        for attempt in other.attempts.values():
            if attempt.heavy and attempt.task.priority > task.priority:
                return False
    return True


def tries_slot(lane: Lane, own_us: Micros, wait_us: Micros, at: Micros) -> bool:
    """Open a trial slot for a call that would wait far longer than it takes; returns whether there is one now."""
    if not lane.market.samples or wait_us < max(WAITS_LONG, WAITS_TIMES * own_us):
        return False
    reopen(lane, at)
    return len(lane.attempts) < lane.limit
