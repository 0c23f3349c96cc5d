"""Nodes that are slow to say what they have: those that work are used, those whose runner is frozen are left."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import World, run
from sollol.transport.base import Call
from tests.pool.breaking import MESSAGES, MODEL, talker

ASKED: dict[str, Any] = {"options": {"num_predict": 10}}


class SlowLists:
    """The transport of a world in which some paths are answered late."""

    def __init__(self, world: World, seconds: dict[str, float]) -> None:
        self._inner = world.transport()
        self.seconds = seconds
        self.frozen = ""  # the node whose runner is: a call waits for it, and so does `/api/ps` as long as it has one
        self._calls = 0
        self._left = asyncio.Event()
        self._thawed = asyncio.Event()

    async def send(self, node: Endpoint, call: Call) -> Any:
        await asyncio.sleep(self.seconds.get(call.path, 0.0))
        if node.key == self.frozen:
            if call.path == "/api/chat":
                self._calls += 1
                try:
                    await self._thawed.wait()
                finally:
                    self._calls -= 1
                    self._left.set()
            elif call.path == "/api/ps" and self._calls:
                self._left.clear()
                await self._left.wait()
        return await self._inner.send(node, call)

    def thaw(self) -> None:
        self.frozen = ""
        self._thawed.set()

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def slow_lists(nodes: int, seconds: dict[str, float]) -> Any:
    world = World([talker(i) for i in range(1, nodes + 1)])
    transport = SlowLists(world, seconds)
    async with AsyncOllamaPool(world.endpoints, transport=transport, seed=1) as pool:
        pool.engine.journal.subscribe(lambda entry: pool.engine.scheduler.invariants())
        yield world, transport, pool


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps"])
@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_a_node_with_slow_lists_and_quick_chats_is_used(path: str, seconds: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with slow_lists(1, {path: seconds}) as (_, _, pool):
            await pool.chat(MODEL, MESSAGES, **ASKED)  # the first one waits for what the node has
            for _ in range(60):
                began = loop.time()
                await pool.chat(MODEL, MESSAGES, **ASKED)
                assert loop.time() - began < 1.0
                await asyncio.sleep(1)
            node = pool.nodes[0]
            assert node.is_healthy
            assert pool.get_stats()["failed_requests"] == 0

    run(main())


def test_what_a_node_had_is_remembered_while_its_lists_are_slow() -> None:
    async def main() -> None:
        async with slow_lists(1, {}) as (world, transport, pool):
            await pool.wait_ready()
            state = pool.engine.scheduler.view().nodes[world.endpoints[0].key]
            before = state.models, state.digests, state.loaded
            assert all(before)
            transport.seconds = {"/api/tags": 30.0, "/api/ps": 30.0}
            for _ in range(20):
                await pool.chat(MODEL, MESSAGES, **ASKED)
                await asyncio.sleep(2)
                assert (state.models, state.digests) == before[:2]
                assert set(state.loaded) == set(before[2])
                assert state.up

    run(main())


def test_a_node_that_answers_nothing_is_down_all_the_same() -> None:
    async def main() -> None:
        async with slow_lists(2, {}) as (world, _, pool):
            await pool.wait_ready()
            world[world.endpoints[0].key].black_hole()
            for _ in range(10):
                await pool.chat(MODEL, MESSAGES, **ASKED)
                await asyncio.sleep(2)
            assert [node.is_healthy for node in pool.nodes] == [False, True]

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_calls_to_a_frozen_runner_take_seconds_at_most(stream: bool) -> None:
    """Its node answers the version always, and `/api/ps` when it has no call: under light load it seems well again and
    again."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with slow_lists(2, {}) as (world, transport, pool):
            await pool.wait_ready()
            for endpoint in world.endpoints:
                for _ in range(3):
                    await pool.chat(MODEL, MESSAGES, node=endpoint.key, **ASKED)
            world[world.endpoints[1].key].slow(2.0)  # so that the one which freezes is preferred
            for _ in range(5):
                await pool.chat(MODEL, MESSAGES, **ASKED)
            transport.frozen = world.endpoints[0].key
            took = []
            for _ in range(150):
                began = loop.time()
                answer = await pool.chat(MODEL, MESSAGES, stream=stream, **ASKED)
                if stream:
                    async for _ in answer:
                        pass
                took.append(loop.time() - began)
                await asyncio.sleep(0.5)
            slow = [seconds for seconds in took if seconds > 2.0]
            assert len(slow) <= 2
            assert max(took) < 6.0
            assert pool.get_stats()["failed_requests"] == 0
            transport.thaw()
            await asyncio.sleep(40)
            for _ in range(10):
                await pool.chat(MODEL, MESSAGES, **ASKED)
            assert (await pool.chat(MODEL, MESSAGES, **ASKED)).routing.node == world.endpoints[0].key  # used again

    run(main())
