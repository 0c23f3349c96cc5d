"""Record evidence of slots in a replica's limit: first tokens, requests that wait, time for a trial."""

from __future__ import annotations

from typing import Final

from sollol.core.state.replica import Attempt, Replica
from sollol.core.types import EMBED, MILLISECOND, Micros

PROMPT: Final[Micros] = 10 * MILLISECOND  # beyond its prediction, that a first token may take without a wait for a slot


def mean_inflight(replica: Replica, attempt: Attempt, now: Micros) -> float:
    """Return the mean number of requests in flight while an attempt ran."""
    elapsed_us = now - attempt.started_us
    return (replica.area_us - attempt.area_us) / elapsed_us if elapsed_us > 0 else 1.0


def responds(replica: Replica, attempt: Attempt, now: Micros) -> None:
    """Record that the node has begun to answer an attempt: a slot works on it."""
    if not attempt.responding:
        attempt.responding = True
        replica.responding += 1
        replica.responded_us = now
        first_us = attempt.first_us()
        waited = attempt.trial and now - attempt.started_us > first_us + max(first_us // 2, PROMPT)
        replica.limiter.responded(replica.responding, waited, now)
        replica.limit_changed()


def refuses(replica: Replica, attempt: Attempt, now: Micros) -> None:
    """Record that an attempt waits inside the node for a slot."""
    replica.limiter.refused(replica.responding, replica.responding >= replica.proven, now)
    replica.limit_changed()


def reopen(replica: Replica, now: Micros) -> None:
    """Allow one more request as a trial, while tasks wait and the requests in flight take long."""
    for attempt in replica.attempts.values():
        if attempt.task.kind is EMBED:  # decided by their throughput
            return
    replica.limiter.reopen(now)
    replica.limit_changed()
