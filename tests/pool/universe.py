"""A pool in simulated time whose scheduler is checked after every event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sollol.observe.journal import Digest
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World

EMBED = "nomic-embed-text"
CHAT = "llama3.2"
MODELS = (ModelSpec(EMBED, "embed"), ModelSpec(CHAT, size_bytes=2_000_000_000))


def node(number: int, rate: float | None, **more: Any) -> NodeSpec:
    """A node of `rate` items/s, its models in memory, a millisecond away."""
    given: dict[str, Any] = {"models": MODELS, "loaded": (EMBED, CHAT), "latency_s": 0.001, **more}
    return NodeSpec(host=f"10.0.{number // 250}.{number % 250 + 1}", embed_items_per_s=rate, **given)


def texts(count: int) -> list[str]:
    return [f"text number {i} of the batch" for i in range(count)]


class Universe:
    def __init__(self, world: World, pool: AsyncOllamaPool, digest: Digest) -> None:
        self.world = world
        self.pool = pool
        self.digest = digest


@asynccontextmanager
async def universe(
    specs: Sequence[NodeSpec], schedule: Sequence[Any] = (), *, seed: int = 1, checked: bool = True
) -> AsyncIterator[Universe]:
    world = World(specs, schedule)
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=seed) as pool:
        engine = pool._running()
        digest = Digest()
        engine.journal.subscribe(digest)
        if checked:
            engine.journal.subscribe(lambda entry: engine.scheduler.invariants())
        yield Universe(world, pool, digest)


def whole(result: Any, inputs: Sequence[str], reference: Any) -> None:
    """Nothing lost, doubled or misplaced: every vector is the one of its text."""
    assert len(result) == len(inputs)
    assert not result.errors
    for item, text in zip(result, inputs, strict=True):
        assert item is not None
        assert item.embeddings[0] == reference(text)
