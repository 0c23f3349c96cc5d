"""Discover how many requests a replica works on at once, from first tokens and timings.

The evidence is recorded by `core.state.slot_evidence`; `policies.concurrency` draws the conclusions.
"""

from __future__ import annotations

from typing import Final

from sollol.core import cancelled_prefill
from sollol.core.slot_binding import SlotBinding
from sollol.core.state import slot_evidence
from sollol.core.state.replica import Attempt
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import EMBED, MILLISECOND, Micros, Timing

# Answers so short may be over before others begin; those that were inside the node for AT_ONCE beyond their work, as
# every answer is, did not wait for a slot. Longer ones are judged by their first token.
SHORT: Final[Micros] = 150 * MILLISECOND
AT_ONCE: Final[Micros] = 5 * MILLISECOND


class SlotDiscovery:
    """Check attempts that may wait for a slot inside their node, and withdraw those that do."""

    def __init__(self, state: SchedulerState, binding: SlotBinding) -> None:
        self._state = state
        self._binding = binding
        state.unanswered = self._unanswered

    def responds(self, attempt: Attempt, now: Micros) -> None:
        """Record that a node works on an attempt. It may have more slots than were known."""
        replica = attempt.replica
        before = replica.limit
        cancelled_prefill.learn(replica, attempt, now)
        slot_evidence.responds(replica, attempt, now)
        if replica.limit > before and replica.group.queue.waiting:
            self._binding.bind(replica.group, now, [replica])

    def _unanswered(self, attempt: Attempt, now: Micros) -> None:
        """Check an attempt without a response: if its node answers others, it has no slot for this one."""
        replica = attempt.replica
        if attempt.responding or attempt.id not in self._state.attempts:
            return
        self._state.current_task = self._state.tasks[attempt.task.id]
        if cancelled_prefill.holds(replica, attempt):
            self._state.bind_at(replica.model, replica.left_until)
            replica.left_until = 0
            self._withdraw(attempt, now)
            return
        patience = self._state.patience_us(attempt, replica.responding >= replica.proven)
        if not replica.responding:  # a load, or prompts that are being read: no evidence yet
            later = now + max(patience, (now - attempt.started_us) // 2)
            self._state.call_at(later, lambda later: self._unanswered(attempt, later))
            return
        quiet_since = max(attempt.started_us, replica.responded_us)
        if now - quiet_since < patience:  # the calls before it begin one after the other
            self._state.call_at(quiet_since + patience, lambda later: self._unanswered(attempt, later))
            return
        slot_evidence.refuses(replica, attempt, now)
        for waiting in reversed([a for a in replica.attempts.values() if a.observed and not a.responding]):
            if len(replica.attempts) <= replica.proven:
                break
            self._withdraw(waiting, now)
        self._binding.bind(replica.group, now)

    def _withdraw(self, attempt: Attempt, now: Micros) -> None:
        """Abort an attempt in a node's own queue, and queue its task here again."""
        pending = self._state.current_task = self._state.tasks[attempt.task.id]
        if attempt.resumed:
            return
        self._state.abort(attempt, now, withdrawn=True)
        self._state.shares.correct(pending.task.app, -pending.tokens)
        pending.tokens = 0.0
        if not pending.attempts:
            self._state.enqueue(pending, attempt.replica.group, pending.since, now)

    def learn(self, attempt: Attempt, timing: Timing, now: Micros) -> bool:
        """Learn the slots of a node from the timings of an answer. Return False if it had none."""
        replica = attempt.replica
        if not timing.total_us or attempt.resumed or attempt.task.batch:
            return False
        inside_us = timing.total_us - timing.load_us
        elapsed_us = max(1, now - attempt.started_us)
        if not 0 < inside_us <= elapsed_us:
            return False
        inflight = slot_evidence.mean_inflight(replica, attempt, now)
        if attempt.task.kind is EMBED:
            replica.limiter.embedded(inflight, elapsed_us, inside_us, attempt.cost, now)
            replica.limit_changed()
            return False  # lists overlap in ways that only the throughput shows
        # That such a call had to wait is no news.
        waited_us = max(0, inside_us - timing.prompt_us - timing.decode_us)
        concurrent = attempt.inflight if waited_us <= AT_ONCE and inside_us <= SHORT else 0
        wait_us = 0 if attempt.trial or attempt.behind_prefill else waited_us
        rate = timing.tokens / timing.decode_us if timing.decode_us > 0 else 0.0
        replica.limiter.answered(inflight, elapsed_us, min(wait_us, elapsed_us - 1), rate, now, concurrent)
        if replica.group.queue.waiting:
            replica.limiter.reopen(now)
        replica.limit_changed()
        return True
