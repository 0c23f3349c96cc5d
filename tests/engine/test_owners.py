"""Quiet hours, budgets and sleeping nodes: in virtual time, and with a real packet on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from typing import Any

import pytest

from sollol import AsyncOllamaPool, NoNodeAvailable
from sollol.engine.owners import Owners, magic_packet
from sollol.node_options import NodeOptions, parse_node_options
from sollol.sim import ModelSpec, NodeSpec, SimNode, World
from sollol.sim import run as simulate

GB = 10**9
A, B = ModelSpec("a", size_bytes=4 * GB), ModelSpec("b", size_bytes=5 * GB)
HELLO = [{"role": "user", "content": "Hello"}]
FIRST, SECOND = "10.0.0.1:11434", "10.0.0.2:11434"
MAC = {"mac": "a4:bb:6d:01:02:03"}
BOOT_S = 40.0


class Stage:
    def __init__(self, world: World, pool: AsyncOllamaPool, options: dict[str, NodeOptions]) -> None:
        self.nodes: dict[str, SimNode] = world.nodes
        self.pool = pool
        self.now = datetime(2026, 11, 30, 8, 0)
        self.wakes_up = True
        self.woken: list[tuple[str, float]] = []
        self.owners = Owners(pool.engine, options, clock=lambda: self.now)
        pool.engine.dispatcher.wake = self._packet

    def _packet(self, key: str) -> None:
        loop = asyncio.get_running_loop()
        self.woken.append((key, loop.time()))
        if self.wakes_up:
            loop.call_later(BOOT_S, self.nodes[key].revive)

    async def chat(self, model: str = "a", tokens: int = 20, **more: Any) -> str:
        answer = await self.pool.chat(model, HELLO, options={"num_predict": tokens}, **more)
        node: str = answer.routing.node
        return node

    def state(self, key: str) -> str:
        return next(str(node["state"]) for node in self.pool.snapshot()["nodes"] if node["host"] == key)

    def probes(self, key: str) -> int:
        return sum(count for path, count in self.nodes[key].counters.requests.items() if path.startswith("GET"))


def staged(work: Callable[[Stage], Coroutine[Any, Any, Any]], options: dict[str, dict[str, str]]) -> Any:
    async def run() -> Any:
        spec: dict[str, Any] = {"decode_tokens_per_s": 100.0, "load_bytes_per_s": GB, "latency_s": 0.001}
        world = World([NodeSpec(host=f"10.0.0.{number}", models=(A, B), **spec) for number in (1, 2)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            await pool.wait_ready()
            stage = Stage(world, pool, {key: parse_node_options(table) for key, table in options.items()})
            await stage.owners.tick()
            return await work(stage)

    return simulate(run())


def test_quiet_hours_keep_new_work_away() -> None:
    async def work(stage: Stage) -> Any:
        before = {await stage.chat(node=FIRST)}
        stage.now += timedelta(hours=1)
        await stage.owners.tick()
        with pytest.raises(NoNodeAvailable, match="quiet hours of its owner"):
            await stage.chat(node=FIRST)
        during = {await stage.chat() for _ in range(5)}
        stage.now += timedelta(hours=9)
        await stage.owners.tick()
        return before, during, {await stage.chat(node=FIRST)}

    before, during, after = staged(work, {FIRST: {"quiet": "Mon-Fri 09:00-18:00"}})
    assert before == after == {FIRST}
    assert during == {SECOND}


def test_an_operators_drain_outlasts_the_quiet_hours() -> None:
    async def work(stage: Stage) -> Any:
        stage.pool.engine.drain(FIRST, True)
        stage.now += timedelta(hours=1)
        await stage.owners.tick()
        stage.now += timedelta(hours=9)
        await stage.owners.tick()
        await asyncio.sleep(0.1)
        return {await stage.chat() for _ in range(5)}

    assert staged(work, {FIRST: {"quiet": "Mon-Fri 09:00-18:00"}}) == {SECOND}


def test_a_budget_is_kept() -> None:
    async def work(stage: Stage) -> Any:
        with pytest.raises(NoNodeAvailable, match=r"b:latest has 5.0 GB, and the node's owner permits 4.5 GB"):
            await stage.chat("b", node=FIRST)
        return {await stage.chat("b") for _ in range(4)}, await stage.chat("a", node=FIRST)

    elsewhere, within = staged(work, {FIRST: {"budget": "4.5GB"}})
    assert elsewhere == {SECOND}
    assert within == FIRST


def test_a_load_within_a_budget_makes_room_first() -> None:
    async def work(stage: Stage) -> Any:
        for model in "abab":
            await stage.chat(model, node=FIRST)
            await asyncio.sleep(2)
            stage.pool.engine.refresh()
            await asyncio.sleep(0.1)
            assert len(stage.nodes[FIRST].runners.look()) == 1

    staged(work, {FIRST: {"budget": "8GB"}})


def test_a_sleeping_node_is_not_probed_and_is_woken_once_when_the_queue_grows() -> None:
    async def work(stage: Stage) -> Any:
        for key in (FIRST, SECOND):
            await stage.chat(node=key)
        stage.nodes[FIRST].die()
        await asyncio.sleep(120)
        assert stage.state(FIRST) == "asleep"
        before = stage.probes(FIRST)
        await asyncio.sleep(3_600)
        assert stage.probes(FIRST) == before
        assert await stage.chat() == SECOND
        assert not stage.woken, "one short request can wait"
        began = asyncio.get_running_loop().time()
        used = await asyncio.gather(*(stage.chat(tokens=600) for _ in range(40)))
        assert stage.state(FIRST) == "up"
        return stage.woken, used, began

    woken, used, began = staged(work, {FIRST: MAC})
    assert [key for key, _ in woken] == [FIRST]
    assert woken[0][1] - began < 60
    assert used.count(FIRST) > 5


def test_a_node_with_the_only_copy_is_woken_at_once() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat(node=FIRST)
        stage.nodes[FIRST].die()
        await asyncio.sleep(120)
        return await stage.chat(node=FIRST), len(stage.woken)

    assert staged(work, {FIRST: MAC}) == (FIRST, 1)


def test_a_node_that_does_not_wake_up_is_asleep_again_and_left_alone() -> None:
    async def work(stage: Stage) -> Any:
        await stage.chat(node=FIRST)
        stage.nodes[FIRST].die()
        stage.wakes_up = False
        await asyncio.sleep(120)
        for _ in range(3):
            with pytest.raises(NoNodeAvailable):
                await stage.chat(node=FIRST)
        return len(stage.woken), stage.state(FIRST)

    assert staged(work, {FIRST: MAC}) == (1, "asleep")


def test_a_node_is_warm_at_the_time_that_its_owner_set() -> None:
    async def work(stage: Stage) -> Any:
        stage.nodes[FIRST].die()
        await asyncio.sleep(120)
        await stage.owners.tick()
        assert not stage.woken
        stage.now = stage.now.replace(minute=46)
        for _ in range(3):
            await stage.owners.tick()
        await asyncio.sleep(60)
        return len(stage.woken), stage.state(FIRST)

    assert staged(work, {FIRST: {**MAC, "warm_at": "08:45"}}) == (1, "up")


def no_networks(host: str) -> list[str]:
    raise OSError("no list of networks")


@pytest.mark.parametrize(
    ("broadcasts", "sent"),
    [
        (lambda host: ["127.0.0.1", "127.0.0.2"], {"127.0.0.1", "127.0.0.2"}),
        (lambda host: [], {"255.255.255.255"}),
        (no_networks, {"255.255.255.255"}),
    ],
)
def test_the_packet_goes_to_each_broadcast_or_where_the_system_sends_it(
    broadcasts: Any, sent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[bytes, tuple[str, int]]] = []

    class Card(socket.socket):
        def sendto(self, data: bytes, address: Any) -> int:  # type: ignore[override]
            found.append((data, address))
            return len(data)

    monkeypatch.setattr("sollol.engine.owners.socket.socket", Card)

    async def send() -> None:
        async with AsyncOllamaPool(["127.0.0.1:9"]) as pool:
            Owners(pool.engine, {"127.0.0.1:9": parse_node_options(MAC)}, broadcasts=broadcasts)
            pool.engine.dispatcher.wake("127.0.0.1:9")

    asyncio.run(send())
    assert {address for _, address in found} == {(address, 9) for address in sent}
    assert {data for data, _ in found} == {magic_packet(bytes.fromhex("a4bb6d010203"))}


def test_the_packet_goes_out() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as card:
        card.bind(("127.0.0.1", 0))
        card.settimeout(5)
        wake = f"127.0.0.1:{card.getsockname()[1]}"

        async def send() -> None:
            async with AsyncOllamaPool(["127.0.0.1:9"]) as pool:
                Owners(pool.engine, {"127.0.0.1:9": parse_node_options({**MAC, "wake": wake})})
                pool.engine.dispatcher.wake("127.0.0.1:9")

        asyncio.run(send())
        assert card.recv(200) == magic_packet(bytes.fromhex("a4bb6d010203"))
