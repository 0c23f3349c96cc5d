"""Order the models of one node: whose work starts next, and how many models work at the same time.

All models of a node form one order, as the tasks of one model do (`core.state.queue`): priority first, raised by age;
at equal priority the application, then the model, that was given less of this node's time (start-time fair queueing). A
model whose turn it is may fill its slots once; then it lets another one that goes before it have the node.

Models that share a GPU only slow each other, so they take turns; those on two GPUs do not. A further model is tried
beside the others when it is waited for, and kept if answers are written at ALONE of the usual rate or more.
"""

from __future__ import annotations

from typing import Final

from sollol.core.bounds import keep_largest
from sollol.core.state.estimators import Mean
from sollol.core.types import SECOND, Micros

TRIAL_AFTER: Final[Micros] = 2 * SECOND  # that a model has waited for its turn, before it is tried beside another
TURNS_HOLD: Final[Micros] = 10 * SECOND  # after a trial that did not pay; four times as long each time
TURNS_HOLD_MAX: Final[Micros] = 600 * SECOND
TURNS_LEAST: Final = 3  # answers that tell
TURNS_MOST: Final = 4
ALONE: Final = 0.8
NAMES_MAX: Final = 256  # applications, or models, whose share of the node's time is remembered


class ModelConcurrency:
    """The order of the models of one node."""

    __slots__ = (
        "_apps",
        "_hold_us",
        "_levels",
        "_models",
        "_ratio",
        "_settled",
        "_trial_at",
        "limit",
        "unordered",
    )

    def __init__(self) -> None:
        self.limit = 1
        self.unordered = False  # no precedence: every model may take what those before it left
        self._settled = 1  # known to be good; beyond it is a trial
        self._trial_at: Micros = 0
        self._hold_us = TURNS_HOLD
        self._ratio = Mean()
        self._levels: dict[int, Micros] = {}  # priority -> when it was last served here
        self._apps = _GivenTime()
        self._models = _GivenTime()

    # --- how many at once ---

    def try_another(self, now: Micros) -> bool:
        """Let one more model work at the same time, as a trial. Returns whether one began."""
        if self.limit != self._settled or self.limit >= TURNS_MOST or now < self._trial_at:
            return False
        self.limit += 1
        self._ratio = Mean()
        return True

    def record_overlap(self, ratio: float, now: Micros) -> None:
        """Record the decode rate of an answer, as a share of the usual one, while models overlapped."""
        self._ratio.add(ratio)
        if self._ratio.count < TURNS_LEAST:
            return
        good = (self._ratio.value or 0.0) >= ALONE
        self._ratio = Mean()
        if good:
            self._settled = self.limit = min(TURNS_MOST, max(self.limit, self._settled + 1))
            self._hold_us = TURNS_HOLD
        elif self.limit > self._settled:
            self.limit = self._settled
            self._trial_at = now + self._hold_us
            self._hold_us = min(4 * self._hold_us, TURNS_HOLD_MAX)

    # --- whose turn ---

    def charge(self, priority: int, app: str, model: str, us: Micros, now: Micros) -> None:
        """Charge an attempt that is expected to take `us` of this node."""
        self._levels[priority] = now
        self._apps.charge(app, us)
        self._models.charge(model, us)

    def age_us(self, priority: int, since: Micros, now: Micros) -> Micros:
        """How long a priority has waited on this node: since it was last served, or began to wait."""
        return now - max(since, self._levels.get(priority, since))

    def goes_before(self, app: str, model: str, other_app: str, other_model: str) -> bool:
        """Compare two heads of the same priority by the time that was given to each."""
        one, other = self._apps.of(app), self._apps.of(other_app)
        if one == other:
            one, other = self._models.of(model), self._models.of(other_model)
        return one < other


class _GivenTime:
    """Time of a node given to each application or model, in virtual microseconds.

    One that was away resumes at the present, with neither credit nor debt."""

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
            reserved_us = {other: given for other, given in self._given.items() if given > start}
            self._given = keep_largest(reserved_us, NAMES_MAX // 2)
