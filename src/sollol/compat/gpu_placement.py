"""Where models run, and bringing them onto a GPU: the part of `gpu_controller` that talks to nodes, on one event loop.

All that a node says of its GPU is `size_vram` in /api/ps: the bytes of a loaded model that are in GPU memory. So a
model is on the GPU if all its bytes are; 0 of 0 is not known; and a node has a GPU once it was seen to use one. To
force a model is to unload it and to let Ollama place it anew, without `num_gpu`: requests that do not name that option
would make the node load once more.
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

LOOK_S = 2.0  # a node that takes longer to say what it has loaded counts as silent
FRESH_S = 2.0  # so long an answer is believed, where calls ask for it
UNLOAD_S = 10.0  # a model in use is unloaded when its last answer is complete
VAIN_S = 300.0  # before forcing is tried again where it was in vain
FOREVER = -1


class Location(enum.StrEnum):
    """Where a loaded model is."""

    GPU = "GPU"
    CPU = "CPU"
    PARTIAL = "partial"
    UNKNOWN = "unknown"


def location_of(model: LoadedModel) -> Location:
    """By its bytes, as /api/ps gives them."""
    if model.size <= 0:
        return Location.UNKNOWN
    if model.size_vram <= 0:
        return Location.CPU
    return Location.GPU if model.size_vram >= model.size else Location.PARTIAL


class Seen(NamedTuple):
    """What a node said; `why` it did not, if so."""

    endpoint: Endpoint
    models: frozenset[str] = frozenset()
    loaded: Mapping[str, LoadedModel] = MappingProxyType({})
    why: str = ""

    @property
    def vram(self) -> int:
        return sum(model.size_vram for model in self.loaded.values())


class Forced(NamedTuple):
    """How forcing went."""

    endpoint: Endpoint
    success: bool
    location: Location
    message: str
    loaded: LoadedModel = LoadedModel()


class Placements:
    """Looks at nodes, remembers which have a GPU, and moves models. Belongs to one running loop.

    `moved` is called when a model was loaded or unloaded."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self._moved = moved
        self._transport = HttpTransport()
        self._loop = asyncio.get_running_loop()
        self._seen: dict[str, tuple[float, Seen]] = {}
        self._gpu: set[str] = set()
        self._vain: dict[tuple[str, str], float] = {}
        self._forcing: dict[tuple[str, str], asyncio.Task[Forced]] = {}

    async def look(self, nodes: Sequence[Endpoint], fresh_s: float = 0.0) -> list[Seen]:
        """All at once, each within LOOK_S; what is younger than `fresh_s` is not asked for again."""
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

    async def _look(self, node: Endpoint) -> Seen:
        try:
            async with asyncio.timeout(LOOK_S):
                facts = await probe(self._transport, node, version="known")
            seen = Seen(node, frozenset(facts.models), dict(facts.loaded))
        except ProbeFailed as error:
            seen = Seen(node, why=str(error))
        except TimeoutError:
            seen = Seen(node, why=f"no answer in {LOOK_S:g} s")
        if seen.vram:
            self._gpu.add(node.key)
        self._seen[node.key] = (self._loop.time(), seen)
        return seen

    def kind(self, seen: Seen) -> Location:
        """What a node is good for: GPU once it was seen to use one, CPU if its models are there, or UNKNOWN."""
        if seen.endpoint.key in self._gpu:
            return Location.GPU
        on_cpu = any(location_of(model) is Location.CPU for model in seen.loaded.values())
        return Location.CPU if on_cpu else Location.UNKNOWN

    async def ensure(
        self, nodes: Sequence[Endpoint], model: str, keep_alive: Any, timeout_s: float, fresh_s: float
    ) -> Forced | None:
        """On the GPU of some node; forced onto the best candidate if it is on none. None: there is no candidate."""
        began, name = self._loop.time(), canonical_model(model)
        seen = await self.look(nodes, fresh_s)
        for one in seen:
            loaded = one.loaded.get(name)
            if loaded is not None and location_of(loaded) is Location.GPU:
                return Forced(one.endpoint, True, Location.GPU, f"{name} is on the GPU", loaded)
        candidates = [
            (self.kind(one) is not Location.GPU, one.vram, place)
            for place, one in enumerate(seen)
            if name in one.models and self.kind(one) is not Location.CPU and not self._in_vain(one, name)
        ]
        if not candidates:
            return None
        left_s = max(0.0, timeout_s - (self._loop.time() - began))
        return await self.force(seen[min(candidates)[2]].endpoint, name, keep_alive, left_s)

    def _in_vain(self, seen: Seen, name: str) -> bool:
        since = self._vain.get((seen.endpoint.key, name))
        return since is not None and self._loop.time() - since < VAIN_S

    async def force(self, node: Endpoint, model: str, keep_alive: Any, timeout_s: float) -> Forced:
        """Wait at most `timeout_s`. A load goes on behind that: a node gives up one that nobody waits for."""
        key = (node.key, canonical_model(model))
        task = self._forcing.get(key)
        if task is None:
            task = self._forcing[key] = self._loop.create_task(self._force(node, key[1], keep_alive))
            task.add_done_callback(lambda _: self._forcing.pop(key, None))
        await asyncio.wait({task}, timeout=timeout_s)
        if task.cancelled():
            return Forced(node, False, Location.UNKNOWN, "the controller was closed")
        if task.done():
            return task.result()
        return Forced(node, False, Location.UNKNOWN, f"{key[1]} is still being loaded after {timeout_s:.1f} s")

    async def _force(self, node: Endpoint, name: str, keep_alive: Any) -> Forced:
        try:
            return await self._place(node, name, keep_alive)
        except (SollolError, TransportFault) as error:
            return Forced(node, False, Location.UNKNOWN, str(error))

    async def _place(self, node: Endpoint, name: str, keep_alive: Any) -> Forced:
        seen = await self._look(node)
        if seen.why:
            return Forced(node, False, Location.UNKNOWN, seen.why)
        if name not in seen.models:
            return Forced(node, False, Location.UNKNOWN, f"{node.key} does not have {name} on its disk")
        before = seen.loaded.get(name)
        if before is not None:
            location = location_of(before)
            if location is Location.GPU:
                if keep_alive == FOREVER:
                    await self.load(node, name, keep_alive, before)
                return Forced(node, True, location, f"{name} was on the GPU already", before)
            if location is Location.UNKNOWN:
                return Forced(node, False, location, f"{node.key} does not tell where {name} runs", before)
            if not await self._unload(node, name):
                return Forced(node, False, location, f"{name} is in use and was not unloaded", before)
        await self.load(node, name, keep_alive, before)
        after = (await self._look(node)).loaded.get(name)
        if after is None:
            return Forced(node, False, Location.UNKNOWN, f"{node.key} does not list {name} after loading it")
        location = location_of(after)
        if location is Location.GPU:
            return Forced(node, True, location, f"{name} is on the GPU", after)
        self._vain[node.key, name] = self._loop.time()
        if location is Location.CPU and before is None:
            await self._unload(node, name)  # as it was found
            return Forced(node, False, location, f"{node.key} put {name} on the CPU; it was unloaded again", after)
        return Forced(node, False, location, f"{node.key} put {name} on {_words(location)}", after)

    async def load(self, node: Endpoint, name: str, keep_alive: Any, like: LoadedModel | None = None) -> None:
        """Load it, or renew its keep-alive; with the context it had, since another would be another load."""
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
        forcing = list(self._forcing.values())
        for task in forcing:
            task.cancel()
        await asyncio.gather(*forcing, return_exceptions=True)
        await self._transport.aclose()


def _words(location: Location) -> str:
    return {
        Location.CPU: "the CPU",
        Location.PARTIAL: "the GPU only in part",
        Location.UNKNOWN: "a place it does not tell",
    }.get(location, str(location))


async def _ready(seen: Seen) -> Seen:
    return seen
