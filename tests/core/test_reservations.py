"""A task that rather waits for a busy node is asked again when something has changed for it, and only then."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from sollol.core.slot_binding import RESCAN_PAUSE
from sollol.core.state.replica import Replica
from sollol.core.types import OK, SECOND, Decision, Micros, Outcome, Task, Timing
from sollol.engine.engine import default_policies
from sollol.policies.concurrency import LearnedLimit
from sollol.policies.routing import CompletionRouter
from tests.core.virtual import VirtualCluster

FAST, OTHER, SLOW = "10.0.0.1:11434", "10.0.0.2:11434", "10.0.0.3:11434"
TOOK = {FAST: SECOND // 10, OTHER: SECOND // 8, SLOW: 2 * SECOND}
LONG_AGO = 2 * RESCAN_PAUSE  # so that those who wait may all be asked again


class Asked:
    """A router by predicted completion time that notes the tasks for which several replicas were compared."""

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


class Desk(VirtualCluster):
    """Three nodes of one slot each. Their speeds are learned."""

    def __init__(self) -> None:
        self.router = Asked()
        super().__init__(default_policies()._replace(router=self.router, limiter=lambda: LearnedLimit(1, 1)))
        for key, took_us in TOOK.items():
            self.add(key.partition(":")[0], took_us)

    def on(self, node: str) -> int | None:
        """Return the task that runs on a node."""
        return next((start.task for start in self.running.values() if start.node == node), None)

    def answer(self, node: str) -> None:
        """Let a node answer, at once but with the timings of its speed."""
        task = self.on(node)
        assert task is not None
        timing = Timing(1000, 100, TOOK[node] // 10, 20, TOOK[node] * 8 // 10)
        self.finish(task, outcome=Outcome(OK, "", 200, timing))

    def asked(self) -> list[int]:
        tasks, self.router.tasks = self.router.tasks, []
        return tasks


@pytest.fixture
def desk() -> Desk:
    """Both fast nodes are busy, tasks 18 and 19 wait for them, and the slow node is idle."""
    desk = Desk()
    for task in range(16, 20):
        desk.now += LONG_AGO
        assert desk.submit() == task
    assert {start.node for start in desk.running.values()} == {FAST, OTHER}
    desk.asked()
    desk.now += LONG_AGO
    return desk


def test_a_newcomer_is_asked_alone(desk: Desk) -> None:
    newcomer = desk.submit()
    assert desk.asked() == [newcomer]
    assert desk.on(SLOW) is None


def test_when_a_node_is_free_the_first_goes_and_those_who_wait_for_another_are_not_asked(desk: Desk) -> None:
    desk.now = desk.started_us[desk.attempt_of(16)] + TOOK[FAST]
    desk.answer(FAST)
    assert desk.on(FAST) == 18
    assert desk.asked() == [18]


def test_who_waits_for_a_node_goes_where_it_is_sooner(desk: Desk) -> None:
    """The second in line waits for the other node; what the first one asked is answered long before it should be."""
    desk.answer(FAST)
    desk.now += LONG_AGO
    desk.answer(FAST)
    assert desk.on(FAST) == 19
    assert desk.asked() == [18, 19]


def test_who_waits_for_a_node_that_is_far_too_late_takes_another_at_the_next_event(desk: Desk) -> None:
    desk.now += 30 * SECOND
    desk.submit()
    assert desk.on(SLOW) == 18
