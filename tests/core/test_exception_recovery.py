"""An exception at every step of the scheduler: it settles the task that it concerns, and every other goes on.

Every method of every class of `core` and `policies` raises once, at one of its calls, in a run of random events.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import random
from collections.abc import Iterator
from typing import Any

import pytest

import sollol.core
import sollol.policies
from sollol.core.actions import Abort, Action, SchedulerException
from sollol.core.endpoint import Endpoint
from sollol.core.events import Cancelled, Event, NodeAdded, NodeRemoved, TaskFailed
from sollol.core.scheduler import Scheduler
from sollol.core.types import MILLISECOND, SECOND, Status
from tests.core.test_scheduler_random import World, nodes
from tests.marks import plain_only

STEPS = 80
# What events and outcomes are made of, and what only tests call.
VALUES = {"invariants", "__repr__", "__eq__", "__hash__", "__init__", "__contains__", "__len__", "__iter__"}


class Thrown(Exception):
    """By the test."""


class Hook:
    """Makes one method raise at its n-th call."""

    def __init__(self, owner: type, name: str, at: int) -> None:
        self.owner, self.name, self.left = owner, name, at
        self.thrown = False
        self.original = owner.__dict__[name]

    def __enter__(self) -> Hook:
        hook, original = self, self.original
        called: Any = original.fget if isinstance(original, property) else original

        def raising(*args: Any, **named: Any) -> Any:
            hook.left -= Watched.handling
            if hook.left == 0 and Watched.handling:
                hook.thrown = True
                raise Thrown(f"{hook.owner.__name__}.{hook.name}")
            return called(*args, **named)

        setattr(self.owner, self.name, property(raising) if isinstance(original, property) else raising)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.original)


class Watched(World):
    """Counts the faults that are told, and which tasks they ended."""

    handling = False  # what the test itself asks does not count

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.faults: list[SchedulerException] = []

    def feed(self, event: Event) -> list[Any]:
        Watched.handling = True
        actions = self.scheduler.handle(event, self.now)
        Watched.handling = False
        for action in actions:
            self.act(action)
        self.scheduler.invariants()
        return []

    def act(self, action: Action) -> Any:
        if isinstance(action, SchedulerException):
            self.faults.append(action)
        elif isinstance(action, Abort) and action.attempt not in self.running:
            pass  # its start was never reported
        else:
            super().act(action)


def steps_of(package: Any) -> Iterator[tuple[type, str]]:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for _, owner in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if owner.__module__ != module.name or hasattr(owner, "_fields") or issubclass(owner, Exception):
                continue
            for name, member in vars(owner).items():
                if name not in VALUES and (inspect.isfunction(member) or isinstance(member, property)):
                    yield owner, name


METHODS = [
    step for package in (sollol.core, sollol.policies) for step in steps_of(package) if step != (Scheduler, "handle")
]


def run(world: Watched) -> None:
    keys = list(nodes(world, 3))
    rng = random.Random(world.rng.random())
    for _ in range(STEPS):
        roll = rng.random()
        if roll < 0.3:
            world.submit_any()
        elif roll < 0.4:
            world.supply(whole=False)
        elif roll < 0.62:
            world.finish_any()
        elif roll < 0.7:
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


def finish(world: Watched) -> None:
    for number in range(3):
        world.feed(NodeAdded(Endpoint(f"10.0.0.{number + 1}")))
    for _ in range(500):
        if len(world.completed) == world.serial:
            break
        world.supply(whole=True)
        world.answer_probes(lost=0.0)
        world.finish_any(Status.OK)
        world.pass_time(SECOND)


@pytest.mark.thorough
@plain_only  # compiled methods cannot be replaced
@pytest.mark.parametrize(("owner", "name"), METHODS, ids=lambda part: getattr(part, "__name__", part))
def test_a_fault_at_any_step_settles_its_task_and_no_other(owner: type, name: str) -> None:
    for seed, at in ((1, 1), (2, 7), (3, 40)):
        world = Watched(seed)
        with Hook(owner, name, at) as hook:
            run(world)
        finish(world)
        missing = set(range(1, world.serial + 1)) - set(world.completed)
        assert not missing, f"{owner.__name__}.{name}, call {at}: tasks {missing} never ended"
        assert not world.running, f"{owner.__name__}.{name}, call {at}: something runs for nobody"
        ours = [task for task, end in world.completed.items() if "Thrown" in end.outcome.message]
        assert len(ours) <= len(world.faults) <= 2 * hook.thrown, "a fault was not told, or told again and again"
        if not hook.thrown:
            break


@plain_only
def test_a_step_that_always_fails_ends_every_task_and_hangs_none() -> None:
    from sollol.policies.routing import CompletionRouter

    world = Watched(5)
    list(nodes(world, 2))
    world.answer_probes(lost=0.0)
    with pytest.MonkeyPatch.context() as patch:

        def choose(*_: object) -> None:
            raise RecursionError("of the router")

        patch.setattr(CompletionRouter, "choose", choose)
        for _ in range(10):
            world.submit_any()
        world.supply(whole=True)
        world.pass_time(20 * SECOND)
    assert all(start.items is not None for start in world.running.values()), "a single call holds a slot"
    singles = [task for task in world.completed if task not in world.accepted]
    assert singles
    assert all(world.completed[task].outcome.http_status == 500 for task in singles)
    world.submit_any()
    finish(world)
    assert len(world.completed) == world.serial


def test_a_task_that_the_outside_gives_up_leaves_its_slot() -> None:
    world = Watched(7)
    list(nodes(world, 1))
    world.answer_probes(lost=0.0)
    while not world.running:
        world.submit_any()
        world.supply(whole=True)
    task = next(iter(world.running.values())).task
    world.feed(TaskFailed(task, ValueError("of its job")))
    assert "ValueError: of its job" in world.completed[task].outcome.message
    assert all(start.task != task for start in world.running.values())
