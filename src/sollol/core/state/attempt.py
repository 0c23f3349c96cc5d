"""One request in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sollol.core.state.evidence import NO_EVIDENCE
from sollol.core.state.ranges import Ranges
from sollol.core.types import EMBED, Cause, Decision, Key, Micros, Task

if TYPE_CHECKING:
    from sollol.core.state.pending import PendingTask
    from sollol.core.state.pending_items import PendingItems
    from sollol.core.state.replica import Replica

NOTHING: Final = Ranges()
NOWHERE: Final[frozenset[str]] = frozenset()


class Attempt:
    """Hold one request in flight: its replica, its prediction, and its items."""

    __slots__ = (
        "area_us",
        "behind_prefill",
        "cause",
        "control",
        "cost",
        "decision",
        "delivering",
        "due_us",
        "evidence",
        "failed_on",
        "id",
        "idle_since_us",
        "inflight",
        "items",
        "key",
        "loads",
        "movable",
        "observed",
        "occupies_gpu",
        "other_half",
        "overlapped",
        "pending",
        "replica",
        "responding",
        "resumed",
        "started_us",
        "suspect",
        "task",
        "trial",
        "tries",
        "unanswered_items",
        "uncovered",
        "warm_cost",
    )

    def __init__(
        self,
        id: int,
        task: Task,
        replica: Replica,
        cost: float,
        started_us: Micros,
        due_us: Micros,
        decision: Decision,
        cause: Cause = Cause.FIRST,
    ) -> None:
        self.id = id
        self.key: Key = id
        self.task = task
        self.replica = replica
        self.cost = cost
        self.started_us = started_us
        self.due_us = due_us
        self.decision = decision
        self.cause = cause
        self.delivering = False  # the caller has seen a part of the answer
        self.occupies_gpu = task.batch or task.kind is not EMBED  # else too short to be in another model's way
        self.overlapped = False  # another model of its node was at work in the meantime
        self.movable = True  # it can go on elsewhere if this node fails
        self.resumed = False  # it goes on with an answer that another node began
        self.behind_prefill = False  # sent while the node may still have read an abandoned prompt
        self.loads = False  # it has to load the model first
        self.idle_since_us: Micros = 0  # when its replica had answered last
        self.inflight = 1  # calls on its replica when it was sent, itself included
        self.trial = False  # sent beyond the slots that are proven, to find out whether there are more
        self.observed = False  # its job reports when the node begins to answer
        self.responding = False  # the node has begun to answer; assumed of one that is not observed
        self.area_us = 0.0  # calls in flight on its replica, summed over time, when it began
        self.warm_cost = 0  # of its prompt, in cost units, that the node had read just before
        self.items = NOTHING
        self.uncovered: Sequence[tuple[int, int]] = ()  # items that no other attempt has taken over
        self.unanswered_items = 0  # items not answered by anyone yet
        self.pending: PendingTask  # whose attempt it is; set by `SchedulerState.start`
        self.tries = 0  # how often these items have failed before, and where
        self.failed_on = NOWHERE
        self.evidence = NO_EVIDENCE  # failures of these items
        self.suspect = False  # one of these items, or of `rest`, made a request fail
        self.other_half: PendingItems | None = (
            None  # the other half of suspect items: held back until this one has ended
        )
        self.control = False  # it sends an item answered before, to test the node

    def expected_end(self, now: Micros) -> Micros:
        """Return the expected end. Once overdue, half as long again as it has taken so far."""
        return self.due_us if now <= self.due_us else now + self.remaining_us(now)

    def remaining_us(self, now: Micros) -> Micros:
        """Return the µs that a late attempt is expected to need: half of what it has taken."""
        return (now - self.started_us) // 2

    def first_response_us(self) -> Micros:
        """Return the predicted µs to the first token, or to the whole answer."""
        return self.decision.first_response_us(self.task.stream)

    def first_us(self) -> Micros:
        """Return the predicted µs to the first token in a free slot, without the wait for one."""
        known = self.decision.prediction_for(self.replica.key)
        return self.decision.first_us if known is None else max(0, self.decision.first_us - round(known.wait_us))

    def __repr__(self) -> str:
        return f"<Attempt {self.id} of task {self.task.id} on {self.replica.node.key}>"
