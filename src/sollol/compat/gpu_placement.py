"""Find models on GPUs and CPUs, and move them to a GPU: the part of `gpu_controller` on an event loop.

A node reports of its GPU only `size_vram` in /api/ps: the bytes of a loaded model in GPU memory. So a model is on the
GPU if all its bytes are; 0 of 0 is unknown; and a node has a GPU once it has used one. To force a model means to unload
it and to let Ollama place it again, without `num_gpu`: requests without that option would make the node load again.

`policies.placement` chooses the node. On the nodes of a pool, the pool's scheduler loads and unloads: it follows the
load, unloads no model in use, and its journal has the reason.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sollol.backends.probe import ProbeFailed, probe
from sollol.core.actions import Load
from sollol.core.endpoint import Endpoint
from sollol.core.events import LoadEnded, LoadRequested, UnloadRequested
from sollol.core.types import OK, Kind, LoadedModel, Outcome, canonical_model
from sollol.engine.engine import Engine
from sollol.errors import SollolError
from sollol.models import operations
from sollol.models.inventory import is_pinned
from sollol.observe.journal import Entry
from sollol.policies.placement import GreedyPlacement, ModelNeed, NodeRoom
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport

PROBE_S = 2.0  # time limit of a probe
FRESH_S = 2.0  # age up to which a probe is reused, where calls permit it
ENGINE_S = 1.0  # limit of the wait for a pool's event loop
UNLOAD_S = 10.0  # a model in use is unloaded after its last answer
RETRY_FORCE_S = 300.0  # pause before another try after a failed one
RETRY_CPU_S = 3_600.0  # the same on a node that was never seen to use a GPU
FOREVER = -1
WHY = "the GPU controller places it on a GPU"


class Location(enum.StrEnum):
    """The place of a loaded model."""

    GPU = "GPU"
    CPU = "CPU"
    PARTIAL = "partial"
    UNKNOWN = "unknown"


# Times the load of a node whose GPU was seen: on another one it may end on the CPU.
DOUBTS = {Location.GPU: 1.0, Location.UNKNOWN: 1e6, Location.CPU: 1e12}


def location_of(model: LoadedModel) -> Location:
    """Return the place of a model, by its bytes in /api/ps."""
    share = model.gpu_share
    if share is None:
        return Location.UNKNOWN
    return Location.GPU if share == 1.0 else Location.PARTIAL if share else Location.CPU


class NodeModels(NamedTuple):
    """The models of a node by its last probe; `why` is the reason of a failed one."""

    endpoint: Endpoint
    models: Mapping[str, int] = MappingProxyType({})  # on its disk, with their bytes
    loaded: Mapping[str, LoadedModel] = MappingProxyType({})
    why: str = ""

    @property
    def vram(self) -> int:
        """The bytes of its models in GPU memory."""
        return sum(model.size_vram for model in self.loaded.values())


class ForceResult(NamedTuple):
    """The result of forcing a model."""

    endpoint: Endpoint
    success: bool
    location: Location
    message: str
    loaded: LoadedModel = LoadedModel()


class Placements:
    """Probe nodes, record which have a GPU, and move models. Belongs to one running loop.

    `engine` returns the engine of the pool, None without one.
    """

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine
        self._transport = HttpTransport()
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, tuple[float, NodeModels]] = {}
        self._gpu: set[str] = set()
        self._failed: dict[tuple[str, str], float] = {}
        self._forcing: dict[tuple[str, str], asyncio.Task[ForceResult]] = {}

    async def look(self, nodes: Sequence[Endpoint], fresh_s: float = 0.0) -> list[NodeModels]:
        """Probe all nodes concurrently, each within PROBE_S; reuse probes younger than `fresh_s`."""
        now = self._loop.time()
        known = [self._seen.get(node.key) for node in nodes]
        return list(
            await asyncio.gather(
                *(
                    _ready(old[1]) if old and now - old[0] < fresh_s else self._look(node)
                    for node, old in zip(nodes, known, strict=True)
                )
            )
        )

    async def _look(self, node: Endpoint) -> NodeModels:
        try:
            async with asyncio.timeout(PROBE_S):
                facts = await probe(self._transport, node, version="known")
            seen = NodeModels(node, dict(facts.models), dict(facts.loaded))
        except ProbeFailed as error:
            seen = NodeModels(node, why=str(error))
        except TimeoutError:
            seen = NodeModels(node, why=f"no answer in {PROBE_S:g} s")
        if seen.vram:
            self._gpu.add(node.key)
        self._seen[node.key] = (self._loop.time(), seen)
        return seen

    def kind(self, seen: NodeModels) -> Location:
        """Return GPU for a node that has used one, CPU if its models are there, or UNKNOWN."""
        engine = self._engine()
        node = engine.scheduler.view().nodes.get(seen.endpoint.key) if engine is not None else None
        if seen.endpoint.key in self._gpu or (node is not None and node.gpu_seen):
            return Location.GPU
        on_cpu = any(location_of(model) is Location.CPU for model in seen.loaded.values())
        return Location.CPU if on_cpu else Location.UNKNOWN

    async def ensure(
        self, nodes: Sequence[Endpoint], model: str, keep_alive: Any, timeout_s: float, fresh_s: float
    ) -> ForceResult | None:
        """Return a node with the model on its GPU; force it onto the best candidate if there is none.

        Returns:
            The result, or None without a candidate.
        """
        began, name = self._loop.time(), canonical_model(model)
        seen = {one.endpoint.key: one for one in await self.look(nodes, fresh_s)}
        size = max((one.models.get(name, 0) for one in seen.values()), default=0)
        rooms = [self._room(one, name, size) for one in seen.values()]
        plan = GreedyPlacement().plan([ModelNeed(name, size, 0.0, least=1)], rooms)
        one = next((seen[key] for key, models in plan.warm.items() if name in models), None)
        if one is None:
            return None
        held = one.loaded.get(name)
        if held is not None and location_of(held) is Location.GPU:
            return ForceResult(one.endpoint, True, Location.GPU, f"{name} is on the GPU", held)
        for step in plan.steps:
            if not step.load:
                await self._unload(one.endpoint, step.model)
        left_s = max(0.0, timeout_s - (self._loop.time() - began))
        return await self.force(one.endpoint, name, keep_alive, left_s)

    def _room(self, seen: NodeModels, name: str, size: int) -> NodeRoom:
        """Describe a node for the placement of one model; where too much was never seen, there is room for it."""
        key = seen.endpoint.key
        held = {model: row.size for model, row in seen.loaded.items() if location_of(row) is Location.GPU}
        kind, present = self.kind(seen), sum(held.values())
        able = name in held or (name in seen.models and not self._failed_recently(seen, name))
        engine = self._engine()
        node = engine.scheduler.view().nodes.get(key) if engine is not None else None
        full = node.memory.full_bytes if node is not None else None
        busy = {model for model in held if node and (replica := node.replicas.get(model)) and replica.attempts}
        pinned = {model for model in held if is_pinned(seen.loaded[model])}
        return NodeRoom(
            key,
            present + size if full is None else max(present, full - 1),
            {name: 1.0} if able else {},
            {name: (1 + size + seen.vram) * DOUBTS[kind]},
            held,
            frozenset(busy | pinned | ({name} & held.keys())),
        )

    def _failed_recently(self, seen: NodeModels, name: str) -> bool:
        since = self._failed.get((seen.endpoint.key, name))
        pause_s = RETRY_CPU_S if self.kind(seen) is Location.CPU else RETRY_FORCE_S
        return since is not None and self._loop.time() - since < pause_s

    async def force(self, node: Endpoint, model: str, keep_alive: Any, timeout_s: float) -> ForceResult:
        """Force a model onto a node's GPU; wait at most `timeout_s`.

        A load continues after that, since a node abandons a load without a waiting client.
        """
        key = (node.key, canonical_model(model))
        task = self._forcing.get(key)
        if task is None:
            task = self._forcing[key] = self._loop.create_task(self._force(node, key[1], keep_alive))
            task.add_done_callback(lambda _: self._forcing.pop(key, None))
        await asyncio.wait({task}, timeout=timeout_s)
        if task.cancelled():
            return ForceResult(node, False, Location.UNKNOWN, "the controller was closed")
        if task.done():
            return task.result()
        return ForceResult(node, False, Location.UNKNOWN, f"{key[1]} is still being loaded after {timeout_s:.1f} s")

    async def _force(self, node: Endpoint, name: str, keep_alive: Any) -> ForceResult:
        try:
            return await self._place(node, name, keep_alive)
        except (SollolError, TransportFault) as error:
            return ForceResult(node, False, Location.UNKNOWN, str(error))

    async def _place(self, node: Endpoint, name: str, keep_alive: Any) -> ForceResult:
        seen = await self._look(node)
        if seen.why:
            return ForceResult(node, False, Location.UNKNOWN, seen.why)
        if name not in seen.models:
            return ForceResult(node, False, Location.UNKNOWN, f"{node.key} does not have {name} on its disk")
        before = seen.loaded.get(name)
        if before is not None:
            location = location_of(before)
            if location is Location.GPU:
                if keep_alive == FOREVER:
                    await self.load(node, name, keep_alive, before)
                return ForceResult(node, True, location, f"{name} was on the GPU already", before)
            if location is Location.UNKNOWN:
                return ForceResult(node, False, location, f"{node.key} does not report where {name} runs", before)
            if not await self._unload(node, name):
                return ForceResult(node, False, location, f"{name} is in use and was not unloaded", before)
        await self.load(node, name, keep_alive, before)
        after = (await self._look(node)).loaded.get(name)
        if after is None:
            return ForceResult(node, False, Location.UNKNOWN, f"{node.key} does not list {name} after loading it")
        location = location_of(after)
        if location is Location.GPU:
            return ForceResult(node, True, location, f"{name} is on the GPU", after)
        self._failed[node.key, name] = self._loop.time()
        if location is Location.CPU and before is None:
            await self._unload(node, name)  # restore the state before
            return ForceResult(node, False, location, f"{node.key} put {name} on the CPU; it was unloaded again", after)
        return ForceResult(node, False, location, f"{node.key} put {name} on {_place_of(location)}", after)

    async def load(self, node: Endpoint, name: str, keep_alive: Any, like: LoadedModel | None = None) -> None:
        """Load a model or renew its keep-alive, with its present context, since another would reload it."""
        context = like.context_length if like is not None else 0
        engine = await self._scheduler_of(node)
        if engine is not None:
            keep = f"{keep_alive}s" if isinstance(keep_alive, int | float) else str(keep_alive)
            event = LoadRequested(node.key, name, Kind.GENERATE, f"num_ctx={context}" if context else "", keep, WHY)
            outcome = await self._scheduled(engine, event)
            if outcome is not None:
                if outcome.status is not OK:
                    raise SollolError(outcome.message)
                return
        body: dict[str, Any] = {"model": name, "keep_alive": keep_alive}
        await operations.load(self._transport, [node], body | ({"options": {"num_ctx": context}} if context else {}))
        self.refresh()

    async def _scheduler_of(self, node: Endpoint) -> Engine | None:
        """Return the pool's engine if it has the node and reacts. Its event loop may wait for this call."""
        engine = self._engine()
        if engine is None or not engine.journal.recording or node.key not in engine.scheduler.view().nodes:
            return None
        reacts = asyncio.Event()

        def listen(entry: Entry) -> None:
            self._loop.call_soon_threadsafe(reacts.set)

        leave = engine.journal.subscribe(listen)
        try:
            engine.refresh()
            await asyncio.wait_for(reacts.wait(), ENGINE_S)
        except TimeoutError:
            return None
        finally:
            leave()
        return engine

    async def _scheduled(self, engine: Engine, event: LoadRequested) -> Outcome | None:
        """Let the pool's scheduler load a model; return the outcome, None if there is nothing to load."""
        ended: asyncio.Future[Outcome | None] = self._loop.create_future()

        def settle(outcome: Outcome | None) -> None:
            if not ended.done():
                ended.set_result(outcome)

        def listen(entry: Entry) -> None:
            if entry.event is event and not any(isinstance(action, Load) for action in entry.actions):
                self._loop.call_soon_threadsafe(settle, None)
            elif isinstance(entry.event, LoadEnded) and entry.event[:2] == event[:2]:
                self._loop.call_soon_threadsafe(settle, entry.event.outcome)

        leave = engine.journal.subscribe(listen)
        try:
            engine.dispatcher.feed_soon(event)
            return await ended
        finally:
            leave()

    async def _unload(self, node: Endpoint, name: str) -> bool:
        engine = await self._scheduler_of(node)
        if engine is None:
            await operations.load(self._transport, [node], {"model": name, "keep_alive": 0})
        until = self._loop.time() + UNLOAD_S
        while name in (await self._look(node)).loaded:
            if self._loop.time() > until:
                return False
            if engine is not None:
                engine.dispatcher.feed_soon(UnloadRequested(node.key, name, WHY))
            await asyncio.sleep(0.1)
        self.refresh()
        return True

    def refresh(self) -> None:
        """Let the pool probe its nodes, since its predictions depend on their loaded models."""
        engine = self._engine()
        if engine is not None:
            engine.refresh()

    async def aclose(self) -> None:
        """Cancel all loads and close the connections."""
        forcing = list(self._forcing.values())
        for task in forcing:
            task.cancel()
        await asyncio.gather(*forcing, return_exceptions=True)
        await self._transport.aclose()


def _place_of(location: Location) -> str:
    return {
        Location.CPU: "the CPU",
        Location.PARTIAL: "the GPU only in part",
        Location.UNKNOWN: "an unknown place",
    }.get(location, str(location))


async def _ready(seen: NodeModels) -> NodeModels:
    return seen
