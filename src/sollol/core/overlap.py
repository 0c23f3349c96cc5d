"""Start a request beside others rather than queue it: a short one, or one that may find a free slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sollol.core.state.replica import Replica
from sollol.core.state.slot_evidence import reopen
from sollol.core.types import SECOND, Decision, Micros, Task
from sollol.core.value import replaced

# A request that would wait so long, and so many times its own time, may test for one more slot.
WAITS_LONG: Final[Micros] = SECOND // 20
WAITS_TIMES: Final = 2


def overlapped(
    task: Task, replica: Replica, decision: Decision, reserved_us: Mapping[str, Micros], now: Micros
) -> Decision | None:
    """Return the decision to start a short request beside long answers, or None.

    The node may be at work for another model, or have slots that share one rate: each is half as fast meanwhile. That
    pays for a request that takes less than it would wait; the work of the node stays the same. A request of lower
    priority waits.
    """
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
    """Check that a waiting request should be decided again: one behind it would start first otherwise."""
    return _has_room(task, replica, now) and _pays(task, replica, service_us, replica.wait_us(now))


def _has_room(task: Task, replica: Replica, now: Micros) -> bool:
    """Check that the node is at work, and could take the request besides."""
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
    """Check that the request takes less than it would wait, and slows nothing of a higher priority."""
    if not 0 < service_us <= wait_us // (1 + len(replica.attempts)):
        return False
    for other in replica.node.replicas.values():
        for attempt in other.attempts.values():
            if attempt.occupies_gpu and attempt.task.priority > task.priority:
                return False
    return True


def tries_slot(replica: Replica, service_us: Micros, wait_us: Micros, now: Micros) -> bool:
    """Open a trial slot for a request that would wait far longer than it takes. Return whether one is free."""
    if not replica.group.samples or wait_us < max(WAITS_LONG, WAITS_TIMES * service_us):
        return False
    reopen(replica, now)
    return len(replica.attempts) < replica.limit
