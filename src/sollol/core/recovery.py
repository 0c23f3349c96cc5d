"""Keep a fault of the scheduler to the task that it concerns: that one is settled, every other goes on.

Between two events the ledger is consistent; an exception in the middle of one may leave a task half bound. So whatever
there is of the task that was being handled (`Ledger.concern`) is taken out by hand, without the code that has just
failed, and what is counted on its replicas is counted anew.
"""

from __future__ import annotations

from typing import Final

from sollol.core.lane import Lane
from sollol.core.ledger import LEFT, Ledger, OpenTask
from sollol.core.messages import Abort, Event, Fault, NodeLost, NodeSeen, Settle, Submitted
from sollol.core.serving import Serving
from sollol.core.types import NEVER, SECOND, How, Micros, Outcome

AGAIN: Final[Micros] = SECOND  # until those who wait are served after a fault that concerns no single task
INTERNAL: Final = 500


def fault_outcome(error: Exception) -> Outcome:
    """Return how a task ends that a fault of this program concerns."""
    told = f"{type(error).__name__}: {error}"[:300]
    return Outcome(How.REFUSED, f"SOLLOL failed at this call, which is no fault of its own: {told}", INTERNAL)


class Recovery:
    """Settles tasks that faults concern, and tells of the faults."""

    __slots__ = ("_ledger", "_planned", "_serving")

    def __init__(self, ledger: Ledger, serving: Serving) -> None:
        self._ledger = ledger
        self._serving = serving
        self._planned = False
        ledger.recover = self.recover

    def event_failed(self, event: Event, error: Exception, at: Micros) -> None:
        """Handle an exception that came out of the handling of an event."""
        ledger = self._ledger
        if isinstance(event, Submitted) and ledger.concern is None and not self._is_known(event.task.id):
            self._tell(event.task.id, error)
            ledger.out.append(Settle(event.task.id, fault_outcome(error)))
            return
        self._mend()
        if isinstance(event, NodeSeen | NodeLost):
            self._ask_again(event.node, at)
        if ledger.health.next_at <= at:
            ledger.health.next_at = at + AGAIN
        self.recover(error, at)

    def _is_known(self, task: int) -> bool:
        """Check that a task is open, or was settled just now."""
        settled = any(isinstance(action, Settle) and action.task == task for action in self._ledger.out)
        return settled or any(opened.task.id == task for opened in self._ledger.open.values())

    def _mend(self) -> None:
        """Count anew what runs where, after nobody knows which step."""
        for node in self._ledger.fleet.nodes.values():
            for lane in node.lanes.values():
                recount(lane)

    def _ask_again(self, key: str, at: Micros) -> None:
        """Do not take a node for one that is being asked, for ever."""
        node = self._ledger.fleet.nodes.get(key)
        if node is not None:
            node.probing = False
            node.next_probe_us = at + AGAIN
            self._ledger.health.next_at = min(self._ledger.health.next_at, at + AGAIN)

    def recover(self, error: Exception, at: Micros) -> None:
        """Settle the task that was being handled, tell of the fault, and serve those who wait."""
        ledger = self._ledger
        while True:  # each turn settles a task
            opened, ledger.concern = ledger.concern, None
            self._tell(0 if opened is None else opened.task.id, error)
            if opened is None:
                if not self._planned:
                    self._planned = True
                    ledger.at(at + AGAIN, self._serve_all)
                return
            self.expel(opened, fault_outcome(error), at)
            try:
                self._serving.all(at)
            except Exception as another:
                error = another
                continue
            return

    def expel(self, opened: OpenTask, outcome: Outcome, at: Micros) -> None:
        """Take a task out of all books, whatever state it is in, and settle it unless that is done."""
        ledger, task = self._ledger, opened.task
        is_over = any(isinstance(action, Settle) and action.task == task.id for action in ledger.out)
        ledger.open.pop(opened.key, None)
        self._leave_line(opened)
        if opened.waits_for is not None:
            opened.waits_for.waiters -= 1
            opened.waits_for = None
        ledger.batches.get(task.model, {}).pop(task.id, None)
        if opened.market is not None:
            opened.market.batches = len(ledger.batches.get(task.model, ()))
        for lane in self._lanes_of(opened):
            for attempt in [attempt for attempt in lane.attempts.values() if attempt.opened is opened]:
                lane.attempts.pop(attempt.key, None)
                opened.attempts[attempt.key] = attempt
            recount(lane)
        for attempt in opened.attempts.values():
            ledger.attempts.pop(attempt.key, None)
            ledger.out.append(Abort(attempt.id, LEFT))
        opened.attempts.clear()
        if not is_over:
            ledger.out.append(Settle(task.id, outcome))

    def _leave_line(self, opened: OpenTask) -> None:
        line = self._ledger.lines.get(opened.task.model)
        if line is None:
            return
        line.rebuild_without(opened.key)

    def _lanes_of(self, opened: OpenTask) -> list[Lane]:
        lanes = [lane for node in self._ledger.fleet.nodes.values() for lane in node.lanes.values()]
        lanes += [attempt.lane for attempt in opened.attempts.values()]
        touched: list[Lane] = []
        for lane in lanes:
            holds = any(attempt.opened is opened for attempt in lane.attempts.values())
            named = any(attempt.lane is lane for attempt in opened.attempts.values())
            if (holds or named) and lane not in touched:
                touched.append(lane)
        return touched

    def _tell(self, task: int, error: Exception) -> None:
        self._ledger.out.append(Fault(task, error))

    def _serve_all(self, at: Micros) -> None:
        self._planned = False
        self._serving.all(at)


def recount(lane: Lane) -> None:
    """Count anew what runs on a replica, on its node and in its market."""
    node, market = lane.node, lane.market
    attempts = list(lane.attempts.values())
    lane.responding = sum(attempt.responding for attempt in attempts)
    lane.heavy = sum(attempt.heavy for attempt in attempts)
    lane.soonest_us = min([attempt.due_us for attempt in attempts], default=NEVER)
    lane.cost_inflight = sum([attempt.cost for attempt in attempts], 0.0)
    if market.lanes.get(lane.key) is lane:
        market.roomy[lane.key] = lane  # a full one that stands there is asked in vain, no more
        market.unsteady[lane.key] = lane
    lane.steady = False
    node.running = sum(len(other.attempts) for other in node.lanes.values())
    node.heavy_lanes = sum(other.heavy > 0 for other in node.lanes.values())
    market.inflight_cost = sum([other.cost_inflight for other in market.lanes.values()], 0.0)
