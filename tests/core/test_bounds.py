"""What callers invent (models, applications, options, routes, deadlines) takes no memory for ever."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable

import pytest

from sollol.core.actions import Complete, Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import Finished, NodeAdded, NodeSeen, Submitted, Tick
from sollol.core.scheduler import Scheduler
from sollol.core.state.incapability import KNOWN_MAX
from sollol.core.state.queue import APPS_MAX, FairShares
from sollol.core.state.replica import Node
from sollol.core.types import OK, SECOND, Kind, LoadedModel, NodeFacts, Outcome, Status, Task, Timing
from sollol.engine.engine import default_policies
from sollol.policies.model_concurrency import NAMES_MAX, ModelConcurrency

MODEL, NODE = "llama3.2:latest", "10.0.0.1:11434"
COUNT = 100_000
FLAT = 2_000_000  # bytes; a name that is kept takes 1,000 or more


class Desk:
    """One node with MODEL, and time that stands still unless it is moved."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(default_policies(), random.Random(1))
        self.at = self.number = 0
        self.scheduler.handle(NodeAdded(Endpoint("10.0.0.1")), 0)
        self._seen()

    def _seen(self) -> None:
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
        self.scheduler.handle(NodeSeen(NODE, facts), self.at)

    def call(self, model: str = MODEL, app: str = "", options: str = "", deadline_s: int = 0) -> Status:
        """Submit a call and let it end; how it did."""
        self.at += 1000
        self.number += 1
        deadline = self.at + deadline_s * SECOND if deadline_s else None
        task = Task(self.number, Kind.CHAT, model, 10, app=app, options=options, deadline_us=deadline)
        actions = self.scheduler.handle(Submitted(task), self.at)
        if not any(isinstance(action, (Start, Complete)) for action in actions):
            self._seen()  # it was asked again whether it has the model
            actions = self.scheduler.handle(Tick(), self.at)
        for action in actions:
            if isinstance(action, Start):
                timing = Timing(1, 5, 10, 5, 10)
                actions = self.scheduler.handle(Finished(action.attempt, Outcome(OK, "", 200, timing)), self.at + 500)
                break
        return next((a.outcome.status for a in actions if isinstance(a, Complete)), Status.NO_NODE)


def grown(work: Callable[[int], object], count: int = COUNT) -> int:
    """The bytes that the last tenth of this work has left behind."""
    traced_from = count - count // 10
    for number in range(traced_from):
        work(number)
    gc.collect()
    tracemalloc.start()
    for number in range(traced_from, count):
        work(number)
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return left


@pytest.mark.thorough
def test_made_up_models() -> None:
    desk = Desk()
    assert grown(lambda number: desk.call(f"made-up-{number}:latest")) < FLAT
    assert len(desk.scheduler.view().groups) <= 1
    assert len(desk.scheduler._state.queues) <= 1
    assert not desk.scheduler.view().tasks
    assert desk.call() is OK
    desk.scheduler.invariants()


def test_a_model_comes_back_after_it_was_forgotten() -> None:
    desk = Desk()
    desk.call("later:latest")
    assert "later:latest" not in desk.scheduler.view().groups
    facts = NodeFacts("0.33.0", {MODEL: 10**9, "later:latest": 10**9}, {})
    desk.scheduler.handle(NodeSeen(NODE, facts), desk.at)
    assert desk.call("later:latest") is OK
    desk.scheduler.invariants()


@pytest.mark.thorough
def test_made_up_applications() -> None:
    desk = Desk()
    for number in range(APPS_MAX + 2_000):
        desk.call(app=f"app {number}")
    assert len(desk.scheduler._state.shares._apps) <= APPS_MAX


@pytest.mark.thorough
def test_a_share_outlives_made_up_applications() -> None:
    shares = FairShares()
    waiting = shares.enter("waits")
    shares.pass_by("greedy", 1e6)
    for number in range(COUNT):
        shares.pass_by(f"app {number}", 10.0)
    assert len(shares._apps) <= APPS_MAX
    assert shares._apps["waits"] is waiting
    assert shares._apps["greedy"].given >= 1e6


def test_made_up_options() -> None:
    desk = Desk()
    for number in range(1_000):
        assert desk.call(options=f"num_ctx={number}") is OK
    assert len(desk.scheduler.view().groups[MODEL]._by_options) <= 1


@pytest.mark.thorough
def test_deadlines_a_day_away() -> None:
    desk = Desk()
    for _ in range(20_000):
        desk.call(deadline_s=86_400)
    assert len(desk.scheduler._state._timers) < 6_000


@pytest.mark.thorough
def test_a_deadline_still_comes() -> None:
    desk = Desk()
    task = Task(1_000_000, Kind.CHAT, MODEL, 10, deadline_us=desk.at + 86_400 * SECOND)
    desk.scheduler.handle(Submitted(task), desk.at)
    for _ in range(10_000):
        desk.call(deadline_s=86_400)
    actions = desk.scheduler.handle(Tick(), 86_400 * SECOND + 1)
    assert any(isinstance(a, Complete) and a.task == 1_000_000 and a.outcome.status is Status.DEADLINE for a in actions)


def test_made_up_names_in_turns_and_routes() -> None:
    concurrency, node = ModelConcurrency(), Node(Endpoint("10.0.0.1"), ModelConcurrency())
    for number in range(10_000):
        concurrency.charge(5, f"app {number}", "m", SECOND, number)
        task = Task(number, Kind.CHAT, MODEL, route=f"/made/up/{number}")
        node.incapable.learn(task, Outcome(Status.UNSUITED, "404 page not found", 404), number)
    assert len(concurrency._apps._given) <= NAMES_MAX
    assert len(node.incapable._known) <= KNOWN_MAX
