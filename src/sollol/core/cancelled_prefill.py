"""Learn whether a node reads a prompt to its end after its caller left. `policies.prefill` decides when to test it."""

from __future__ import annotations

from sollol.core.policy import PrefillPolicy
from sollol.core.state.replica import Attempt, Replica
from sollol.core.types import Micros


def taken_until(replica: Replica, attempt: Attempt, policy: PrefillPolicy, now: Micros) -> Micros:
    """Return the moment until which the slot of an attempt aborted in prefill stays taken."""
    reads_on = replica.node.reads_on
    whole_until = attempt.started_us + attempt.decision.first_us
    rate = replica.prefill.value or replica.group.typical().prefill
    until = now + policy.taken_us(whole_until - now, rate, reads_on)
    if reads_on is None and until < whole_until:
        replica.left_until = max(replica.left_until, whole_until)
    return until


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
