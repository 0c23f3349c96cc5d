"""Predict how long a slot stays taken after its caller left while the node read the prompt.

Older nodes read the prompt to its end. Newer ones stop at the next batch of PREFILL_BATCH tokens (measured on a real
node: 1.3 s instead of 6). No API reports which, so a node is tried once: where much can be gained, the slot counts as
free after a batch, and the first token of the next request shows whether it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sollol.core.types import SECOND, Micros

if TYPE_CHECKING:
    from sollol.core.state.attempt import Attempt
    from sollol.core.state.replica import Replica

PREFILL_BATCH: Final = 512  # tokens after which a newer node notices that the caller left
PROBE_LEAST: Final[Micros] = 5 * SECOND  # to be gained, for a call to find out whether a node does


def taken_until(replica: Replica, attempt: Attempt, now: Micros) -> Micros:
    """Return the moment until which the slot of an attempt aborted in prefill stays taken."""
    node = replica.node
    whole_us = attempt.started_us + attempt.decision.first_us
    if node.reads_on is True:
        return whole_us
    reads = replica.prefill.value or replica.group.typical().prefill
    soon_us = min(whole_us, now + round(PREFILL_BATCH / reads))
    if node.reads_on is None:
        if whole_us - soon_us < PROBE_LEAST:
            return whole_us
        replica.left_until = max(replica.left_until, whole_us)
    return soon_us


def learn(replica: Replica, attempt: Attempt, now: Micros) -> None:
    """Learn from the first token of an attempt sent while the node may still have read."""
    if attempt.started_us < replica.left_until:
        began_us = now - attempt.first_us()
        replica.node.reads_on = began_us > (attempt.started_us + replica.left_until) // 2
        replica.left_until = 0


def holds(replica: Replica, attempt: Attempt) -> bool:
    """Record that an attempt waits behind an abandoned prompt. Return False if it waits for something else."""
    if attempt.started_us >= replica.left_until or replica.responding:
        return False
    replica.node.reads_on = True
    replica.draining.append(replica.left_until)
    return True
