"""When to send a second copy of a request that is slow, and how often that may be done.

After the learned p95 of how much later than predicted the first token comes for that kind of request (for an
answer given whole: the answer). A share of the prediction, not seconds: long prompts are not taken for slow ones.
At most BUDGET of the requests get a second copy (Dean and Barroso 2013, "The tail at scale"), and none before
EARLY samples: a hedge that fires at random only adds load.
"""

from __future__ import annotations

from typing import Final

from sollol.core.state.estimators import Quantile
from sollol.core.types import EMBED, MILLISECOND, Decision, Micros, Task, TaskType

SHARE: Final = 0.95
KINDS_MAX: Final = 1_000  # of (model, task type, streamed) to remember
LATER: Final = 1.2  # times that p95: the budget is for stragglers, not for the one in 20 that is only the last
LEAST: Final = 20
EARLY: Final = 5  # samples from which on a call is late at EARLY_TIMES its prediction, until LEAST are there
EARLY_TIMES: Final = 4.0
BUDGET: Final = 0.05
RESERVE: Final = 2.0  # second copies that a quiet service may send at once
MARGIN: Final[Micros] = 5 * MILLISECOND  # on the prediction: what a timer and a request cost


class QuantileHedger:
    __slots__ = ("_kind", "_kinds", "_last", "_tokens", "budget", "share")

    def __init__(self, share: float = SHARE, budget: float = BUDGET) -> None:
        self.share = share
        self.budget = budget
        self._kinds: dict[tuple[str, TaskType, bool], Quantile] = {}
        self._tokens = RESERVE
        self._last: Task | None = None  # who was asked for last: the next call is often like it
        self._kind = Quantile()

    def _of(self, task: Task) -> Quantile:
        """What is known of such calls."""
        last = self._last
        if last is None or task.model != last.model or task.type is not last.type or task.stream != last.stream:
            key = task.model, task.type, task.stream
            kind = self._kinds.get(key)
            if kind is None:
                if len(self._kinds) >= KINDS_MAX:
                    self._kinds.clear()
                kind = self._kinds[key] = Quantile()
            self._last, self._kind = task, kind
        return self._kind

    def deposit(self, task: Task) -> None:
        self._tokens = min(self._tokens + self.budget, max(RESERVE, 100 * self.budget))

    def learn(self, task: Task, decision: Decision, elapsed_us: Micros) -> None:
        """An attempt gave its first token (or its answer, if that comes whole) after `elapsed_us`."""
        self._of(task).add(elapsed_us / (decision.first_response_us(task.stream) + MARGIN))

    def after(self, task: Task, decision: Decision) -> Micros | None:
        if task.kind is EMBED:
            return None
        kind = self._of(task)
        if len(kind) < EARLY:
            return None
        if len(kind) < LEAST:
            return round(EARLY_TIMES * (decision.first_response_us(task.stream) + MARGIN))
        late = kind.read(self.share)
        assert late is not None
        return round(LATER * late * (decision.first_response_us(task.stream) + MARGIN))

    def withdraw(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
