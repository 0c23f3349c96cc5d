"""The fleet: every node, what is known of it, and the ledger of what runs where.

A `core.lane.Lane` is one (node, model). Lanes of a model stand in a `core.market.Market`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sollol.core.endpoint import Endpoint
from sollol.core.estimate import Lengths, Mean
from sollol.core.guard import NodeFaults
from sollol.core.lane import DISPLACED, Lane
from sollol.core.loading import LoadTime, Memory
from sollol.core.turns import Turns
from sollol.core.types import LoadedModel, Micros, Outcome, Task
from sollol.core.unable import Inability

if TYPE_CHECKING:
    from sollol.core.market import Market


class NodeState:
    """One Ollama server. `up` is None until the first probe or answer."""

    __slots__ = (
        "asked_us",
        "attempted",
        "digests",
        "down_since",
        "endpoint",
        "failed",
        "faults",
        "heavy_lanes",
        "held_bytes",
        "key",
        "lanes",
        "load_time",
        "loaded",
        "lost_why",
        "memory",
        "models",
        "next_probe_us",
        "probe_backoff_us",
        "probing",
        "reads_on",
        "running",
        "silences",
        "speed",
        "succeeded",
        "told",
        "told_us",
        "turns",
        "unable",
        "up",
        "up_since",
        "version",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.key = endpoint.key
        self.up: bool | None = None
        self.lost_why = "not seen yet"
        self.version = ""
        self.models: Mapping[str, int] = {}  # on disk: name -> bytes
        self.digests: Mapping[str, str] = {}
        self.loaded: Mapping[str, LoadedModel] = {}
        self.held_bytes = 0  # of the largest model that was ever seen wholly in its GPU
        self.lanes: dict[str, Lane] = {}
        self.running = 0
        self.heavy_lanes = 0  # models at work
        self.turns = Turns()
        self.faults = NodeFaults()
        self.unable = Inability()
        self.speed = Mean()  # of its models, as shares of what is typical for them
        self.up_since: Micros = 0
        self.down_since: Micros = 0
        self.next_probe_us: Micros = 0
        self.probe_backoff_us: Micros = 0
        self.probing = False
        self.asked_us: Micros = -1
        self.silences = 0
        self.load_time = LoadTime()
        self.memory = Memory()
        self.told: Mapping[str, int] = {}  # models in memory at the last look, and their bytes
        self.told_us: Micros = 0
        # Whether it reads the prompt of a caller who left to the end, or stops at the next batch; None: not known.
        self.reads_on: bool | None = None
        self.attempted = 0
        self.succeeded = 0
        self.failed = 0

    @property
    def usable(self) -> bool:
        return self.up is True

    def wait_us(self, at: Micros) -> Micros:
        """How long until one of the models at work here has nothing to do."""
        ends = [
            max(attempt.expected_end(at) for attempt in lane.attempts.values() if attempt.heavy)
            for lane in self.lanes.values()
            if lane.heavy
        ]
        over = len(ends) - self.turns.at_once
        return max(0, sorted(ends)[over] - at) if 0 <= over < len(ends) else 0

    def all_beside(self) -> None:
        for lane in self.lanes.values():
            for attempt in lane.attempts.values():
                attempt.beside = True

    def sizes_loaded(self) -> dict[str, int]:
        """Return the bytes of each model in memory, as the node told or by our own answers; else those on disk."""
        sizes = self._sizes_told()
        for model, lane in self.lanes.items():
            if lane.loaded_by_us and model not in sizes:
                sizes[model] = self.models.get(model, 0)
        return sizes

    def remember(self, at: Micros) -> None:
        """Learn what fits together from this look at the models in memory, beside the last one."""
        now = self._sizes_told()
        before = dict(self.told)
        for model, lane in self.lanes.items():
            if lane.answers and lane.last_end_us > self.told_us:
                before.setdefault(model, self.models.get(model, 0))
        loading = {model: self.models.get(model, 0) for model, lane in self.lanes.items() if lane.is_loading}
        self.memory.seen(self.told, before, now, loading, self.used(at))
        self.told, self.told_us = now, at

    def loads(self, model: str) -> None:
        """Expect a model in memory from now on, and those gone that do not fit beside it. A probe will tell."""
        loaded, held = self.sizes_loaded(), dict(self.loaded)
        size = self.models.get(model, 0)
        for name in sorted(loaded, key=self.last_use):
            if name == model or self.memory.risk(loaded, size) < 1.0:
                continue
            del loaded[name]
            held.pop(name, None)
            lane = self.lanes.get(name)
            if lane is not None:
                lane.loaded_by_us = False
                lane.unsettle()
        held.setdefault(model, LoadedModel())
        self.loaded = held

    def put_out(self, lane: Lane, since: Micros) -> None:
        """Learn from a load that nobody expected: the models that answered since did not fit beside this one."""
        others = [
            other.model
            for other in self.lanes.values()
            if other is not lane and other.answers and other.last_end_us > since
        ]
        sizes = [self.models.get(model, 0) for model in (lane.model, *others)]
        if others and since:
            self.memory.note(len(sizes), sum(sizes))

    def loaded_after(self, model: str = "") -> None:
        """Expect in memory what was loaded now, and then what calls under way have to load."""
        if model:
            self.loads(model)
        for pending, lane in self.lanes.items():
            if pending != model and lane.is_loading:
                self.loads(pending)

    def _sizes_told(self) -> dict[str, int]:
        """Return the bytes of each model that is listed as in memory; of one that tells no size, those on disk."""
        return {model: held.size or self.models.get(model, 0) for model, held in self.loaded.items()}

    def last_use(self, model: str) -> Micros:
        """Return when a model in memory was used last, as far as we know."""
        lane = self.lanes.get(model)
        return 0 if lane is None else max(lane.last_end_us, lane.options_used_us)

    def used(self, at: Micros) -> frozenset[str]:
        """Return the models that were used within DISPLACED, or are at work."""
        return frozenset(
            model
            for model, lane in self.lanes.items()
            if lane.attempts or (lane.answers and at - lane.last_end_us < DISPLACED)
        )

    def in_use(self, at: Micros) -> bool:
        """Has a model of it been used just now, which a load might put out?"""
        return any(lane.answers and at - lane.last_end_us < DISPLACED for lane in self.lanes.values() if lane.is_loaded)

    def __repr__(self) -> str:
        state = {True: "up", False: "down", None: "unknown"}[self.up]
        return f"<Node {self.key} {state} · {self.running} running>"


class Fleet:
    """Nodes by key, markets by model, and how long answers usually are."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.markets: dict[str, Market] = {}
        self.lengths = Lengths()
        self.unable: dict[str, NodeState] = {}  # nodes that cannot do something
        self.pinned: Mapping[str, str] = {}  # model -> the digest, or the beginning of one, that embeddings use
        self.used: dict[str, str] = {}  # model -> the digest that embeddings have used, also before this fleet
        self.one_digest = False  # chats use one digest, too

    def learn_unable(self, node: NodeState, task: Task, outcome: Outcome, at: Micros) -> None:
        """Remember what a node cannot do."""
        if node.unable.learn(task, outcome, at):
            self.unable[node.key] = node

    def served(self, node: NodeState, task: Task) -> None:
        """A node that could not do something has answered."""
        node.unable.served(task)
        if node.unable.is_empty:
            self.unable.pop(node.key, None)

    def unable_for(self, task: Task, at: Micros) -> set[str]:
        """Return the nodes that are known to be unable to serve this task."""
        return {key for key, node in self.unable.items() if node.unable.stops(task, at)}
