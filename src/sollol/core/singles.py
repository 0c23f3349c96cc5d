"""Serving single tasks: which node, when it is free, a second copy if it is slow, and what follows a failure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sollol.core.attempt import Attempt
from sollol.core.estimate import Mean
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.messages import Load
from sollol.core.policy import Hedger, Router
from sollol.core.types import (
    MILLISECOND,
    SECOND,
    TRANSIENT,
    Decision,
    How,
    Kind,
    Micros,
    Outcome,
    RoutingMode,
    Task,
    TaskPriority,
    Timing,
)

HEDGE_AGAIN: Micros = 50 * MILLISECOND  # a late call for whose second copy there was no room
LATE_LEAST: Micros = 1 * SECOND  # beyond its prediction, before its node is asked whether it lives
# A call whose node is silent for so many times its prediction, but never before HUNG_LEAST, gets another copy.
HUNG_TIMES = 20
HUNG_LEAST: Micros = 60 * SECOND
NO_AHEAD: dict[str, Micros] = {}
COPY_WEIGHT = 0.1  # of the newest copy in the share of those that came first
COPY_FIRST = 0.5  # and that share before anything is known of it
HANG_TWICE = 0.2  # of the copies of calls that hang: those that hang, too


class Late(NamedTuple):
    """A call whose second copy found no room."""

    opened: OpenTask
    attempt: Attempt
    hedger: Hedger


class Singles:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.late: dict[str, dict[int, Late]] = {}  # by model and attempt
        self._won: dict[tuple[str, bool], Mean] = {}  # by model, and whether streamed: see `_share`

    def serve(self, opened: OpenTask, market: Market, ahead: dict[str, Micros], at: Micros) -> None:
        """Start it, settle it for want of any node, or leave it in line."""
        ledger, task = self._ledger, opened.task
        if at < ledger.health.newcomers_until:
            settled_at = ledger.health.settles_at(at)
            if settled_at is not None:
                ledger.serve_at(task.model, settled_at)
                return
        router = self._router(task)
        lanes = market.shortlist(task, opened.tried if not opened.busy else opened.avoids(), router.wide, at)
        if not lanes and opened.busy:  # there is no other: wait for one that was busy
            opened.busy = None
            lanes = market.shortlist(task, opened.tried, router.wide, at)
        if not lanes:
            # A node behind an open breaker is still better than no answer, if nothing else is left.
            lanes = [
                lane
                for lane in market.lanes.values()
                if lane.node.key not in opened.tried and lane.node.usable and not lane.attempts and lane.suits(task)
            ]
        if not lanes:
            if not ledger.may_yet_come(opened, at):
                ledger.settle_no_node(opened, "no node can serve it")
            return
        decision = router.choose(task, lanes, ahead, at, ledger.rng)
        lane = market.lanes[decision.node]
        if lane.free(at, task.kind is not Kind.EMBED) or (not lane.attempts and not lane.breaker.admits(at)):
            opened.tokens += market.line.serve(task.id, at)
            attempt = ledger.start(opened, lane, task.cost, decision, at)
            if opened.hedger is not None and not opened.begun:
                self._plan_hedge(opened, opened.hedger, attempt, at)
            return
        own = decision.predicted_us - ahead.get(decision.node, 0) - lane.wait_us(at)
        ahead[decision.node] = ahead.get(decision.node, 0) + max(own, 0)

    def start_now(self, opened: OpenTask, market: Market, at: Micros) -> bool | None:
        """Where nobody waits and the best choice is free, a task need not stand in line first.

        False: it rather waits for a busy node. None: not decided here."""
        ledger, task = self._ledger, opened.task
        if at < ledger.health.newcomers_until and ledger.health.settles_at(at) is not None:
            return None
        policies = ledger.policies
        router = policies.router if task.mode is None else policies.modes.get(task.mode, policies.router)
        if not (lanes := market.shortlist(task, opened.tried, router.wide, at)):
            return None
        decision = router.choose(task, lanes, NO_AHEAD, at, ledger.rng)
        lane = market.lanes[decision.node]
        if not lane.free(at, task.kind is not Kind.EMBED):
            return False
        opened.tokens = tokens = task.cost * market.tokens_per_cost + market.expected_tokens(task)
        ledger.shares.pass_by(task.app, tokens)
        attempt = ledger.start(opened, lane, task.cost, decision, at)
        if opened.hedger is not None:
            self._plan_hedge(opened, opened.hedger, attempt, at)
        return True

    def _router(self, task: Task) -> Router:
        policies = self._ledger.policies
        return policies.router if task.mode is None else policies.modes.get(task.mode, policies.router)

    def _plan_hedge(self, opened: OpenTask, hedger: Hedger, attempt: Attempt, at: Micros) -> None:
        delay = hedger.after(opened.task, attempt.decision)
        if delay is not None:
            self._ledger.at(at + delay, lambda now: self._hedge(opened, attempt, hedger, now))

    def may_hedge(self, opened: OpenTask) -> None:
        """Who decides on second copies of it; the budget for them grows with the calls that may have one."""
        task = opened.task
        wanted = task.mode is RoutingMode.FAST if task.hedge is None else task.hedge
        if wanted and task.kind is not Kind.EMBED:
            opened.hedger = self._ledger.policies.hedger if wanted is True else wanted
            opened.hedger.deposit(task)

    def _hedge(self, opened: OpenTask, late: Attempt, hedger: Hedger, at: Micros) -> None:
        """An attempt is later than 19 of 20 are: send another copy, if a node is idle and the budget allows.

        At most two at once: if the second is late, too, the first may be given up and its node tried anew."""
        ledger, task = self._ledger, opened.task
        if opened.attempts.get(late.id) is not late or opened.begun:
            return
        oldest = next(iter(opened.attempts.values()))
        second = len(opened.attempts) > 1
        if second and oldest is late:
            return
        if not second:
            if not self._try_copy(opened, late, hedger, at):
                self.late.setdefault(task.model, {})[late.id] = Late(opened, late, hedger)
                ledger.at(at + HEDGE_AGAIN, lambda now: self._hedge(opened, late, hedger, now))
            return
        # Late twice: by bad luck twice, or because the answer is long.
        share = self._share(task).value or 0.0
        luck = share * HANG_TWICE / (1 - share + share * HANG_TWICE)
        lanes, spared_us = [oldest.lane], oldest.lane.wait_us(at)
        takes_us = self._takes(task, lanes, at) - spared_us
        if luck * _left(oldest, at) < takes_us or not hedger.withdraw():
            ledger.at(at + HEDGE_AGAIN, lambda now: self._hedge(opened, late, hedger, now))
            return
        self._share(task).add(0.0)
        ledger.abort(oldest, at)
        another = self._copy(opened, late, lanes, "late", at)
        self._plan_hedge(opened, hedger, another, at)

    def copy_late(self, market: Market, at: Micros) -> None:
        """An answer came, so a slot may be free: late calls may have it before those who wait for their first one."""
        calls = self.late.pop(market.model)
        for late in list(calls.values()):
            opened, attempt = late.opened, late.attempt
            over = opened.attempts.get(attempt.id) is not attempt or opened.begun or len(opened.attempts) > 1
            if over or self._try_copy(opened, attempt, late.hedger, at):
                del calls[attempt.id]
        if calls:
            self.late[market.model] = calls

    def _try_copy(self, opened: OpenTask, late: Attempt, hedger: Hedger, at: Micros) -> bool:
        """Send a second copy, if another node has a free slot and it pays."""
        task, market = opened.task, late.lane.market
        tried = {*opened.tried, late.lane.node.key}
        ready = (lane for lane in market.shortlist(task, tried, False, at) if lane.free(at))
        # A copy that must load the model first comes late itself, and may put out what others use.
        lanes = [lane for lane in ready if not lane.startup_us(task.options)]
        if not lanes or not self._pays(opened, late, lanes, hedger, at) or not hedger.withdraw():
            return False
        another = self._copy(opened, late, lanes, "late", at)
        self._plan_hedge(opened, hedger, another, at)
        return True

    def _pays(self, opened: OpenTask, late: Attempt, lanes: list[Lane], hedger: Hedger, at: Micros) -> bool:
        """Should a copy take less than it saves?

        It saves what the late attempt will still need, if it comes first. It takes its own time from those who wait for
        a node; if nobody does, from one who will come while it runs, which is as likely as nodes are busy."""
        task, market = opened.task, late.lane.market
        busy = 1.0
        if not market.line.waiting:
            if hedger is not self._ledger.policies.hedger:
                return True  # whoever brings his own has decided
            busy -= len(market.roomy) / len(market.lanes)
        return (self._share(task).value or 0.0) * _left(late, at) > busy * self._takes(task, lanes, at)

    def _takes(self, task: Task, lanes: list[Lane], at: Micros) -> Micros:
        """Until a copy would be heard."""
        decision = self._router(task).choose(task, lanes, NO_AHEAD, at, self._ledger.rng)
        return _until_heard(task, decision)

    def _share(self, task: Task) -> Mean:
        """Of such calls that take more than twice as long as expected: for how many a copy comes first."""
        kind = task.model, task.stream
        share = self._won.get(kind)
        if share is None:
            share = self._won[kind] = Mean(COPY_WEIGHT)
            share.add(COPY_FIRST)
        return share

    def _copy(self, opened: OpenTask, late: Attempt, lanes: list[Lane], what: str, at: Micros) -> Attempt:
        """Send the same to another node: the first to yield wins."""
        ledger, task = self._ledger, opened.task
        decision = self._router(task).choose(task, lanes, NO_AHEAD, at, ledger.rng)
        reason = f"another copy: {late.lane.node.key} is {what}; {decision.reason}"
        lane = late.lane.market.lanes[decision.node]
        return ledger.start(opened, lane, task.cost, msgspec.structs.replace(decision, reason=reason), at)

    def begun(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        """The first token goes to the caller: this attempt has won."""
        opened.begun = True
        self._learn_latency(opened, attempt, at)
        self._drop_others(opened, attempt, at)

    def measured(self, attempt: Attempt, timing: Timing, at: Micros) -> None:
        """What an answer tells of its node, and of how long such answers are."""
        task, lane = attempt.task, attempt.lane
        node, market = lane.node, lane.market
        usual = lane.decode.value
        if usual and _left(attempt, at) > _until_heard(task, attempt.decision):
            self._learn_luck(attempt, timing, usual, at)
        if attempt.beside and usual and timing.decode_us:
            node.turns.beside(timing.tokens / timing.decode_us / usual)
        else:
            warm = attempt.warm_cost / task.cost if task.cost else 0.0
            lane.measured_tokens(timing, warm, at - attempt.started_us)
        if len(node.lanes) > 1:
            node.turns.answered(self._others_wanted(lane))
        if not attempt.resumed:
            if timing.prompt_tokens:
                market.measured_prompt(task.cost, timing.prompt_tokens)
            if timing.tokens:
                market.length(task).add(timing.tokens)

    def _learn_luck(self, attempt: Attempt, timing: Timing, usual: float, at: Micros) -> None:
        """If it was heard more than twice as late as expected: would a copy sent then have been heard first, at the
        usual pace? Not if it is the prompt or the answer that is long."""
        task, reads = attempt.task, attempt.lane.prefill.value
        if not reads or attempt.resumed or self._ledger.open[task.id].attempts:  # a copy under way tells by itself
            return
        late_us = 2 * _until_heard(task, attempt.decision)
        took_us, copy_us = at - attempt.started_us, timing.prompt_tokens / reads
        if task.stream:
            took_us = timing.load_us + timing.prompt_us
        else:
            copy_us += timing.tokens / usual
        if took_us > late_us:
            self._share(task).add(1.0 if late_us + copy_us < took_us else 0.0)

    def _others_wanted(self, lane: Lane) -> bool:
        """Is another model of its node waited for?"""
        return any(other.market.line.waiting for other in lane.node.lanes.values() if other is not lane)

    def _learn_latency(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        task = opened.task
        if task.kind is Kind.EMBED or attempt.resumed:
            return
        everybody, own = self._ledger.policies.hedger, opened.hedger
        everybody.learn(task, attempt.decision, at - attempt.started_us)
        if own is not None and own is not everybody:
            own.learn(task, attempt.decision, at - attempt.started_us)

    def answered(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        ledger, task = self._ledger, opened.task
        if not task.stream:
            self._learn_latency(opened, attempt, at)
        used = outcome.timing.prompt_tokens + outcome.timing.tokens
        if used:
            ledger.shares.correct(task.app, used - opened.tokens)
        if opened.attempts:
            self._drop_others(opened, attempt, at)
        ledger.settle(opened, outcome, attempt.id)

    def _drop_others(self, opened: OpenTask, winner: Attempt, at: Micros) -> None:
        for other in list(opened.attempts.values()):
            if other is not winner:
                first = winner if winner.id < other.id else other
                if _left(first, at) > _until_heard(first.task, first.decision):
                    self._share(first.task).add(0.0 if winner is first else 1.0)
                self._ledger.abort(other, at)
                self._ledger.serve_at(other.lane.model, at)  # its slot is free

    def failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """Another node, the line, or the end."""
        ledger, task, node = self._ledger, opened.task, attempt.lane.node.key
        if outcome.how not in TRANSIENT or (attempt.started and not attempt.movable):
            self._drop_others(opened, attempt, at)
            ledger.settle(opened, outcome, attempt.id)
            return
        why = outcome.message or outcome.how.value
        if outcome.how is How.FAILED and outcome.status and not attempt.started and why in opened.tried.values():
            # Two nodes answer in the same words, and the second came no further: it is the request that is wrong.
            self._drop_others(opened, attempt, at)
            ledger.settle(opened, msgspec.structs.replace(outcome, how=How.REFUSED), attempt.id)
            return
        if outcome.how is How.BUSY:
            opened.busy = {*(opened.busy or ()), node}
            # As long as one node was not busy that often, it may take it.
            lanes = attempt.lane.market.usable(at)
            tries = min((lane.busy_answers for lane in lanes), default=attempt.lane.busy_answers)
        else:
            opened.tries += outcome.how is not How.UNABLE
            tries = opened.tries
            opened.tried[node] = why
        if opened.attempts:  # the other copy is still under way
            return
        if ledger.policies.retrier.again(task, outcome, tries, at) is None:
            opened.tried |= {lane.node.key: "busy" for lane in attempt.lane.market.usable(at) if lane.busy_answers}
            opened.tried[node] = why
            ledger.settle_no_node(opened, "every attempt failed")
            return
        urgent = int(TaskPriority.CRITICAL) if opened.begun else None
        ledger.enqueue(opened, attempt.lane.market, opened.since, at, urgent)

    def load_ahead(self, model: str, span_us: Micros, at: Micros) -> None:
        """Load a model on an idle node once tasks have waited, in sum, for as long as that takes.

        Each task alone rather waits for a warm node than for a load; a load serves all that come after, too. Waiting
        until the regret equals the price costs at most twice what foresight would (ski rental)."""
        ledger = self._ledger
        market, line = ledger.fleet.markets.get(model), ledger.line(model)
        if market is None or not len(line):
            return
        if any(lane.loading_until > at for lane in market.lanes.values()):
            return
        idle = [
            lane for lane in market.roomy.values() if not lane.is_loaded and lane.free(at) and not lane.node.running
        ]
        idle = [lane for lane in idle if not lane.node.in_use(at)]
        if not idle:
            market.regret_us = 0
            return
        market.regret_us += span_us * len(line)
        best = min(idle, key=lambda lane: lane.startup_us())
        if market.regret_us < best.startup_us():
            return
        first = line.peek(at)
        assert first is not None
        task = ledger.open[first].task
        market.regret_us = 0
        best.loading_until = at + 2 * best.startup_us()
        ledger.out.append(Load(best.node.key, model, task.kind, task.options))

    def look_after(self, at: Micros) -> list[Attempt]:
        """Ask the nodes of attempts that are clearly later than predicted whether they live. A node may live and its
        runner hang: those attempts that have another copy now, because nothing was heard of them for far too long."""
        hung = []
        for attempt in list(self._ledger.attempts.values()):
            if attempt.task.batch:  # its tail looks after itself
                continue
            node = attempt.lane.node
            late = at - attempt.due_us
            if late > max(LATE_LEAST, (attempt.due_us - attempt.started_us) // 2) and at - node.asked_us > LATE_LEAST:
                self._ledger.health.ask(node, at, self._ledger.out)
            if late > HUNG_LEAST and self._hangs(attempt, at) and self._rescue(attempt, at):
                hung.append(attempt)
        return hung

    def _hangs(self, attempt: Attempt, at: Micros) -> bool:
        expected = _until_heard(attempt.task, attempt.decision)
        return not attempt.started and at - attempt.started_us > HUNG_TIMES * expected

    def _rescue(self, attempt: Attempt, at: Micros) -> bool:
        """Another copy, once, if a node is idle; the first is not given up, for it may be late for a reason."""
        opened, market = self._ledger.open[attempt.task.id], attempt.lane.market
        if opened.begun or len(opened.attempts) > 1:
            return False
        tried = {*opened.avoids(), attempt.lane.node.key}
        lanes = [lane for lane in market.shortlist(opened.task, tried, False, at) if lane.free(at)]
        if lanes:
            self._copy(opened, attempt, lanes, "silent", at)
        return bool(lanes)


def _until_heard(task: Task, decision: Decision) -> Micros:
    """The predicted time to the first token, or to an answer that is given whole."""
    return decision.first_us if task.stream and decision.first_us else decision.predicted_us


def _left(attempt: Attempt, at: Micros) -> Micros:
    """What a late attempt will still need, as in `Attempt.expected_end`."""
    return (at - attempt.started_us) // 2
