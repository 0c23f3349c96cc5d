"""The end of a batch: nothing waits, some nodes are idle, others still work. What is called work stealing.

An array request gives its answer whole, so nothing can be taken out of it; an idle node tries the same items, and the
first answer for an item wins. Idle nodes share the chunk that is expected to finish last, in proportion to their rates,
if that would be clearly sooner. A chunk that is overdue is expected to need half as long again as it has
taken, so a frozen node's work is taken over soon after it should have ended, and the loser is closed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sollol.core.attempt import Attempt
from sollol.core.batch import Batch, joined
from sollol.core.lane import Lane
from sollol.core.market import Market
from sollol.core.suspicion import TRIES_MOST
from sollol.core.types import MILLISECOND, SECOND, Micros

if TYPE_CHECKING:
    from sollol.core.chunks import Chunks
    from sollol.core.ledger import Ledger

LOOK_AGAIN: Micros = 20 * MILLISECOND
STUCK: Micros = SECOND  # that an attempt has taken, before a node that failed its items may try them once more


def take_over(chunks: Chunks, ledger: Ledger, batch: Batch, suitable: list[Lane], market: Market, at: Micros) -> None:
    """Give idle lanes among the `suitable` ones what the slowest attempts still have under way."""
    width = batch.task.width
    room = width - len(batch.live) if width else len(market.lanes)
    idle = [lane for lane in suitable if not lane.attempts and lane.free(at) and lane.work.read()]
    idle = sorted(idle, key=lambda lane: -(lane.work.read() or 0.0))[: max(0, room)]
    if not idle:
        return
    victims = [attempt for attempt in batch.live.values() if attempt.uncovered]
    victims.sort(key=lambda attempt: -attempt.expected_end(at))
    for victim in victims:
        idle = _share_out(chunks, ledger, batch, victim, idle, at)
        if not idle:
            return
    _look_again(ledger, batch, market, at)


def _share_out(
    chunks: Chunks, ledger: Ledger, batch: Batch, victim: Attempt, idle: list[Lane], at: Micros
) -> list[Lane]:
    """Give the victim's items to idle lanes that would be sooner; the lanes that are left."""
    items = joined(i for lo, hi in victim.uncovered for i in range(lo, hi)).items()
    left_us = victim.expected_end(at) - at
    thieves = [lane for lane in idle if _may_take(lane, victim, at)][: len(items)]
    batcher = ledger.policies.batcher
    rates = [lane.work.read() or 0.0 for lane in thieves]
    total = sum(rates)
    cost = batch.cost_of(victim.uncovered)
    # The share of the fastest decides: if even it would be late, nobody takes anything.
    if not thieves or not batcher.takeover(cost * rates[0] / total, rates[0], thieves[0].startup_us(), left_us):
        return idle
    used: list[Lane] = []
    position = 0
    for lane, rate in zip(thieves, rates, strict=True):
        if position >= len(items):
            break
        share = max(1, round(len(items) * rate / total))
        if lane is thieves[-1]:
            share = len(items) - position
        part = joined(items[position : position + share])
        if not batcher.takeover(batch.cost_of(part), rate, lane.startup_us(), left_us):
            continue
        chunks.start_takeover(victim, lane, part, at)
        used.append(lane)
        position += share
    victim.uncovered = list(joined(items[position:]))
    return [lane for lane in idle if lane not in used]


def _may_take(lane: Lane, victim: Attempt, at: Micros) -> bool:
    """Check that a lane may try the items of an attempt: two that fail them in turn would never leave them."""
    if lane.node is victim.lane.node:
        return False
    if lane.node.key not in victim.failed_on:
        return True
    return at - victim.started_us >= STUCK and victim.doubt.tries < TRIES_MOST


def _look_again(ledger: Ledger, batch: Batch, market: Market, at: Micros) -> None:
    """Idle lanes remain: come back when the next chunk should have ended, or a little later if it is overdue."""
    ends = [a.due_us + (a.due_us - a.started_us) // 10 for a in batch.live.values() if a.uncovered]
    if not ends:
        return
    when = max(min(ends), at + LOOK_AGAIN)
    if batch.look_at is None or batch.look_at <= at or when < batch.look_at:
        batch.look_at = when
        ledger.serve_at(market.model, when)
