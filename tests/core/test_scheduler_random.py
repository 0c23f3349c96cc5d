"""The scheduler under random events: its invariants hold after each, and every task ends exactly once."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.actions import Accept, Action, Refuse
from sollol.core.endpoint import Endpoint
from sollol.core.events import (
    Cancelled,
    Finished,
    FirstToken,
    ItemsAdded,
    NodeAdded,
    NodeLost,
    NodeRemoved,
    NodeSeen,
    Submitted,
)
from sollol.core.types import MILLISECOND, SECOND, Kind, NodeFacts, Outcome, Status, Task, Timing
from sollol.engine.engine import default_policies
from tests.core.virtual import HedgeSoon, VirtualCluster

MODELS = ("chat:latest", "embed:latest")
ENDS = [Status.OK] * 6 + [
    Status.FAILED,
    Status.BUSY,
    Status.TIMEOUT,
    Status.UNREACHABLE,
    Status.MISSING,
    Status.REFUSED,
]


class World(VirtualCluster):
    """Feed random events, and count what becomes of each item."""

    def __init__(self, seed: int) -> None:
        super().__init__(default_policies()._replace(hedger=HedgeSoon()), queue_bound=12)
        self.rng = random.Random(seed)
        self.accepted: dict[int, list[int]] = {}  # of a batch: how often each item was accepted or refused
        self.open_batches: dict[int, int] = {}  # task -> items still to be added

    def act(self, action: Action) -> Any:
        if isinstance(action, Accept | Refuse):
            assert action.task not in self.completed
            for item in action.items.items():
                self.accepted[action.task][item] += 1
        return super().act(action)

    def outcome(self, status: Status) -> Outcome:
        timing = Timing(1000, 20, 5000, 30, 300_000) if status is Status.OK else Timing()
        return Outcome(
            status, status.value, {Status.OK: 200, Status.FAILED: 500, Status.REFUSED: 400}.get(status, 0), timing
        )

    def submit_any(self) -> None:
        self.serial += 1
        rng = self.rng
        deadline = self.now + rng.randint(1, 20) * SECOND if rng.random() < 0.2 else None
        common: dict[str, Any] = {"priority": rng.randint(0, 10), "app": rng.choice("ab"), "deadline_us": deadline}
        if rng.random() < 0.4:
            count = rng.randint(0, 30)
            self.accepted[self.serial] = [0] * count
            self.open_batches[self.serial] = count
            self.feed(Submitted(Task(self.serial, Kind.EMBED, MODELS[1], batch=True, **common)))
            return
        options = rng.choice(["", "num_ctx=8192"])
        stream, hedge = rng.random() < 0.5, rng.random() < 0.5
        prefix = ((rng.randint(1, 3), 40),)
        self.feed(
            Submitted(
                Task(
                    self.serial, Kind.CHAT, MODELS[0], 100, options=options, stream=stream, hedge=hedge, prefix=prefix,
                    **common,
                )
            )
        )  # fmt: skip

    def supply(self, whole: bool) -> None:
        for task, left in list(self.open_batches.items()):
            if task in self.completed:
                del self.open_batches[task]
                continue
            count = left if whole else self.rng.randint(0, left)
            self.open_batches[task] -= count
            closed = count == left
            self.feed(ItemsAdded(task, [self.rng.randint(10, 500) for _ in range(count)], closed))
            if closed:
                del self.open_batches[task]

    def finish_any(self, status: Status | None = None) -> None:
        if self.running:
            attempt = self.rng.choice(sorted(self.running))
            del self.running[attempt]
            self.feed(Finished(attempt, self.outcome(status or self.rng.choice(ENDS))))

    def first_token_of_any(self) -> None:
        if streams := sorted(a for a, start in self.running.items() if start.items is None):
            self.feed(FirstToken(self.rng.choice(streams), self.rng.random() < 0.5))

    def answer_probes(self, lost: float) -> None:
        for node in sorted(self.probes):
            self.probes.discard(node)
            if self.rng.random() < lost:
                self.feed(NodeLost(node, "silent", self.rng.random() < 0.5))
            else:
                self.feed(NodeSeen(node, NodeFacts("0.33", dict.fromkeys(MODELS, 10**9), {})))


def nodes(world: World, count: int) -> Iterable[str]:
    for i in range(count):
        endpoint = Endpoint(f"10.0.0.{i + 1}")
        world.feed(NodeAdded(endpoint))
        yield endpoint.key


@pytest.mark.thorough
@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(10, 90))
def test_every_task_ends_once_and_every_item_is_counted_once(seed: int, count: int, steps: int) -> None:
    world = World(seed)
    keys = list(nodes(world, count))
    rng = world.rng
    for _ in range(steps):
        roll = rng.random()
        if roll < 0.25:
            world.submit_any()
        elif roll < 0.35:
            world.supply(whole=False)
        elif roll < 0.65:
            world.finish_any()
        elif roll < 0.72:
            world.first_token_of_any()
        elif roll < 0.78:
            world.answer_probes(lost=0.2)
        elif roll < 0.82 and world.serial:
            world.feed(Cancelled(rng.randint(1, world.serial)))
        elif roll < 0.84:
            world.feed(NodeRemoved(rng.choice(keys)))
        elif roll < 0.86:
            world.feed(NodeAdded(Endpoint(rng.choice(keys).split(":")[0])))
        else:
            world.pass_time(rng.choice([MILLISECOND, 100 * MILLISECOND, 3 * SECOND]))
    for key in keys:
        world.feed(NodeAdded(Endpoint(key.split(":")[0])))
    for _ in range(2_000):
        if len(world.completed) == world.serial:
            break
        world.supply(whole=True)
        world.answer_probes(lost=0.0)
        world.finish_any(Status.OK)
        world.pass_time(SECOND)
    assert set(world.completed) == set(range(1, world.serial + 1)), "a task never ended"
    assert not world.running, "something runs for nobody"
    for task, seen in world.accepted.items():
        ended = world.completed[task].outcome.status
        assert all(times <= 1 for times in seen), "an item was counted twice"
        if ended is Status.OK:
            assert all(times == 1 for times in seen), "an item was lost"
