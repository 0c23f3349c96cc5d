"""Start a call beside others rather than let it wait: a short one, or one that may find a free slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sollol.core.state.replica import Replica
from sollol.core.state.slot_evidence import reopen
from sollol.core.types import SECOND, Decision, Micros, Task
from sollol.core.value import replaced

# A call that would wait so long, and so many times what it takes itself, may find out whether there are more slots.
WAITS_LONG: Final[Micros] = SECOND // 20
WAITS_TIMES: Final = 2


def overlapped(
    task: Task, replica: Replica, decision: Decision, reserved_us: Mapping[str, Micros], now: Micros
) -> Decision | None:
    """Decide to start a short call beside long answers rather than wait for the end of one.

    The node may be at work for another model, or have slots that share one rate: each is half as fast meanwhile. That
    is worth it for a call that takes less than it would wait; the work of the node stays the same. A call of lower
    priority waits. Returns the decision with the time it takes then, or None."""
    if not _has_room(task, replica, now):
        return None
    wait_us = replica.wait_us(now)
    service_us = decision.predicted_us - wait_us - reserved_us.get(replica.key, 0)
    if not _pays(task, replica, service_us, wait_us):
        return None
    reason = f"{decision.reason}, beside a long answer"
    return replaced(
        decision, predicted_us=2 * service_us, first_us=min(decision.first_us, 2 * service_us), reason=reason
    )


def may_overlap(task: Task, replica: Replica, service_us: Micros, now: Micros) -> bool:
    """Check whether a call that waits for a replica should be asked again: else one behind it would start first."""
    return _has_room(task, replica, now) and _pays(task, replica, service_us, replica.wait_us(now))


def _has_room(task: Task, replica: Replica, now: Micros) -> bool:
    """Check that the node is at work, and could take the call besides."""
    running = len(replica.attempts)
    if running:
        return (
            replica.limit <= running < replica.limiter.slots
            and replica.is_nominal(now)
            and replica.options == task.options
        )
    return (
        0 < replica.node.active_models < replica.node.concurrency.maximum
        and replica.has_slot(now)
        and replica.in_memory(task.options)
    )


def _pays(task: Task, replica: Replica, service_us: Micros, wait_us: Micros) -> bool:
    """Check that the call takes less than it would wait, and that nothing of a higher priority is slowed."""
    if not 0 < service_us <= wait_us // (1 + len(replica.attempts)):
        return False
    for other in replica.node.replicas.values():
        for attempt in other.attempts.values():
            if attempt.occupies_gpu and attempt.task.priority > task.priority:
                return False
    return True


def tries_slot(replica: Replica, service_us: Micros, wait_us: Micros, now: Micros) -> bool:
    """Open a trial slot for a call that would wait far longer than it takes; returns whether there is one now."""
    if not replica.group.samples or wait_us < max(WAITS_LONG, WAITS_TIMES * service_us):
        return False
    reopen(replica, now)
    return len(replica.attempts) < replica.limit
