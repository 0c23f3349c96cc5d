"""Find the replicas of a model that are worth comparing for a task.

A decision compares a few replicas, not a thousand: the fastest free ones, the fastest busy ones (it may pay to wait for
one), and those that have read the beginning of this conversation or hold the model with these options.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Final

from sollol.core.state.replica import SHORTLIST, ModelReplicas, Replica
from sollol.core.types import Micros, Task

HALF: Final = SHORTLIST // 2
MATCHING: Final = 4  # most replicas added because they hold the model with the task's options


def shortlist(group: ModelReplicas, task: Task, tried: Collection[str], wide: bool, now: Micros) -> list[Replica]:
    """Return the usable replicas worth comparing, without those in `tried`.

    Args:
        wide: All of them, however many.
    """
    found = _shortlist(group, task, tried, wide, now)
    if now < group.loads_barred_until:
        return [replica for replica in found if not replica.is_barred_for(task, now)]
    return found


def _shortlist(group: ModelReplicas, task: Task, tried: Collection[str], wide: bool, now: Micros) -> list[Replica]:
    if group.off_nominal:
        _review(group, now)
    digest = group.digest_for(task) if group.mixed else ""
    limited = task.only is not None or task.gpu or bool(digest)
    if not limited and not tried and not group.off_nominal and (wide or len(group.all) <= SHORTLIST):
        return group.all
    if limited:
        return [
            replica
            for replica in group.replicas.values()
            if replica.node.key not in tried and replica.usable(now) and group.suits(replica, task, digest)
        ]
    if wide or len(group.replicas) <= SHORTLIST:
        return [
            replica
            for replica in group.replicas.values()
            if (replica.attempts or replica.breaker.closed or replica.breaker.admits(now))
            and replica.node.up
            and not replica.node.drained
            and not replica.is_barred(now)
            and (not tried or replica.node.key not in tried)
        ]
    group.rank()
    free = _best_free(group, tried, now)
    worst = free[-1].rank if len(free) >= HALF else len(group.ranked)
    busy: list[Replica] = []
    for replica in group.ranked:
        if replica.rank >= worst:
            break
        if replica.node.key not in group.with_capacity and replica.node.key not in tried and replica.usable(now):
            busy.append(replica)
            if len(busy) == HALF:
                break
    found = {replica.node.key: replica for replica in free + busy}
    known = [group.prefix_hashes.get(prefix_hash) for prefix_hash, _ in task.prefix]
    if task.options:
        known += islice(group.serving(task), MATCHING)
    for replica_or_none in known:
        if replica_or_none is not None and replica_or_none.node.key not in tried and replica_or_none.usable(now):
            found.setdefault(replica_or_none.node.key, replica_or_none)
    return list(found.values()) or [
        replica for replica in group.replicas.values() if replica.node.key not in tried and replica.usable(now)
    ]


def _review(group: ModelReplicas, now: Micros) -> None:
    for key, replica in list(group.off_nominal.items()):
        if replica.is_nominal(now):
            replica.settle()
            del group.off_nominal[key]


def _best_free(group: ModelReplicas, tried: Collection[str], now: Micros) -> list[Replica]:
    """Return the fastest replicas with a free slot, the fastest first."""
    few = len(group.with_capacity) * 4 < len(group.replicas)
    replicas = sorted(group.with_capacity.values(), key=_rank_of) if few else group.ranked
    free: list[Replica] = []
    for replica in replicas:
        if replica.key in group.with_capacity and replica.key not in tried and replica.free(now):
            free.append(replica)
            if len(free) == HALF:
                break
    return free


def _rank_of(replica: Replica) -> int:
    return replica.rank
