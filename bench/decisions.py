"""What a decision costs, in wall time of `Scheduler.handle` alone: no sockets, no asyncio, no journal.

Timed is one request's share: `handle(Submitted)` + `handle(Finished)`, each with everything that follows from it
(learning, and starting whoever is next). "idle": nothing runs or waits, so Submitted decides. "busy": every slot is
taken and one request waits, so Finished decides. "a line": as many wait as there are nodes (at most 100), and where
they would rather wait than take the freed node, all of them are compared. No row has a target: a node's answer takes
milliseconds to minutes.
Nodes have speeds of 1:16, answers take their time on them (10 % jitter), and rates are known: 20 requests a node come
before the clock runs (2 with 1,000 nodes). The median of TIMED. The reference is a scan for the node with the fewest
in flight, in Python.
"which node": only the shortlist and the choice from it, of which a request under way needs one or two.

"a request": the same and all that a gateway adds to it, which is making the events and `journal.record` for each, of
nodes that answer at once, so that CPU is all that counts (`bench.gateway` shows the rest). "idle": one client.
"replicas with room": two of the four slots of each node are taken. "a line of n": every slot is taken and n wait.
Conversations have two beginnings: one that all share, and their own.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import deque

from bench.rows import Row, median, row
from sollol.core.actions import Action, Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import Event, Finished, FirstToken, NodeAdded, NodeSeen, Submitted
from sollol.core.scheduler import Scheduler
from sollol.core.state.shortlist import shortlist
from sollol.core.types import SECOND, Kind, LoadedModel, NodeFacts, Outcome, Status, Task, Timing
from sollol.engine.engine import default_policies
from sollol.observe.journal import Journal
from sollol.policies.concurrency import LearnedLimit

MODEL = "llama3.2:latest"
TIMED = 500
PROMPT, TOKENS = 100, 100
SHARED = (1, 40)  # a beginning of all conversations, as a system prompt is
INSTANT = Timing(1000, 48, 1000, 17, 8500)
REQUESTS, BLOCK = 4000, 100
ROOM = 4  # slots of a replica in which some are free


class Cluster:
    """A scheduler whose nodes answer as predicted."""

    def __init__(self, nodes: int) -> None:
        self.rng = random.Random(1)
        self.scheduler = Scheduler(default_policies(), random.Random(1))
        self.speed: dict[str, float] = {}
        self.at = 0
        self.ends: list[tuple[int, int, str]] = []
        self.serial = 0
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
        for i in range(nodes):
            endpoint = Endpoint(f"10.0.{i // 250}.{i % 250 + 1}")
            self.speed[endpoint.key] = 2 ** self.rng.uniform(0, 4)
            self.scheduler.handle(NodeAdded(endpoint), 0)
            self.scheduler.handle(NodeSeen(endpoint.key, facts), 0)

    def submit(self) -> float:
        """Seconds it took to decide, or to put it in line."""
        self.serial += 1
        prefix = ((self.serial, 4 * PROMPT),)
        event = Submitted(Task(self.serial, Kind.CHAT, MODEL, 4 * PROMPT, prefix=prefix))
        return self._handle(event)

    def finish(self) -> float:
        """The next answer comes."""
        self.at, attempt, key = heapq.heappop(self.ends)
        prompt_us, decode_us = self._times(key)
        timing = Timing(2000, PROMPT, prompt_us, TOKENS, decode_us)
        return self._handle(Finished(attempt, Outcome(Status.OK, "", 200, timing)))

    def _handle(self, event: Submitted | Finished) -> float:
        began = time.perf_counter()
        actions = self.scheduler.handle(event, self.at)
        seconds = time.perf_counter() - began
        for action in actions:
            if isinstance(action, Start):
                took_us = sum(self._times(action.node)) + 2000
                took_us = round(took_us * self.rng.uniform(0.9, 1.1))
                heapq.heappush(self.ends, (self.at + took_us, action.attempt, action.node))
        return seconds

    def _times(self, key: str) -> tuple[int, int]:
        speed = self.speed[key]
        return round(PROMPT / (100 * speed) * SECOND), round(TOKENS / (8 * speed) * SECOND)


def warm_cluster(nodes: int, waiting: int) -> Cluster:
    """Every slot is taken, `waiting` are in line, and rates are known."""
    cluster = Cluster(nodes)
    for _ in range(nodes + waiting):
        cluster.submit()
    for _ in range(nodes * (20 if nodes < 100 else 2)):
        cluster.finish()
        cluster.submit()
    return cluster


def cost_us(nodes: int, waiting: int | None) -> float:
    """`waiting`: so many are in line, every slot is taken; None: nothing waits, nothing runs."""
    cluster = warm_cluster(nodes, waiting or 0)
    while waiting is None and cluster.ends:
        cluster.finish()
    times = []
    for _ in range(TIMED):
        if waiting is None:
            cluster.at += SECOND // 100
            times.append(cluster.submit() + cluster.finish())
        else:
            times.append(cluster.finish() + cluster.submit())
    return median(times) * 1e6


def choice_us(nodes: int) -> float:
    """Every slot is taken, and one is looked for."""
    cluster = warm_cluster(nodes, 0)
    scheduler = cluster.scheduler
    group, router = scheduler.view().groups[MODEL], scheduler.view().policies.router
    task = Task(0, Kind.CHAT, MODEL, 4 * PROMPT)
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        router.choose(task, shortlist(group, task, (), False, cluster.at), {}, cluster.at, cluster.rng)
        times.append(time.perf_counter() - began)
    return median(times) * 1e6


class Desk:
    """A scheduler with a journal whose nodes answer at once; what is timed is what a gateway does for each request."""

    def __init__(self, nodes: int, slots: int) -> None:
        policies = default_policies()._replace(limiter=lambda: LearnedLimit(slots, slots))
        self.scheduler = Scheduler(policies, random.Random(1))
        self.journal = Journal()
        self.at = self.serial = 0
        self.running: deque[int] = deque()
        facts = NodeFacts("0.33.0", {MODEL: 10**9}, {MODEL: LoadedModel(1, 1)})
        for i in range(nodes):
            endpoint = Endpoint(f"10.0.0.{i + 1}")
            self._feed(NodeAdded(endpoint))
            self._feed(NodeSeen(endpoint.key, facts))
        self.at = SECOND

    def _feed(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.at)
        self.journal.record(self.at, event, actions)
        return actions

    def begin(self, stream: bool) -> float:
        self.serial += 1
        prefix = (SHARED, (self.serial, 4 * PROMPT))
        task = Task(self.serial, Kind.CHAT, MODEL, 4 * PROMPT, stream=stream, prefix=prefix)
        began = time.perf_counter()
        actions = self._feed(Submitted(task))
        seconds = time.perf_counter() - began
        self._note(actions)
        return seconds

    def end(self, stream: bool) -> float:
        self.at += 40
        attempt, outcome = self.running.popleft(), Outcome(Status.OK, "", 200, INSTANT)
        began = time.perf_counter()
        if stream:
            self._feed(FirstToken(attempt))
        actions = self._feed(Finished(attempt, outcome))
        seconds = time.perf_counter() - began
        self._note(actions)
        return seconds

    def _note(self, actions: list[Action]) -> None:
        self.running.extend(action.attempt for action in actions if type(action) is Start)


def request_us(nodes: int, slots: int, clients: int, stream: bool = False) -> float:
    """`clients` requests are open at any moment. The median of the means of BLOCKs: garbage is collected, too."""
    desk = Desk(nodes, slots)
    for _ in range(clients):
        desk.begin(stream)
    blocks = [sum(desk.end(stream) + desk.begin(stream) for _ in range(BLOCK)) for _ in range(REQUESTS // BLOCK)]
    return median(blocks[len(blocks) // 4 :]) / BLOCK * 1e6


def scan_us(nodes: int) -> float:
    inflight = {f"10.0.{i // 250}.{i % 250 + 1}:11434": i % 3 + 1 for i in range(nodes)}
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        inflight[min(inflight, key=inflight.__getitem__)] += 0
        times.append(time.perf_counter() - began)
    return median(times) * 1e6


def run() -> list[Row]:
    rows = []
    for nodes in (10, 1000):
        rows.append(row(f"which node, {nodes:,} nodes, busy (the choice alone)", choice_us(nodes), "us", ""))
        line = min(nodes, 100)
        for name, waiting in (("idle", None), ("busy", 1), (f"a line of {line}", line)):
            name = f"a decision, {nodes:,} nodes, {name} (submit + finish)"
            beside = f"scan for least busy: {scan_us(nodes):.1f} us"
            rows.append(row(name, cost_us(nodes, waiting), "us", beside))
    return rows + [one for nodes in (2, 10) for one in _requests(nodes)]


def _requests(nodes: int) -> list[Row]:
    situations = (
        ("idle", 1, 1, False),
        ("idle, a stream", 1, 1, True),
        ("replicas with room", ROOM, 2 * nodes, False),
        ("a line of 1", 1, nodes + 1, False),
        ("a line of 64", 1, nodes + 64, False),
    )
    return [
        row(f"a request, {nodes} nodes, {name}", request_us(nodes, slots, clients, stream), "us", "")
        for name, slots, clients, stream in situations
    ]
