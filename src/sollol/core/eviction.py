"""Find the models that a load evicts. `policies.eviction` prices what their users lose."""

from __future__ import annotations

from sollol.core.policy import EvictionPolicy
from sollol.core.state import memory
from sollol.core.state.replica import Replica
from sollol.core.types import Micros


def displacement_us(replica: Replica, options: str, policy: EvictionPolicy, now: Micros) -> Micros:
    """Return the µs that others pay for a load here, to reload what it evicts."""
    if replica.is_loaded:
        return _reload_us(replica, options, policy, now) if replica.displaces(options, now) else 0
    node = replica.node
    loaded = memory.sizes_loaded(node)
    used = node.used(now)
    size = node.models.get(replica.model, 0)
    cost = 0.0
    for name in sorted(loaded, key=node.last_use):  # Ollama evicts the least recently used model
        risk = node.memory.risk(loaded, size)
        if not risk:
            break
        del loaded[name]
        victim = node.replicas.get(name)
        if victim is not None and name in used:
            cost += risk * _loss_us(victim, replica, policy, now)
        if risk < 1.0:
            break
    return round(cost)


def _reload_us(replica: Replica, options: str, policy: EvictionPolicy, now: Micros) -> Micros:
    """Return the µs that the users of a runner pay if its model is loaded again with other options."""
    others = [other for other in replica.group.replicas.values() if other is not replica and other.is_loaded]
    alone = not any(other.serves_after(replica.options) for other in others)
    replaceable = any(other.serves_after(options) for other in others)
    idle_us = 0 if replica.attempts else now - replica.options_used_us
    return round(replica.load_us() * policy.loads(idle_us, alone, replaceable, len(replica.attempts)))


def _loss_us(victim: Replica, replica: Replica, policy: EvictionPolicy, now: Micros) -> float:
    """Return the µs that the users of `victim` pay if `replica` is loaded in its place."""
    idle_us = 0 if victim.attempts else now - victim.last_end_us
    waiting = len(victim.attempts) + len(victim.group.queue.waiting)
    return victim.load_us() * policy.loads(idle_us, not _is_elsewhere(victim), _is_elsewhere(replica), waiting)


def _is_elsewhere(replica: Replica) -> bool:
    """Check that another node has the model in memory."""
    return any(
        other is not replica and other.is_loaded and other.node.usable for other in replica.group.replicas.values()
    )
