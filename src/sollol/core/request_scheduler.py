"""Schedule single requests: choose a replica, wait for it, hedge, retry.

A waiting request holds a reservation on the replica predicted to finish it first. The choice is made again only after a
change that could improve it. Requests wait here, not in a node's queue, so that they can use whatever replica becomes
free meanwhile (late binding).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping

from sollol.core.demotion import Demotion
from sollol.core.failover import Failover, all_paused
from sollol.core.gpu_proof import prove_gpu
from sollol.core.hang_detection import HangDetection
from sollol.core.hedging import NO_RESERVATIONS, Hedging, router_of
from sollol.core.model_loading import load
from sollol.core.model_versions import FOR_CHAT, FOR_EMBED, review
from sollol.core.overlap import may_overlap, overlapped, tries_slot
from sollol.core.policy import Router
from sollol.core.state.measuring import measured_tokens
from sollol.core.state.pending import PendingTask, Reservation
from sollol.core.state.replica import Attempt, ModelReplicas, Replica
from sollol.core.state.scheduler_state import LEFT, SchedulerState
from sollol.core.state.shortlist import shortlist
from sollol.core.types import (
    EMBED,
    Decision,
    Micros,
    Outcome,
    Status,
    Task,
    Timing,
)


class Dispatched(enum.Enum):
    """Name what `start_now` did with a new request."""

    STARTED = "started"
    WAITING = "waiting"  # it has reserved a busy replica
    UNDECIDED = "undecided"  # the queue decides


class RequestScheduler:
    """Start, queue and settle single requests."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self.hedging = Hedging(state)
        self.hang_detection = HangDetection(state, self.hedging)
        self.failover = Failover(state)
        self.demotion = Demotion(state)

    def bind(
        self,
        pending: PendingTask,
        group: ModelReplicas,
        reserved_us: dict[str, Micros],
        freed: list[Replica] | None,
        now: Micros,
    ) -> bool:
        """Start a request, settle it if no node can serve it, or keep it queued. Return True if it waits.

        Args:
            freed: Replicas that can have changed; None for all.
        """
        if pending.reservation is not None and self._keeps_reservation(pending, reserved_us, freed, now):
            return True
        state, task = self._state, pending.task
        if now < state.health.newcomers_until:
            settled_at = state.health.settles_at(now)
            if settled_at is not None:
                state.bind_at(task.model, settled_at)
                return True
        self._check_digests(group, task)
        router = router_of(state, task)
        replicas = shortlist(group, task, self._avoided(pending, now), router.wide, now)
        if not replicas:
            excluded = {*pending.tried, *state.cluster.excluded_for(task, now)}
            replicas = self._second_choices(pending, group, router, excluded, now)
        if not replicas:
            if task.gpu and prove_gpu(state, group, task, excluded, now):
                return True
            if state.may_yet_come(pending, now):
                return True
            self.failover.give_up(pending, "no node can serve it", now)
            return False
        if all_paused(task, replicas):
            pending.busy = {replica.key for replica in replicas}
            pending.tried |= {
                replica.key: "requires a pause that is longer than the caller's time" for replica in replicas
            }
            self.failover.give_up(pending, "every node is busy", now)
            return False
        decision = router.choose(task, replicas, reserved_us, now, state.rng)
        replica = group.replicas[decision.node]
        free = replica.free(now, task.kind is not EMBED) or (not replica.attempts and not replica.breaker.admits(now))
        free = free and not replica.delays_reload(task, now)
        if not free:
            decided = overlapped(task, replica, decision, reserved_us, state.policies.overlap, now)
            if decided is not None:
                free, decision = True, decided
        if free:
            pending.tokens += group.queue.charge(pending.key, now)
            self._start(pending, group, replica, decision, now)
            return False
        reserved_us[decision.node] = reserved_us.get(decision.node, 0) + self._reserve(
            pending, router, replica, decision, reserved_us, now
        )
        return True

    def _keeps_reservation(
        self, pending: PendingTask, reserved_us: dict[str, Micros], freed: list[Replica] | None, now: Micros
    ) -> bool:
        """Add the reservation to those of the queue if it is still optimal; else drop it."""
        reservation = pending.reservation
        assert reservation is not None
        if freed is None or not self._is_still_optimal(pending.task, reservation, reserved_us, freed, now):
            pending.reservation = None
            return False
        key = reservation.replica.key
        reserved_us[key] = reserved_us.get(key, 0) + reservation.service_us
        return True

    def _second_choices(
        self, pending: PendingTask, group: ModelReplicas, router: Router, excluded: set[str], now: Micros
    ) -> list[Replica]:
        """Return the replicas to compare where no first choice is left. The first group that is not empty is taken.

        1. Replicas that were busy: waiting is better than failing.
        2. Replicas of nodes that were unable a while ago, and may be able by now.
        3. Idle replicas behind an open breaker: a trial is better than no answer.

        Args:
            excluded: Nodes that the request has tried, or that can never serve it.
        """
        task, avoided = pending.task, self._avoided(pending, now)
        if pending.busy:
            pending.busy = None
            avoided = self._avoided(pending, now)
            if found := shortlist(group, task, avoided, router.wide, now):
                return found
        if len(avoided) > len(excluded) and (found := shortlist(group, task, excluded, router.wide, now)):
            return found
        return [
            replica
            for replica in group.replicas.values()
            if replica.node.key not in excluded
            and not replica.is_barred(now)
            and not replica.is_barred_for(task, now)
            and replica.node.usable
            and not replica.node.drained
            and not replica.attempts
            and group.suits(replica, task, group.digest_for(task))
        ]

    def _start(
        self, pending: PendingTask, group: ModelReplicas, replica: Replica, decision: Decision, now: Micros
    ) -> None:
        """Start an attempt, and plan the checks of whether it is late, or its runner hangs."""
        attempt = self._state.start(pending, replica, pending.task.cost, decision, now)
        if pending.hedger is not None and not pending.delivering:
            self.hedging.plan(pending, pending.hedger, attempt, now)
        self.hang_detection.accompany(pending, attempt, now)
        if group.demoted:
            self.demotion.retest(group, now)

    def _avoided(self, pending: PendingTask, now: Micros) -> Collection[str]:
        """Return the nodes that the request avoids as long as there are others."""
        incapable = self._state.cluster.incapable
        if not incapable:
            return pending.avoids() if pending.busy else pending.tried
        return pending.avoids() | self._state.cluster.unable_for(pending.task, now)

    def _check_digests(self, group: ModelReplicas, task: Task) -> None:
        use = FOR_EMBED if task.kind is EMBED else FOR_CHAT
        if group.checked < use:
            review(self._state, group, use)

    def tries(self, pending: PendingTask, group: ModelReplicas, now: Micros) -> Replica | None:
        """Return the replica where a waiting request may be sent beyond the proven slots; None if it is to wait."""
        state, task = self._state, pending.task
        router = router_of(state, task)
        replicas = shortlist(group, task, pending.tried, router.wide, now)
        if task.kind is EMBED or not replicas:
            return None
        decision = router.choose(task, replicas, NO_RESERVATIONS, now, state.rng)
        replica = group.replicas[decision.node]
        if not replica.breaker.closed or replica.draining or not replica.in_memory(task):
            return None
        wait_us = replica.wait_us(now)
        service_us = decision.predicted_us - wait_us
        return replica if tries_slot(replica, service_us, wait_us, state.policies.overlap, now) else None

    def _reserve(
        self,
        pending: PendingTask,
        router: Router,
        replica: Replica,
        decision: Decision,
        reserved_us: Mapping[str, Micros],
        now: Micros,
    ) -> Micros:
        """Reserve a replica for a waiting request. Return the µs that it takes there."""
        wait_us = replica.wait_us(now)
        service_us = max(decision.predicted_us - reserved_us.get(replica.key, 0) - wait_us, 0)
        if router.by_finish:
            pending.reservation = Reservation(replica, decision, now + wait_us, service_us, now)
        left = pending.wait_for(replica)
        if left is not None:
            self._state.let_others(left, now)
        return service_us

    def _is_still_optimal(
        self, task: Task, reservation: Reservation, reserved_us: Mapping[str, Micros], freed: list[Replica], now: Micros
    ) -> bool:
        """Check that a waiting request would reserve the same replica again.

        It is not if its replica is free or too late, or if another replica was freed where the request would finish
        sooner.
        """
        router = router_of(self._state, task)
        if not router.by_finish:  # the routing strategy was changed since
            return False
        occupies_gpu = task.kind is not EMBED
        overlap = self._state.policies.overlap
        if may_overlap(task, reservation.replica, reservation.service_us, overlap, now):
            return False
        if now > reservation.free_us or reservation.replica in freed:
            if reservation.replica.free(now, occupies_gpu) or not reservation.replica.nominal:
                return False
            wait_us = reservation.replica.wait_us(now, occupies_gpu)
            reservation.free_us, reservation.finish_us = (
                now + wait_us,
                now + wait_us + reserved_us.get(reservation.replica.key, 0) + reservation.service_us,
            )
            if reservation.finish_us > reservation.second_best_us:
                return False
        for replica in freed:
            if not replica.nominal:
                return False
            if replica is reservation.replica or not replica.free(now, occupies_gpu):
                continue
            key = replica.key
            known = reservation.decision.prediction_for(key)
            if known is not None:
                finish = now + replica.wait_us(now, occupies_gpu) + reserved_us.get(key, 0) + known.after_wait_us()
            else:
                finish = float(now + router.choose(task, [replica], reserved_us, now, self._state.rng).predicted_us)
            if finish < reservation.finish_us:
                return False
        return True

    def start_now(self, pending: PendingTask, group: ModelReplicas, now: Micros) -> Dispatched:
        """Start a new request at once if the best replica is free. Only while no other request waits."""
        state, task = self._state, pending.task
        if now < state.health.newcomers_until and state.health.settles_at(now) is not None:
            return Dispatched.UNDECIDED
        self._check_digests(group, task)
        router = router_of(state, task)
        if not (replicas := shortlist(group, task, self._avoided(pending, now), router.wide, now)):
            return Dispatched.UNDECIDED
        if all_paused(task, replicas):
            return Dispatched.UNDECIDED
        decision = router.choose(task, replicas, NO_RESERVATIONS, now, state.rng)
        replica = group.replicas[decision.node]
        if not replica.free(now, task.kind is not EMBED) or replica.delays_reload(task, now):
            decided = overlapped(task, replica, decision, NO_RESERVATIONS, state.policies.overlap, now)
            if decided is None:
                self._reserve(pending, router, replica, decision, NO_RESERVATIONS, now)
                return Dispatched.WAITING
            decision = decided
        pending.tokens = tokens = task.cost * group.tokens_per_cost + group.expected_tokens(task)
        state.shares.pass_by(task.app, tokens)
        self._start(pending, group, replica, decision, now)
        return Dispatched.STARTED

    def record_first_token(self, pending: PendingTask, attempt: Attempt, now: Micros) -> None:
        """Record that the answer begins: this attempt has won."""
        pending.delivering = True
        if pending.begun is None:
            pending.begun = attempt
        self._learn_latency(pending, attempt, now)
        self._win(pending, attempt, now)

    def measured(self, attempt: Attempt, timing: Timing, now: Micros) -> None:
        """Learn from an answer the rates of its node and the usual length of such answers."""
        task, replica = attempt.task, attempt.replica
        node, group = replica.node, replica.group
        usual = replica.decode.value
        if usual and attempt.remaining_us(now) > attempt.first_response_us():
            self.hedging.learn_alone(attempt, timing, usual, now)
        if attempt.overlapped and usual and timing.decode_us:
            node.concurrency.record_overlap(timing.tokens / timing.decode_us / usual, now)
        else:
            warm = attempt.warm_cost / task.cost if task.cost else 0.0
            elapsed_us = now - attempt.started_us
            if (
                attempt.trial or attempt.behind_prefill
            ) and timing.total_us:  # its wait for a slot is no part of its cost
                elapsed_us -= max(0, timing.total_us - timing.load_us - timing.prompt_us - timing.decode_us)
            self.demotion.record(replica, timing, now)
            measured_tokens(replica, timing, warm, elapsed_us)
        if not attempt.resumed:
            if timing.prompt_tokens:
                group.measured_prompt(task.cost, timing.prompt_tokens)
            if timing.tokens:
                group.length(task).add(timing.tokens)

    def _learn_latency(self, pending: PendingTask, attempt: Attempt, now: Micros) -> None:
        task = pending.task
        if task.kind is EMBED or attempt.resumed:
            return
        everybody, own = self._state.hedger, pending.hedger
        everybody.learn(task, attempt.decision, now - attempt.started_us)
        if own is not None and own is not everybody:
            own.learn(task, attempt.decision, now - attempt.started_us)

    def answered(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Settle an answered request."""
        state, task = self._state, pending.task
        if not task.stream:
            self._learn_latency(pending, attempt, now)
        used = outcome.timing.prompt_tokens + outcome.timing.tokens
        if used:
            state.shares.correct(task.app, used - pending.tokens)
        if pending.attempts:
            self._win(pending, attempt, now)
        if pending.fallback is not None:
            self.failover.answered(pending, now)
        state.settle(pending, outcome, attempt.id)

    def _win(self, pending: PendingTask, winner: Attempt, now: Micros) -> None:
        for other in pending.attempts.values():
            if other is not winner:
                self.hedging.learn_race(winner, other, now)
        self._drop_others(pending, winner, now)

    def _drop_others(self, pending: PendingTask, winner: Attempt, now: Micros) -> None:
        for other in list(pending.attempts.values()):
            if other is not winner:
                replica = other.replica
                if other.loads:
                    self._state.load_lost(other, winner, now)
                if (
                    not replica.nominal and not replica.breaker.closed
                ):  # a trial that lost: not now, and later still if it hangs
                    late = self.hang_detection.is_late(other, now)
                    self._state.abort(other, now, Outcome(Status.TIMEOUT, "sent nothing in time") if late else LEFT)
                    replica.breaker.postpone(now, late)
                else:
                    self._state.abort(other, now)
                self._state.bind_at(other.replica.model, now)  # its slot is free

    def failed(self, pending: PendingTask, attempt: Attempt, outcome: Outcome, now: Micros) -> None:
        """Try another node, queue the request, or settle it."""
        if self.failover.is_final(attempt, outcome):
            self._drop_others(pending, attempt, now)
            self._state.settle(pending, outcome, attempt.id)
            return
        self.failover.failed(pending, attempt, outcome, now)

    def preload(self, model: str, span_us: Micros, now: Micros) -> None:
        """Load a model on an idle node, if the time that its tasks have waited pays for the load.

        Args:
            span_us: Time since the last call of this method.
        """
        state = self._state
        group, queue = state.cluster.groups.get(model), state.queue(model)
        if group is None or not len(queue):
            return
        if any(replica.loading_until > now for replica in group.replicas.values()):
            return
        first = queue.peek(now)
        assert first is not None
        task = state.tasks[first].task
        idle = [
            replica
            for replica in group.with_capacity.values()
            if not replica.is_loaded and replica.free(now) and not replica.node.running
            if task.only is None or replica.key in task.only
        ]
        idle = [replica for replica in idle if not replica.node.in_use(now)]
        if not idle:
            group.cold_wait_us = 0
            return
        group.cold_wait_us += span_us * len(queue)
        best = min(idle, key=lambda replica: replica.startup_us())
        if not state.policies.preloader.loads(group.cold_wait_us, best.startup_us()):
            return
        group.cold_wait_us = 0
        load(state, best, task.kind, group.load_options(task), now)
