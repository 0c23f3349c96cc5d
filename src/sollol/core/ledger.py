"""The ledger of the scheduler: what is open, what runs where, what waits, and what is to happen later.

It decides nothing. `core.singles` and `core.chunks` decide and write here; `core.scheduler` hears the events.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from sollol.core.attempt import Attempt
from sollol.core.batch import Batch
from sollol.core.bounds import forget_model
from sollol.core.digests import short
from sollol.core.fleet import Fleet, NodeState
from sollol.core.health import Health
from sollol.core.lane import Lane
from sollol.core.market import Market
from sollol.core.messages import Abort, Action, Settle, Start
from sollol.core.policy import Hedger, Policies
from sollol.core.prefill import taken_until
from sollol.core.queue import Shares, WaitingLine
from sollol.core.ranges import Ranges
from sollol.core.types import EMBED, MILLISECOND, NEVER, Decision, How, Key, Micros, Outcome, Task

# A call whose answer has not begun after SLOT_LEAST and SLOT_TIMES its predicted first token waits for a slot.
SLOT_LEAST: Final[Micros] = 30 * MILLISECOND
SLOT_TIMES: Final = 3
SLOT_BELIEVED: Final[Micros] = 100 * MILLISECOND  # at least, for a slot that is proven

TIMERS: Final = 4_096  # kept without a look; beyond, those of settled tasks go when they are most
TIMERS_EACH: Final = 4
LEFT: Final = Outcome(How.LEFT)

if TYPE_CHECKING:
    from sollol.core.verdict import Verdict


class Claim:
    """What a waiting task waits for: a busy lane where it should finish sooner than on any that is free."""

    __slots__ = ("decision", "finish_us", "free_us", "lane", "own_us", "rival_us")

    def __init__(self, lane: Lane, decision: Decision, free_us: Micros, own_us: Micros, at: Micros) -> None:
        self.lane = lane
        self.decision = decision
        self.free_us = free_us  # when the lane should have a slot
        self.own_us = own_us  # that the task takes there
        self.finish_us = at + decision.predicted_us
        scores = sorted(decision.scores)
        self.rival_us = at + scores[1] if len(scores) > 1 else float(NEVER)  # when it would finish on the second best


class OpenTask:
    """A task that is not settled yet."""

    __slots__ = (
        "attempts",
        "batch",
        "begun",
        "busy",
        "claim",
        "hedger",
        "key",
        "market",
        "restarts",
        "since",
        "task",
        "tokens",
        "tried",
        "tries",
        "tries_here",
        "verdict",
        "waits_for",
    )

    def __init__(self, task: Task, at: Micros) -> None:
        self.task = task
        self.key: Key = task.id
        self.market: Market | None = None
        self.since = at
        self.batch = Batch(task) if task.batch else None
        self.attempts: dict[Key, Attempt] = {}
        self.tried: dict[str, str] = {}  # node -> why it failed
        self.busy: set[str] | None = None  # nodes that were busy: others first
        self.tries = 0
        self.tries_here = 0  # that ended before a node was asked
        self.verdict: Verdict | None = None  # what may be passed on if no node is left
        self.restarts = 0  # late attempts that were sent to the same node anew
        self.begun = False  # its caller has seen a part of the answer
        self.tokens = 0.0  # that its application was charged for it
        self.hedger: Hedger | None = None  # who decides on second copies, if it may have any
        self.claim: Claim | None = None
        self.waits_for: Lane | None = None  # the replica that it would rather wait for than start on another

    def wait_for(self, lane: Lane | None) -> Lane | None:
        """Set the replica that it waits for; returns the one before, if that is no longer waited for by anybody."""
        before = self.waits_for
        if before is lane:
            return None
        if lane is not None:
            lane.waiters += 1
        self.waits_for = lane
        if before is None:
            return None
        before.waiters -= 1
        return None if before.waiters else before

    def avoids(self) -> set[str]:
        """Nodes that it does not go to as long as there are others."""
        return {*self.tried, *(self.busy or ())}


class Ledger:
    def __init__(self, policies: Policies, rng: random.Random) -> None:
        self.use(policies)
        self.rng = rng
        self.fleet = Fleet()
        self.health = Health(self.fleet)
        self.open: dict[Key, OpenTask] = {}
        self.attempts: dict[Key, Attempt] = {}
        self.lines: dict[str, WaitingLine] = {}
        self.shares = Shares()
        self.batches: dict[str, dict[int, Batch]] = {}  # open ones, by model
        self.out: list[Action] = []
        self.now: Micros = 0  # the moment of the event that is being handled, or was handled last
        self.serve: Callable[[str, Micros], None] = _nobody
        self.unanswered: Callable[[Attempt, Micros], None] = _unanswered
        self.recover: Callable[[Exception, Micros], None] = _not_recovered
        self.concern: OpenTask | None = None  # that is being handled: what a fault would settle
        self._serial = 0
        self._timers: list[tuple[Micros, int, Callable[[Micros], None], Key]] = []
        self.next_at: Micros = NEVER  # the first of them

    def use(self, policies: Policies) -> None:
        self.policies = policies
        # Every task asks these three: compiled, a field of a tuple is looked up by its name.
        self.router, self.retrier, self.hedger = policies.router, policies.retrier, policies.hedger

    # --- attempts and tasks ---

    def start(
        self,
        opened: OpenTask,
        lane: Lane,
        cost: float,
        decision: Decision,
        at: Micros,
        ranges: Ranges | None = None,
    ) -> Attempt:
        self._serial = id = self._serial + 1
        task = opened.task
        attempt = Attempt(id, task, lane, cost, at, at + decision.predicted_us, decision)
        attempt.opened = opened
        attempt.resumed = opened.begun
        self.attempts[attempt.key] = opened.attempts[attempt.key] = attempt
        if opened.waits_for is not None:
            opened.wait_for(None)
        same_options = task.options == lane.options or not lane.answers
        lane.add(attempt)
        observe = False
        if task.kind is not EMBED:
            attempt.behind = behind = at < lane.left_until
            observe = (attempt.trial or behind) and task.observable and not task.stream
            attempt.observed = observe or task.stream
            if not attempt.observed:
                attempt.responding = True
                lane.responding += 1
            elif same_options and (attempt.trial or behind or lane.responding):
                self.watch(attempt, at)
        if not lane.steady and not lane.breaker.closed:
            lane.breaker.begin(at)
        self.out.append(Start(id, task.id, lane.key, decision, ranges, observe))
        return attempt

    def watch(self, attempt: Attempt, at: Micros) -> None:
        """Look later whether the node has begun to answer an attempt: if not, it waits for a slot there."""
        self.at(at + self.patience_us(attempt, attempt.trial), lambda now: self.unanswered(attempt, now))

    def patience_us(self, attempt: Attempt, trial: bool) -> Micros:
        """Return how long a node may begin no answer before an attempt is taken to wait for a slot.

        `trial`: all proven slots are answering; otherwise the prompts before it may be long."""
        least = SLOT_LEAST + SLOT_TIMES * attempt.first_us()
        return least if trial else max(least, (attempt.due_us - attempt.started_us) // 2, SLOT_BELIEVED)

    def end(self, attempt: Attempt, at: Micros) -> None:
        del self.attempts[attempt.key]
        del attempt.opened.attempts[attempt.key]
        attempt.lane.remove(attempt, at)
        attempt.lane.last_end_us = at

    def abort(self, attempt: Attempt, at: Micros, outcome: Outcome = LEFT, withdrawn: bool = False) -> None:
        self.end(attempt, at)
        lane = attempt.lane
        lane.breaker.record(at, LEFT)
        lane.unsettle()
        reading_until = attempt.started_us + attempt.decision.first_us
        if not withdrawn and not attempt.started and at < reading_until and lane.node.usable:
            until = taken_until(lane, attempt, at)
            lane.draining.append(until)
            self.serve_at(lane.model, until)
        self.out.append(Abort(attempt.id, outcome, withdrawn))
        self.let_others(lane, at)

    def let_others(self, lane: Lane, at: Micros) -> None:
        """Serve the other models of a node that has less to do, or that nobody waits for any more, at the next tick."""
        if len(lane.node.lanes) > 1:
            for other in lane.node.lanes.values():
                if other is not lane and other.market.line.waiting:
                    self.serve_at(other.model, at)

    def abort_all(self, opened: OpenTask, at: Micros) -> list[Lane]:
        attempts = list(opened.attempts.values())
        for attempt in attempts:
            self.abort(attempt, at)
        return [attempt.lane for attempt in attempts]

    def settle(self, opened: OpenTask, outcome: Outcome, attempt: int | None = None, tried: bool = False) -> None:
        """The task is over. `tried`: tell what each node answered, or why it was not asked."""
        task = opened.task
        del self.open[opened.key]
        market = opened.market
        if market is not None and opened.key in market.line.waiting:
            market.line.remove(task.id)
        if market is not None:
            market.tasks -= 1
        if opened.waits_for is not None and (left := opened.wait_for(None)) is not None:
            self.let_others(left, self.now)
        if opened.batch is not None:
            self.batches.get(task.model, {}).pop(task.id, None)
            if market is not None:
                market.batches = len(self.batches.get(task.model, ()))
        reasons = tuple(self._reasons(opened)) if tried else ()
        if market is not None and not market.tasks and not market.lanes:
            forget_model(self, market)
        self.out.append(Settle(task.id, outcome, attempt, reasons))

    def settle_no_node(self, opened: OpenTask, message: str, at: Micros) -> None:
        """No node can serve it. Tells when a node that asked for patience will be ready again."""
        lanes = self.fleet.markets[opened.task.model].lanes.values() if opened.task.model in self.fleet.markets else ()
        ready = min((lane.paused_until for lane in lanes if lane.paused_until > at and lane.node.usable), default=None)
        retry_us = None if ready is None or not opened.busy else ready - at
        self.settle(opened, Outcome(How.NO_NODE, message, retry_us=retry_us), tried=True)

    def _reasons(self, opened: OpenTask) -> Iterable[tuple[str, str]]:
        model = opened.task.model
        for node in self.fleet.nodes.values():
            if node.key in opened.tried:
                yield node.key, opened.tried[node.key]
            elif opened.task.only is not None and node.key not in opened.task.only:
                yield node.key, "not among the nodes that the call may go to"
            elif node.up is not True:
                yield node.key, node.lost_why
            elif model not in node.models:
                have = ", ".join(sorted(node.models)) or "no models"
                yield node.key, f"does not have {model}; it has {have}"
            elif opened.task.gpu and not node.lanes[model].suits(opened.task):
                yield node.key, f"holds {model} on its CPU, and a GPU is required"
            elif (needed := self._needed_digest(opened)) and node.digests.get(model, needed) != needed:
                has, needs = short(node.digests[model]), short(needed)
                yield (
                    node.key,
                    f"has version {has} of {model}; {needs} is needed, and vectors of the two do not compare",
                )
            else:
                yield node.key, "not tried"

    def _needed_digest(self, opened: OpenTask) -> str:
        if opened.batch is not None and opened.batch.digest is not None:
            return opened.batch.digest
        market = opened.market
        return market.digest_for(opened.task) if market is not None and market.mixed else ""

    def may_yet_come(self, opened: OpenTask, at: Micros) -> bool:
        """Facts older than the task decide nothing: ask every node again before giving up."""
        pending = False
        for node in self.fleet.nodes.values():
            if node.key in opened.tried and opened.batch is None:
                continue
            if opened.task.only is not None and node.key not in opened.task.only:
                continue
            if node.asked_us < opened.since:
                self.health.ask(node, at, self.out)
            pending = pending or node.probing
        return pending

    def able(self, task: Task, lanes: list[Lane], at: Micros) -> list[Lane]:
        """Return the lanes not known to be unable to serve it; if all are, those that it has not tried."""
        unable, tried = self.fleet.unable_for(task, at), self.open[task.id].tried
        able = [lane for lane in lanes if lane.key not in unable]
        return able or [lane for lane in lanes if lane.key not in tried]

    # --- lines and markets ---

    def line(self, model: str) -> WaitingLine:
        line = self.lines.get(model)
        if line is None:
            line = self.lines[model] = WaitingLine(self.shares)
        return line

    def enqueue(self, opened: OpenTask, market: Market, since: Micros, at: Micros, priority: int | None = None) -> None:
        """Put a task in line; an answer that was cut in the middle goes first (`priority`)."""
        task = opened.task
        tokens = task.cost * market.tokens_per_cost
        if not task.batch:
            tokens += market.expected_tokens(task)
        market.line.push(opened.key, task.priority if priority is None else priority, since, at, task.app, tokens)

    def market(self, model: str, at: Micros) -> Market:
        market = self.fleet.markets.get(model)
        if market is None:
            market = self.fleet.markets[model] = Market(model, self.fleet, self.line(model))
            for node in self.fleet.nodes.values():
                self.join(market, node)
            market.recount(at)
        return market

    def join(self, market: Market, node: NodeState) -> None:
        """Give the node a lane in this market if it has the model, take it away if it no longer has."""
        lane = node.lanes.get(market.model)
        if market.model in node.models:
            if lane is None:
                lane = Lane(node, market, self.policies.limiter(), self.policies.breaker())
                node.lanes[market.model] = lane
            market.put(lane)
        elif lane is not None:
            self.forget_model(lane)

    def forget_model(self, lane: Lane) -> None:
        lane.market.drop(lane.node.key)
        if lane.model in lane.node.models:
            lane.node.models = {m: size for m, size in lane.node.models.items() if m != lane.model}

    def waiting(self) -> int:
        return sum(len(line) for line in self.lines.values())

    # --- time ---

    def at(self, when: Micros, then: Callable[[Micros], None], owner: Key = None) -> None:
        """Call `then` at the first tick from `when` on. `owner`: the task without which it means nothing."""
        self._serial += 1
        if len(self._timers) > TIMERS and len(self._timers) > TIMERS_EACH * len(self.open):
            self._drop_deadlines()
        heapq.heappush(self._timers, (when, self._serial, then, owner))
        if when < self.next_at:
            self.next_at = when

    def _drop_deadlines(self) -> None:
        """Forget what was to happen to tasks that are settled: a deadline may be a day away."""
        self._timers = [timer for timer in self._timers if timer[3] is None or timer[3] in self.open]
        heapq.heapify(self._timers)

    def serve_at(self, model: str, when: Micros) -> None:
        self.at(when, lambda now: self.serve(model, now))

    def pause(self, lane: Lane, until: Micros) -> None:
        lane.paused_until = max(lane.paused_until, until)
        lane.unsettle()
        self.serve_at(lane.model, until)

    def run_timers(self, at: Micros) -> None:
        while self._timers and self._timers[0][0] <= at:
            then = heapq.heappop(self._timers)[2]
            self.concern = None
            try:
                then(at)
            except Exception as error:  # of one timer: the others are due as well
                self.recover(error, at)
        self.next_at = self._timers[0][0] if self._timers else NEVER

    def invariants(self) -> None:
        """What must hold between events; tests check it after every one. Raises AssertionError."""
        for lane in (lane for node in self.fleet.nodes.values() for lane in node.lanes.values()):
            assert all(self.attempts.get(a.id) is a for a in lane.attempts.values()), f"{lane} has a stray attempt"
            assert not lane.steady or lane.is_steady(self.now), f"{lane} is not steady and nobody knows"
            if lane.market.lanes.get(lane.node.key) is lane:
                roomy = lane.node.key in lane.market.roomy
                assert roomy or len(lane.attempts) >= lane.limiter.limit, f"{lane} has room and nobody knows"
            soonest = min((a.due_us for a in lane.attempts.values()), default=NEVER)
            assert lane.soonest_us == soonest, f"{lane}: soonest"
            assert abs(lane.cost_inflight - sum(a.cost for a in lane.attempts.values())) < 1, f"{lane}: cost"
        for attempt in self.attempts.values():
            assert attempt.id in attempt.lane.attempts
            assert attempt.task.id in self.open, f"{attempt} outlives its task"
        for opened in self.open.values():
            line, task = self.line(opened.task.model), opened.task
            assert set(opened.attempts) <= set(self.attempts)
            if opened.batch is None:
                assert len(opened.attempts) <= 2, f"task {task.id} has too many attempts"
                assert (task.id in line) != bool(opened.attempts), f"task {task.id} neither waits nor runs, or both"
            else:
                opened.batch.invariants(task.id in line)
        assert self.waiting() <= len(self.open)


def _nobody(model: str, at: Micros) -> None:
    raise RuntimeError("the ledger has no scheduler")


def _not_recovered(error: Exception, at: Micros) -> None:
    raise error


def _unanswered(attempt: Attempt, at: Micros) -> None:
    raise RuntimeError("the ledger has no scheduler")
