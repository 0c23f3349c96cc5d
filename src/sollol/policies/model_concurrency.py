"""Order the models of one node: which starts next, and how many work at the same time.

All models of a node form one order, as the tasks of one model do (`core.state.queue`): priority first, raised by age;
at equal priority the application, then the model, that had less of this node's time (start-time fair queueing). A
model whose turn it is may fill its slots once; then it yields to one that goes before it.

Models that share a GPU only slow each other, so they take turns; models on two GPUs do not. A waiting model is tried
beside the others, and kept there if answers are decoded at `alone` of the usual rate or more.
"""

from __future__ import annotations

from typing import Final

from sollol.core.bounds import keep_largest
from sollol.core.state.estimators import Mean
from sollol.core.types import SECOND, Micros

TRIAL_AFTER: Final[Micros] = 2 * SECOND  # that a model has waited for its turn, before it is tried beside another
TURNS_HOLD: Final[Micros] = 10 * SECOND  # after a trial that did not pay; four times as long each time
TURNS_HOLD_MAX: Final[Micros] = 600 * SECOND
TURNS_LEAST: Final = 3  # answers that decide a trial
TURNS_MOST: Final = 4
ALONE: Final = 0.8
COLD_PATIENCE: Final = 2  # loads that a task waits for a model in use, before it may evict that one
NAMES_MAX: Final = 256  # applications, or models, whose share of the node's time is remembered


class ModelConcurrency:
    """Limit how many models of a node work at once, and order the others.

    Attributes:
        limit: Models that may work at the same time.
        maximum: Bound of the limit.
        unordered: Any model may start; set while slots are offered that no model in turn has taken.
    """

    __slots__ = (
        "_alone",
        "_apps",
        "_cold_patience",
        "_first_hold_us",
        "_hold_us",
        "_least",
        "_levels",
        "_models",
        "_proven",
        "_ratio",
        "_trial_after_us",
        "_trial_at",
        "limit",
        "maximum",
        "unordered",
    )

    def __init__(
        self,
        *,
        trial_after_us: Micros = TRIAL_AFTER,
        hold_us: Micros = TURNS_HOLD,
        least: int = TURNS_LEAST,
        maximum: int = TURNS_MOST,
        alone: float = ALONE,
        cold_patience: float = COLD_PATIENCE,
    ) -> None:
        self.limit = 1
        self.maximum = maximum
        self.unordered = False
        self._trial_after_us = trial_after_us
        self._first_hold_us = self._hold_us = hold_us
        self._least = least
        self._alone = alone
        self._cold_patience = cold_patience
        self._proven = 1  # models that were found not to slow each other; more are a trial
        self._trial_at: Micros = 0
        self._ratio = Mean()
        self._levels: dict[int, Micros] = {}  # priority -> when it was last served here
        self._apps = _GivenTime()
        self._models = _GivenTime()

    # --- how many at once ---

    def try_another(self, waited_us: Micros, now: Micros) -> bool:
        """Raise the limit by one, as a trial, for a model that has waited so long. Return whether it was raised."""
        if waited_us < self._trial_after_us or now < self._trial_at:
            return False
        if self.limit != self._proven or self.limit >= self.maximum:
            return False
        self.limit += 1
        self._ratio = Mean()
        return True

    def record_overlap(self, ratio: float, now: Micros) -> None:
        """Record the decode rate of an answer, as a share of the usual one, while models overlapped."""
        self._ratio.add(ratio)
        if self._ratio.count < self._least:
            return
        good = (self._ratio.value or 0.0) >= self._alone
        self._ratio = Mean()
        if good:
            self._proven = self.limit = min(self.maximum, max(self.limit, self._proven + 1))
            self._hold_us = self._first_hold_us
        elif self.limit > self._proven:
            self.limit = self._proven
            self._trial_at = now + self._hold_us
            self._hold_us = min(4 * self._hold_us, TURNS_HOLD_MAX)

    # --- whose turn ---

    def charge(self, priority: int, app: str, model: str, us: Micros, now: Micros) -> None:
        """Charge an attempt that is expected to take `us` of this node."""
        self._levels[priority] = now
        self._apps.charge(app, us)
        self._models.charge(model, us)

    def age_us(self, priority: int, since: Micros, now: Micros) -> Micros:
        """Return the µs that a priority has waited on this node: since it was last served, or began to wait."""
        return now - max(since, self._levels.get(priority, since))

    def waits_for_load(self, waited_us: Micros, load_us: Micros) -> bool:
        """Check that a model which is not in memory lets those in use go first.

        A load, and the one that brings the other model back, must serve more than one request.
        """
        return waited_us < self._cold_patience * load_us

    def goes_before(self, app: str, model: str, other_app: str, other_model: str) -> bool:
        """Compare two heads of the same priority by the time that was given to each."""
        one, other = self._apps.of(app), self._apps.of(other_app)
        if one == other:
            one, other = self._models.of(model), self._models.of(other_model)
        return one < other


class _GivenTime:
    """Count the time of a node given to each application or model, in virtual µs.

    One that was away resumes at the present, with neither credit nor debt.
    """

    __slots__ = ("_given", "_present")

    def __init__(self) -> None:
        self._given: dict[str, float] = {}
        self._present = 0.0  # where the one that was served last began

    def of(self, name: str) -> float:
        given = self._given.get(name, 0.0)
        return given if given > self._present else self._present

    def charge(self, name: str, us: Micros) -> None:
        self._present = start = self.of(name)
        self._given[name] = start + us
        if len(self._given) > NAMES_MAX:
            ahead = {other: given for other, given in self._given.items() if given > start}
            self._given = keep_largest(ahead, NAMES_MAX // 2)
