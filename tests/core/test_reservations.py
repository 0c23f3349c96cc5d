"""A task that rather waits for a busy node is asked again when something has changed for it, and only then."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from sollol.core.actions import Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import Event, Finished, NodeAdded, NodeSeen, Submitted
from sollol.core.scheduler import Scheduler
from sollol.core.slot_binding import RESCAN_PAUSE
from sollol.core.state.replica import Replica
from sollol.core.types import OK, SECOND, Decision, Kind, LoadedModel, Micros, NodeFacts, Outcome, Task, Timing
from sollol.engine.engine import default_policies
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.routing import CompletionRouter

MODEL = "llama3.2:latest"
FAST, OTHER, SLOW = "10.0.0.1:11434", "10.0.0.2:11434", "10.0.0.3:11434"
TOOK = {FAST: SECOND // 10, OTHER: SECOND // 8, SLOW: 2 * SECOND}
LONG_AGO = 2 * RESCAN_PAUSE  # so that those who wait may all be asked again


class Asked:
    """A router by predicted completion time that notes for whom several lanes were compared."""

    wide, by_finish = False, True

    def __init__(self) -> None:
        self._router = CompletionRouter()
        self.tasks: list[int] = []

    def choose(
        self, task: Task, replicas: Sequence[Replica], reserved_us: Mapping[str, Micros], at: Micros, rng: random.Random
    ) -> Decision:
        if len(replicas) > 1:
            self.tasks.append(task.id)
        return self._router.choose(task, replicas, reserved_us, at, rng)


class Desk:
    """Three nodes of one slot each. Their speeds are known."""

    def __init__(self) -> None:
        self.router = Asked()
        policies = default_policies()._replace(router=self.router, limiter=lambda: LearnedLimit(1, 1))
        self.scheduler = Scheduler(policies, random.Random(1))
        self.at = self.task = 0
        self.running: dict[str, Start] = {}
        self.started_us: dict[int, Micros] = {}
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
        for key in TOOK:
            self._handle(NodeAdded(Endpoint(key.partition(":")[0])))
            self._handle(NodeSeen(key, facts))
        for key in TOOK:
            for _ in range(5):
                self.at += SECOND
                self.submit(only=(key,))
                self.at += TOOK[key]
                self.answer(key)

    def _handle(self, event: Event) -> None:
        for action in self.scheduler.handle(event, self.at):
            if isinstance(action, Start):
                self.running[action.node] = action
                self.started_us[action.task] = self.at
        self.scheduler.invariants()

    def submit(self, only: tuple[str, ...] | None = None) -> int:
        self.task += 1
        self._handle(Submitted(Task(self.task, Kind.CHAT, MODEL, 400, only=only)))
        return self.task

    def answer(self, node: str) -> None:
        took_us = TOOK[node]
        timing = Timing(1000, 100, took_us // 10, 20, took_us * 8 // 10)
        self._handle(Finished(self.running.pop(node).attempt, Outcome(OK, "", 200, timing)))

    def asked(self) -> list[int]:
        tasks, self.router.tasks = self.router.tasks, []
        return tasks


@pytest.fixture
def desk() -> Desk:
    """Both fast nodes are busy, tasks 18 and 19 wait for them, and the slow node is idle."""
    desk = Desk()
    for task in range(16, 20):
        desk.at += LONG_AGO
        assert desk.submit() == task
    assert set(desk.running) == {FAST, OTHER}
    desk.asked()
    desk.at += LONG_AGO
    return desk


def test_a_newcomer_is_asked_alone(desk: Desk) -> None:
    newcomer = desk.submit()
    assert desk.asked() == [newcomer]
    assert SLOW not in desk.running


def test_when_a_node_is_free_the_first_goes_and_those_who_wait_for_another_are_not_asked(desk: Desk) -> None:
    desk.at = desk.started_us[16] + TOOK[FAST]
    desk.answer(FAST)
    assert desk.running[FAST].task == 18
    assert desk.asked() == [18]


def test_who_waits_for_a_node_goes_where_it_is_sooner(desk: Desk) -> None:
    """The second in line waits for the other node; what the first one asked is answered long before it should be."""
    desk.answer(FAST)
    desk.at += LONG_AGO
    desk.answer(FAST)
    assert desk.running[FAST].task == 19
    assert desk.asked() == [18, 19]


def test_who_waits_for_a_node_that_is_far_too_late_takes_another_at_the_next_event(desk: Desk) -> None:
    desk.at += 30 * SECOND
    desk.submit()
    assert desk.running[SLOW].task == 18
