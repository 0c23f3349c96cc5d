"""The end of a batch: nothing waits, some nodes are idle, others still work. What is called work stealing.

An array request gives its answer whole, so nothing can be taken out of it; an idle node tries the same items, and the
first answer for an item wins. Idle nodes share the chunk that is expected to finish last, in proportion to their rates,
if that would be clearly sooner. A chunk that is overdue is expected to need half as long again as it has
taken, so a frozen node's work is taken over soon after it should have ended, and the loser is closed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sollol.core.state.attempt import Attempt
from sollol.core.state.batch import Batch, joined
from sollol.core.state.model_replicas import ModelReplicas
from sollol.core.state.replica import Replica
from sollol.core.types import MILLISECOND, SECOND, Micros

if TYPE_CHECKING:
    from sollol.core.batch_scheduler import BatchScheduler
    from sollol.core.state.scheduler_state import SchedulerState

LOOK_AGAIN: Micros = 20 * MILLISECOND
STUCK: Micros = SECOND  # that an attempt has taken, before a node that failed its items may try them once more


def take_over(
    batches_scheduler: BatchScheduler,
    state: SchedulerState,
    batch: Batch,
    suitable: list[Replica],
    group: ModelReplicas,
    now: Micros,
) -> None:
    """Give idle lanes among the `suitable` ones what the slowest attempts still have under way."""
    width = batch.task.width
    room = width - len(batch.live) if width else len(group.replicas)
    idle = [replica for replica in suitable if not replica.attempts and replica.free(now) and replica.work.read()]
    idle = sorted(idle, key=lambda replica: -(replica.work.read() or 0.0))[: max(0, room)]
    if not idle:
        return
    victims = [attempt for attempt in batch.live.values() if attempt.uncovered]
    victims.sort(key=lambda attempt: -attempt.expected_end(now))
    for victim in victims:
        idle = _share_out(batches_scheduler, state, batch, victim, idle, now)
        if not idle:
            return
    _look_again(state, batch, group, now)


def _share_out(
    batches_scheduler: BatchScheduler,
    state: SchedulerState,
    batch: Batch,
    victim: Attempt,
    idle: list[Replica],
    now: Micros,
) -> list[Replica]:
    """Give the victim's items to idle lanes that would be sooner; the lanes that are left."""
    items = joined(i for lo, hi in victim.uncovered for i in range(lo, hi)).items()
    remaining_us = victim.expected_end(now) - now
    thieves = [replica for replica in idle if _may_take(replica, victim, state.policies.suspicion.tries_most, now)][
        : len(items)
    ]
    batcher = state.policies.batcher
    rates = [replica.work.read() or 0.0 for replica in thieves]
    total = sum(rates)
    cost = batch.cost_of(victim.uncovered)
    # The share of the fastest decides: if even it would be late, nobody takes anything.
    if not thieves or not batcher.takeover(cost * rates[0] / total, rates[0], thieves[0].startup_us(), remaining_us):
        return idle
    used: list[Replica] = []
    position = 0
    for replica, rate in zip(thieves, rates, strict=True):
        if position >= len(items):
            break
        share = max(1, round(len(items) * rate / total))
        if replica is thieves[-1]:
            share = len(items) - position
        part = joined(items[position : position + share])
        if not batcher.takeover(batch.cost_of(part), rate, replica.startup_us(), remaining_us):
            continue
        batches_scheduler.start_takeover(victim, replica, part, now)
        used.append(replica)
        position += share
    victim.uncovered = list(joined(items[position:]))
    return [replica for replica in idle if replica not in used]


def _may_take(replica: Replica, victim: Attempt, tries_most: int, now: Micros) -> bool:
    """Check that a lane may try the items of an attempt: two that fail them in turn would never leave them."""
    if replica.node is victim.replica.node:
        return False
    if replica.node.key not in victim.failed_on:
        return True
    return now - victim.started_us >= STUCK and victim.evidence.tries < tries_most


def _look_again(state: SchedulerState, batch: Batch, group: ModelReplicas, now: Micros) -> None:
    """Idle lanes remain: come back when the next chunk should have ended, or a little later if it is overdue."""
    ends = [a.due_us + (a.due_us - a.started_us) // 10 for a in batch.live.values() if a.uncovered]
    if not ends:
        return
    when = max(min(ends), now + LOOK_AGAIN)
    if batch.look_at is None or batch.look_at <= now or when < batch.look_at:
        batch.look_at = when
        state.serve_at(group.model, when)
