"""Decide which model of a node may start work next. `policies.model_concurrency` keeps the order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sollol.core.state.queue import AGEING
from sollol.core.types import Micros

if TYPE_CHECKING:
    from sollol.core.state.replica import Replica


def has_turn(replica: Replica, now: Micros) -> bool:
    """Check that no other model of the node has the turn, or goes before this one."""
    node, concurrency = replica.node, replica.node.concurrency
    if not replica.occupies_gpu and node.active_models >= concurrency.limit:
        return False
    if node.active_models and node.memory.is_tight and _would_swap(replica):
        return False
    if concurrency.unordered:
        return True
    # A model at work may fill its slots before it makes room for one of the same priority.
    fills = replica.occupies_gpu > 0 and replica.starts_in_turn < replica.limiter.limit
    for other in node.replicas.values():
        if (
            other is not replica
            and not other.occupies_gpu
            and is_waited_for(other)
            and _goes_before(other, replica, fills, now)
        ):
            return False
    return True


def _would_swap(replica: Replica) -> bool:
    """Check that another model of the node is at work and one of the two evicts the other."""
    for other in replica.node.replicas.values():
        if other is not replica and other.occupies_gpu and (other.is_loading or not replica.is_loaded):
            return True
    return False


def is_waited_for(replica: Replica) -> bool:
    """Check that work which takes turns waits for this replica."""
    group = replica.group
    return bool(group.queue.waiting) and (replica.waiters > 0 or group.batches > 0)


def _goes_before(replica: Replica, other: Replica, fills: bool, now: Micros) -> bool:
    """Check that the work waiting for `replica` starts before more of `other`.

    Args:
        fills: `other` has the turn and may fill its slots.
    """
    if not replica.has_slot(now):
        return False
    priority, since, app, arrived = replica.group.queue.head(now)
    if not other.group.queue.waiting:
        return not fills
    theirs, their_since, their_app, _ = other.group.queue.head(now)
    concurrency = replica.node.concurrency
    if priority != theirs:
        age, their_age = concurrency.age_us(priority, since, now), concurrency.age_us(theirs, their_since, now)
        return (priority - theirs) * AGEING + age - their_age > 0
    if fills:
        return False
    if not replica.is_loaded and concurrency.waits_for_load(now - arrived, replica.startup_us()):
        return False
    return concurrency.goes_before(app, replica.model, their_app, other.model)
