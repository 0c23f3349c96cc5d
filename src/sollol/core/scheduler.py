"""The scheduler: events in, actions out. No clock, no I/O, no global dice; the only writer of the fleet's state.

Late binding: a task waits in its model's line until a node has a free slot, and the choice is made then, with that
moment's knowledge. Batches stand in the same line and are cut into chunks as slots free; when nothing waits, an
idle node takes over what is expected to finish last (`core.tail`). Every task ends in exactly one Settle.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from sollol.core.attempt import Attempt
from sollol.core.belief import true_outcome
from sollol.core.chunks import Chunks
from sollol.core.credit import Credit
from sollol.core.fleet import NodeState
from sollol.core.forecast import Forecast
from sollol.core.ledger import LEFT, Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.messages import (
    Action,
    Broken,
    Cancelled,
    Event,
    Fed,
    Finished,
    FirstToken,
    NodeAdded,
    NodeLost,
    NodeRemoved,
    NodeSeen,
    Responding,
    Silent,
    Submitted,
    Tick,
    WakeAt,
)
from sollol.core.policy import Policies
from sollol.core.recovery import Recovery, fault_outcome
from sollol.core.serving import Serving
from sollol.core.singles import Singles
from sollol.core.slots import SlotWatch
from sollol.core.stalls import Stalls
from sollol.core.types import NEVER, OK, SECOND, How, Micros, Outcome

QUEUE_BOUND: Final = 10_000  # waiting tasks; a caller beyond it is told, rather than left to wait for ever
LOOK_AFTER: Final[Micros] = SECOND  # how often single tasks under way are looked after
RETRY_AFTER_MAX: Final[Micros] = 600 * SECOND  # that a node may ask to be left alone
OURS_PAUSE: Final[Micros] = SECOND // 4  # until this process may have a file descriptor again


class Scheduler:
    """`handle(event, at)` returns what is to be done; `at` never goes back. It raises nothing: see `core.recovery`."""

    def __init__(self, policies: Policies, rng: random.Random, queue_bound: int = QUEUE_BOUND) -> None:
        self.queue_bound = queue_bound
        self._ledger = ledger = Ledger(policies, rng)
        self.fleet = ledger.fleet
        self.health = ledger.health
        self.open = ledger.open
        self.attempts = ledger.attempts
        self.forecast = Forecast(ledger)
        self._singles = Singles(ledger)
        self._hangs = self._singles.hangs
        self._chunks = Chunks(ledger)
        self._stalls = Stalls(ledger)
        self._serving = Serving(ledger, self._singles, self._chunks)
        ledger.serve = self._serving.model
        self._slots = SlotWatch(ledger, self._serving)
        self._credit = Credit(ledger, self._singles, self._slots)
        self._recovery = Recovery(ledger, self._serving)
        self._wake_at: Micros = NEVER
        self._looking_after = False
        self._handlers: dict[type, Callable[[Any, Micros], None]] = {
            Fed: self._fed,
            Cancelled: self._cancelled,
            Broken: self._broken,
            Responding: self._responding,
            NodeAdded: self._node_added,
            NodeRemoved: self._node_removed,
            NodeSeen: self._node_seen,
            NodeLost: self._node_lost,
            Silent: self._silent,
            Tick: self._tick,
        }

    def handle(self, event: Event, at: Micros) -> list[Action]:
        out: list[Action] = []
        ledger = self._ledger
        ledger.out = out
        ledger.now = at
        ledger.concern = None
        try:
            if isinstance(event, Submitted):  # the three that every request brings: compiled, direct calls
                self._submitted(event, at)
            elif isinstance(event, Finished):
                self._finished(event, at)
            elif isinstance(event, FirstToken):
                self._first_token(event, at)
            else:
                self._handlers[type(event)](event, at)
        except Exception as error:  # a fault of ours: it ends the task that it concerns, and no other
            self._recovery.event_failed(event, error, at)
        if ledger.next_at < self._wake_at or self.health.next_at < self._wake_at:
            self._wake_at = due = min(ledger.next_at, self.health.next_at)
            out.append(WakeAt(due))
        return out

    @property
    def policies(self) -> Policies:
        """The bundle of answers in use; may be replaced at any time, except limiter and breaker of present lanes."""
        return self._ledger.policies

    @policies.setter
    def policies(self, policies: Policies) -> None:
        self._ledger.use(policies)

    def waiting(self) -> int:
        """Tasks in line."""
        return self._ledger.waiting()

    def invariants(self) -> None:
        """What must hold between events. Raises AssertionError."""
        self._ledger.invariants()

    # --- callers ----------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted, at: Micros) -> None:
        task, ledger = event.task, self._ledger
        opened = OpenTask(task, at)
        ledger.open[opened.key] = ledger.concern = opened
        if len(ledger.open) > self.queue_bound and ledger.waiting() >= self.queue_bound:
            wait = self.forecast.wait_for(len(ledger.lines.get(task.model, ())), task.model, at)
            told = f"{self.queue_bound} tasks are waiting already; a place should be free in {wait / SECOND:.1f} s"
            ledger.settle(opened, Outcome(How.QUEUE_FULL, told, retry_us=wait))
            return
        ledger.retrier.deposit(task)
        if task.hedge is not None or task.mode is not None:
            self._singles.copies.may_have(opened)
        if at >= self.health.touch_at:
            self.health.touched(at, ledger.out)
        if task.deadline_us is not None:
            ledger.at(task.deadline_us, lambda now: self._deadline(task.id, now), opened.key)
        market = opened.market = self.fleet.markets.get(task.model) or ledger.market(task.model, at)
        market.tasks += 1
        if opened.batch is not None:
            ledger.batches.setdefault(task.model, {})[task.id] = opened.batch
            market.batches = len(ledger.batches[task.model])
            ledger.enqueue(opened, market, at, at)
            self._serving.market(market, at)
        else:
            self._single_submitted(opened, market, at)

    def _single_submitted(self, opened: OpenTask, market: Market, at: Micros) -> None:
        if not self._looking_after:
            self._looking_after = True
            self._ledger.at(at + LOOK_AFTER, self._look_after)
        started: bool | None = None
        if market.roomy and not market.line.waiting:
            started = self._singles.start_now(opened, market, at)
            if started:
                return
        self._ledger.enqueue(opened, market, at, at)
        if started is None and (market.roomy or not market.lanes):
            self._serving.newcomer(opened, market, at)
        elif started is None:  # the answer that it waits for brings us back, if it is not far off
            self._serving.crowded(market, at)

    def _fed(self, event: Fed, at: Micros) -> None:
        opened = self._ledger.concern = self.open.get(event.task)
        if opened is not None and opened.batch is not None:
            self._chunks.fed(opened, list(event.costs), event.closed, at)
            self._serving.model(opened.task.model, at)

    def _first_token(self, event: FirstToken, at: Micros) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is not None:
            self._ledger.concern = attempt.opened
            attempt.movable = event.movable
            if not attempt.started:
                attempt.started = True
                self._singles.begun(attempt.opened, attempt, at)
                self._slots.responds(attempt, at)

    def _responding(self, event: Responding, at: Micros) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is not None:
            self._ledger.concern = attempt.opened
            self._slots.responds(attempt, at)

    def _broken(self, event: Broken, at: Micros) -> None:
        opened = self.open.get(event.task)
        if opened is not None:
            self._recovery.expel(opened, fault_outcome(event.error), at)
            self._serving.all(at)

    def _cancelled(self, event: Cancelled, at: Micros) -> None:
        opened = self._ledger.concern = self.open.get(event.task)
        if opened is not None:
            self._hangs.suspect(opened, at)
            lanes = self._ledger.abort_all(opened, at)
            self._ledger.settle(opened, Outcome(How.LEFT, "the caller left"))
            self._serving.model(opened.task.model, at, lanes)

    def _deadline(self, task_id: int, at: Micros) -> None:
        opened = self._ledger.concern = self.open.get(task_id)
        if opened is not None:
            where = ", ".join(a.lane.node.key for a in opened.attempts.values())
            self._hangs.suspect(opened, at)
            lanes = self._ledger.abort_all(opened, at)
            message = f"no answer in {(at - opened.since) / SECOND:.1f} s"
            message += f" (running on {where})" if where else " (waiting for a free node)"
            self._ledger.settle(opened, Outcome(How.DEADLINE, message))
            self._serving.model(opened.task.model, at, lanes)

    # --- answers ----------------------------------------------------------------------------------------

    def _finished(self, event: Finished, at: Micros) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is None:  # aborted meanwhile
            return
        lane, opened = attempt.lane, attempt.opened
        self._ledger.concern = opened
        outcome = event.outcome
        if outcome.how is OK:
            outcome = true_outcome(outcome, at - attempt.started_us, attempt.cost)
        inflight = len(lane.attempts)
        began, before = attempt.started_us, lane.last_end_us
        busy_us = at - (began if began > before else before)
        self._ledger.end(attempt, at)
        lane.node.attempted += 1
        if opened.batch is not None and outcome.how is How.FAILED:
            lane.breaker.record(at, LEFT)  # its items are suspected first (`core.blame`)
        else:
            lane.record(at, outcome)
        if outcome.how is OK:
            self._credit.answered(attempt, outcome.timing, busy_us, inflight, at)
            if opened.batch is not None:
                self._chunks.answered(opened, attempt, at)
            else:
                self._singles.answered(opened, attempt, outcome, at)
        else:
            self._debit(attempt, outcome, at)
            self._failed(opened, attempt, outcome, at)
        if outcome.how is How.UNREACHABLE:  # other models of that node have lost work too
            self._serving.all(at)
            return
        if len(lane.node.lanes) > 1 and self._serving.others_wait(lane):
            self._serving.node(lane, outcome.how is OK, at)
        elif lane.market.line.waiting or self._ledger.batches or self._singles.copies.late:
            self._serving.market(lane.market, at, [lane] if outcome.how is OK else None)

    def _failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        if opened.batch is not None:
            self._chunks.failed(opened, attempt, outcome, at)
        else:
            self._singles.failed(opened, attempt, outcome, at)

    def _debit(self, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """A bad end. A fast failure must not look like a fast node: it is recorded as a slow answer."""
        lane = attempt.lane
        lane.unsettle()
        if outcome.how in (How.REFUSED, How.LEFT, How.UNABLE):
            return
        if outcome.how is How.OURS:
            self._ledger.pause(lane, at + OURS_PAUSE)
            return
        if outcome.how in (How.UNSUITED, How.LOCKED):
            self.fleet.learn_unable(lane.node, attempt.task, outcome, at)
            return
        lane.node.failed += 1
        lane.failed += 1
        lane.reliability.add(0.0)
        lane.penalised(at - attempt.started_us)
        if outcome.how in (How.BUSY, How.TIMEOUT):
            lane.sample(0.0, 0, 0, True, False)
        if outcome.how is How.BUSY:
            pause = self._ledger.retrier.again(attempt.task, outcome, min(lane.busy_answers, 6), at) or 0
            lane.busy_answers += 1
            if outcome.retry_us:  # the node knows better; "at once" would use up all tries in a few milliseconds
                pause = min(outcome.retry_us, RETRY_AFTER_MAX)
            self._ledger.pause(lane, at + pause)
        elif outcome.how is How.MISSING:
            self._ledger.forget_model(lane)
        elif outcome.how is How.UNREACHABLE:
            self._node_down(lane.node, outcome.message, at)

    # --- nodes ------------------------------------------------------------------------------------------

    def _node_added(self, event: NodeAdded, at: Micros) -> None:
        if event.endpoint.key not in self.fleet.nodes:
            self.fleet.nodes[event.endpoint.key] = node = NodeState(event.endpoint)
            node.faults.breaker = self._ledger.policies.breaker()
            self.health.added(node, at, self._ledger.out)

    def _node_removed(self, event: NodeRemoved, at: Micros) -> None:
        node = self.fleet.nodes.pop(event.node, None)
        self.fleet.unable.pop(event.node, None)
        if node is None:
            return
        node.up = False
        self._lose_attempts(node, Outcome(How.UNREACHABLE, "the node was removed"), at)
        for market in self.fleet.markets.values():
            market.drop(node.key)
        self._serving.all(at)

    def _node_seen(self, event: NodeSeen, at: Micros) -> None:
        node = self.fleet.nodes.get(event.node)
        if node is None:
            return
        came_up = node.up is not True
        if came_up or node.version != event.facts.version:
            node.unable.clear()
            self.fleet.unable.pop(node.key, None)
        changed = self.health.seen(node, event.facts, at)
        if event.facts.late:
            self._hangs.doubt(node, at)
        if came_up or changed:
            for market in self.fleet.markets.values():
                self._ledger.join(market, node)
                market.recount(at)
        self._serving.all(at)  # also those who have tried all others, and waited for this answer

    def _node_lost(self, event: NodeLost, at: Micros) -> None:
        node = self.fleet.nodes.get(event.node)
        if node is None:
            return
        if not event.certain and node.up:
            self._hangs.doubt(node, at)
        if self.health.lost(node, event.why, event.certain, at):
            if not event.certain and node.up:
                self._hangs.blame(node, at)
            self._node_down(node, event.why, at)
        self._serving.all(at)

    def _node_down(self, node: NodeState, why: str, at: Micros) -> None:
        if node.up is not False:
            self.health.down(node, why, at)
            self._lose_attempts(node, Outcome(How.UNREACHABLE, why), at)
            for lane in node.lanes.values():
                lane.market.recount(at)

    def _lose_attempts(self, node: NodeState, outcome: Outcome, at: Micros) -> None:
        """Give back what a lost node had; what cannot go on elsewhere is left to its own end."""
        for lane in node.lanes.values():
            for attempt in [a for a in lane.attempts.values() if a.movable]:
                if attempt.id in self.attempts:  # else its batch was given up meanwhile
                    self._lose(attempt, outcome, at)

    def _lose(self, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        self._ledger.concern = attempt.opened
        try:
            self._ledger.abort(attempt, at)
            self._failed(attempt.opened, attempt, outcome, at)
        except Exception as error:  # of this call: the node had others, too
            self._ledger.recover(error, at)

    def _tick(self, event: Tick, at: Micros) -> None:
        self._wake_at = NEVER
        self._ledger.run_timers(at)
        self._ledger.concern = None
        for attempt in self.health.tick(at, busy=bool(self.open), out=self._ledger.out):
            self._ledger.concern = attempt.opened
            self._overdue(attempt, at)

    def _look_after(self, at: Micros) -> None:
        self._looking_after = any(opened.batch is None for opened in self.open.values())
        if self._looking_after:
            self._ledger.at(at + LOOK_AFTER, self._look_after)
            for attempt in self._hangs.look_after(at):
                self._ledger.concern = attempt.opened
                outcome = Outcome(How.TIMEOUT, "silent far beyond what was predicted")
                attempt.lane.breaker.record(at, outcome)
                self._debit(attempt, outcome, at)
            self._ledger.concern = None
            for model in self.forecast.models_waited_for():
                self._singles.load_ahead(model, LOOK_AFTER, at)
                self._serving.unblock(model, at)

    def _silent(self, event: Silent, at: Micros) -> None:
        for attempt, why in self._stalls.judge(event.streams, at):
            if attempt.id in self.attempts:
                self._ledger.concern = attempt.opened
                outcome = Outcome(How.TIMEOUT, why)
                attempt.lane.breaker.trip(at)
                self._debit(attempt, outcome, at)
                self._hangs.move(attempt, outcome, at)
                self._serving.market(attempt.lane.market, at)

    def _overdue(self, attempt: Attempt, at: Micros) -> None:
        why = f"no answer in {(at - attempt.started_us) / SECOND:.1f} s, far beyond what was predicted"
        outcome = Outcome(How.TIMEOUT, why)
        attempt.lane.breaker.record(at, outcome)
        self._debit(attempt, outcome, at)
        if attempt.id in self.attempts:
            self._ledger.abort(attempt, at)
            self._failed(attempt.opened, attempt, outcome, at)
        self._serving.market(attempt.lane.market, at)
