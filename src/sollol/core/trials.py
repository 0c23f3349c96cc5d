"""Tell a replica's limit of what was seen: first tokens, calls that wait for a slot, and time for the next trial."""

from __future__ import annotations

from typing import Final

from sollol.core.attempt import Attempt
from sollol.core.lane import Lane
from sollol.core.types import EMBED, MILLISECOND, Micros

PROMPT: Final[Micros] = 10 * MILLISECOND  # beyond its prediction, that a first token may take without a wait for a slot


def mean_inflight(lane: Lane, attempt: Attempt, at: Micros) -> float:
    """Return the mean number of calls in flight while an attempt ran."""
    elapsed_us = at - attempt.started_us
    return (lane.area_us - attempt.area_us) / elapsed_us if elapsed_us > 0 else 1.0


def responds(lane: Lane, attempt: Attempt, at: Micros) -> None:
    """Record that the node has begun to answer an attempt: a slot works on it."""
    if not attempt.responding:
        attempt.responding = True
        lane.responding += 1
        lane.responded_us = at
        first_us = attempt.first_us()
        waited = attempt.trial and at - attempt.started_us > first_us + max(first_us // 2, PROMPT)
        lane.limiter.responded(lane.responding, waited, at)
        lane.limit_changed()


def refuses(lane: Lane, attempt: Attempt, at: Micros) -> None:
    """Record that an attempt waits inside the node for a slot."""
    lane.limiter.refused(lane.responding, lane.responding >= lane.proven, at)
    lane.limit_changed()


def reopen(lane: Lane, at: Micros) -> None:
    """Allow one more call as a trial while tasks wait and the calls in flight take long."""
    for attempt in lane.attempts.values():
        if attempt.task.kind is EMBED:  # decided by their throughput
            return
    lane.limiter.reopen(at)
    lane.limit_changed()
