"""One model name, several digests: a pool's embeddings come from one of them. Simulated time."""

from __future__ import annotations

import asyncio
import logging
import pickle
from dataclasses import replace
from typing import Any

import pytest

from sollol import BadInput, BatchError, NoNodeAvailable
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World, sim_cluster
from sollol.sim.loop import run
from tests.pool.universe import texts

OLD, NEW = "a" * 64, "b" * 64
HELLO = [{"role": "user", "content": "Hello"}]


def node(number: int, digest: str, rate: float | None = 100.0, **more: Any) -> NodeSpec:
    models = (ModelSpec("m", "embed", digest=digest), ModelSpec("c", size_bytes=2_000_000_000, digest=digest))
    given: dict[str, Any] = {"models": models, "loaded": ("m", "c"), "latency_s": 0.001, **more}
    return NodeSpec(host=f"10.0.0.{number}", embed_items_per_s=rate, **given)


def embedded_on(world: World) -> set[str]:
    return {key for key, node in world.nodes.items() if any("/api/embed" in str(row) for row in node.counters.log)}


def change(world: World, number: int, digest: str) -> None:
    """A `pull` beside the pool."""
    disk = world[f"10.0.0.{number}:11434"].disk
    for name, model in list(disk.items()):
        disk[name] = replace(model, digest=digest)


def pooled(world: World, **more: Any) -> AsyncOllamaPool:
    return AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1, **more)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_batch_has_one_digest_and_tells_which(streamed: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World([node(1, OLD), node(2, NEW), node(3, NEW)])
        async with pooled(world) as pool:
            if streamed:
                rows = [row async for row in pool.embed_stream("m", iter(texts(500)))]
                assert len(rows) == 500
            else:
                result = await pool.embed_batch("m", texts(500))
                assert result.report is not None
                assert result.report.digest == NEW
                assert result.report.left_out == {"10.0.0.1:11434": OLD}
                assert set(result.report.nodes) == {"10.0.0.2:11434", "10.0.0.3:11434"}
            assert embedded_on(world) == {"10.0.0.2:11434", "10.0.0.3:11434"}
            stats = pool.get_stats()
            assert stats["mixed_digests"]["m:latest"]["embeddings_use"] == NEW
            assert "aaaaaaaaaaaa on 10.0.0.1:11434" in stats["notices"][0]

    with caplog.at_level(logging.WARNING, "sollol"):
        run(main())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "different versions of m:latest" in told[0]
    assert "pull it on 10.0.0.1:11434" in told[0]


def test_the_digest_of_most_measured_capacity_counts_more_than_the_number_of_nodes() -> None:
    async def main() -> None:
        world = World([node(1, OLD, 1000.0), node(2, OLD, 20.0), node(3, OLD, 20.0)])
        async with pooled(world) as pool:
            await pool.embed_batch("m", texts(500))
            change(world, 1, NEW)
            change(world, 2, "c" * 64)
            change(world, 3, "c" * 64)
            pool.engine.refresh()
            await pool.wait_ready()
            await asyncio.sleep(1)
            result = await pool.embed_batch("m", texts(100))
            assert result.report is not None
            assert result.report.digest == NEW

    run(main())


def test_single_embeddings_of_one_pool_have_one_digest_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World([node(1, OLD, 1000.0), node(2, NEW, 20.0)])
        async with pooled(world) as pool:
            for _ in range(3):
                await asyncio.gather(*(pool.embed("m", text) for text in texts(20)))
                await asyncio.gather(*(pool.embeddings("m", text) for text in texts(5)))
            await pool.embed_batch("m", texts(100))
            assert embedded_on(world) == {"10.0.0.1:11434"}
            world["10.0.0.1:11434"].die()
            assert (await pool.embed("m", "a text")).routing.node == "10.0.0.2:11434"
            told = pool.get_stats()["notices"]
            assert any("in version aaaaaaaaaaaa any more: embeddings use bbbbbbbbbbbb" in each for each in told)
            world["10.0.0.1:11434"].revive()
            await asyncio.sleep(10)
            assert {(await pool.embed("m", text)).routing.node for text in texts(20)} == {"10.0.0.2:11434"}

    with caplog.at_level(logging.WARNING, "sollol"):
        run(main())
    assert "cannot be compared" in caplog.text


def test_a_batch_whose_digest_goes_away_ends_rather_than_mixing() -> None:
    async def main() -> None:
        world = World([node(1, OLD, 50.0), node(2, OLD, 50.0), node(3, NEW, 50.0)])
        async with pooled(world) as pool:
            batch = asyncio.create_task(pool.embed_batch("m", texts(2000)))
            await asyncio.sleep(5)
            world["10.0.0.1:11434"].die()
            world["10.0.0.2:11434"].die()
            with pytest.raises(BatchError) as caught:
                await batch
            done = [row for row in caught.value.results if row is not None]
            assert 0 < len(done) < 2000
            assert embedded_on(world) == {"10.0.0.1:11434", "10.0.0.2:11434"}
            assert "10.0.0.3:11434: has version bbbbbbbbbbbb" in str(caught.value)

    run(main())


def test_a_pinned_digest_is_used_and_no_other() -> None:
    async def main() -> None:
        world = World([node(1, OLD), node(2, NEW), node(3, NEW)])
        async with pooled(world, digests={"m": OLD[:12]}) as pool:
            result = await pool.embed_batch("m", texts(50))
            assert result.report is not None
            assert result.report.digest == OLD
            assert (await pool.embed("m", "a text")).routing.node == "10.0.0.1:11434"
        async with pooled(World([node(2, NEW)]), digests={"m:latest": f"sha256:{OLD}"}) as pool:
            with pytest.raises(NoNodeAvailable, match="has version bbbbbbbbbbbb of m:latest; aaaaaaaaaaaa is needed"):
                await pool.embed("m", "a text")

    run(main())


@pytest.mark.parametrize(("setting", "nodes"), [("allow", 2), ("one", 1)])
def test_chats_use_every_digest_or_one_and_it_is_told(setting: str, nodes: int) -> None:
    async def main() -> None:
        world = World([node(1, OLD), node(2, NEW)])
        async with pooled(world, on_mixed_digests=setting) as pool:
            answers = await asyncio.gather(*(pool.chat("c", HELLO) for _ in range(12)))
            assert len({answer.routing.node for answer in answers}) == nodes
            assert "different versions of c:latest" in pool.get_stats()["notices"][0]

    run(main())


def test_a_node_that_is_named_may_have_another_digest() -> None:
    async def main() -> None:
        world = World([node(1, OLD), node(2, NEW), node(3, NEW)])
        async with pooled(world) as pool:
            await pool.embed("m", "a text")
            assert (await pool.embed("m", "a text", node="10.0.0.1")).routing.node == "10.0.0.1:11434"
            batch = await pool.embed_batch("m", texts(50), node=["10.0.0.1", "10.0.0.2"])
            assert batch.report is not None
            assert set(batch.report.nodes) == {"10.0.0.2:11434"}

    run(main())


def test_equal_digests_are_no_matter() -> None:
    async def main() -> None:
        world = World([node(1, OLD), node(2, OLD)])
        async with pooled(world) as pool:
            result = await pool.embed_batch("m", texts(300))
            assert result.report is not None
            assert (result.report.digest, dict(result.report.left_out)) == (OLD, {})
            assert len(result.report.nodes) == 2
            assert pool.get_stats()["notices"] == []
            assert pool.get_stats()["mixed_digests"] == {}

    run(main())


@pytest.mark.parametrize(
    "wrong", [{"on_mixed_digests": "maybe"}, {"digests": {"m": "latest"}}, {"digests": ["m"]}, {"digests": {"m": 3}}]
)
def test_settings_that_cannot_be_used_say_so(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="digests"):
        AsyncOllamaPool([], **wrong)


def test_a_pool_keeps_its_digest_in_another_event_loop_and_when_it_is_pickled() -> None:
    specs = [NodeSpec(models=(ModelSpec("m", "embed", digest=digest),), seed=1) for digest in (OLD, NEW)]
    with sim_cluster(specs) as nodes:
        for first in nodes.urls, nodes.urls[::-1]:
            pool = AsyncOllamaPool(first)

            async def use(pool: AsyncOllamaPool) -> str:
                return str((await pool.embed("m", "x")).routing.node)

            used = {asyncio.run(use(pool)) for _ in range(4)}
            assert used == {first[0].removeprefix("http://")}  # as many nodes of each: the one added first
            copy = pickle.loads(pickle.dumps(pool))
            copy.remove_node(first[0])
            copy.add_node(first[0])  # the order alone would choose the other now
            assert asyncio.run(use(copy)) in used
