"""A scheduler in virtual time: nodes are names, an answer comes when a test gives it.

Every event is fed here, so the invariants are checked after each. Methods return what a reader of the actions cares
about, as a list of plain values (`Started`, `Aborted`, `Completed`, ...), in the order of the actions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from sollol.core.actions import (
    Abort,
    Accept,
    Action,
    Complete,
    ItemsRequested,
    Load,
    Notice,
    Probe,
    Refuse,
    SchedulerException,
    Start,
    WakeAt,
)
from sollol.core.endpoint import Endpoint
from sollol.core.events import Event, Finished, FirstToken, ItemsAdded, NodeAdded, NodeSeen, Submitted, Tick
from sollol.core.policy import Policies
from sollol.core.scheduler import Scheduler
from sollol.core.types import (
    MILLISECOND,
    SECOND,
    Cause,
    Decision,
    Kind,
    LoadedModel,
    Micros,
    NodeFacts,
    Outcome,
    Status,
    Task,
    Timing,
)
from sollol.engine.engine import default_policies

MODEL = "llama3.2:latest"
PROMPT, TOKENS = 100, 20  # of the answers by which a node's speed is learned


class Started(NamedTuple):
    task: int
    node: str
    cause: Cause = Cause.FIRST


class Aborted(NamedTuple):
    task: int
    node: str


class Completed(NamedTuple):
    task: int
    status: Status = Status.OK


class HedgeSoon:
    """Wants a second attempt of everything after 50 ms."""

    def deposit(self, task: Task) -> None: ...
    def learn(self, task: Task, decision: Decision, elapsed_us: int) -> None: ...

    def after(self, task: Task, decision: Decision) -> int | None:
        return 50 * MILLISECOND

    def withdraw(self) -> bool:
        return True


class VirtualCluster:
    """Carry out the actions of a scheduler on paper."""

    def __init__(self, policies: Policies | None = None, **settings: Any) -> None:
        self.scheduler = Scheduler(policies or default_policies(), random.Random(1), **settings)
        self.now: Micros = 0
        self.running: dict[int, Start] = {}  # by attempt
        self.started_us: dict[int, Micros] = {}  # by attempt
        self.probes: set[str] = set()
        self.completed: dict[int, Complete] = {}
        self.actions: list[Action] = []  # of the last event
        self.wake: Micros | None = None
        self.serial = 0
        self._took: dict[str, Micros] = {}
        self._models: dict[str, Mapping[str, int]] = {}

    # --- nodes ---

    def add(self, name: str, took_us: Micros | None = None, models: Mapping[str, int] | None = None) -> str:
        """Add a node that holds MODEL. With `took_us`, its speed is learned from a few answers that took so long."""
        endpoint = Endpoint(name)
        self._models[endpoint.key] = {MODEL: 10**9} if models is None else models
        self.feed(NodeAdded(endpoint))
        self.see(endpoint.key)
        if took_us is not None:
            self._took[endpoint.key] = took_us
            for _ in range(5):
                self.now += SECOND
                task = self.submit(only=(endpoint.key,))
                self.finish(task, after=took_us)
        return endpoint.key

    def see(self, key: str) -> list[Any]:
        """Let a node answer its probe."""
        self.probes.discard(key)
        models = self._models[key]
        loaded = {MODEL: LoadedModel(1, 1)} if MODEL in models else {}
        return self.feed(NodeSeen(key, NodeFacts("0.33.0", models, loaded)))

    # --- tasks ---

    def submit(self, model: str = MODEL, **fields: Any) -> int:
        """Submit a chat, or what the fields describe. Returns its id; `self.seen` are the actions."""
        self.serial += 1
        given: dict[str, Any] = {"kind": Kind.CHAT, "cost": 4 * PROMPT} | fields
        self.seen = self.feed(Submitted(Task(self.serial, model=model, **given)))
        return self.serial

    def items(self, task: int, costs: list[int], closed: bool = True) -> list[Any]:
        """Add items to a batch."""
        return self.feed(ItemsAdded(task, costs, closed))

    def attempt_of(self, task: int, node: str = "") -> int:
        """Return the attempt of a task in flight; with `node`, the one there."""
        (attempt,) = [
            number for number, start in self.running.items() if start.task == task and start.node.startswith(node)
        ]
        return attempt

    def first_token(self, task: int, movable: bool = False, node: str = "") -> list[Any]:
        return self.feed(FirstToken(self.attempt_of(task, node), movable))

    def finish(self, task: int, after: Micros = 0, outcome: Outcome | None = None, node: str = "") -> list[Any]:
        """Let an attempt of a task end, by default with a good answer that took the time since it began."""
        self.now += after
        attempt = self.attempt_of(task, node)
        del self.running[attempt]
        took_us = max(1, self.now - self.started_us[attempt])
        timing = Timing(1000, PROMPT, took_us // 10, TOKENS, took_us * 8 // 10)
        return self.feed(Finished(attempt, outcome or Outcome(Status.OK, "", 200, timing)))

    # --- events ---

    def feed(self, event: Event) -> list[Any]:
        """Handle an event. Return what it led to, without probes and timers."""
        self.actions = self.scheduler.handle(event, self.now)
        seen = [found for action in self.actions if (found := self.act(action)) is not None]
        self.scheduler.invariants()
        return seen

    def act(self, action: Action) -> Any:
        """Carry out one action. Return how a test sees it, or None for what it does not look at."""
        match action:
            case Start():
                assert action.task not in self.completed, "work began for a task that is over"
                self.running[action.attempt] = action
                self.started_us[action.attempt] = self.now
                return Started(action.task, action.node.partition(":")[0], action.cause)
            case Abort():
                start = self.running.pop(action.attempt)
                return Aborted(start.task, start.node.partition(":")[0])
            case Complete():
                assert action.task not in self.completed, "a task ended twice"
                self.completed[action.task] = action
                return Completed(action.task, action.outcome.status)
            case Probe():
                self.probes.add(action.node)
            case WakeAt():
                self.wake = action.at
            case Accept() | Refuse() | ItemsRequested() | Load() | Notice() | SchedulerException():
                return action
        return None

    def pass_time(self, us: Micros) -> list[Any]:
        """Let time pass, with a Tick whenever one was requested."""
        target, seen = self.now + us, []
        while self.wake is not None and self.wake <= target:
            self.now, self.wake = max(self.now, self.wake), None
            seen += self.feed(Tick())
        self.now = target
        return seen
