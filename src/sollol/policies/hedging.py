"""Decide when a slow request gets a second attempt, and whether that pays.

`QuantileHedger` sets the delay: the learned p95 of actual ÷ predicted time to the first response, for that kind of
request. It is a ratio, not seconds, so a long prompt does not look slow. At most `budget` of the requests get a
second attempt (Dean and Barroso 2013, "The tail at scale").

`LearnedHedgeBenefit` compares what a second attempt saves with what it takes from others.
"""

from __future__ import annotations

from typing import Final

from sollol.core.state.estimators import Mean, Quantile
from sollol.core.types import EMBED, MILLISECOND, Decision, Micros, Task, TaskType

QUANTILE: Final = 0.95  # of actual ÷ predicted time to the first response
KINDS_MAX: Final = 1_000  # combinations of model, task type and streaming that are remembered
LATE_TIMES: Final = 1.2  # the delay is this many times that quantile: one request in 20 is beyond it by definition
SAMPLES_LEAST: Final = 20  # samples before the quantile is used
EARLY_LEAST: Final = 5  # samples before any second attempt is sent
EARLY_TIMES: Final = 4.0  # the delay in predictions, from EARLY_LEAST to SAMPLES_LEAST samples
BUDGET: Final = 0.05
RESERVE: Final = 2.0  # second attempts that a quiet service may send at once
MARGIN: Final[Micros] = 5 * MILLISECOND  # added to the prediction: the cost of a timer and a request

HEDGE_AGAIN: Final[Micros] = 50 * MILLISECOND  # until a late request without a free node is considered again
FIRST_WEIGHT: Final = 0.1  # weight of the newest second attempt in the share of those that answer first
FIRST_SHARE: Final = 0.5  # that share until one was seen
HANG_TWICE: Final = 0.2  # share of second attempts of hanging requests that hang, too
RESTART_TIMES: Final = 3  # delays after which a request without a free node is sent to its own node again
RESTARTS: Final = 2  # most of one request
RESTART_SHARE: Final = 0.4  # least share that answers first; below it, the answers are long, not the nodes slow


class QuantileHedger:
    """Send a second attempt after a quantile of the usual delay, within a budget."""

    __slots__ = (
        "_balance",
        "_by_kind",
        "_last",
        "_last_ratios",
        "budget",
        "early",
        "early_times",
        "late_times",
        "least",
        "margin_us",
        "quantile",
        "reserve",
    )

    def __init__(
        self,
        quantile: float = QUANTILE,
        budget: float = BUDGET,
        *,
        late_times: float = LATE_TIMES,
        least: int = SAMPLES_LEAST,
        early: int = EARLY_LEAST,
        early_times: float = EARLY_TIMES,
        reserve: float = RESERVE,
        margin_us: Micros = MARGIN,
    ) -> None:
        self.quantile = quantile
        self.budget = budget
        self.late_times = late_times
        self.least = least
        self.early = early
        self.early_times = early_times
        self.reserve = reserve
        self.margin_us = margin_us
        self._by_kind: dict[tuple[str, TaskType, bool], Quantile] = {}
        self._balance = reserve  # second attempts that may be sent now
        self._last: Task | None = None  # the next request is often of the same kind
        self._last_ratios = Quantile()

    def _ratios(self, task: Task) -> Quantile:
        """Return the measured ratios of requests with the same model, task type and streaming."""
        last = self._last
        if last is None or task.model != last.model or task.type is not last.type or task.stream != last.stream:
            key = task.model, task.type, task.stream
            ratios = self._by_kind.get(key)
            if ratios is None:
                if len(self._by_kind) >= KINDS_MAX:
                    self._by_kind.clear()
                ratios = self._by_kind[key] = Quantile()
            self._last, self._last_ratios = task, ratios
        return self._last_ratios

    def deposit(self, task: Task) -> None:
        """Add one request to the budget."""
        self._balance = min(self._balance + self.budget, max(self.reserve, 100 * self.budget))

    def learn(self, task: Task, decision: Decision, elapsed_us: Micros) -> None:
        """Record the µs until the first token of a stream, or until a whole answer."""
        self._ratios(task).add(elapsed_us / (decision.first_response_us(task.stream) + self.margin_us))

    def after(self, task: Task, decision: Decision) -> Micros | None:
        """Return the µs to wait before a second attempt; None for never."""
        if task.kind is EMBED:
            return None
        ratios = self._ratios(task)
        if len(ratios) < self.early:
            return None
        predicted_us = decision.first_response_us(task.stream) + self.margin_us
        if len(ratios) < self.least:
            return round(self.early_times * predicted_us)
        late_ratio = ratios.read(self.quantile)
        assert late_ratio is not None
        return round(self.late_times * late_ratio * predicted_us)

    def withdraw(self) -> bool:
        """Take one second attempt from the budget; return False if it is empty."""
        if self._balance < 1:
            return False
        self._balance -= 1
        return True


class LearnedHedgeBenefit:
    """Learn how often the second attempt of a late request answers first.

    It is learned for each (model, streamed) from requests that took more than twice their prediction. Where nodes hang
    now and then, second attempts pay; where the answers are long, they do not.
    """

    __slots__ = (
        "_first_share",
        "_hangs_twice",
        "_restart_delays",
        "_restart_share",
        "_restarts",
        "_shares",
        "_weight",
        "check_us",
    )

    def __init__(
        self,
        *,
        check_us: Micros = HEDGE_AGAIN,
        weight: float = FIRST_WEIGHT,
        first_share: float = FIRST_SHARE,
        hangs_twice: float = HANG_TWICE,
        restart_delays: float = RESTART_TIMES,
        restarts: int = RESTARTS,
        restart_share: float = RESTART_SHARE,
    ) -> None:
        self.check_us = check_us
        self._weight = weight
        self._first_share = first_share
        self._hangs_twice = hangs_twice
        self._restart_delays = restart_delays
        self._restarts = restarts
        self._restart_share = restart_share
        self._shares: dict[tuple[str, bool], Mean] = {}

    def _share(self, task: Task) -> Mean:
        kind = task.model, task.stream
        share = self._shares.get(kind)
        if share is None:
            if len(self._shares) >= KINDS_MAX:
                self._shares.clear()
            share = self._shares[kind] = Mean(self._weight)
            share.add(self._first_share)
        return share

    def share(self, task: Task) -> float:
        """Return the share of late requests of this kind whose second attempt answers first."""
        return self._share(task).value or 0.0

    def record(self, task: Task, first: bool) -> None:
        """Record whether the second attempt of a late request answered first, or would have."""
        self._share(task).add(1.0 if first else 0.0)

    def pays(self, task: Task, remaining_us: Micros, takes_us: Micros, busy: float) -> bool:
        """Check that a second attempt saves more time than it takes from others.

        Args:
            remaining_us: Expected rest of the late attempt, saved if the second one answers first.
            takes_us: Predicted time of the second attempt.
            busy: Probability that another task needs its node meanwhile.
        """
        return self.share(task) * remaining_us > busy * takes_us

    def replaces(self, task: Task, remaining_us: Micros, takes_us: Micros) -> bool:
        """Check that the first attempt should be given up when the second is late, too.

        It pays only if the first one hangs. Two nodes rarely hang at once, so the answer is probably long.
        """
        share = self.share(task)
        both_hang = share * self._hangs_twice / (1 - share + share * self._hangs_twice)
        return both_hang * remaining_us >= takes_us

    def restarts(self, task: Task, waited_us: Micros, delay_us: Micros, restarts: int) -> bool:
        """Check that a late request should be sent to its own node again, since no other is free."""
        if waited_us < self._restart_delays * delay_us or restarts >= self._restarts:
            return False
        return self.share(task) >= self._restart_share
