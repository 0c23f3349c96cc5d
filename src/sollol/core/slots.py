"""Find out how many calls a replica works on at once, from first tokens and from timings (`policies.limits`)."""

from __future__ import annotations

from typing import Final

from sollol.core import prefill, trials
from sollol.core.attempt import Attempt
from sollol.core.ledger import Ledger
from sollol.core.serving import Serving
from sollol.core.types import EMBED, MILLISECOND, Micros, Timing

# Answers so short may be over before others begin; those that were inside the node for AT_ONCE beyond their work, as
# every answer is, did not wait for a slot. Of longer ones the first token tells.
SHORT: Final[Micros] = 150 * MILLISECOND
AT_ONCE: Final[Micros] = 5 * MILLISECOND


class SlotWatch:
    """Watches calls that may wait for a slot inside their node."""

    def __init__(self, ledger: Ledger, serving: Serving) -> None:
        self._ledger = ledger
        self._serving = serving
        ledger.unanswered = self._unanswered

    def responds(self, attempt: Attempt, at: Micros) -> None:
        """A node works on an attempt: it may have more slots than were known."""
        lane = attempt.lane
        before = lane.limit
        prefill.learn(lane, attempt, at)
        trials.responds(lane, attempt, at)
        if lane.limit > before and lane.market.line.waiting:
            self._serving.market(lane.market, at, [lane])

    def _unanswered(self, attempt: Attempt, at: Micros) -> None:
        """An attempt should have begun: if its node answers others meanwhile, it has no slot for this one."""
        lane = attempt.lane
        if attempt.responding or attempt.id not in self._ledger.attempts:
            return
        self._ledger.concern = attempt.opened
        if prefill.holds(lane, attempt):
            self._ledger.serve_at(lane.model, lane.left_until)
            lane.left_until = 0
            self._withdraw(attempt, at)
            return
        patience = self._ledger.patience_us(attempt, lane.responding >= lane.proven)
        if not lane.responding:  # a load, or prompts that are being read: nothing can be said yet
            later = at + max(patience, (at - attempt.started_us) // 2)
            self._ledger.at(later, lambda now: self._unanswered(attempt, now))
            return
        quiet_since = max(attempt.started_us, lane.responded_us)
        if at - quiet_since < patience:  # the calls before it begin one after the other
            self._ledger.at(quiet_since + patience, lambda now: self._unanswered(attempt, now))
            return
        trials.refuses(lane, attempt, at)
        for waiting in reversed([a for a in lane.attempts.values() if a.observed and not a.responding]):
            if len(lane.attempts) <= lane.proven:
                break
            self._withdraw(waiting, at)
        self._serving.market(lane.market, at)

    def _withdraw(self, attempt: Attempt, at: Micros) -> None:
        """Take a call back out of a node's own queue, where it could neither be reordered nor go elsewhere."""
        opened = self._ledger.concern = attempt.opened
        if attempt.resumed:
            return
        self._ledger.abort(attempt, at, withdrawn=True)
        self._ledger.shares.correct(opened.task.app, -opened.tokens)
        opened.tokens = 0.0
        if not opened.attempts:
            self._ledger.enqueue(opened, attempt.lane.market, opened.since, at)

    def learn(self, attempt: Attempt, timing: Timing, at: Micros) -> bool:
        """Learn of a node's slots from the timings of an answer. Returns False where it came without."""
        lane = attempt.lane
        if not timing.total_us or attempt.resumed or attempt.task.batch:
            return False
        inside_us = timing.total_us - timing.load_us
        elapsed_us = max(1, at - attempt.started_us)
        if not 0 < inside_us <= elapsed_us:
            return False
        inflight = trials.mean_inflight(lane, attempt, at)
        if attempt.task.kind is EMBED:
            lane.limiter.embedded(inflight, elapsed_us, inside_us, attempt.cost, at)
            lane.limit_changed()
            return False  # lists overlap in ways that only the throughput shows
        # That such a call had to wait is no news.
        waited_us = max(0, inside_us - timing.prompt_us - timing.decode_us)
        beside = attempt.inflight if waited_us <= AT_ONCE and inside_us <= SHORT else 0
        wait_us = 0 if attempt.trial or attempt.behind else waited_us
        rate = timing.tokens / timing.decode_us if timing.decode_us > 0 else 0.0
        lane.limiter.answered(inflight, elapsed_us, min(wait_us, elapsed_us - 1), rate, at, beside)
        if lane.market.line.waiting:
            lane.limiter.reopen(at)
        lane.limit_changed()
        return True
