"""Let idle nodes repeat, at the end of a batch, what others have in flight (work stealing).

An array request gives its answer whole, so nothing can be taken out of it. An idle node tries the same items, and the
first answer for an item wins. Idle nodes share the chunk that is expected to finish last, in proportion to their rates,
if `policies.takeover` finds that it pays. A chunk that is overdue is expected to need half as long again as it has
taken, so the work of a frozen node is taken over soon after it should have ended.
"""

from __future__ import annotations

from typing import NamedTuple

from sollol.core.policy import TakeoverPolicy
from sollol.core.state.batch import Batch, joined
from sollol.core.state.ranges import Ranges
from sollol.core.state.replica import Attempt, ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import MILLISECOND, Micros


class Takeover(NamedTuple):
    """Describe items that a replica takes over from an attempt."""

    victim: Attempt
    replica: Replica
    items: Ranges


def plan(
    state: SchedulerState, batch: Batch, suitable: list[Replica], group: ModelReplicas, now: Micros
) -> tuple[list[Takeover], bool]:
    """Return the takeovers for idle replicas among the `suitable` ones, and whether some stay idle."""
    width = batch.task.width
    room = width - len(batch.live) if width else len(group.replicas)
    idle = [replica for replica in suitable if not replica.attempts and replica.free(now) and replica.work.read()]
    idle = sorted(idle, key=lambda replica: -(replica.work.read() or 0.0))[: max(0, room)]
    takeovers: list[Takeover] = []
    victims = [attempt for attempt in batch.live.values() if attempt.uncovered]
    victims.sort(key=lambda attempt: -attempt.expected_end(now))
    for victim in victims if idle else ():
        found = _share_out(state, batch, victim, idle, now)
        takeovers += found
        used = [takeover.replica for takeover in found]
        idle = [replica for replica in idle if replica not in used]
        if not idle:
            break
    return takeovers, bool(idle)


def _share_out(
    state: SchedulerState, batch: Batch, victim: Attempt, idle: list[Replica], now: Micros
) -> list[Takeover]:
    """Share the victim's items among idle replicas that would be sooner. Return the takeovers."""
    items = joined(i for lo, hi in victim.uncovered for i in range(lo, hi)).items()
    remaining_us = victim.expected_end(now) - now
    policy = state.policies.takeover
    thieves = [replica for replica in idle if _may_take(replica, victim, policy, now)][: len(items)]
    rates = [replica.work.read() or 0.0 for replica in thieves]
    total = sum(rates)
    cost = batch.cost_of(victim.uncovered)
    # The share of the fastest decides: if even it would be late, there is no takeover.
    if not thieves or not policy.pays(cost * rates[0] / total, rates[0], thieves[0].startup_us(), remaining_us):
        return []
    takeovers: list[Takeover] = []
    position = 0
    for replica, rate in zip(thieves, rates, strict=True):
        if position >= len(items):
            break
        share = max(1, round(len(items) * rate / total))
        if replica is thieves[-1]:
            share = len(items) - position
        chunk = joined(items[position : position + share])
        if not policy.pays(batch.cost_of(chunk), rate, replica.startup_us(), remaining_us):
            continue
        takeovers.append(Takeover(victim, replica, chunk))
        position += share
    victim.uncovered = list(joined(items[position:]))
    return takeovers


def _may_take(replica: Replica, victim: Attempt, policy: TakeoverPolicy, now: Micros) -> bool:
    """Check that a replica may try the items of an attempt.

    Two replicas that fail the same items in turn would repeat them for ever.
    """
    if replica.node is victim.replica.node:
        return False
    if replica.node.key not in victim.failed_on:
        return True
    return policy.repeats(now - victim.started_us, victim.evidence.tries)


def look_again(state: SchedulerState, batch: Batch, group: ModelReplicas, some_idle: bool, now: Micros) -> None:
    """Plan the next look, when a chunk should have ended.

    Args:
        some_idle: Replicas are idle. Otherwise one may become idle without an event of this model, so looks are rarer.
    """
    policy = state.policies.takeover
    pauses = []
    for attempt in batch.live.values():
        if attempt.uncovered:
            pause = policy.look_again_us(attempt.due_us - now, attempt.due_us - attempt.started_us)
            pauses.append(pause if some_idle else max(pause, (now - attempt.started_us) // 4, MILLISECOND))
    if not pauses:
        return
    when = now + min(pauses)
    if batch.look_at is None or batch.look_at <= now or when < batch.look_at:
        batch.look_at = when
        state.bind_at(group.model, when)
