"""Record the start and the end of an attempt in its replica, its node and its model."""

from __future__ import annotations

from sollol.core.prefix_cache import read_prompt
from sollol.core.runner_options import UNKNOWN
from sollol.core.state import memory
from sollol.core.state.replica import Attempt, Replica
from sollol.core.types import NEVER, Micros


def begin(replica: Replica, attempt: Attempt) -> None:
    """Record the start of an attempt."""
    running = len(replica.attempts)
    if not replica.is_loaded:
        memory.expect(replica.node, replica.model)
    if attempt.loads or replica.options == UNKNOWN:
        replica.hold_options(attempt.options, attempt.started_us)
    attempt.trial = running >= replica.proven
    attempt.inflight = running + 1
    attempt.idle_since_us = replica.last_end_us
    _integrate(replica, attempt.started_us)
    attempt.area_us = replica.area_us
    replica.attempts[attempt.key] = attempt
    if attempt.due_us < replica.soonest_us:
        replica.soonest_us = attempt.due_us
    task, node, group = attempt.task, replica.node, replica.group
    if attempt.occupies_gpu:
        replica.occupies_gpu += 1
        if replica.occupies_gpu == 1:
            node.active_models += 1
            replica.starts_in_turn = 0
        replica.starts_in_turn += 1
        if len(node.replicas) > 1:
            service_us = attempt.due_us - attempt.started_us
            node.concurrency.charge(task.priority, task.app, replica.model, service_us, attempt.started_us)
        if node.active_models > 1:
            node.mark_overlapped()
    replica.options_used_us = attempt.started_us
    if task.prefix:
        attempt.warm_cost = read_prompt(replica, task.prefix)
        replica.prompt_cost += task.cost
        replica.prompt_cost_reused += min(attempt.warm_cost, task.cost)
    limit = replica.limit if replica.nominal else replica.limiter.limit
    if len(replica.attempts) >= limit and replica.key in group.with_capacity:
        del group.with_capacity[replica.key]
    replica.cost_inflight += attempt.cost
    node.running += 1
    group.inflight_cost += attempt.cost


def end(replica: Replica, attempt: Attempt, now: Micros) -> None:
    """Record the end of an attempt."""
    node, group = replica.node, replica.group
    _integrate(replica, now)
    del replica.attempts[attempt.key]
    if attempt.responding:
        replica.responding -= 1
    if attempt.due_us <= replica.soonest_us:
        soonest = NEVER
        for other in replica.attempts.values():
            if other.due_us < soonest:
                soonest = other.due_us
        replica.soonest_us = soonest
    if attempt.occupies_gpu:
        replica.occupies_gpu -= 1
        if not replica.occupies_gpu:
            node.active_models -= 1
    if group.replicas.get(replica.key) is replica:
        group.with_capacity[replica.key] = replica
    replica.cost_inflight -= attempt.cost
    node.running -= 1
    group.inflight_cost -= attempt.cost


def _integrate(replica: Replica, now: Micros) -> None:
    """Add the requests in flight over time up to now."""
    replica.area_us += len(replica.attempts) * (now - replica.area_at)
    replica.area_at = now
