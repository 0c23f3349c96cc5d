"""Move requests that wait behind a late load, and keep loads away from a node that hangs.

A node loads one model at a time, so the requests behind a load wait for it, and a load in progress is in no list. The
first request of a load stays with its node, since the load may end; those behind it go where they are served sooner.
`policies.load_watch` sets the bounds.
"""

from __future__ import annotations

from typing import Final

from sollol.core.actions import Notice
from sollol.core.failover import Failover
from sollol.core.hang_detection import HangDetection
from sollol.core.state import memory
from sollol.core.state.replica import Attempt, Node, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.state.shortlist import shortlist
from sollol.core.types import SECOND, Micros, Outcome, Status

CHECK_EVERY: Final[Micros] = SECOND  # while a batch loads a model


class LoadWatch:
    """Check the loads in progress against their predictions."""

    def __init__(self, state: SchedulerState, hang_detection: HangDetection, failover: Failover) -> None:
        self._state = state
        self._hang_detection = hang_detection
        self._failover = failover
        self._planned = False  # a check is due in a moment

    def check_all(self, now: Micros) -> None:
        """Judge the load in progress of each node."""
        loading: dict[str, list[Attempt]] = {}
        for attempt in self._state.attempts.values():
            if attempt.loads and not attempt.delivering:
                loading.setdefault(attempt.replica.node.key, []).append(attempt)
        for attempts in loading.values():
            self._check(attempts, now)
            if attempts[0].task.batch and not self._planned:  # single requests are checked every second anyway
                self._planned = True
                self._state.call_at(now + CHECK_EVERY, self._check_again)
        for node in self._state.cluster.nodes.values():
            for replica in node.replicas.values():
                if 0 < replica.loading_until <= now:
                    self._check_preload(replica, now)

    def _check_again(self, now: Micros) -> None:
        self._planned = False
        self.check_all(now)

    def _check(self, attempts: list[Attempt], now: Micros) -> None:
        policy, first = self._state.policies.load_watch, attempts[0]
        replica, node = first.replica, first.replica.node
        elapsed_us = now - max(first.started_us, node.load_ended_us)
        predicted_us = replica.load_us()
        size = node.models.get(replica.model, 0)
        measured = node.load_time.is_measured
        if elapsed_us > policy.deadline_us(size, predicted_us, measured):
            self._give_up(first, elapsed_us, now)
        if policy.hangs(elapsed_us, predicted_us, measured):
            self.bar(replica, elapsed_us, now)
            for attempt in [attempt for attempt in attempts if attempt.task.batch]:
                self._state.fail_chunk(attempt, now)  # its items go elsewhere
        if elapsed_us >= policy.late_after_us(predicted_us):
            for attempt in attempts:
                self._free(attempt, attempt is first, now)

    def _check_preload(self, replica: Replica, now: Micros) -> None:
        """Judge a load without a request, for which twice the prediction has passed."""
        began_us = replica.loading_since
        if replica.is_loaded or replica.attempts:
            replica.loading_until = 0
        elif self._state.policies.load_watch.hangs(
            now - began_us, replica.load_us(), replica.node.load_time.is_measured
        ):
            replica.loading_until = 0
            self.bar(replica, now - began_us, now)

    def bar(self, replica: Replica, elapsed_us: Micros, now: Micros) -> None:
        """Keep loads away from a node for a while. Its loaded models go on."""
        node = replica.node
        if node.loads_barred_until > now:
            return
        node.hung_loads += 1
        pause_us = self._state.policies.load_watch.pause_us(node.hung_loads)
        node.loads_barred_until = now + pause_us
        node.loads_barred_why = (
            f"a load of {replica.model} has not ended in {elapsed_us / SECOND:.1f} s; the prediction was "
            f"{replica.load_us() / SECOND:.1f} s"
        )
        memory.expect_no_longer(node)
        for other in node.replicas.values():
            other.group.loads_barred_until = max(other.group.loads_barred_until, node.loads_barred_until)
            other.flag_off_nominal()
        self._state.out.append(
            Notice(f"{node.key}: {node.loads_barred_why}. It gets no loads for {pause_us / SECOND:.0f} s.")
        )

    def lost(self, loser: Attempt, winner: Attempt, now: Micros) -> None:
        """Keep loads away from a node whose late load another node has overtaken."""
        replica, elapsed_us = loser.replica, now - loser.started_us
        policy, predicted_us = self._state.policies.load_watch, replica.load_us()
        other_us = now - winner.started_us if winner.loads else predicted_us
        if policy.is_overtaken(elapsed_us, predicted_us, other_us):
            self.bar(replica, elapsed_us, now)

    def ended(self, node: Node, now: Micros) -> None:
        """Record that a load has ended."""
        node.load_ended_us = now
        if node.loads_barred_until:
            node.loads_barred_until = node.hung_loads = 0
            for replica in node.replicas.values():
                replica.flag_off_nominal()

    def _free(self, attempt: Attempt, is_first: bool, now: Micros) -> None:
        """Send a request that waits for a late load to another node as well, or in its place."""
        state = self._state
        pending = state.tasks.get(attempt.task.id)
        if pending is None or attempt.id not in state.attempts or attempt.task.batch:
            return
        state.current_task = pending
        group, node = attempt.replica.group, attempt.replica.node
        if is_first:
            self._hang_detection.rescue(attempt, now)
        elif shortlist(group, pending.task, {*pending.avoids(), node.key}, False, now):
            outcome = Outcome(Status.TIMEOUT, "waited behind a load that is late")
            self._hang_detection.move(attempt, outcome, now)
            state.bind_at(group.model, now)

    def _give_up(self, attempt: Attempt, elapsed_us: Micros, now: Micros) -> None:
        """End a load at its deadline."""
        state, replica = self._state, attempt.replica
        pending = state.tasks[attempt.task.id]
        if attempt.task.batch:  # see `core.takeover`
            return
        state.current_task = pending
        state.abort(attempt, now)
        outcome = Outcome(Status.TIMEOUT, f"the load of {replica.model} has not ended in {elapsed_us / SECOND:.0f} s")
        self._failover.failed(pending, attempt, outcome, now)
        state.bind_at(replica.group.model, now)
