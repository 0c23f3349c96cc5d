"""One server: its models, what runs there, and what was learned of it."""

from __future__ import annotations

from collections.abc import Mapping

from sollol.core.endpoint import Endpoint
from sollol.core.policy import ModelLimiter
from sollol.core.state.breakers import NodeFaults
from sollol.core.state.estimators import Mean
from sollol.core.state.incapability import Incapabilities
from sollol.core.state.loading import LoadTimeEstimator, MemoryFit
from sollol.core.state.replica import DISPLACED, Replica
from sollol.core.types import LoadedModel, Micros


class Node:
    """Hold the state of one server. `up` is None until the first probe or answer."""

    __slots__ = (
        "active_models",
        "asked_us",
        "attempted",
        "concurrency",
        "denied",
        "digests",
        "down_since",
        "endpoint",
        "failed",
        "faults",
        "held_bytes",
        "incapable",
        "key",
        "listed",
        "listed_us",
        "load_time",
        "loaded",
        "lost_why",
        "memory",
        "models",
        "next_probe_us",
        "probe_backoff_us",
        "probing",
        "reads_on",
        "replicas",
        "running",
        "silences",
        "speed",
        "succeeded",
        "up",
        "up_since",
        "version",
    )

    def __init__(self, endpoint: Endpoint, concurrency: ModelLimiter) -> None:
        self.endpoint = endpoint
        self.key = endpoint.key
        self.up: bool | None = None
        self.lost_why = "not seen yet"
        self.version = ""
        self.models: Mapping[str, int] = {}  # on disk: name -> bytes
        self.digests: Mapping[str, str] = {}
        self.loaded: Mapping[str, LoadedModel] = {}
        self.held_bytes = 0  # of the largest model that was ever seen wholly in its GPU
        self.replicas: dict[str, Replica] = {}
        self.running = 0
        self.active_models = 0  # models at work
        self.concurrency = concurrency
        self.faults = NodeFaults()
        self.incapable = Incapabilities()
        self.speed = Mean()  # of its models, as shares of their typical rates
        self.up_since: Micros = 0
        self.down_since: Micros = 0
        self.next_probe_us: Micros = 0
        self.probe_backoff_us: Micros = 0
        self.probing = False
        self.asked_us: Micros = -1
        self.silences = 0
        self.load_time = LoadTimeEstimator()
        self.memory = MemoryFit()
        self.denied: set[str] = set()  # models that are in its last list and that it answered 404 for
        self.listed: Mapping[str, int] = {}  # models in memory at the last look, and their bytes
        self.listed_us: Micros = 0
        # True: it reads an abandoned prompt to its end. False: it stops at the next batch. None: untested.
        self.reads_on: bool | None = None
        self.attempted = 0
        self.succeeded = 0
        self.failed = 0

    @property
    def usable(self) -> bool:
        """Return whether the node is up."""
        return self.up is True

    def wait_us(self, now: Micros) -> Micros:
        """Return the µs until one of the models at work here is idle."""
        ends = [
            max(attempt.expected_end(now) for attempt in replica.attempts.values() if attempt.occupies_gpu)
            for replica in self.replicas.values()
            if replica.occupies_gpu
        ]
        over = len(ends) - self.concurrency.limit
        return max(0, sorted(ends)[over] - now) if 0 <= over < len(ends) else 0

    def mark_overlapped(self) -> None:
        """Mark all attempts in flight: two models are at work."""
        for replica in self.replicas.values():
            for attempt in replica.attempts.values():
                attempt.overlapped = True

    def sizes_loaded(self) -> dict[str, int]:
        """Return the bytes of each model in memory, as listed or by our own answers; else those on disk."""
        sizes = self._sizes_listed()
        for model, replica in self.replicas.items():
            if replica.loaded_by_us and model not in sizes:
                sizes[model] = self.models.get(model, 0)
        return sizes

    def remember(self, now: Micros) -> None:
        """Learn what fits together, from the present list of models in memory and the last one."""
        current = self._sizes_listed()
        before = dict(self.listed)
        for model, replica in self.replicas.items():
            if replica.answers and replica.last_end_us > self.listed_us:
                before.setdefault(model, self.models.get(model, 0))
        loading = {model: self.models.get(model, 0) for model, replica in self.replicas.items() if replica.is_loading}
        self.memory.seen(self.listed, before, current, loading, self.used(now))
        self.listed, self.listed_us = current, now

    def loads(self, model: str) -> None:
        """Expect a model in memory from now on, without those that do not fit beside it."""
        loaded, held = self.sizes_loaded(), dict(self.loaded)
        size = self.models.get(model, 0)
        for name in sorted(loaded, key=self.last_use):
            if name == model or self.memory.risk(loaded, size) < 1.0:
                continue
            del loaded[name]
            held.pop(name, None)
            replica = self.replicas.get(name)
            if replica is not None:
                replica.loaded_by_us = False
                replica.flag_off_nominal()
        held.setdefault(model, LoadedModel())
        self.loaded = held

    def put_out(self, replica: Replica, since: Micros) -> None:
        """Learn from an unexpected load: models that answered since did not fit beside this one."""
        others = [
            other.model
            for other in self.replicas.values()
            if other is not replica and other.answers and other.last_end_us > since
        ]
        sizes = [self.models.get(model, 0) for model in (replica.model, *others)]
        if others and since:
            self.memory.note(len(sizes), sum(sizes))

    def loaded_after(self, model: str = "") -> None:
        """Expect in memory what was loaded now, and what attempts in flight must load."""
        if model:
            self.loads(model)
        for other, replica in self.replicas.items():
            if other != model and replica.is_loading:
                self.loads(other)

    def _sizes_listed(self) -> dict[str, int]:
        """Return the bytes of each listed model; without a size, those on disk."""
        return {model: held.size or self.models.get(model, 0) for model, held in self.loaded.items()}

    def last_use(self, model: str) -> Micros:
        """Return when a model in memory was last used."""
        replica = self.replicas.get(model)
        return 0 if replica is None else max(replica.last_end_us, replica.options_used_us)

    def used(self, now: Micros) -> frozenset[str]:
        """Return the models that were used within DISPLACED, or are at work."""
        return frozenset(
            model
            for model, replica in self.replicas.items()
            if replica.attempts or (replica.answers and now - replica.last_end_us < DISPLACED)
        )

    def in_use(self, now: Micros) -> bool:
        """Check that a model here was used recently, which a load might evict."""
        return any(
            replica.answers and now - replica.last_end_us < DISPLACED
            for replica in self.replicas.values()
            if replica.is_loaded
        )

    def __repr__(self) -> str:
        state = {True: "up", False: "down", None: "unknown"}[self.up]
        return f"<Node {self.key} {state} · {self.running} running>"
