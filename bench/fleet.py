"""A million items over a thousand simulated nodes of mixed speed, with faults, in virtual time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from bench.rows import Row, row
from sollol import AsyncOllamaPool
from sollol.observe.journal import Digest
from sollol.sim import FaultEvent, ModelSpec, NodeSpec, World, fluid_bound
from sollol.sim import run as simulate

MODEL = "nomic-embed-text"


def fleet(count: int, seed: int) -> list[NodeSpec]:
    rng = random.Random(seed)
    return [
        NodeSpec(
            host=f"10.{i // 62_500}.{i // 250 % 250}.{i % 250 + 1}",
            embed_items_per_s=rng.choice([5.0, 10.0, 20.0, 40.0, 80.0]),
            models=(ModelSpec(MODEL, "embed", dim=4),),
            loaded=(MODEL,),
            latency_s=0.001,
            vectors="cheap",
            seed=i,
        )
        for i in range(count)
    ]


def mishaps(
    specs: list[NodeSpec], until_s: float, seed: int
) -> tuple[list[FaultEvent], list[tuple[float, float, float]]]:
    """3 % of the nodes die, 3 % die and come back, 4 % answer every twentieth request with an error; and the rates
    (items/s, from, to) that a bound may count on."""
    rng = random.Random(seed)
    events: list[FaultEvent] = []
    rates: list[tuple[float, float, float]] = []
    for spec in specs:
        rate, toss = spec.embed_items_per_s or 0.0, rng.random()
        at_s = rng.uniform(0.1, 0.5) * until_s
        back_s = at_s + rng.uniform(0.1, 0.3) * until_s
        if toss < 0.06:
            events.append(FaultEvent(at_s, "die", spec.key))
            rates.append((rate, 0.0, at_s))
            if toss < 0.03:
                events.append(FaultEvent(back_s, "revive", spec.key))
                rates.append((rate, back_s, 1e9))
            continue
        rates.append((rate, 0.0, 1e9))
        if toss < 0.10:
            events.append(FaultEvent(0.0, "error_rate", spec.key, (("share", 0.05),)))
    return events, rates


async def batch(items: int, nodes: int) -> tuple[float, int, str]:
    """(seconds ÷ bound, items lost, digest of the journal)."""
    specs = fleet(nodes, seed=1)
    events, rates = mishaps(specs, items / sum(s.embed_items_per_s or 0 for s in specs), seed=2)
    world = World(specs, events)
    loop = asyncio.get_running_loop()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        digest = Digest()
        pool._running().journal.subscribe(digest)
        began = loop.time()
        result: Any = await pool.embed_batch(MODEL, [f"item {i}" for i in range(items)], on_error="return")
        seconds = loop.time() - began
    return seconds / fluid_bound(items, rates), items - len(result) + len(result.errors), digest.hexdigest()


def run(items: int = 1_000_000, nodes: int = 1_000) -> list[Row]:
    began = time.perf_counter()
    ratio, lost, digest = simulate(batch(items, nodes))
    wall = time.perf_counter() - began
    _, _, first = simulate(batch(items // 20, nodes))
    _, _, second = simulate(batch(items // 20, nodes))
    return [
        row(f"simulated: {items:,} items, {nodes:,} nodes, faults", ratio, "x", "bound that knows", 1.02),
        row("  items lost", lost, "", "", 0),
        row("  wall time on this machine", wall, "s", "", 300, note=f"journal {digest}"),
        row("  same seed, other journal (1/20 of the items, twice)", int(first != second), "", "", 0),
    ]
