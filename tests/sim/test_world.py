"""The transport of the simulated universe, and that the same seed is the same run."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from sollol.core.endpoint import Endpoint
from sollol.errors import BadInput
from sollol.sim import NodeSpec, SimNode, World, run
from sollol.transport.base import Call, Fault, Timeouts, Transport, TransportFault
from tests.sim.lab import Lab, in_lab, now, spec

WARM = spec(loaded=("chat", "embed"))


def test_it_is_a_transport() -> None:
    transport: Transport = World([]).transport()
    assert transport is not None


def test_a_loaded_model_that_is_not_on_the_disk_is_named() -> None:
    with pytest.raises(BadInput, match="loaded: 'gemma3' is not a model of this node; expected one of "):
        SimNode(NodeSpec(loaded=("gemma3",)))


def test_unknown_hosts_and_latency() -> None:
    async def story(lab: Lab) -> None:
        with pytest.raises(TransportFault) as unknown:
            await lab.embed("a", to=Endpoint("nowhere"))
        assert unknown.value.fault is Fault.CONNECT
        await lab.get("/api/version")
        assert now() == pytest.approx(0.02)

    in_lab(story, replace(WARM, latency_s=0.02))


def test_first_byte_timeout_makes_the_node_stop() -> None:
    async def story(lab: Lab) -> None:
        with pytest.raises(TransportFault) as slow:
            await lab.embed(*(str(i) for i in range(100)), timeouts=Timeouts(first_byte_s=1.0))
        assert slow.value.fault is Fault.FIRST_BYTE_TIMEOUT
        assert lab.node.counters.aborted == 1
        assert lab.node.counters.inflight == 0

    in_lab(story, WARM)


def test_head_has_no_body() -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.transport.send(lab.endpoint, Call("HEAD", "/api/tags"))
        assert (reply.status, await reply.read()) == (200, b"")
        assert int(reply.headers["content-length"]) > 100

    in_lab(story, WARM)


def test_closing_twice_and_after_the_end_does_nothing() -> None:
    async def story(lab: Lab) -> None:
        reply = await lab.stream(3)
        await reply.read()
        await reply.aclose()
        await reply.aclose()
        assert lab.node.counters.aborted == 0

    in_lab(story, WARM)


def test_counters_and_repr() -> None:
    async def story(lab: Lab) -> None:
        await asyncio.gather(lab.embed("a"), lab.embed("b"), lab.raw(1, model="nope"))
        counters = lab.node.counters
        assert counters.requests == {"POST /api/embed": 2, "POST /api/generate": 1}
        assert counters.max_inflight >= 2
        assert [(at, status) for at, _, status in counters.log] == [(0, 404), (100_000, 200), (200_000, 200)]
        assert repr(lab.node) == "<SimNode 127.0.0.1:11434 up · 0 running · 3 served>"

    in_lab(story, WARM)


def test_two_nodes_need_two_names() -> None:
    with pytest.raises(ValueError, match="two nodes are called"):
        World([NodeSpec(), NodeSpec()])
    with pytest.raises(ValueError, match="there are 127"):
        World([NodeSpec()], [{"at_s": 1, "do": "die", "node": "nowhere:1"}])
    world = World([SimNode(NodeSpec())])
    world.add(NodeSpec(port=2))
    assert [endpoint.key for endpoint in world.endpoints] == ["127.0.0.1:11434", "127.0.0.1:2"]
    assert world["127.0.0.1:2"].spec.port == 2


def a_busy_day(seed: int) -> str:
    """Random traffic on flaky nodes; the digest of everything that happened."""
    dice = random.Random(seed)
    specs = [
        replace(WARM, port=i + 1, seed=seed, jitter=0.3, latency_s=0.01, embed_items_per_s=5.0 + i) for i in range(8)
    ]
    schedule = [
        {"at_s": 5, "do": "die", "node": "127.0.0.1:1"},
        {"at_s": 9, "do": "revive", "node": "127.0.0.1:1"},
        {"at_s": 3, "do": "error_rate", "share": 0.2, "node": "127.0.0.1:2"},
        {"at_s": 3, "do": "stragglers", "share": 0.2, "node": "127.0.0.1:3"},
    ]

    async def main() -> str:
        lab = Lab(*specs, schedule=schedule)

        async def client(number: int) -> None:
            for step in range(5):
                await asyncio.sleep(dice.random() * 3)
                node = lab.world.endpoints[dice.randrange(8)]
                try:
                    await asyncio.gather(lab.embed(f"{number} {step}", to=node), lab.raw(3, f"{number}", to=node))
                except TransportFault:
                    pass

        await asyncio.gather(*(client(i) for i in range(20)))
        return lab.world.digest() + repr([round(now(), 6)])

    return run(main(), seed=seed)


def test_the_same_seed_is_the_same_run() -> None:
    assert a_busy_day(1) == a_busy_day(1)
    assert a_busy_day(1) != a_busy_day(2)


def test_the_run_does_not_depend_on_the_hash_seed() -> None:
    code = "from tests.sim.test_world import a_busy_day; print(a_busy_day(3))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert found == {a_busy_day(3) + "\n"}


def test_a_thousand_nodes_are_quick() -> None:
    """A guard against an accident, not a benchmark: ten thousand requests, in a few seconds at most."""

    async def main() -> int:
        world = World(
            NodeSpec(host=f"10.0.{i // 250}.{i % 250 + 1}", embed_items_per_s=50.0 + i % 100, vectors="cheap")
            for i in range(1000)
        )
        transport = world.transport()
        body = b'{"model":"nomic-embed-text","input":["a","b","c"]}'

        async def client(endpoint: Endpoint) -> None:
            for _ in range(10):
                await (await transport.send(endpoint, Call("POST", "/api/embed", body))).read()

        await asyncio.gather(*(client(endpoint) for endpoint in world.endpoints))
        return sum(node.counters.items_embedded for node in world.nodes.values())

    assert run(main()) == 30_000
