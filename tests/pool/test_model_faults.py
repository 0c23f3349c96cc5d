"""Models that fall to the CPU, loads that hang, models that fit nowhere: over simulated nodes, in virtual time."""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

import pytest

from sollol import AsyncOllamaPool, NoNodeAvailable
from sollol.errors import DeadlineExceeded, SollolError
from sollol.sim import ModelSpec, NodeSpec, SimNode, World, percentile
from sollol.sim import run as simulate

GB = 10**9
LOAD_S = 4.3  # of 4 GB, at 1 GB/s


class Call(NamedTuple):
    model: str
    at_s: float
    took_s: float
    node: str


def nodes(count: int, models: tuple[ModelSpec, ...], **more: object) -> list[NodeSpec]:
    given: dict[str, object] = {"decode_tokens_per_s": 100.0, "load_bytes_per_s": GB, "latency_s": 0.001, **more}
    return [NodeSpec(host=f"10.0.0.{number}", models=models, **given) for number in range(1, count + 1)]  # type: ignore[arg-type]


async def ask(
    pool: AsyncOllamaPool, model: str, number: int, done: list[Call], tokens: int = 30, **more: object
) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    options = {"num_predict": tokens, **more}
    answer = await pool.chat(model, [{"role": "user", "content": f"question {number}"}], options=options)
    done.append(Call(model, began, loop.time() - began, answer.routing.node))


async def falling(listed: bool | None) -> tuple[list[Call], float, list[str]]:
    """Chat for three minutes with three nodes, one of which falls to its CPU after one; None: with the others alone."""
    specs = nodes(3, (ModelSpec("m", size_bytes=4 * GB),), loaded=("m",), prefill_tokens_per_s=2_000.0)
    world = World(specs if listed is not None else specs[1:])
    loop, rng, done = asyncio.get_running_loop(), random.Random(1), list[Call]()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        began, asked = loop.time(), list[asyncio.Task[None]]()
        fell_s = 0.0
        while loop.time() < began + 180:
            await asyncio.sleep(rng.expovariate(1.5))
            if not fell_s and loop.time() > began + 60 and listed is not None:
                fell_s = loop.time()
                next(iter(world.nodes.values())).fall_to_cpu(listed)
            asked.append(asyncio.create_task(ask(pool, "m", len(asked), done, 50)))
        await asyncio.gather(*asked)
        return done, fell_s, pool.get_stats()["notices"]


@pytest.mark.parametrize("listed", [True, False], ids=["in /api/ps", "by its rate alone"])
def test_a_node_that_falls_to_its_cpu_gets_hardly_anything(listed: bool) -> None:
    done, fell_s, notices = simulate(falling(listed))
    others = [call.took_s for call in simulate(falling(None))[0]]
    after = [call for call in done if call.at_s > fell_s + 10]
    share = sum(call.node == "10.0.0.1:11434" for call in after) / len(after)
    assert share <= 0.05
    assert percentile([call.took_s for call in after], 0.99) <= 1.3 * percentile(others, 0.99)
    assert listed or any("5.0 tokens/s" in notice and "before" in notice for notice in notices)


async def embedding(items: int, batch: bool, alone: bool, heal: bool = False) -> tuple[list[Call], list[str]]:
    """Embed for two minutes with three nodes, one of which falls to its CPU at 30 s; `alone`: without it."""
    specs = nodes(3, (ModelSpec("e", "embed", 300_000_000),), loaded=("e",), embed_items_per_s=20.0)
    world, done = World(specs[1:] if alone else specs), list[Call]()
    loop = asyncio.get_running_loop()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:

        async def client(number: int) -> None:
            turn = 0
            while loop.time() < 120:
                turn, began = turn + 1, loop.time()
                texts = [f"text {turn} of {number}, {item}" for item in range(items)]
                if batch:
                    await pool.embed_batch("e", texts)
                    done.append(Call("e", began, loop.time() - began, ""))
                else:
                    answer = await pool.embed("e", texts if items > 1 else texts[0])
                    done.append(Call("e", began, loop.time() - began, answer.routing.node))

        async def fall() -> None:
            if not alone:
                await asyncio.sleep(30)
                world["10.0.0.1:11434"].fall_to_cpu(listed=False)
                if heal:
                    await asyncio.sleep(10)
                    for runner in world["10.0.0.1:11434"].runners.look().values():
                        runner.slowdown = 1.0

        await asyncio.gather(fall(), *(client(number) for number in range(1 if batch else 6)))
        return done, pool.get_stats()["notices"]


@pytest.mark.parametrize(("items", "batch"), [(1, False), (6, False), (600, True)], ids=["one", "list", "batch"])
def test_a_node_that_embeds_on_its_cpu_gets_hardly_anything(items: int, batch: bool) -> None:
    done, notices = simulate(embedding(items, batch, alone=False))
    others = [call.took_s for call in simulate(embedding(items, batch, alone=True))[0]]
    after = [call for call in done if call.at_s > 40]
    assert sum(call.node == "10.0.0.1:11434" for call in after) / len(after) <= 0.05
    assert percentile([call.took_s for call in after], 0.99) <= 1.3 * percentile(others, 0.99)
    (demoted,) = [notice for notice in notices if "embeds" in notice]
    assert demoted.startswith("10.0.0.1:11434 ")


@pytest.mark.parametrize("items", [1, 6])
def test_a_node_that_embeds_fast_again_is_used_again(items: int) -> None:
    done, notices = simulate(embedding(items, False, alone=False, heal=True))
    last = [call.node for call in done if call.at_s > 105]
    assert last.count("10.0.0.1:11434") > len(last) / 5
    assert "as fast with e:latest as it was before" in notices[-1]


async def recovering() -> tuple[list[Call], float]:
    world = World(nodes(2, (ModelSpec("m", size_bytes=4 * GB),), loaded=("m",)))
    victim, loop, done = next(iter(world.nodes.values())), asyncio.get_running_loop(), list[Call]()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:

        async def two(count: int) -> None:
            for number in range(count):
                await asyncio.gather(*(ask(pool, "m", 2 * number + more, done) for more in (0, 1)))

        await two(20)
        victim.fall_to_cpu(listed=False)
        await two(100)
        for runner in victim.runners.look().values():
            runner.slowdown = 1.0
        healed_s = loop.time()
        await two(400)
    return done, healed_s


def test_a_node_that_is_fast_again_is_used_again() -> None:
    done, healed_s = simulate(recovering())
    last = [call.node for call in done if call.at_s > healed_s][-100:]
    assert min(last.count(f"10.0.0.{number}:11434") for number in (1, 2)) > 30


async def alternating(at_once: bool) -> int:
    world = World(nodes(2, (ModelSpec("m", size_bytes=4 * GB, context_length=32_768),)))
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        done: list[Call] = []

        async def client(num_ctx: int) -> None:
            for number in range(100):
                await ask(pool, "m", number, done, num_ctx=num_ctx)

        if at_once:
            await asyncio.gather(client(2_048), client(8_192))
        else:
            for number in range(200):
                await ask(pool, "m", number, done, num_ctx=(2_048, 8_192)[number % 2])
    return sum(sum(node.loads.values()) for node in world.nodes.values())


@pytest.mark.parametrize("at_once", [True, False])
def test_two_clients_with_other_contexts_do_not_make_a_model_reload(at_once: bool) -> None:
    assert simulate(alternating(at_once)) <= 4


async def hanging(victims: list[int], calls: int, heal_after_s: float = 0.0) -> tuple[list[Call], list[SimNode]]:
    """Ask for a loaded model and for one that needs a load, while loads of some nodes hang."""
    models = (ModelSpec("a", size_bytes=4 * GB), ModelSpec("b", size_bytes=4 * GB))
    world = World(nodes(3, models, loaded=("a",)))
    done: list[Call] = []
    running = list(world.nodes.values())
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        for number in range(10):
            await ask(pool, "a", number, done)
        done.clear()
        for victim in victims:
            running[victim].hang_loads()
        await asyncio.gather(
            *(ask(pool, "b", number, done) for number in range(calls)),
            *(ask(pool, "a", number, done) for number in range(calls)),
        )
        if heal_after_s:
            for node in running:
                node.go_on_loading()
            await asyncio.sleep(heal_after_s)
            await asyncio.gather(*(ask(pool, "b", number, done) for number in range(40)))
    return done, running


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_calls_that_wait_for_a_load_that_hangs_move(victim: int) -> None:
    done, _ = simulate(hanging([victim], 6))
    assert len(done) == 12
    waits = sorted(call.took_s for call in done if call.model == "b")
    assert waits[0] <= 2.2 * LOAD_S
    assert waits[-1] <= 2.2 * LOAD_S + 6 * 0.5  # behind each other on the node that has loaded it
    assert all(call.node != f"10.0.0.{victim + 1}:11434" for call in done if call.model == "b")
    quiet, _ = simulate(hanging([], 6))
    usual = max(call.took_s for call in quiet if call.model == "a")
    assert max(call.took_s for call in done if call.model == "a") <= usual + 0.5


async def batches_beside_a_hanging_load() -> tuple[list[float], list[str]]:
    """Embed four batches with a model whose load hangs on one node, while others keep the nodes busy."""
    models = (ModelSpec("a", "embed", GB), ModelSpec("b", "embed", GB))
    world = World(nodes(3, models, loaded=("a",), embed_items_per_s=200.0))
    loop, took = asyncio.get_running_loop(), list[float]()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:

        async def batch(model: str, number: int) -> None:
            began = loop.time()
            await pool.embed_batch(model, [f"text {number} {item}" for item in range(600)], timeout=600)
            if model == "b":
                took.append(loop.time() - began)

        await batch("a", 0)
        next(iter(world.nodes.values())).hang_loads()
        await asyncio.gather(
            *(batch("b", number) for number in range(4)), *(batch("a", number) for number in range(10))
        )
        return took, pool.get_stats()["notices"]


def test_a_chunk_that_waits_for_a_load_that_hangs_goes_elsewhere() -> None:
    took, notices = simulate(batches_beside_a_hanging_load())
    assert len(took) == 4
    assert max(took) <= 60
    assert any("It gets no loads" in notice for notice in notices)


async def impatient(callers: int) -> float:
    """Ask for a model whose load hangs, and leave; return the seconds that the next caller waits."""
    models = (ModelSpec("a", size_bytes=4 * GB), ModelSpec("b", size_bytes=4 * GB))
    world = World(nodes(3, models))
    done: list[Call] = []
    victim = next(iter(world.nodes.values()))
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        first = "10.0.0.1:11434"
        await pool.chat("a", [{"role": "user", "content": "x"}], node=first)  # its load is measured
        victim.hang_loads()
        for _ in range(callers):
            with pytest.raises(DeadlineExceeded):
                await pool.chat("b", [{"role": "user", "content": "x"}], node=first, timeout=3.0)
        await ask(pool, "b", 0, done)
    return done[0].took_s


@pytest.mark.parametrize("callers", [1, 3])
def test_callers_that_leave_a_load_that_hangs_do_not_hide_it(callers: int) -> None:
    assert simulate(impatient(callers)) <= 2.2 * LOAD_S


def test_a_node_whose_loads_go_on_gets_loads_again() -> None:
    done, running = simulate(hanging([0, 1], 6, heal_after_s=400))
    assert len(done) == 52
    assert sum(node.loads.get("b:latest", 0) > 0 for node in running) >= 1


async def too_large(times: int, pause_s: float) -> tuple[list[str], list[float], list[int]]:
    models = (ModelSpec("big", size_bytes=40 * GB),)
    specs = [
        NodeSpec(host=f"10.0.0.{number}", models=models, ram_bytes=room * GB, load_bytes_per_s=GB, latency_s=0.001)
        for number, room in ((1, 8), (2, 16), (3, 12))
    ]
    world = World(specs)
    errors, took, loop = list[str](), list[float](), asyncio.get_running_loop()
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        for number in range(times):
            began = loop.time()
            try:
                if number % 2:
                    result = await pool.embed_batch("big", ["a", "b"])
                    raise next(iter(result.errors.values()))
                await pool.chat("big", [{"role": "user", "content": "Hello"}])
            except SollolError as error:
                errors.append(str(error))
            took.append(loop.time() - began)
            await asyncio.sleep(pause_s)
    tries = [
        sum(count for path, count in node.counters.requests.items() if path.startswith("POST"))
        for node in world.nodes.values()
    ]
    return errors, took, tries


def test_a_model_that_fits_nowhere_is_tried_once_a_node_and_hour() -> None:
    errors, took, tries = simulate(too_large(1_000, 3.0))
    assert len(errors) == 1_000
    assert max(tries) <= 1
    assert max(took) <= 1.0
    for error in (errors[0], errors[1], errors[-1]):
        assert "37.3 GiB" in error
        assert "14.9 GiB" in error


async def unproven(vram: int | None) -> tuple[str, int]:
    world = World(nodes(2, (ModelSpec("m", size_bytes=4 * GB),), vram_bytes=vram))
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
        hello = [{"role": "user", "content": "Hello"}]
        answer = await pool.chat("m", hello, requires_gpu=True, options={"num_predict": 3})
        loads = sum(sum(node.loads.values()) for node in world.nodes.values())
        return answer.routing.node, loads


def test_a_gpu_is_proven_by_a_load_before_a_call_that_requires_one_goes_there() -> None:
    node, loads = simulate(unproven(None))
    assert node
    assert loads == 1
    with pytest.raises(NoNodeAvailable, match="all of m:latest: it runs on 100% CPU"):
        simulate(unproven(0))
