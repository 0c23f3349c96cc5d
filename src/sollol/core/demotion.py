"""Notice a replica that has become much slower than it was, and when it is fast again.

Its rates are learned anew from the first answers that are certainly slow, so that it gets work only where it finishes
first all the same. While there is work for its model, it is tested from time to time by a small request of no caller.
`policies.demotion` sets the bounds.
"""

from __future__ import annotations

from typing import Final

from sollol.core.actions import RETEST_TOKENS, Notice, Retest
from sollol.core.state.estimators import Rate
from sollol.core.state.replica import RATE_MEMORY, ModelReplicas, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import EMBED, MILLISECOND, SECOND, Kind, Micros, Timing

RETEST_US: Final[Micros] = 50 * MILLISECOND  # of embedding at the rate before: long against what any request costs


class Demotion:
    """Compare the rates of answers with those before."""

    __slots__ = ("_state",)

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def record(self, replica: Replica, timing: Timing, now: Micros) -> None:
        """Compare the decode rate of an answer with that of the replica, before that learns from it."""
        rate = replica.rate_before if replica.demoted_us else replica.decode.value or 0.0
        least = RETEST_TOKENS if replica.demoted_us else 2
        if rate and timing.tokens >= least and timing.decode_us > 0:
            slow = self._state.policies.demotion.is_slow(timing.decode_us, round(timing.tokens / rate))
            self._judge(replica, slow, rate, timing.tokens / timing.decode_us, Kind.GENERATE, now)

    def record_work(self, replica: Replica, cost: float, working_us: Micros, now: Micros) -> None:
        """Compare the rate of an embedding with that of the replica, before that learns from it."""
        rate = replica.rate_before if replica.demoted_us or replica.slow_in_row else replica.work.value or 0.0
        if rate and cost > 0:
            slow = self._state.policies.demotion.is_slow(working_us, round(cost / rate))
            self._judge(replica, slow, rate, cost / working_us, EMBED, now)

    def _judge(self, replica: Replica, slow: bool, rate: float, found: float, kind: Kind, now: Micros) -> None:
        """Count an answer at the rate `found`, where `rate` is usual. Rates in tokens or cost units per µs."""
        if replica.demoted_us:
            if not slow:
                self._restore(replica, now)
            return
        if not slow:
            replica.slow_in_row = 0
            return
        replica.slow_in_row += 1
        if self._state.policies.demotion.demotes(replica.slow_in_row):
            self._demote(replica, rate, found, kind, now)
        elif kind is EMBED:  # one long list changes the rate, and there may be no second
            replica.rate_before, replica.demoted_kind = rate, kind
            if not replica.attempts:
                self._test(replica, now)

    def _demote(self, replica: Replica, rate: float, found: float, kind: Kind, now: Micros) -> None:
        replica.slow_in_row = 0
        replica.rate_before, replica.demoted_us, replica.retested_us = rate, now, now
        replica.demoted_kind = kind
        self._forget_rates(replica, now)
        replica.group.demoted[replica.key] = replica
        if kind is EMBED:
            does, before = f"embeds {found * SECOND / 1e3:.1f} kB/s", f"{rate * SECOND / 1e3:.1f}"
        else:
            does, before = f"writes {found * SECOND:.1f} tokens/s", f"{rate * SECOND:.1f}"
        self._state.out.append(
            Notice(
                f"{replica.key} {does} with {replica.model}, {before} before: "
                "the model runs on its CPU, or something else uses its GPU. It gets fewer requests."
            )
        )

    def _restore(self, replica: Replica, now: Micros) -> None:
        replica.demoted_us = 0
        self._forget_rates(replica, now)
        replica.group.demoted.pop(replica.key, None)
        self._state.out.append(Notice(f"{replica.key} is as fast with {replica.model} as it was before."))

    def _forget_rates(self, replica: Replica, now: Micros) -> None:
        replica.decode, replica.prefill, replica.work = Rate(RATE_MEMORY), Rate(RATE_MEMORY), Rate(RATE_MEMORY)
        replica.group.recount(now)

    def retest(self, group: ModelReplicas, now: Micros) -> None:
        """Measure the idle replicas whose test is due. Called when a request starts, so not without traffic."""
        for replica in group.demoted.values():
            is_due = self._state.policies.demotion.is_due(now - replica.retested_us)
            if is_due and not replica.attempts and replica.ready(now):
                self._test(replica, now)

    def _test(self, replica: Replica, now: Micros) -> None:
        replica.retested_us = now
        kind = replica.demoted_kind
        cost = round(replica.rate_before * RETEST_US) if kind is EMBED else 0
        self._state.out.append(Retest(replica.key, replica.model, replica.runner_options(), kind, cost))

    def retested(self, replica: Replica, rate: float, took_us: Micros, now: Micros) -> None:
        """Use the result of a test.

        Args:
            rate: Tokens, or cost units, per µs; 0 without an answer.
            took_us: Time of its work.
        """
        if not rate or not (replica.demoted_us or replica.slow_in_row):
            return
        slow = self._state.policies.demotion.is_slow(took_us, round(took_us * rate / replica.rate_before))
        if replica.demoted_us:
            if not slow:
                self._restore(replica, now)
        elif slow:
            self._demote(replica, replica.rate_before, rate, replica.demoted_kind, now)
            replica.work.add(rate * took_us, took_us)
        else:  # one answer was slow, and not the replica
            replica.slow_in_row = 0
            replica.work.restore([replica.rate_before * RATE_MEMORY, RATE_MEMORY])
            replica.group.recount(now)
