"""Start a request beside others rather than queue it. `policies.overlap` decides for which that pays."""

from __future__ import annotations

from collections.abc import Mapping

from sollol.core.policy import OverlapPolicy
from sollol.core.state.replica import Replica
from sollol.core.state.slot_evidence import reopen
from sollol.core.types import EMBED, Decision, Micros, Task
from sollol.core.value import replaced


def overlapped(
    task: Task,
    replica: Replica,
    decision: Decision,
    reserved_us: Mapping[str, Micros],
    policy: OverlapPolicy,
    now: Micros,
) -> Decision | None:
    """Return the decision to start a short request beside long answers, or None."""
    if not _has_room(task, replica, now):
        return None
    wait_us = replica.wait_us(now)
    service_us = decision.predicted_us - wait_us - reserved_us.get(replica.key, 0)
    if not _pays(task, replica, service_us, wait_us, policy):
        return None
    reason = f"{decision.reason}, beside a long answer"
    return replaced(
        decision, predicted_us=2 * service_us, first_us=min(decision.first_us, 2 * service_us), reason=reason
    )


def may_overlap(task: Task, replica: Replica, service_us: Micros, policy: OverlapPolicy, now: Micros) -> bool:
    """Check that a waiting request should be decided again: one behind it would start first otherwise."""
    return _has_room(task, replica, now) and _pays(task, replica, service_us, replica.wait_us(now), policy)


def _has_room(task: Task, replica: Replica, now: Micros) -> bool:
    """Check that the node is at work, and could take the request besides."""
    if task.kind is EMBED:
        return False
    running = len(replica.attempts)
    if running:
        return replica.limit <= running < replica.limiter.slots and replica.is_nominal(now) and replica.in_memory(task)
    return (
        0 < replica.node.active_models < replica.node.concurrency.maximum
        and replica.has_slot(now)
        and replica.in_memory(task)
    )


def _pays(task: Task, replica: Replica, service_us: Micros, wait_us: Micros, policy: OverlapPolicy) -> bool:
    """Check with the policy that the request starts beside what runs on the node."""
    highest = task.priority
    for other in replica.node.replicas.values():
        for attempt in other.attempts.values():
            if attempt.occupies_gpu and attempt.task.priority > highest:
                highest = attempt.task.priority
    return policy.overlaps(service_us, wait_us, len(replica.attempts), task.priority, highest)


def tries_slot(replica: Replica, service_us: Micros, wait_us: Micros, policy: OverlapPolicy, now: Micros) -> bool:
    """Open a trial slot for a request that would wait far longer than it takes. Return whether one is free."""
    if not replica.group.samples or not policy.tries_slot(service_us, wait_us):
        return False
    reopen(replica, now)
    return len(replica.attempts) < replica.limit
