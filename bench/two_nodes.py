"""Two nodes: one ten times as fast as the other, and clients who want one model with different options."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

from bench.rows import Row, row
from bench.stage import MODEL, LeastConnections, node, pool_over, question, some_at_a_time
from sollol.sim import ModelSpec, NodeSpec, SimNode, World
from sollol.sim import run as simulate
from sollol.sim.machine import Machine
from sollol.sim.runner import Runner, Runners

CHATS, IN_FLIGHT, TOKENS = 120, 8, 30
REQUESTS, CONTEXTS = 100, (2048, 4096)
PAUSE_S = 0.3  # about what an answer takes
SPEEDS = (100.0, 10.0)


async def chats(world: World, client: Any, count: int, width: int) -> float:
    """Seconds for so many equal chats."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    calls = (client.chat(MODEL, question(i), options={"num_predict": TOKENS}) for i in range(count))
    if await some_at_a_time(calls, width):
        raise RuntimeError("a chat failed, and no node was at fault")
    return loop.time() - began_s


async def ours(world: World) -> float:
    async with pool_over(world) as pool:
        return await chats(world, pool, CHATS, IN_FLIGHT)


def ten_to_one() -> list[Row]:
    """120 equal chats, 8 in flight, one slot each, cold; the bound is 120 ÷ the sum of the nodes' rates."""
    rates = []
    for speed in SPEEDS:
        world = World([node(1, speed)])
        rates.append(20 / simulate(chats(world, LeastConnections(world), 20, 1)))
    bound_s = CHATS / sum(rates)
    specs = [node(1, SPEEDS[0]), node(2, SPEEDS[1])]
    world = World(specs)
    reference = simulate(chats(world, LeastConnections(world), CHATS, IN_FLIGHT)) / bound_s
    ratio = simulate(ours(World(specs))) / bound_s
    beside = f"bound {bound_s:.1f} s; least connections {reference:.2f} x"
    return [row("120 chats, nodes of 10:1, 8 in flight", ratio, "x", beside, 1.08)]


class _Recording(Runners):
    """Counts loads by model and options."""

    def __init__(self, machine: Machine, spec: NodeSpec, loads: Counter[Any]) -> None:
        super().__init__(machine, spec)
        self._counted = loads
        self._key = spec.key

    def put(self, model: ModelSpec, options: tuple[Any, ...]) -> Runner:
        self._counted[(self._key, model.name, options)] += 1
        return super().put(model, options)


def _nodes(loads: Counter[Any]) -> list[SimNode]:
    """Two nodes with nothing in memory."""
    found = []
    for number in (1, 2):
        one = SimNode(node(number, 100.0, loaded=()))
        one.runners = _Recording(one.machine, one.spec, loads)
        found.append(one)
    return found


async def contexts(client: Any, clients: int) -> None:
    """100 requests whose num_ctx alternates: from as many clients as there are sizes, or all from one. With pauses, so
    that both nodes may be free when a request comes."""
    rng = random.Random(1)

    async def one(numbers: range, of: int) -> None:
        for i in numbers:
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            options = {"num_predict": TOKENS, "num_ctx": CONTEXTS[(of + i) % 2 if clients == 1 else of]}
            await client.chat(MODEL, question(of * REQUESTS + i), options=options)

    await asyncio.gather(*(one(range(REQUESTS // clients), of) for of in range(clients)))


async def contexts_ours(world: World, clients: int) -> None:
    async with pool_over(world) as pool:
        await contexts(pool, clients)


def reloads() -> list[Row]:
    rows = []
    for clients, name in ((2, "two clients, each its num_ctx"), (1, "one client, alternating num_ctx")):
        loads: Counter[Any] = Counter()
        simulate(contexts_ours(World(_nodes(loads)), clients))
        reference: Counter[Any] = Counter()
        simulate(contexts(LeastConnections(World(_nodes(reference))), clients))
        beside = f"least connections: {max(reference.values())} (in all {reference.total()})"
        told = f"in all {loads.total()} loads for {REQUESTS} requests"
        rows.append(row(f"{name}: loads a node and set", max(loads.values()), "", beside, 1, note=told))
    return rows


def run() -> list[Row]:
    return [*ten_to_one(), *reloads()]
