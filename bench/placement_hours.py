"""Hours of placement on paper and over simulated nodes, in which nothing may go wrong.

On paper only the plans are followed: 10,000 hours of worlds drawn from seeds, with a demand that shifts, and
models that are pinned, released and at work. Over simulated nodes the controller itself works, with requests that
come and go. A plan must not load more than fits, nor unload a model that is pinned or at work.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.rows import Row, row
from sollol import AsyncOllamaPool, SollolError
from sollol.core.actions import Load, Unload
from sollol.core.events import LoadEnded, LoadRequested
from sollol.engine.controller import Controller
from sollol.observe.journal import Entry
from sollol.policies.placement import GreedyPlacement, ModelNeed, NodeRoom
from sollol.sim import ModelSpec, NodeSpec, SimNode, World
from sollol.sim import run as simulate

GB = 10**9
HOUR_S = 3_600.0
PLANS_PER_H = 6
PAPER_HOURS, WORLD_HOURS = 10_000, 50  # in all, and in one world
NODE_HOURS, CLUSTER_HOURS = 100, 5


class PaperMemory:
    """The models of one node on paper: their bytes, which are pinned, and which are at work."""

    def __init__(self, room: NodeRoom) -> None:
        self.room = room
        self.sizes: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.busy: set[str] = set()

    def present(self, believed: float) -> NodeRoom:
        """Return what a controller sees of it."""
        kept = frozenset((self.pinned | self.busy) & self.sizes.keys())
        return self.room._replace(room=int(believed * self.room.room), held=dict(self.sizes), kept=kept)

    def serve(self, model: str, size: int) -> None:
        """Load a model for a request as Ollama does, if what is neither pinned nor at work leaves room for it."""
        loose = [name for name in self.sizes if name not in self.pinned | self.busy and name != model]
        while model not in self.sizes and sum(self.sizes.values()) + size > self.room.room:
            if not loose:
                return
            del self.sizes[loose.pop(0)]
        self.sizes[model] = size


def paper_hours(seed: int, hours: int, believed: float = 1.0) -> Counter[str]:
    """Return what went wrong in so many hours of one world on paper, and the steps of its plans.

    Args:
        believed: The room that the plans reckon with, as a share of the true one.
    """
    rng = random.Random(seed)
    sizes = {f"m{number}": rng.randrange(1, 30) * GB for number in range(rng.randrange(3, 12))}
    nodes = [PaperMemory(_room(rng, number, sizes)) for number in range(rng.randrange(2, 6))]
    by_name = {node.room.node: node for node in nodes}
    policy, found = GreedyPlacement(), Counter[str]()
    for _ in range(hours):
        demand = {model: rng.choice((0.0, 0.001, 0.02, 0.3)) for model in sizes}
        for _ in range(PLANS_PER_H):
            _let_time_pass(rng, nodes, sizes, demand)
            needs = [ModelNeed(name, sizes[name], per_s, rng.choice((0, 0, 0, 1))) for name, per_s in demand.items()]
            for step in policy.plan(needs, [node.present(believed) for node in nodes]).steps:
                node = by_name[step.node]
                found["steps"] += 1
                if step.load:
                    node.sizes[step.model] = sizes[step.model]
                    found["over-commit"] += sum(node.sizes.values()) > node.room.room
                else:
                    found["eviction"] += step.model in node.pinned | node.busy
                    node.sizes.pop(step.model, None)
    return found


def _room(rng: random.Random, number: int, sizes: Mapping[str, int]) -> NodeRoom:
    on_disk = [model for model in sizes if rng.random() < 0.8]
    service = {model: rng.uniform(0.5, 10.0) for model in on_disk}
    load = {model: sizes[model] / GB * rng.uniform(0.5, 3.0) for model in on_disk}
    return NodeRoom(f"n{number}", rng.randrange(4, 48) * GB, service, load, {})


def _let_time_pass(
    rng: random.Random, nodes: Iterable[PaperMemory], sizes: Mapping[str, int], demand: Mapping[str, float]
) -> None:
    wanted = [model for model, per_s in demand.items() if per_s]
    for node in nodes:
        node.busy.clear()
        for model in wanted:
            if model in node.room.service_s and rng.random() < 0.3:
                node.serve(model, sizes[model])
        held = sorted(node.sizes)
        node.busy = {model for model in held if rng.random() < 0.2}
        node.pinned &= set(held)
        if held and rng.random() < 0.1:
            node.pinned ^= {rng.choice(held)}


def controlled_hours(seed: int, hours: float, believed: float = 1.0) -> Counter[str]:
    """Return the same of the controller over simulated nodes, where agents report the memory."""
    return simulate(_controlled(random.Random(seed), hours, believed))


async def _controlled(rng: random.Random, hours: float, believed: float) -> Counter[str]:
    models = [ModelSpec(f"m{n}", size_bytes=rng.randrange(2, 9) * GB, mean_words=20) for n in range(4)]
    memory = [rng.randrange(10, 20) * GB for _ in range(2)]
    specs = [
        NodeSpec(
            host=f"10.0.0.{n + 1}",
            models=tuple(models),
            vram_bytes=room,
            load_bytes_per_s=GB,
            latency_s=0.001,
            decode_tokens_per_s=50.0,
            prefill_tokens_per_s=1_000.0,
        )
        for n, room in enumerate(memory)
    ]
    world, found = World(specs), Counter[str]()
    rooms = {spec.key: int(believed * room) for spec, room in zip(specs, memory, strict=True)}
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        clock = asyncio.get_running_loop().time
        controller = Controller(pool.engine, memory=rooms.get, clock=clock)

        planned = set[tuple[str, str]]()  # loads of the controller under way

        def check(entry: Entry) -> None:
            event = entry.event
            if isinstance(event, LoadEnded):
                planned.discard((event.node, event.model))
            for action in entry.actions:
                if isinstance(action, Unload):
                    runner = world[action.node].runners.loaded.get(action.model)
                    found["steps"] += 1
                    found["eviction"] += runner is not None and (runner.users > 0 or runner.keep_alive_s > 10 * HOUR_S)
                elif isinstance(action, Load) and isinstance(event, LoadRequested):
                    found["steps"] += 1
                    planned.add((action.node, action.model))

        def watched(node: SimNode) -> None:
            """Count the loads of the controller for which the node evicts a model."""
            choose = node.runners._in_the_way

            def in_the_way(model: ModelSpec) -> Any:
                victim = choose(model)
                found["over-commit"] += victim is not None and (node.spec.key, model.name) in planned
                return victim

            node.runners._in_the_way = in_the_way  # type: ignore[method-assign]

        for node in world.nodes.values():
            watched(node)
        pool.engine.journal.subscribe(check)
        await pool.wait_ready()
        end = clock() + hours * HOUR_S
        tasks = set[asyncio.Task[Any]]()
        while clock() < end:
            model = rng.choice(models).name
            for _ in range(rng.randrange(1, 30)):
                tasks.add(asyncio.create_task(_ask(pool, model, rng.choice((5, 50, 2_000)))))
                await asyncio.sleep(rng.expovariate(1 / 10))
            if rng.random() < 0.2:
                await _pin(pool, model, rng.random() < 0.5)  # no list shows a load of others while it goes on
            await controller.tick()
            await asyncio.sleep(rng.choice((1, 30, 300)))
            tasks = {task for task in tasks if not task.done()}
        await asyncio.gather(*tasks)
    return found


async def _ask(pool: AsyncOllamaPool, model: str, tokens: int) -> None:
    await pool.chat(model, [{"role": "user", "content": "Hello"}], options={"num_predict": tokens})


async def _pin(pool: AsyncOllamaPool, model: str, pinned: bool) -> None:
    try:
        await (pool.pin(model) if pinned else pool.unpin(model))
    except SollolError:  # it is in no memory any more
        pass


def run() -> list[Row]:
    paper, controlled = Counter[str](), Counter[str]()
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        worlds = PAPER_HOURS // WORLD_HOURS
        for each in workers.map(paper_hours, range(worlds), [WORLD_HOURS] * worlds, chunksize=4):
            paper += each
        clusters = NODE_HOURS // CLUSTER_HOURS
        for each in workers.map(controlled_hours, range(clusters), [CLUSTER_HOURS] * clusters):
            controlled += each
    return [
        _row(f"{PAPER_HOURS:,} h of plans on paper, {worlds} worlds: over-commits and evictions", paper),
        _row(f"{NODE_HOURS} h of the controller over simulated nodes: the same", controlled),
    ]


def _row(name: str, found: Counter[str]) -> Row:
    wrong = found["over-commit"] + found["eviction"]
    return row(name, wrong, "", "of models that are pinned or at work", 0, note=f"{found['steps']:,} loads and unloads")
