"""Estimate what others pay for a load: models in use that it evicts must be loaded again."""

from __future__ import annotations

import math
from typing import Final

from sollol.core.state.replica import Replica
from sollol.core.types import SECOND, Micros

PUT_OUT: Final = 3  # loads that follow from putting out a model in use: it comes back, and puts out the next one
KEPT: Final = 20  # the same where the model that is to be loaded is in memory elsewhere, or the other one nowhere else
FADES: Final[Micros] = 5 * SECOND  # in which a model that is not used any more counts by a third as much


def displacement_us(replica: Replica, options: str, now: Micros) -> Micros:
    """Return the µs that others pay for a load here, to reload what it evicts."""
    if replica.is_loaded:
        return replica.load_us() if replica.displaces(options, now) else 0
    node = replica.node
    loaded = node.sizes_loaded()
    used = node.used(now)
    size = node.models.get(replica.model, 0)
    cost = 0.0
    for name in sorted(loaded, key=node.last_use):  # Ollama evicts the least recently used model
        risk = node.memory.risk(loaded, size)
        if not risk:
            break
        del loaded[name]
        replica_or_none = node.replicas.get(name)
        if replica_or_none is not None and name in used:
            cost += risk * loss_us(replica_or_none, replica, now)
        if risk < 1.0:
            break
    return round(cost)


def loss_us(victim: Replica, replica: Replica, now: Micros) -> float:
    """Return the µs that the users of `victim` pay if `replica` is loaded in its place.

    They load it again, which evicts the next model, and nodes would trade their models for ever. So it counts by its
    use, and most where it has no other node, or where `replica` has one.
    """
    alone, has_place = not _is_elsewhere(victim), _is_elsewhere(replica)
    used = 1.0 if victim.attempts else math.exp((victim.last_end_us - now) / FADES)
    loads = 1 + used * (KEPT if alone or has_place else PUT_OUT)
    if alone:
        loads += len(victim.attempts) + len(victim.group.queue.waiting)
    return victim.load_us() * loads


def _is_elsewhere(replica: Replica) -> bool:
    """Check that another node has the model in memory."""
    return any(
        other is not replica and other.is_loaded and other.node.usable for other in replica.group.replicas.values()
    )
