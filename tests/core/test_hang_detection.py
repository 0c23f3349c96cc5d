"""A runner that hangs for good, behind a node that answers every probe, and callers who do not wait to the end."""

from __future__ import annotations

import random

import pytest

from sollol.core.actions import Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import Cancelled, Finished, NodeAdded, NodeLost, NodeSeen, Submitted
from sollol.core.scheduler import Scheduler
from sollol.core.types import OK, SECOND, Kind, LoadedModel, NodeFacts, Outcome, Task, Timing
from sollol.engine.engine import default_policies

MODEL = "llama3.2:latest"
FAST, SLOW = "10.0.0.1:11434", "10.0.0.2:11434"


class Desk:
    def __init__(self) -> None:
        self.scheduler = Scheduler(default_policies(), random.Random(1))
        self.at = self.task = 0
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
        for key in (FAST, SLOW):
            self.scheduler.handle(NodeAdded(Endpoint(key.partition(":")[0])), 0)
            self.scheduler.handle(NodeSeen(key, facts), 0)
        self.at = SECOND

    def submit(self, stream: bool = False) -> Start:
        self.task += 1
        task = Task(self.task, Kind.CHAT, MODEL, 400, stream=stream)
        self.last = self.scheduler.handle(Submitted(task), self.at)
        return next(action for action in self.last if isinstance(action, Start))

    def answered(self, start: Start) -> None:
        took_us = SECOND // 10 if start.node == FAST else SECOND // 4
        self.at += took_us
        timing = Timing(1000, 100, took_us // 10, 20, took_us * 8 // 10)
        self.scheduler.handle(Finished(start.attempt, Outcome(OK, "", 200, timing)), self.at)

    def leave_after(self, seconds: float) -> None:
        self.at += round(seconds * SECOND)
        self.scheduler.handle(Cancelled(self.task), self.at)
        self.at += SECOND // 10


@pytest.fixture
def desk() -> Desk:
    """Both nodes are known, and the fast one is chosen."""
    desk = Desk()
    for _ in range(20):
        desk.answered(desk.submit())
    assert desk.submit().node == FAST
    desk.leave_after(0.01)
    return desk


def test_a_node_that_lets_callers_wait_in_vain_is_left_alone(desk: Desk) -> None:
    tried = 0
    while desk.submit().node == FAST:
        tried += 1
        assert tried < 6, "it is asked for ever"
        desk.leave_after(12.0)
    assert tried == 4


def test_callers_who_leave_early_say_nothing_of_a_node(desk: Desk) -> None:
    for _ in range(20):
        assert desk.submit().node == FAST
        desk.leave_after(1.0)


def test_a_node_whose_probes_hang_with_its_runner_does_not_get_every_second_call(desk: Desk) -> None:
    """Ollama asks a runner that hangs before it answers `/api/ps`, and answers again when our call is gone."""
    facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
    hung = 0
    for _ in range(60):
        start = desk.submit()
        if start.node == FAST:
            hung += 1
            desk.at += 3 * SECOND
            actions = [*desk.last, *desk.scheduler.handle(NodeLost(FAST, "silent", False), desk.at)]
            start = next(action for action in actions if isinstance(action, Start) and action.node == SLOW)
        desk.answered(start)
        desk.scheduler.handle(NodeSeen(FAST, facts), desk.at)
    assert 1 <= hung <= 8, "one, and then a trial after each pause, which grows; each has a copy"


def test_one_call_lost_with_a_silent_node_is_held_against_it_for_a_moment(desk: Desk) -> None:
    facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
    assert desk.submit().node == FAST
    for _ in range(2):
        desk.at += 3 * SECOND
        desk.scheduler.handle(NodeLost(FAST, "silent", False), desk.at)
    desk.scheduler.handle(NodeSeen(FAST, facts), desk.at)
    desk.at += 3 * SECOND
    assert desk.submit().node == FAST
