"""Learn from a good answer: the speed of its replica, its slots, and that it works."""

from __future__ import annotations

from typing import Final

from sollol.core.actions import SchedulerException
from sollol.core.request_scheduler import RequestScheduler
from sollol.core.slot_discovery import SlotDiscovery
from sollol.core.state import memory
from sollol.core.state.measuring import measured_load, measured_work
from sollol.core.state.replica import Attempt, Replica
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import EMBED, SECOND, Micros, Timing

WARM_LOAD: Final[Micros] = SECOND // 10  # Ollama reports 1 to 7 ms of loading for a warm model


def _learn_context(replica: Replica, attempt: Attempt, loaded: bool, now: Micros) -> None:
    """Record whether a call that was sent the context of the runner was served without a load."""
    replica.shared_in_vain = replica.shared_in_vain + 1 if loaded else 0
    if loaded:
        replica.hold_options(attempt.options, now)


class Measurements:
    """Update the estimators of a replica after each good answer."""

    __slots__ = ("_requests", "_slot_discovery", "_state")

    def __init__(self, state: SchedulerState, requests: RequestScheduler, slots: SlotDiscovery) -> None:
        self._state = state
        self._requests = requests
        self._slot_discovery = slots

    def answered(self, attempt: Attempt, timing: Timing, busy_us: Micros, inflight: int, now: Micros) -> None:
        """Learn from an answer. An exception here is reported and does not fail the answer."""
        try:
            self._learn(attempt, timing, busy_us, inflight, now)
        except Exception as error:
            self._state.out.append(SchedulerException(attempt.task.id, error))

    def _learn(self, attempt: Attempt, timing: Timing, busy_us: Micros, inflight: int, now: Micros) -> None:
        """Update rates, latencies and slots."""
        replica = attempt.replica
        loading = timing.load_us if timing.load_us > WARM_LOAD else 0
        working_us = busy_us - loading
        if working_us < 1:
            working_us = 1
        replica.node.succeeded += 1
        replica.last_good_us = now
        if replica.reliability.value == 1.0:
            replica.reliability.count += 1
        else:
            replica.reliability.add(1.0)
        replica.busy_answers = 0
        replica.latency.add(now - attempt.started_us)
        replica.good_latency.add(now - attempt.started_us)
        if self._state.cluster.incapable:
            self._state.cluster.served(replica.node, attempt.task)
        if attempt.task.kind is EMBED:
            if not attempt.overlapped:
                self._requests.demotion.record_work(replica, attempt.cost, working_us, now)
            measured_work(replica, now, attempt.cost, working_us)
            replica.embedded += attempt.items.total()
            amount = attempt.cost
        else:
            self._requests.measured(attempt, timing, now)
            amount = float(timing.tokens + timing.prompt_tokens) or attempt.cost
        replica.answers += 1
        replica.loaded_by_us = True
        if not replica.options_answered_us and attempt.started_us >= replica.options_since_us:
            replica.options_answered_us = now
        if attempt.loads:  # the node lists the context of its new runner
            self._state.health.ask(replica.node, now, self._state.out)
        elif attempt.decision.num_ctx:
            _learn_context(replica, attempt, bool(loading), now)
        if loading:  # it may have put out another model
            measured_load(replica, timing)
            if not attempt.loads:
                memory.learn_from_load(replica.node, replica, attempt.idle_since_us)
            memory.expect_loads(replica.node, replica.model)
            self._state.health.ask(replica.node, now, self._state.out)
        elif not self._slot_discovery.learn(attempt, timing, now):
            replica.sample(amount, working_us, inflight, False, bool(replica.group.queue.waiting))
