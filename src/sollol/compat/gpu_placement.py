"""Find models on GPUs and CPUs, and move them to a GPU: the part of `gpu_controller` on an event loop.

A node reports of its GPU only `size_vram` in /api/ps: the bytes of a loaded model in GPU memory. So a model is on the
GPU if all its bytes are; 0 of 0 is unknown; and a node has a GPU once it has used one. To force a model means to unload
it and to let Ollama place it again, without `num_gpu`: requests without that option would make the node load again.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sollol.backends.probe import ProbeFailed, probe
from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, canonical_model
from sollol.errors import SollolError
from sollol.models import operations
from sollol.transport.base import TransportFault
from sollol.transport.http import HttpTransport

PROBE_S = 2.0  # time limit of a probe
FRESH_S = 2.0  # age up to which a probe is reused, where calls permit it
UNLOAD_S = 10.0  # a model in use is unloaded after its last answer
RETRY_FORCE_S = 300.0  # pause before another try after a failed one
FOREVER = -1


class Location(enum.StrEnum):
    """The place of a loaded model."""

    GPU = "GPU"
    CPU = "CPU"
    PARTIAL = "partial"
    UNKNOWN = "unknown"


def location_of(model: LoadedModel) -> Location:
    """Return the place of a model, by its bytes in /api/ps."""
    share = model.gpu_share
    if share is None:
        return Location.UNKNOWN
    return Location.GPU if share == 1.0 else Location.PARTIAL if share else Location.CPU


class NodeModels(NamedTuple):
    """The models of a node by its last probe; `why` is the reason of a failed one."""

    endpoint: Endpoint
    models: frozenset[str] = frozenset()
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

    `moved` is called after a model was loaded or unloaded.
    """

    def __init__(self, moved: Callable[[], None]) -> None:
        self._moved = moved
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
            seen = NodeModels(node, frozenset(facts.models), dict(facts.loaded))
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
        if seen.endpoint.key in self._gpu:
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
        seen = await self.look(nodes, fresh_s)
        for one in seen:
            loaded = one.loaded.get(name)
            if loaded is not None and location_of(loaded) is Location.GPU:
                return ForceResult(one.endpoint, True, Location.GPU, f"{name} is on the GPU", loaded)
        candidates = [
            (self.kind(one) is not Location.GPU, one.vram, place)
            for place, one in enumerate(seen)
            if name in one.models and self.kind(one) is not Location.CPU and not self._failed_recently(one, name)
        ]
        if not candidates:
            return None
        left_s = max(0.0, timeout_s - (self._loop.time() - began))
        return await self.force(seen[min(candidates)[2]].endpoint, name, keep_alive, left_s)

    def _failed_recently(self, seen: NodeModels, name: str) -> bool:
        since = self._failed.get((seen.endpoint.key, name))
        return since is not None and self._loop.time() - since < RETRY_FORCE_S

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
        body: dict[str, Any] = {"model": name, "keep_alive": keep_alive}
        if like is not None and like.context_length:
            body["options"] = {"num_ctx": like.context_length}
        await operations.load(self._transport, [node], body)
        self._moved()

    async def _unload(self, node: Endpoint, name: str) -> bool:
        await operations.load(self._transport, [node], {"model": name, "keep_alive": 0})
        until = self._loop.time() + UNLOAD_S
        while name in (await self._look(node)).loaded:
            if self._loop.time() > until:
                return False
            await asyncio.sleep(0.1)
        self._moved()
        return True

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
