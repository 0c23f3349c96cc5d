"""Serving single tasks: which node, when it is free, a second copy if it is slow, and what follows a failure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from sollol.core.attempt import Attempt
from sollol.core.beside import beside, may_start_beside, tries_slot
from sollol.core.copies import NO_AHEAD, Copies, router_of
from sollol.core.digests import FOR_CHAT, FOR_EMBED, review
from sollol.core.hangs import Hangs
from sollol.core.lane import Lane
from sollol.core.ledger import LEFT, Claim, Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.messages import Load
from sollol.core.policy import Router
from sollol.core.types import (
    EMBED,
    Decision,
    How,
    Micros,
    Outcome,
    Task,
    Timing,
)
from sollol.core.verdict import Verdicts, all_paused


class Singles:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.copies = Copies(ledger)
        self.hangs = Hangs(ledger, self.copies)
        self.verdicts = Verdicts(ledger)

    def serve(
        self, opened: OpenTask, market: Market, ahead: dict[str, Micros], freed: list[Lane] | None, at: Micros
    ) -> bool:
        """Start it, settle it for want of any node, or leave it in line; True if it still waits.

        `freed`: only these lanes can have changed."""
        claim = opened.claim
        if claim is not None:
            if freed is not None and self._stands(opened.task, claim, ahead, freed, at):
                ahead[claim.lane.key] = ahead.get(claim.lane.key, 0) + claim.own_us
                return True
            opened.claim = None
        ledger, task = self._ledger, opened.task
        if at < ledger.health.newcomers_until:
            settled_at = ledger.health.settles_at(at)
            if settled_at is not None:
                ledger.serve_at(task.model, settled_at)
                return True
        self._check_digests(market, task)
        router = router_of(ledger, task)
        avoided = self._avoided(opened, at)
        lanes = market.shortlist(task, avoided, router.wide, at)
        if not lanes and opened.busy:  # there is no other: wait for one that was busy
            opened.busy = None
            avoided = self._avoided(opened, at)
            lanes = market.shortlist(task, avoided, router.wide, at)
        if not lanes and len(avoided) > len(opened.tried):  # one that was unable may be able by now
            lanes = market.shortlist(task, opened.tried, router.wide, at)
        if not lanes:
            # A node behind an open breaker is still better than no answer, if nothing else is left.
            lanes = [
                lane
                for lane in market.lanes.values()
                if lane.node.key not in opened.tried
                and lane.node.usable
                and not lane.attempts
                and market.suits(lane, task, market.digest_for(task))
            ]
        if not lanes:
            if ledger.may_yet_come(opened, at):
                return True
            self.verdicts.give_up(opened, "no node can serve it", at)
            return False
        if all_paused(task, lanes):
            opened.busy = {lane.key for lane in lanes}
            opened.tried |= {lane.key: "asks to be left alone for longer than the caller has time" for lane in lanes}
            self.verdicts.give_up(opened, "every node is busy", at)
            return False
        decision = router.choose(task, lanes, ahead, at, ledger.rng)
        lane = market.lanes[decision.node]
        free = lane.free(at, task.kind is not EMBED) or (not lane.attempts and not lane.breaker.admits(at))
        if not free and task.kind is not EMBED and (decided := beside(task, lane, decision, ahead, at)) is not None:
            free, decision = True, decided
        if free:
            opened.tokens += market.line.serve(opened.key, at)
            attempt = ledger.start(opened, lane, task.cost, decision, at)
            if opened.hedger is not None and not opened.begun:
                self.copies.plan(opened, opened.hedger, attempt, at)
            self.hangs.accompany(opened, attempt, at)
            return False
        ahead[decision.node] = ahead.get(decision.node, 0) + self._claim(opened, router, lane, decision, ahead, at)
        return True

    def _avoided(self, opened: OpenTask, at: Micros) -> Collection[str]:
        """Return the nodes that the task does not go to as long as there are others."""
        unable = self._ledger.fleet.unable
        if not unable:
            return opened.avoids() if opened.busy else opened.tried
        return opened.avoids() | self._ledger.fleet.unable_for(opened.task, at)

    def _check_digests(self, market: Market, task: Task) -> None:
        use = FOR_EMBED if task.kind is EMBED else FOR_CHAT
        if market.checked < use:
            review(self._ledger, market, use)

    def tries(self, opened: OpenTask, market: Market, at: Micros) -> Lane | None:
        """Return the replica where a waiting task may find out whether there are more slots."""
        ledger, task = self._ledger, opened.task
        router = router_of(ledger, task)
        lanes = market.shortlist(task, opened.tried, router.wide, at)
        if task.kind is EMBED or not lanes:
            return None
        decision = router.choose(task, lanes, NO_AHEAD, at, ledger.rng)
        lane = market.lanes[decision.node]
        if not lane.breaker.closed or lane.draining or not lane.in_memory(task.options):
            return None
        wait_us = lane.wait_us(at)
        return lane if tries_slot(lane, decision.predicted_us - wait_us, wait_us, at) else None

    def _claim(
        self,
        opened: OpenTask,
        router: Router,
        lane: Lane,
        decision: Decision,
        ahead: Mapping[str, Micros],
        at: Micros,
    ) -> Micros:
        """Let the task wait for this replica. Returns how long it will take there."""
        wait_us = lane.wait_us(at)
        own_us = max(decision.predicted_us - ahead.get(lane.key, 0) - wait_us, 0)
        if router.by_finish:
            opened.claim = Claim(lane, decision, at + wait_us, own_us, at)
        left = opened.wait_for(lane)
        if left is not None:
            self._ledger.let_others(left, at)
        return own_us

    def _stands(self, task: Task, claim: Claim, ahead: Mapping[str, Micros], freed: list[Lane], at: Micros) -> bool:
        """Would it choose as it did? Not if its lane is free or too late, or if another was freed where it would be
        sooner. On all others it would finish no sooner than it would have then."""
        router = router_of(self._ledger, task)
        if not router.by_finish:  # it was another when the task chose
            return False
        heavy = task.kind is not EMBED
        if heavy and may_start_beside(task, claim.lane, claim.own_us, at):
            return False
        if at > claim.free_us or claim.lane in freed:
            if claim.lane.free(at, heavy) or not claim.lane.steady:
                return False
            wait_us = claim.lane.wait_us(at, heavy)
            claim.free_us, claim.finish_us = at + wait_us, at + wait_us + ahead.get(claim.lane.key, 0) + claim.own_us
            if claim.finish_us > claim.rival_us:
                return False
        for lane in freed:
            if not lane.steady:
                return False
            if lane is claim.lane or not lane.free(at, heavy):
                continue
            key = lane.key
            for row in claim.decision.rows:
                if row[0] == key:
                    finish = at + lane.wait_us(at, heavy) + ahead.get(key, 0) + math.fsum(row[2:])
                    break
            else:
                finish = float(at + router.choose(task, [lane], ahead, at, self._ledger.rng).predicted_us)
            if finish < claim.finish_us:
                return False
        return True

    def start_now(self, opened: OpenTask, market: Market, at: Micros) -> bool | None:
        """Where nobody waits and the best choice is free, a task need not stand in line first.

        False: it rather waits for a busy node. None: not decided here."""
        ledger, task = self._ledger, opened.task
        if at < ledger.health.newcomers_until and ledger.health.settles_at(at) is not None:
            return None
        self._check_digests(market, task)
        router = router_of(ledger, task)
        if not (lanes := market.shortlist(task, self._avoided(opened, at), router.wide, at)):
            return None
        if all_paused(task, lanes):
            return None
        decision = router.choose(task, lanes, NO_AHEAD, at, ledger.rng)
        lane = market.lanes[decision.node]
        if not lane.free(at, task.kind is not EMBED):
            decided = beside(task, lane, decision, NO_AHEAD, at) if task.kind is not EMBED else None
            if decided is None:
                self._claim(opened, router, lane, decision, NO_AHEAD, at)
                return False
            decision = decided
        opened.tokens = tokens = task.cost * market.tokens_per_cost + market.expected_tokens(task)
        ledger.shares.pass_by(task.app, tokens)
        attempt = ledger.start(opened, lane, task.cost, decision, at)
        if opened.hedger is not None:
            self.copies.plan(opened, opened.hedger, attempt, at)
        self.hangs.accompany(opened, attempt, at)
        return True

    def begun(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        """The first token goes to the caller: this attempt has won."""
        opened.begun = True
        self._learn_latency(opened, attempt, at)
        self._win(opened, attempt, at)

    def measured(self, attempt: Attempt, timing: Timing, at: Micros) -> None:
        """What an answer tells of its node, and of how long such answers are."""
        task, lane = attempt.task, attempt.lane
        node, market = lane.node, lane.market
        usual = lane.decode.value
        if usual and attempt.left_us(at) > attempt.heard_us():
            self.copies.learn_alone(attempt, timing, usual, at)
        if attempt.beside and usual and timing.decode_us:
            node.turns.beside(timing.tokens / timing.decode_us / usual, at)
        else:
            warm = attempt.warm_cost / task.cost if task.cost else 0.0
            elapsed_us = at - attempt.started_us
            if (attempt.trial or attempt.behind) and timing.total_us:  # its wait for a slot is no part of its cost
                elapsed_us -= max(0, timing.total_us - timing.load_us - timing.prompt_us - timing.decode_us)
            lane.measured_tokens(timing, warm, elapsed_us)
        if not attempt.resumed:
            if timing.prompt_tokens:
                market.measured_prompt(task.cost, timing.prompt_tokens)
            if timing.tokens:
                market.length(task).add(timing.tokens)

    def _learn_latency(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        task = opened.task
        if task.kind is EMBED or attempt.resumed:
            return
        everybody, own = self._ledger.hedger, opened.hedger
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
            self._win(opened, attempt, at)
        if opened.verdict is not None:
            self.verdicts.answered(opened, at)
        ledger.settle(opened, outcome, attempt.id)

    def _win(self, opened: OpenTask, winner: Attempt, at: Micros) -> None:
        for other in opened.attempts.values():
            if other is not winner:
                self.copies.learn_race(winner, other, at)
        self._drop_others(opened, winner, at)

    def _drop_others(self, opened: OpenTask, winner: Attempt, at: Micros) -> None:
        for other in list(opened.attempts.values()):
            if other is not winner:
                lane = other.lane
                if (
                    not lane.steady and not lane.breaker.closed
                ):  # a trial that lost: not now, and later still if it hangs
                    late = self.hangs.is_late(other, at)
                    self._ledger.abort(other, at, Outcome(How.TIMEOUT, "said nothing in time") if late else LEFT)
                    lane.breaker.postpone(at, late)
                else:
                    self._ledger.abort(other, at)
                self._ledger.serve_at(other.lane.model, at)  # its slot is free

    def failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        """Another node, the line, or the end."""
        if self.verdicts.is_final(attempt, outcome):
            self._drop_others(opened, attempt, at)
            self._ledger.settle(opened, outcome, attempt.id)
            return
        self.verdicts.failed(opened, attempt, outcome, at)

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
