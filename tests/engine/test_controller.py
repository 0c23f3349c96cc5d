"""The controller over simulated nodes, in virtual time: demand is followed, faults are mended, what is in use stays."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from sollol import AsyncOllamaPool, NoNodeAvailable
from sollol.core.events import NodeSeen
from sollol.core.types import NodeFacts
from sollol.engine.controller import Controller, keep_alive
from sollol.sim import ModelSpec, NodeSpec, SimNode, World
from sollol.sim import run as simulate

GB = 10**9
A, B = ModelSpec("a", size_bytes=4 * GB), ModelSpec("b", size_bytes=4 * GB)
HELLO = [{"role": "user", "content": "Hello"}]


class Stage:
    def __init__(self, world: World, pool: AsyncOllamaPool, controller: Controller) -> None:
        self.nodes: list[SimNode] = list(world.nodes.values())
        self.pool = pool
        self.controller = controller

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.controller.tick()
            await asyncio.sleep(30)
            self.pool.engine.refresh()
            await asyncio.sleep(0.1)

    async def chat(self, model: str, times: int, every_s: float = 1.0) -> None:
        for _ in range(times):
            await self.pool.chat(model, HELLO, options={"num_predict": 20})
            await asyncio.sleep(every_s)

    def loaded(self) -> list[list[str]]:
        return [sorted(node.runners.look()) for node in self.nodes]


def staged(
    work: Callable[[Stage], Coroutine[Any, Any, Any]],
    count: int = 2,
    models: tuple[ModelSpec, ...] = (A, B),
    *,
    given: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    async def run() -> Any:
        spec = {"decode_tokens_per_s": 100.0, "load_bytes_per_s": GB, "latency_s": 0.001, "models": models, **more}
        world = World([NodeSpec(host=f"10.0.0.{number}", **spec) for number in range(1, count + 1)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            loop = asyncio.get_running_loop()
            controller = Controller(pool.engine, clock=loop.time, **(given or {}))
            await pool.wait_ready()
            return await work(Stage(world, pool, controller))

    return simulate(run())


def test_a_priority_model_is_loaded_before_anybody_wants_it() -> None:
    async def work(stage: Stage) -> Any:
        await stage.look(2)
        return stage.loaded(), stage.controller.status()

    loaded, status = staged(work, given={"priority_models": ("a",)})
    assert sorted(map(len, loaded)) == [0, 1]
    assert [action.do for action in status.actions] == ["load"]
    assert status.actions[0].reason


def test_a_dry_run_changes_nothing_and_shows_its_plan() -> None:
    async def work(stage: Stage) -> Any:
        await stage.look(2)
        return stage.loaded(), stage.controller.status()

    loaded, status = staged(work, given={"priority_models": ("a",), "dry_run": True})
    assert loaded == [[], []]
    assert [step.model for step in status.steps] == ["a:latest"]
    assert status.not_carried_out == "it is a dry run"


def test_a_hot_model_gets_a_second_node_and_the_cold_one_leaves() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat("b", 3)
        for _ in range(8):
            await asyncio.gather(*(stage.chat("a", 30, 0.1) for _ in range(4)))
            await stage.look()
        return stage.loaded()

    assert staged(work, vram_bytes=5 * GB, max_loaded_models=1) == [["a:latest"], ["a:latest"]]


def test_a_model_that_fits_nowhere_counts_neither_as_demand_nor_as_room() -> None:
    async def work(stage: Stage) -> Any:
        for _ in range(50):
            with pytest.raises(NoNodeAvailable):
                await stage.pool.chat("big", HELLO)
        await stage.chat("a", 30)
        rooms = stage.controller._rooms(0.0)
        await stage.look(2)
        return stage.controller.status().expected_s, max(room.room for room in rooms)

    models = (A, B, ModelSpec("big", size_bytes=40 * GB))
    expected, room = staged(work, models=models, vram_bytes=5 * GB, ram_bytes=0)
    assert expected.before < 60
    assert room < 40 * GB


def test_no_model_in_use_and_no_pinned_one_is_unloaded() -> None:
    async def work(stage: Stage) -> Any:
        await stage.pool.chat("b", HELLO, options={"num_predict": 2}, keep_alive=-1)
        running = [asyncio.create_task(stage.chat("a", 40, 0.0)) for _ in range(3)]
        loads = []
        for _ in range(6):
            await stage.look()
            loads.append([node.runners.loads.get("b:latest", 0) for node in stage.nodes])
        await asyncio.gather(*running)
        return stage.loaded(), loads

    loaded, loads = staged(work, vram_bytes=9 * GB)
    assert any("b:latest" in models for models in loaded)
    assert max(map(sum, loads)) == 1, "the pinned model was loaded once, and stayed"


def test_a_model_that_fell_to_the_cpu_is_loaded_again_when_it_is_idle() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat("a", 5)
        node = next(node for node in stage.nodes if node.runners.look())
        node.fall_to_cpu()
        stage.pool.engine.refresh()
        await asyncio.sleep(1)
        busy = asyncio.create_task(stage.pool.chat("a", HELLO, node=node.spec.key, options={"num_predict": 200}))
        await asyncio.sleep(0.5)
        await stage.controller.tick()
        assert node.runners.loads["a:latest"] == 1, "it is in use"
        await busy
        node.regain_gpu()
        await stage.look(3)
        return node.runners.loads["a:latest"], node.runners.look()["a:latest"].size_vram, stage.controller.status()

    loads, on_gpu, status = staged(work)
    assert loads == 2
    assert on_gpu == 4 * GB
    assert any("CPU" in action.reason for action in status.actions)


async def no_lists() -> None:
    """Leave the lists as the test has fed them."""


def test_two_versions_in_memory_are_unloaded_until_one_is_left() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat("a", 3)
        node = next(node for node in stage.pool.engine.scheduler.view().nodes.values() if node.loaded)
        twin = node.loaded["a:latest"]._replace(runners=2)
        facts = NodeFacts(node.version, node.models, {"a:latest": twin}, node.digests)
        stage.pool.engine.dispatcher.feed(NodeSeen(node.key, facts))
        stage.controller._read_lists = no_lists  # type: ignore[method-assign]
        await stage.controller.tick()
        return stage.controller.status().actions

    actions = staged(work)
    (unloaded,) = [action for action in actions if action.do == "unload"]
    assert unloaded.model == "a:latest"
    assert "2 versions" in unloaded.reason


def test_a_gpu_that_stays_away_is_not_tried_for_ever() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat("a", 5)
        node = next(node for node in stage.nodes if node.runners.look())
        node.fall_to_cpu()
        stage.pool.engine.refresh()
        await asyncio.sleep(1)
        for _ in range(60):  # an hour
            await stage.look(2)
            await stage.chat("a", 1)
        return node.runners.loads["a:latest"]

    assert 2 <= staged(work, count=1) <= 4


@pytest.mark.parametrize("seed", range(4))
def test_any_demand_keeps_within_the_memory(seed: int) -> None:
    async def work(stage: Stage) -> Any:
        rng = random.Random(seed)
        for _ in range(20):
            model = rng.choice("abc")
            await stage.chat(model, rng.randrange(1, 8), 0.2)
            await stage.look()
            for node in stage.nodes:
                taken = sum(runner.size_vram for runner in node.runners.look().values())
                assert taken <= 9 * GB
                assert all(runner.slowdown == 1.0 for runner in node.runners.look().values()), "it did not fit"

    models = (A, B, ModelSpec("c", size_bytes=5 * GB))
    staged(work, models=models, vram_bytes=9 * GB)


@pytest.mark.parametrize(("memory", "both"), [(10 * GB, True), (8 * GB, False)])
def test_the_memory_that_an_agent_reports_is_used_at_once(memory: int, both: bool) -> None:
    async def work(stage: Stage) -> Any:
        await stage.look(4)
        return stage.loaded()

    given = {"priority_models": ("a", "b"), "memory": lambda node: memory}
    assert (staged(work, count=1, given=given) == [["a:latest", "b:latest"]]) is both


def test_keep_alive_follows_the_pauses_between_requests() -> None:
    assert keep_alive(1.0) == "300s"
    assert keep_alive(1 / 600) == "1800s"
    assert keep_alive(0.0) == "86400s"


def test_a_planned_load_has_the_largest_context_of_the_requests() -> None:
    async def work(stage: Stage) -> Any:
        async def client(context: int) -> None:
            for _ in range(30):
                options = {"num_predict": 20, "num_ctx": context}
                await stage.pool.chat("a", HELLO, options=options, node="10.0.0.1:11434")

        for _ in range(8):
            await asyncio.gather(*(client(context) for context in (2048, 8192, 2048, 2048)))
            await stage.look()
        return [node.runners.look()["a:latest"].num_ctx for node in stage.nodes]

    model = ModelSpec("a", size_bytes=4 * GB, context_length=32_768)
    assert staged(work, models=(model,)) == [8192, 8192]


def test_a_pinned_model_that_is_repaired_stays_pinned() -> None:
    async def work(stage: Stage) -> Any:
        node = stage.nodes[0]
        await stage.pool.chat("a", HELLO, options={"num_predict": 2}, keep_alive=-1)
        await asyncio.sleep(1)
        node.fall_to_cpu()
        stage.pool.engine.refresh()
        await asyncio.sleep(1)
        node.regain_gpu()
        await stage.look(3)
        return node.runners.loads["a:latest"], node.runners.look()["a:latest"].keep_alive_s > 365 * 86_400

    assert staged(work, count=1) == (2, True)


def test_a_repair_does_not_take_the_room_of_what_came_meanwhile() -> None:
    async def work(stage: Stage) -> Any:
        node = stage.nodes[0]
        await stage.chat("a", 3)
        await stage.controller.tick()
        stage.controller._uses.clear()
        node.fall_to_cpu()
        stage.pool.engine.refresh()
        await asyncio.sleep(1)
        await stage.controller.tick()  # unloads it, and plans nothing, since nothing is wanted
        node.regain_gpu()
        await stage.pool.chat("b", HELLO, options={"num_predict": 2}, keep_alive=-1)
        await stage.look(2)
        return stage.loaded()

    assert staged(work, count=1, vram_bytes=5 * GB, max_loaded_models=1, given={"memory": lambda node: 5 * GB}) == [
        ["b:latest"]
    ]


def test_what_others_have_just_pinned_is_seen_before_a_plan() -> None:
    async def work(stage: Stage) -> Any:
        node = stage.nodes[0]
        await stage.chat("a", 30)
        await asyncio.sleep(400)  # it has expired, and lists are read once a minute
        stage.pool.engine.refresh()
        await asyncio.sleep(1)
        node.runners.put(B, node.runners.options_of(B, {})).keep_alive_s = float("inf")
        await stage.look(2)
        return stage.loaded()

    assert staged(work, count=1, vram_bytes=5 * GB, given={"memory": lambda node: 5 * GB}) == [["b:latest"]]
