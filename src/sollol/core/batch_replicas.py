"""Find the replicas that a batch may use: by constraints, the version of the model, the mode, and runner options."""

from __future__ import annotations

from typing import Final

from sollol.core.state.batch import Batch
from sollol.core.state.pending import PendingTask
from sollol.core.state.replica import ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import Micros, RoutingMode

# In mode `async` the fastest node is left to others, if the next one is at most so many times slower.
SPARE_FASTEST_UP_TO: Final = 20


def suitable_replicas(state: SchedulerState, batch: Batch, group: ModelReplicas, now: Micros) -> list[Replica]:
    """Return the usable replicas that this batch may go to."""
    replicas = group.usable(now)
    limited, task, digest = is_limited(batch, group), batch.task, batch.digest or ""
    if limited and (task.only is not None or task.gpu or digest):
        replicas = [replica for replica in replicas if group.suits(replica, task, digest)]
    if now < group.loads_barred_until:
        pending = state.tasks[task.id]
        barred = [replica for replica in replicas if replica.node.loads_barred_until > now]
        replicas = [replica for replica in replicas if replica not in barred or not pending.startup_us(replica)]
    if state.cluster.incapable:  # of those that suit: an incapable node is better than none
        replicas = state.able(task, replicas, now)
    if not limited:
        return replicas
    if task.mode is RoutingMode.RELIABLE:
        return _reliable(replicas)
    return _spared(replicas) if task.mode is RoutingMode.ASYNC else replicas


def undisturbed(
    state: SchedulerState, pending: PendingTask, group: ModelReplicas, replicas: list[Replica], now: Micros
) -> list[Replica]:
    """Return those of the replicas on which the batch displaces no runner that others use.

    Where it would on all nodes, one of them is left to it. Without this, each chunk of two batches with other runner
    options loads the model again.
    """
    assert pending.batch is not None
    if not [replica for replica in replicas if _displaces(pending, replica, now)]:
        return replicas
    suitable = suitable_replicas(state, pending.batch, group, now)
    kept = [replica for replica in suitable if not _displaces(pending, replica, now)]
    if not kept and suitable:
        kept = [min(suitable, key=lambda replica: (replica.load_us(), replica.node.key))]
    return [replica for replica in replicas if replica in kept]


def _displaces(pending: PendingTask, replica: Replica, now: Micros) -> bool:
    options = pending.task.options
    return replica.options != options and pending.startup_us(replica) > 0 and replica.displaces(options, now)


def is_limited(batch: Batch, group: ModelReplicas) -> bool:
    """Check whether some replicas are not allowed for this batch."""
    task = batch.task
    return (
        task.only is not None
        or task.gpu
        or group.mixed
        or (batch.digest is not None and batch.digest != group.digest)
        or task.mode in (RoutingMode.RELIABLE, RoutingMode.ASYNC)
    )


def _reliable(replicas: list[Replica]) -> list[Replica]:
    """Return the replicas whose success rate, squared, is at least half that of the best."""
    shares = [1.0 if (share := replica.reliability.read()) is None else share for replica in replicas]
    least = max(shares, default=0.0) ** 2 / 2
    return [replica for replica, share in zip(replicas, shares, strict=True) if share**2 >= least]


def _spared(replicas: list[Replica]) -> list[Replica]:
    """Return the replicas without the fastest, unless the next is far slower."""
    rates = sorted((replica.work.read() or 0.0 for replica in replicas), reverse=True)
    if len(rates) < 2 or not rates[1] or rates[0] > SPARE_FASTEST_UP_TO * rates[1]:
        return replicas
    fastest = max(replicas, key=lambda replica: replica.work.read() or 0.0)
    return [replica for replica in replicas if replica is not fastest]
