"""Notice a replica that has become much slower than it was, and when it is fast again.

Its rates are learned anew from the first answers that are certainly slow, so that it gets work only where it finishes
first all the same. While there is work for its model, it is tested from time to time with a few tokens of no caller.
`policies.demotion` sets the bounds.
"""

from __future__ import annotations

from sollol.core.actions import Notice, Retest
from sollol.core.state.estimators import Rate
from sollol.core.state.replica import RATE_MEMORY, ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Micros, Timing


class Demotion:
    """Compare the rates of answers with those before."""

    __slots__ = ("_state",)

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def record(self, replica: Replica, timing: Timing, now: Micros) -> None:
        """Compare an answer with the rate of the replica, before that learns from it."""
        rate = replica.decode.value
        if not rate or timing.tokens <= 1 or timing.decode_us <= 0:
            return
        policy = self._state.policies.demotion
        if replica.demoted_us:
            if not policy.is_slow(replica.rate_before * timing.decode_us / timing.tokens):
                self._restore(replica)
            return
        if not policy.is_slow(rate * timing.decode_us / timing.tokens):
            replica.slow_in_row = 0
            return
        replica.slow_in_row += 1
        if policy.demotes(replica.slow_in_row):
            self._demote(replica, rate, timing, now)

    def _demote(self, replica: Replica, rate: float, timing: Timing, now: Micros) -> None:
        replica.slow_in_row = 0
        replica.rate_before, replica.demoted_us, replica.retested_us = rate, now, now
        replica.decode, replica.prefill = Rate(RATE_MEMORY), Rate(RATE_MEMORY)
        replica.group.demoted[replica.key] = replica
        writes = timing.tokens / timing.decode_us * SECOND
        self._state.out.append(
            Notice(
                f"{replica.key} writes {writes:.1f} tokens/s with {replica.model}, {rate * SECOND:.1f} before: "
                "the model runs on its CPU, or something else uses its GPU. It gets fewer requests."
            )
        )

    def _restore(self, replica: Replica) -> None:
        replica.demoted_us = 0
        replica.decode, replica.prefill = Rate(RATE_MEMORY), Rate(RATE_MEMORY)
        replica.group.demoted.pop(replica.key, None)
        self._state.out.append(Notice(f"{replica.key} is as fast with {replica.model} as it was before."))

    def retest(self, group: ModelReplicas, now: Micros) -> None:
        """Measure the idle replicas whose test is due. Called when a request starts, so not without traffic."""
        for replica in group.demoted.values():
            is_due = self._state.policies.demotion.is_due(now - replica.retested_us)
            if is_due and not replica.attempts and replica.ready(now):
                replica.retested_us = now
                self._state.out.append(Retest(replica.key, replica.model, replica.runner_options()))

    def retested(self, replica: Replica, rate: float) -> None:
        """Use the result of a test: tokens per microsecond, 0 without an answer."""
        if replica.demoted_us and rate and not self._state.policies.demotion.is_slow(replica.rate_before / rate):
            self._restore(replica)
