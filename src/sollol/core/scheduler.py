"""The scheduler: events in, actions out. No clock, no I/O, no global dice; the only writer of the fleet's state.

Late binding: a task waits in its model's line until a node has a free slot, and the choice is made then, with that
moment's knowledge. Batches stand in the same line and are cut into chunks as slots free; when nothing waits, an
idle node takes over what is expected to finish last (`core.tail`). Every task ends in exactly one Settle.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any

from sollol.core import tail
from sollol.core.batch import Batch, Piece, joined
from sollol.core.endpoint import Endpoint
from sollol.core.fleet import Attempt, Fleet, Lane, Market, NodeState
from sollol.core.health import Health
from sollol.core.messages import (
    Abort,
    Accept,
    Action,
    Cancelled,
    Event,
    Fed,
    Finished,
    FirstToken,
    NodeAdded,
    NodeLost,
    NodeRemoved,
    NodeSeen,
    Refuse,
    Settle,
    Start,
    Submitted,
    Tick,
    WakeAt,
    Want,
)
from sollol.core.policy import Again, BatchView, Policies
from sollol.core.queue import WaitingLine
from sollol.core.types import (
    SECOND,
    Decision,
    How,
    Kind,
    Micros,
    Outcome,
    Ranges,
    Task,
    Timing,
)

QUEUE_BOUND = 10_000  # waiting tasks; a caller beyond it is told, rather than left to wait for ever
LOOKAHEAD = 64  # waiting tasks considered for a free slot when the first ones rather wait for a busy node
PATIENCE: Micros = 10 * SECOND  # a batch outlives a restart of its only node
FEED_AHEAD: Micros = 2 * SECOND  # keep this much work waiting for a batch that is fed from an iterator
FEED_LEAST = 256
HOPELESS = 24  # failures in a row before a batch that never succeeded is given up
WARM_LOAD: Micros = SECOND // 10  # Ollama reports 1 to 7 ms of loading for a warm model

TRANSIENT = frozenset({How.BUSY, How.FAILED, How.TIMEOUT, How.UNREACHABLE, How.MISSING})


class OpenTask:
    """A task that is not settled yet."""

    __slots__ = ("attempts", "batch", "busy", "since", "task", "tried", "tries")

    def __init__(self, task: Task, at: Micros) -> None:
        self.task = task
        self.since = at
        self.batch = Batch(task) if task.batch else None
        self.attempts: dict[int, Attempt] = {}
        self.tried: dict[str, str] = {}  # node -> why it failed
        self.tries = 0
        self.busy = 0


class Scheduler:
    """`handle(event, at)` returns what is to be done; `at` never goes back."""

    def __init__(self, policies: Policies, rng: random.Random, queue_bound: int = QUEUE_BOUND) -> None:
        self.policies = policies
        self.rng = rng
        self.queue_bound = queue_bound
        self.fleet = Fleet()
        self.open: dict[int, OpenTask] = {}
        self.lines: dict[str, WaitingLine] = {}
        self.batches: dict[str, dict[int, Batch]] = {}  # open ones, by model
        self.attempts: dict[int, Attempt] = {}
        self.health = Health(self.fleet)
        self._out: list[Action] = []
        self._serial = 0
        self._timers: list[tuple[Micros, int, Callable[[Micros], None]]] = []
        self._wake_at: Micros | None = None
        self._handlers: dict[type, Callable[[Any, Micros], None]] = {
            Submitted: self._submitted,
            Fed: self._fed,
            FirstToken: self._first_token,
            Finished: self._finished,
            Cancelled: self._cancelled,
            NodeAdded: self._node_added,
            NodeRemoved: self._node_removed,
            NodeSeen: self._node_seen,
            NodeLost: self._node_lost,
            Tick: self._tick,
        }

    def handle(self, event: Event, at: Micros) -> list[Action]:
        out: list[Action] = []
        self._out = out
        self._handlers[type(event)](event, at)
        self._ask_for_wake()
        return out

    # --- callers ----------------------------------------------------------------------------------------

    def _submitted(self, event: Submitted, at: Micros) -> None:
        task = event.task
        opened = self.open[task.id] = OpenTask(task, at)
        line = self._line(task.model)
        if self.waiting() >= self.queue_bound:
            self._settle(opened, Outcome(How.QUEUE_FULL, f"{self.queue_bound} tasks are waiting already"))
            return
        self.policies.retrier.deposit(task)
        self.health.touched(at, self._out)
        if task.deadline_us is not None:
            self._at(task.deadline_us, lambda now: self._deadline(task.id, now))
        if opened.batch is not None:
            self.batches.setdefault(task.model, {})[task.id] = opened.batch
        line.push(task.id, task.priority, at)
        self._market(task.model, at)
        self._serve(task.model, at)

    def _fed(self, event: Fed, at: Micros) -> None:
        opened = self.open.get(event.task)
        if opened is None or opened.batch is None:
            return
        batch = opened.batch
        had_pending = batch.pending_count > 0
        batch.feed(event.costs, event.closed)
        if self._ended(opened):
            return
        if batch.pending_count and not had_pending and event.task not in self._line(opened.task.model):
            self._line(opened.task.model).push(event.task, opened.task.priority, at)
        self._serve(opened.task.model, at)

    def _first_token(self, event: FirstToken, at: Micros) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is not None:
            attempt.started = True

    def _cancelled(self, event: Cancelled, at: Micros) -> None:
        opened = self.open.get(event.task)
        if opened is not None:
            lanes = self._abort_all(opened, at)
            self._settle(opened, Outcome(How.LEFT, "the caller left"))
            self._serve(opened.task.model, at, lanes)

    def _deadline(self, task_id: int, at: Micros) -> None:
        opened = self.open.get(task_id)
        if opened is not None:
            where = ", ".join(a.lane.node.key for a in opened.attempts.values())
            lanes = self._abort_all(opened, at)
            message = f"no answer in {(at - opened.since) / SECOND:.1f} s"
            message += f" (running on {where})" if where else " (waiting for a free node)"
            self._settle(opened, Outcome(How.DEADLINE, message))
            self._serve(opened.task.model, at, lanes)

    # --- answers ----------------------------------------------------------------------------------------

    def _finished(self, event: Finished, at: Micros) -> None:
        attempt = self.attempts.get(event.attempt)
        if attempt is None:  # aborted meanwhile
            return
        outcome = event.outcome
        lane, opened = attempt.lane, self.open[attempt.task.id]
        inflight = len(lane.attempts)
        busy_us = at - max(attempt.started_us, lane.last_end_us)
        self._end(attempt, at)
        lane.node.attempted += 1
        lane.breaker.record(at, outcome)
        if outcome.how is How.OK:
            self._credit(attempt, outcome.timing, busy_us, inflight, at)
        else:
            self._debit(attempt, outcome, at)
        if opened.batch is not None:
            self._chunk_ended(opened, attempt, outcome, at)
        elif outcome.how is How.OK:
            self._settle(opened, outcome, attempt.id)
        else:
            self._failed(opened, attempt, outcome, at)
        if outcome.how is How.UNREACHABLE:  # other models of that node have lost work too
            self._serve_all(at)
        else:
            self._serve(lane.model, at, (lane,) if outcome.how is How.OK else None)

    def _credit(self, attempt: Attempt, timing: Timing, busy_us: Micros, inflight: int, at: Micros) -> None:
        """A good answer: what it tells of rates and slots. `last_end_us` still is that of the answer before."""
        lane = attempt.lane
        loading = timing.load_us if timing.load_us > WARM_LOAD else 0
        working_us = max(1, busy_us - loading)
        lane.node.succeeded += 1
        lane.busy_answers = 0
        lane.latency.add(at - attempt.started_us)
        if attempt.task.kind is Kind.EMBED:
            lane.measured_work(at, attempt.cost, working_us)
            amount = attempt.cost
        else:
            lane.measured_tokens(timing)
            amount = float(timing.tokens + timing.prompt_tokens) or attempt.cost
        lane.measured_load(timing, WARM_LOAD)
        lane.answers += 1
        lane.embedded += attempt.items.total()
        if not loading:
            lane.limiter.sample(amount, working_us, inflight, False)

    def _debit(self, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """A bad end. A fast failure must not look like a fast node: it is recorded as a slow answer."""
        lane = attempt.lane
        if outcome.how in (How.REFUSED, How.LEFT):
            return
        lane.node.failed += 1
        lane.failed += 1
        lane.latency.add(max(at - attempt.started_us, 2 * (lane.latency.read() or SECOND)))
        if outcome.how in (How.BUSY, How.TIMEOUT):
            lane.limiter.sample(0.0, 0, 0, True)
        if outcome.how is How.BUSY:
            pause = self.policies.retrier.again(attempt.task, outcome, min(lane.busy_answers, 6), at) or 0
            lane.busy_answers += 1
            self._pause(lane, at + pause)
        elif outcome.how is How.MISSING:
            self._forget_model(lane)
        elif outcome.how is How.UNREACHABLE:
            self._node_down(lane.node, outcome.message, at)

    def _failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """A single task's attempt failed: another node, the line, or the end."""
        task = opened.task
        if outcome.how not in TRANSIENT or attempt.started:
            self._settle(opened, outcome, attempt.id)
            return
        if outcome.how is How.BUSY:
            opened.busy += 1
            tries = opened.busy
        else:
            opened.tries += 1
            tries = opened.tries
            opened.tried[attempt.lane.node.key] = _why(outcome)
        if self.policies.retrier.again(task, outcome, tries, at) is None:
            opened.tried.setdefault(attempt.lane.node.key, _why(outcome))
            self._settle(opened, self._no_node(opened, "every attempt failed"), tried=True)
            return
        self._line(task.model).push(task.id, task.priority, opened.since)

    def _chunk_ended(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        batch = opened.batch
        assert batch is not None
        if outcome.how is How.OK:
            fresh, idle = batch.accept(attempt)
            batch.failures_in_a_row = 0
            if fresh:
                self._out.append(Accept(opened.task.id, attempt.id, fresh))
            for loser in idle:
                batch.drop(loser)
                self._overtaken(loser, at)
                self._abort(loser, at)
            batch.forget()
        else:
            self._chunk_failed(opened, batch, attempt, outcome, at)
        self._ended(opened)

    def _overtaken(self, loser: Attempt, at: Micros) -> None:
        """Its items came from elsewhere. If it was overdue that tells of its node: it is slower than was thought."""
        if at > loser.due_us:
            loser.lane.work.add(0, at - max(loser.started_us, loser.lane.last_end_us))
            loser.lane.breaker.record(at, Outcome(How.TIMEOUT))
            self.health.ask(loser.lane.node, at, self._out)

    def _chunk_failed(self, opened: OpenTask, batch: Batch, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        orphans = batch.drop(attempt)
        batch.last_failure = outcome
        transient = outcome.how in TRANSIENT
        if outcome.how is How.REFUSED and not batch.answered:
            batch.refused_alone += attempt.items.total() == 1
            # Every item so far, alone, was refused in so many words: it is the call that is wrong, not an item.
            if outcome.status not in (400, 413, 422, 500) or batch.refused_alone >= 8:
                self._give_up(opened, outcome, at)
                return
        if outcome.how is How.FAILED:
            batch.failures_in_a_row += 1
            if not batch.answered and batch.failures_in_a_row >= HOPELESS:
                self._give_up(opened, outcome, at)
                return
        if not orphans:
            return
        counts = outcome.how not in (How.BUSY, How.MISSING, How.UNREACHABLE)
        tries = attempt.tries + counts
        failed_on = attempt.failed_on | {attempt.lane.node.key} if transient and counts else attempt.failed_on
        match self.policies.batcher.again(outcome, tries, orphans.total()):
            case Again.REFUSE:
                batch.refused += orphans.total()
                self._out.append(Refuse(opened.task.id, orphans, outcome))
            case Again.RETRY:
                batch.put_back(Piece(orphans, tries, failed_on, alone=tries > 1))
            case Again.SPLIT:
                items = orphans.items()
                middle = len(items) // 2
                for half in (items[middle:], items[:middle]):
                    batch.put_back(Piece(joined(half), 0 if not transient else 2, frozenset(), alone=True))
        self._enqueue_batch(opened, attempt.started_us)

    def _enqueue_batch(self, opened: OpenTask, at: Micros) -> None:
        batch = opened.batch
        if batch is not None and batch.pending_count and opened.task.id not in self._line(opened.task.model):
            self._line(opened.task.model).push(opened.task.id, opened.task.priority, at)

    # --- nodes ------------------------------------------------------------------------------------------

    def _node_added(self, event: NodeAdded, at: Micros) -> None:
        endpoint: Endpoint = event.endpoint
        if endpoint.key in self.fleet.nodes:
            return
        self.fleet.nodes[endpoint.key] = node = NodeState(endpoint)
        self.health.ask(node, at, self._out)

    def _node_removed(self, event: NodeRemoved, at: Micros) -> None:
        node = self.fleet.nodes.pop(event.node, None)
        if node is None:
            return
        node.up = False
        self._lose_attempts(node, Outcome(How.UNREACHABLE, "the node was removed"), at)
        for market in self.fleet.markets.values():
            market.lanes.pop(node.key, None)
        self._serve_all(at)

    def _node_seen(self, event: NodeSeen, at: Micros) -> None:
        node = self.fleet.nodes.get(event.node)
        if node is None:
            return
        came_up = node.up is not True
        changed = self.health.seen(node, event.facts, at)
        if came_up or changed:
            for market in self.fleet.markets.values():
                self._join(market, node)
                market.recount(at)
        for model in [m for m, line in self.lines.items() if line]:
            if came_up or changed or not self.fleet.markets[model].usable(at):
                self._serve(model, at)

    def _node_lost(self, event: NodeLost, at: Micros) -> None:
        node = self.fleet.nodes.get(event.node)
        if node is None:
            return
        if self.health.lost(node, event.why, event.certain, at):
            self._node_down(node, event.why, at)
        self._serve_all(at)

    def _node_down(self, node: NodeState, why: str, at: Micros) -> None:
        if node.up is not False:
            self.health.down(node, why, at)
            self._lose_attempts(node, Outcome(How.UNREACHABLE, why), at)
            for lane in node.lanes.values():
                lane.market.recount(at)

    def _lose_attempts(self, node: NodeState, outcome: Outcome, at: Micros) -> None:
        """Give back what a lost node had; a stream that its caller already reads is left to its own end."""
        for lane in node.lanes.values():
            for attempt in [a for a in lane.attempts.values() if not a.started]:
                if attempt.id not in self.attempts:  # its batch was given up meanwhile
                    continue
                self._abort(attempt, at)
                opened = self.open[attempt.task.id]
                if opened.batch is not None:
                    self._chunk_ended(opened, attempt, outcome, at)
                else:
                    self._failed(opened, attempt, outcome, at)

    def _join(self, market: Market, node: NodeState) -> None:
        """Give the node a lane in this market if it has the model, take it away if it no longer has."""
        lane = node.lanes.get(market.model)
        if market.model in node.models:
            if lane is None:
                lane = Lane(node, market, self.policies.limiter(), self.policies.breaker())
                node.lanes[market.model] = lane
            market.lanes[node.key] = lane
        elif lane is not None:
            self._forget_model(lane)

    def _forget_model(self, lane: Lane) -> None:
        lane.market.lanes.pop(lane.node.key, None)
        if lane.model in lane.node.models:
            lane.node.models = {m: size for m, size in lane.node.models.items() if m != lane.model}

    # --- time -------------------------------------------------------------------------------------------

    def _tick(self, event: Tick, at: Micros) -> None:
        self._wake_at = None
        while self._timers and self._timers[0][0] <= at:
            heapq.heappop(self._timers)[2](at)
        for attempt in self.health.tick(at, busy=bool(self.open), out=self._out):
            self._overdue(attempt, at)

    def _overdue(self, attempt: Attempt, at: Micros) -> None:
        seconds = (at - attempt.started_us) / SECOND
        outcome = Outcome(How.TIMEOUT, f"no answer in {seconds:.1f} s, far beyond what was predicted")
        attempt.lane.breaker.record(at, outcome)
        self._debit(attempt, outcome, at)
        if attempt.id in self.attempts:
            self._abort(attempt, at)
            self._chunk_ended(self.open[attempt.task.id], attempt, outcome, at)
        self._serve(attempt.lane.model, at)

    def _at(self, when: Micros, then: Callable[[Micros], None]) -> None:
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, then))

    def _ask_for_wake(self) -> None:
        due = self.health.next_at
        if self._timers and (due is None or self._timers[0][0] < due):
            due = self._timers[0][0]
        if due is not None and (self._wake_at is None or due < self._wake_at):
            self._wake_at = due
            self._out.append(WakeAt(due))

    def _pause(self, lane: Lane, until: Micros) -> None:
        lane.paused_until = max(lane.paused_until, until)
        self._at(until, lambda now: self._serve(lane.model, now))

    # --- serving ----------------------------------------------------------------------------------------

    def _serve_all(self, at: Micros) -> None:
        for model in [m for m, line in self.lines.items() if line]:
            self._serve(model, at)

    def _serve(self, model: str, at: Micros, freed: Iterable[Lane] | None = None) -> None:
        """Bind waiting work of a model to free slots. `freed`: only these lanes can have changed."""
        line = self.lines.get(model)
        market = self.fleet.markets.get(model)
        if line is None or market is None:
            return
        only = None if freed is None else list(freed)
        while (head := line.peek()) is not None:
            if not self._serve_task(head, market, {}, only, at):
                continue
            # The first one rather waits: those behind it may take what it leaves.
            ahead: dict[str, Micros] = {}
            for task in line.first(LOOKAHEAD):
                if not any(lane.free(at) for lane in market.lanes.values()):
                    break
                if task in line:
                    self._serve_task(task, market, ahead, only, at)
            break
        for batch in list(self.batches.get(model, {}).values()):
            if batch.live and not batch.pending_count:
                tail.take_over(self, batch, market, at)

    def _serve_task(
        self, task: int, market: Market, ahead: dict[str, Micros], only: list[Lane] | None, at: Micros
    ) -> bool:
        """Bind what can be bound; True if the task still waits."""
        opened = self.open[task]
        line = self._line(market.model)
        if opened.batch is not None:
            self._serve_batch(opened, opened.batch, market, only, at)
        elif self._serve_single(opened, market, ahead, at):
            line.remove(task)
        return task in line

    def _serve_single(self, opened: OpenTask, market: Market, ahead: dict[str, Micros], at: Micros) -> bool:
        """True if the task left the line: started, or settled for want of any node."""
        lanes = [lane for lane in market.lanes.values() if lane.node.key not in opened.tried]
        admitted = [lane for lane in lanes if lane.usable(at)]
        if not admitted:
            # A node behind an open breaker is still better than no answer, if nothing else is left.
            admitted = [lane for lane in lanes if lane.node.usable and not lane.attempts]
        if not admitted:
            if self._may_yet_come(opened, at):
                return False
            self._settle(opened, self._no_node(opened, "no node can serve it"), tried=True)
            return True
        decision = self.policies.router.choose(opened.task, admitted, ahead, at, self.rng)
        lane = market.lanes[decision.node]
        if lane.free(at) or (not lane.attempts and not lane.breaker.admits(at)):
            self._start(opened, lane, opened.task.cost, decision, at)
            return True
        own = sum(t.us for c in decision.candidates if c.node == decision.node for t in c.terms if t.name != "wait")
        ahead[decision.node] = ahead.get(decision.node, 0) + (own or decision.predicted_us)
        return False

    def _serve_batch(self, opened: OpenTask, batch: Batch, market: Market, only: list[Lane] | None, at: Micros) -> None:
        width = opened.task.width
        if batch.closed and batch.pending_count <= 2 * len(market.lanes):
            only = None  # so little is left that it matters who else is idle
        lanes = market.usable(at) if only is None or width else [lane for lane in only if lane.usable(at)]
        if not lanes and (only is None or not market.usable(at)):
            self._no_lane(opened, batch, at)
            return
        batch.stuck_since = None
        per_lane = -(-width // len(lanes)) if width else 0
        fruitless: set[str] = set()
        while batch.pending_count:
            free = [
                lane
                for lane in lanes
                if lane.node.key not in fruitless
                and (lane.free(at) or (width and len(lane.attempts) < per_lane and lane.usable(at)))
            ]
            if not free or (width and len(batch.live) >= width):
                break
            for lane in sorted(free, key=lambda lane: len(lane.attempts)):
                if width and len(batch.live) >= width:
                    break
                if not self._cut(opened, batch, market, lane, at):
                    fruitless.add(lane.node.key)
        if batch.pending_count and not batch.live and only is not None:
            # Those that were asked leave it to others, and no event will come to ask these: ask them now.
            self._serve_batch(opened, batch, market, None, at)
            return
        self._after_cutting(opened, batch, market, at)

    def _cut(self, opened: OpenTask, batch: Batch, market: Market, lane: Lane, at: Micros) -> bool:
        if not batch.pending_count:
            return False
        view = BatchView(
            pending_cost=batch.pending_cost,
            pending_count=batch.pending_count,
            inflight_cost=market.inflight_cost,
            closed=batch.closed,
            lane_rate=lane.work.read(),
            lane_backlog=lane.backlog(at),
            lane_startup_us=lane.startup_us(),
            slots=opened.task.width or lane.limiter.limit,
            total_rate=market.total_rate,
            best_rate=market.best_rate,
            lanes=len(market.lanes),
        )
        cost, count = self.policies.batcher.item_budget(view)
        if count == 0 and batch.live:  # the others do it sooner; if there are none, nobody else would
            return False
        others = lambda: frozenset(other.node.key for other in market.usable(at))  # noqa: E731
        cut = batch.cut(lane.node.key, max(cost, 1), max(count, 1), others)
        if cut is None:
            return False
        ranges, piece = cut
        attempt = self._start_chunk(opened, batch, lane, ranges, view.lane_backlog, at)
        attempt.tries, attempt.failed_on = piece.tries, piece.failed_on
        batch.begin(attempt, ranges)
        return True

    def _after_cutting(self, opened: OpenTask, batch: Batch, market: Market, at: Micros) -> None:
        task = opened.task
        line = self._line(task.model)
        line.remove(task.id)
        if batch.pending_count:
            line.push(task.id, task.priority, at)
            self._wake_for_lanes(market, at)
        if not batch.closed:
            mean = max(1.0, batch.costs.total / max(1, batch.costs.end))
            want = max(FEED_LEAST, round(market.total_rate * FEED_AHEAD / mean))
            if batch.pending_count < want and batch.wanted_upto <= batch.costs.end:
                batch.wanted_upto = batch.costs.end + 1
                self._out.append(Want(task.id, 2 * want - batch.pending_count))

    def _wake_for_lanes(self, market: Market, at: Micros) -> None:
        """Work waits and no event may come: look again when the first breaker admits a trial."""
        if any(lane.attempts for lane in market.lanes.values()):
            return
        times = [lane.breaker.retry_at() for lane in market.lanes.values() if lane.node.usable]
        due = min((t for t in times if t is not None and t > at), default=None)
        if due is not None:
            self._at(due, lambda now: self._serve(market.model, now))

    def start_takeover(self, victim: Attempt, lane: Lane, ranges: Ranges, at: Micros) -> None:
        """Let an idle lane try items that `victim` has under way (called by `core.tail`)."""
        opened = self.open[victim.task.id]
        assert opened.batch is not None
        attempt = self._start_chunk(
            opened, opened.batch, lane, ranges, 0.0, at, f"takes over from {victim.lane.node.key}"
        )
        opened.batch.contest(attempt, victim, ranges)

    def wake(self, model: str, when: Micros) -> None:
        self._at(when, lambda now: self._serve(model, now))

    def _start_chunk(
        self,
        opened: OpenTask,
        batch: Batch,
        lane: Lane,
        ranges: Ranges,
        backlog: float,
        at: Micros,
        reason: str = "free slot",
    ) -> Attempt:
        cost = batch.cost_of(ranges)
        rate = lane.work.read() or lane.market.total_rate / max(1, len(lane.market.lanes))
        predicted = lane.startup_us() + round((backlog + cost) / rate) if rate else 5 * SECOND
        decision = Decision(lane.node.key, predicted, reason)
        return self._start(opened, lane, cost, decision, at, ranges)

    def _start(
        self,
        opened: OpenTask,
        lane: Lane,
        cost: float,
        decision: Decision,
        at: Micros,
        ranges: Ranges | None = None,
    ) -> Attempt:
        self._serial += 1
        attempt = Attempt(self._serial, opened.task, lane, cost, at, at + decision.predicted_us, decision)
        self.attempts[attempt.id] = opened.attempts[attempt.id] = attempt
        lane.add(attempt)
        lane.breaker.begin(at)
        self._out.append(Start(attempt.id, opened.task.id, lane.node.key, decision, ranges))
        return attempt

    # --- endings ----------------------------------------------------------------------------------------

    def _end(self, attempt: Attempt, at: Micros) -> None:
        del self.attempts[attempt.id]
        self.open[attempt.task.id].attempts.pop(attempt.id, None)
        attempt.lane.remove(attempt)
        attempt.lane.last_end_us = at

    def _abort(self, attempt: Attempt, at: Micros) -> None:
        self._end(attempt, at)
        attempt.lane.breaker.record(at, Outcome(How.LEFT))
        self._out.append(Abort(attempt.id))

    def _abort_all(self, opened: OpenTask, at: Micros) -> list[Lane]:
        attempts = list(opened.attempts.values())
        for attempt in attempts:
            self._abort(attempt, at)
        return [attempt.lane for attempt in attempts]

    def _ended(self, opened: OpenTask) -> bool:
        if opened.task.id in self.open and opened.batch is not None and opened.batch.done:
            self._settle(opened, Outcome(How.OK))
            return True
        return opened.task.id not in self.open

    def _give_up(self, opened: OpenTask, outcome: Outcome, at: Micros) -> None:
        self._abort_all(opened, at)
        self._settle(opened, outcome)

    def _settle(self, opened: OpenTask, outcome: Outcome, attempt: int | None = None, tried: bool = False) -> None:
        task = opened.task
        del self.open[task.id]
        self._line(task.model).remove(task.id)
        if opened.batch is not None:
            self.batches.get(task.model, {}).pop(task.id, None)
        reasons = tuple(self._reasons(opened)) if tried else ()
        self._out.append(Settle(task.id, outcome, attempt, reasons))

    def _no_lane(self, opened: OpenTask, batch: Batch, at: Micros) -> None:
        """No node can take any of this batch now: wait for one that may come, but not for ever."""
        if batch.stuck_since is None:
            batch.stuck_since = at
            opened.since = at
        if self._may_yet_come(opened, at):
            return
        waited = at - batch.stuck_since
        hope = any(lane.node.succeeded for lane in self._market(opened.task.model, at).lanes.values())
        if hope and waited < PATIENCE:
            self._at(batch.stuck_since + PATIENCE, lambda now: self._serve(opened.task.model, now))
            self._wake_for_lanes(self._market(opened.task.model, at), at)
            return
        self._settle(opened, self._no_node(opened, "no node can take the rest of the batch"), tried=True)

    def _may_yet_come(self, opened: OpenTask, at: Micros) -> bool:
        """Facts older than the task decide nothing: ask every node again before giving up."""
        pending = False
        for node in self.fleet.nodes.values():
            if node.asked_us < opened.since and node.key not in opened.tried:
                self.health.ask(node, at, self._out)
            pending = pending or (node.probing and node.key not in opened.tried)
        return pending

    def _no_node(self, opened: OpenTask, message: str) -> Outcome:
        return Outcome(How.NO_NODE, message)

    def _reasons(self, opened: OpenTask) -> Iterable[tuple[str, str]]:
        model = opened.task.model
        for node in self.fleet.nodes.values():
            if node.key in opened.tried:
                yield node.key, opened.tried[node.key]
            elif node.up is not True:
                yield node.key, node.lost_why
            elif model not in node.models:
                have = ", ".join(sorted(node.models)) or "no models"
                yield node.key, f"does not have {model}; it has {have}"
            else:
                yield node.key, "not tried"

    # --- reading ----------------------------------------------------------------------------------------

    def invariants(self) -> None:
        """What must hold between events; tests check it after every one. Raises AssertionError."""
        for lane in (lane for node in self.fleet.nodes.values() for lane in node.lanes.values()):
            assert all(self.attempts.get(a.id) is a for a in lane.attempts.values()), f"{lane} has a stray attempt"
            assert abs(lane.cost_inflight - sum(a.cost for a in lane.attempts.values())) < 1, f"{lane}: cost"
        for attempt in self.attempts.values():
            assert attempt.id in attempt.lane.attempts
            assert attempt.task.id in self.open, f"{attempt} outlives its task"
        for opened in self.open.values():
            line, task = self._line(opened.task.model), opened.task
            assert set(opened.attempts) <= set(self.attempts)
            if opened.batch is None:
                assert (task.id in line) != bool(opened.attempts), f"task {task.id} neither waits nor runs, or both"
            else:
                opened.batch.invariants(task.id in line)
        assert self.waiting() <= len(self.open)

    def waiting(self) -> int:
        return sum(len(line) for line in self.lines.values())

    def _line(self, model: str) -> WaitingLine:
        line = self.lines.get(model)
        if line is None:
            line = self.lines[model] = WaitingLine()
        return line

    def _market(self, model: str, at: Micros) -> Market:
        market = self.fleet.markets.get(model)
        if market is None:
            market = self.fleet.markets[model] = Market(model)
            for node in self.fleet.nodes.values():
                self._join(market, node)
            market.recount(at)
        return market


def _why(outcome: Outcome) -> str:
    return outcome.message or outcome.how.value
