"""One reader for all listeners, and sources that fail or hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec
import pytest

from sollol.dashboard import feed as feeds
from sollol.dashboard import source as sources
from sollol.dashboard.feed import Feed, encode
from sollol.dashboard.source import PoolSource
from sollol.dashboard.watch import Watch
from sollol.errors import BadInput, SollolError
from sollol.sim import Cluster


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def events(frames: AsyncIterator[bytes], count: int) -> list[bytes]:
    """The next `count` frames without the first line, which only sets the time of a new try."""
    assert (await anext(frames)).startswith(b"retry")
    return [await anext(frames) for _ in range(count)]


def test_all_listeners_share_a_reading_and_none_reads_without_them() -> None:
    async def main() -> None:
        reads = 0

        async def read() -> dict[str, Any]:
            nonlocal reads
            reads += 1
            return {"n": reads}

        feed = Feed(read, every_s=0.01)
        assert feed.take_place()
        assert feed.take_place()
        first, second = await asyncio.gather(events(feed.frames(), 3), events(feed.frames(), 3))
        assert first == second
        assert reads <= 4
        assert first[0].startswith(b'event: snapshot\ndata: {"n":1}')
        feed.leave()
        feed.leave()
        before = reads
        await asyncio.sleep(0.05)
        assert reads == before

    run(main())


def test_a_slow_listener_skips_frames() -> None:
    async def main() -> None:
        reads = iter(range(10_000))

        async def read() -> dict[str, Any]:
            return {"n": next(reads)}

        feed = Feed(read, every_s=0.001)
        feed.take_place()
        frames = feed.frames()
        await events(frames, 1)
        await asyncio.sleep(0.1)
        assert b'"n":1}' not in await anext(frames)

    run(main())


def test_what_fails_is_told_and_tried_again() -> None:
    async def main() -> list[bytes]:
        answers: list[Any] = [SollolError("the pool does not answer"), ValueError(), {"n": 1}]

        async def read() -> dict[str, Any]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return dict(answer)

        feed = Feed(read, every_s=0.01)
        feed.take_place()
        return await events(feed.frames(), 3)

    told = run(main())
    assert b'event: trouble\ndata: {"error":"the pool does not answer"}' in told[0]
    assert b"ValueError" in told[1]
    assert b"event: snapshot" in told[2]


def test_places_are_bounded_and_closing_ends_all() -> None:
    async def main() -> None:
        async def read() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {}

        feed = Feed(read)
        assert all(feed.take_place() for _ in range(feeds.LISTENERS))
        assert not feed.take_place()
        feed.leave()
        assert feed.take_place()
        frames = feed.frames()
        await anext(frames)
        waiting = asyncio.ensure_future(anext(frames, b""))
        await asyncio.sleep(0)
        feed.close()
        assert await waiting == b""
        assert not feed.take_place()

    run(main())


def test_numbers_that_are_none_are_null() -> None:
    assert encode({"a": float("nan"), "b": float("inf")}) == b'{"a":null,"b":null}'


# --- pools ---


class Pool:
    """Answers as told: a value, an exception, or a wait."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def snapshot(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, threading.Event):
            answer.wait(10)
            return {}
        return answer


def test_a_pool_that_hangs_costs_a_frame_and_not_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PATIENCE_S", 0.05)
    monkeypatch.setattr(sources, "READERS", 2)
    hangs = threading.Event()

    async def main() -> None:
        source = PoolSource(Pool(hangs, hangs, {"n": 1}))
        for _ in range(2):
            with pytest.raises(SollolError, match=r"not answered for 0.05 s"):
                await source.overview()
        with pytest.raises(SollolError, match="does not answer"):
            await source.overview()
        hangs.set()
        await asyncio.sleep(0.2)
        assert await source.overview() == {"n": 1}

    run(main())


# --- nodes without a pool ---


def test_watched_nodes(cluster: Cluster) -> None:
    async def main() -> tuple[Any, Any]:
        watch = Watch([*cluster, "127.0.0.1:9", cluster[0]])
        try:
            before = await watch.snapshot(None)
            cluster.do(lambda nodes: nodes[0].die())
            return before, await watch.snapshot(None)
        finally:
            await watch.aclose()

    before, after = run(main())
    assert [node.state for node in before.nodes] == ["up", "up", "down"]
    assert before.nodes[0].latency_ms > 0
    assert before.nodes[1].loaded[0].processor == "50%/50% CPU/GPU"
    assert "refused" in before.nodes[2].why
    assert [node.state for node in after.nodes] == ["down", "up", "down"]
    assert after.nodes[0].latency_ms == 0


def test_a_silent_node_delays_no_frame(cluster: Cluster) -> None:
    async def main() -> Any:
        cluster.do(lambda nodes: nodes[0].freeze())
        watch = Watch(cluster)
        try:
            return await watch.snapshot(1.0)
        finally:
            await watch.aclose()
            cluster.do(lambda nodes: nodes[0].thaw())

    assert [node.state for node in run(main()).nodes] == ["unknown", "up"]  # not yet down


def test_watching_knows_no_calls() -> None:
    with pytest.raises(BadInput, match="no requests are seen"):
        run(Watch([]).explain(1))
    assert run(Watch([]).snapshot()).nodes == []


def test_a_watch_has_the_keys_of_a_pool(cluster: Cluster) -> None:
    from sollol import OllamaPool

    async def main() -> Any:
        watch = Watch(cluster)
        try:
            return msgspec.to_builtins(await watch.snapshot(None))
        finally:
            await watch.aclose()

    watched = run(main())
    with OllamaPool(list(cluster)) as pool:
        pool.wait_ready()
        real = pool.snapshot()
    assert watched.keys() == real.keys() | {"watching"}
    assert watched["nodes"][1].keys() == real["nodes"][1].keys()
    assert watched["nodes"][1]["loaded"][0].keys() == real["nodes"][1]["loaded"][0].keys()
