"""Streams that survive on real sockets: cuts, late errors, silence, and processes that are killed or stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from sollol import AsyncOllamaPool, OllamaPool, StreamBroken
from sollol.engine import engine, stream_watch
from sollol.policies.lateness import StallByGap
from sollol.sim import Cluster, NodeSpec, SpawnedNode, sim_cluster, spawn_many
from tests.pool.breaking import MESSAGES, MODEL, talker

TOKENS = 20
ASKED: dict[str, Any] = {"stream": True, "options": {"num_predict": TOKENS, "seed": 5}}


def spec(number: int, rate: float = 150.0, **more: Any) -> NodeSpec:
    return replace(
        talker(number, **more), host="127.0.0.1", decode_tokens_per_s=rate, latency_s=0.0, load_bytes_per_s=None
    )


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(engine, "StallByGap", lambda: StallByGap(least_us=round(seconds * 1e6)))
    monkeypatch.setattr(stream_watch, "LEAST_S", seconds)
    monkeypatch.setattr(stream_watch, "LOOK_S", seconds / 4)


@pytest.fixture(scope="module")
def right() -> str:
    with sim_cluster([spec(1)]) as nodes, OllamaPool(list(nodes)) as pool:
        return "".join(part.message.content for part in pool.chat(MODEL, MESSAGES, **ASKED))


def hear(pool: OllamaPool, kind: str, at: int = -1, then: Any = None) -> tuple[str, Any]:
    """The text of a stream, and its last part. After `at` parts, `then` is called with the node that says it."""
    if kind == "chat":
        stream = pool.chat(MODEL, MESSAGES, **ASKED)
    else:
        stream = pool.generate(MODEL, MESSAGES[0]["content"], **ASKED)
    said: list[str] = []
    for count, part in enumerate(stream, 1):
        said.append(part.message.content if kind == "chat" else part.response)
        if count == at and (running := pool.snapshot()["running"]):
            then(running[0]["node"])
    return "".join(said), part


@pytest.mark.parametrize("fault", ["cut_after", "late_error_after", "stall_after", "die"])
@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_another_node_goes_on(kind: str, fault: str, right: str, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, 0.3)

    def throw(nodes: Cluster, key: str, *args: Any) -> None:
        place = [url.removeprefix("http://") for url in nodes.urls].index(key)
        nodes.do(lambda found: getattr(found[place], fault)(*args))

    def heal(node: int, found: Any) -> None:
        found[node].heal()

    with sim_cluster([spec(i) for i in (1, 2)]) as nodes, OllamaPool(list(nodes)) as pool:
        for at in (1, 9, TOKENS):
            when, args = (at, ()) if fault == "die" else (1, (at,))
            text, last = hear(pool, kind, when, lambda key, args=args: throw(nodes, key, *args))
            assert text == right
            assert last.eval_count == TOKENS
            for node in range(2):
                nodes.do(partial(heal, node))
            pool.wait_ready()
        assert pool.get_stats()["failed_requests"] == 0


@pytest.fixture
def processes() -> Iterator[list[SpawnedNode]]:
    nodes = spawn_many([spec(i, 40.0) for i in (1, 2)])
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@pytest.mark.parametrize("signal", ["kill", "stop"])
def test_a_process_that_is_killed_or_stopped(
    signal: str, processes: list[SpawnedNode], right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 0.5)
    with OllamaPool([node.url for node in processes]) as pool:
        victims = {node.url.removeprefix("http://"): node for node in processes}
        text, last = hear(pool, "chat", 7, lambda key: getattr(victims[key], signal)())
        assert text == right
        (seam,) = last.routing.seams
        assert 7 <= seam["tokens"] < TOKENS
        assert last.eval_count == TOKENS
        assert [tried["node"] for tried in last.routing.tried] != [seam["node"]]


def test_a_lone_node_that_is_killed_leaves_what_was_received(right: str) -> None:
    (node,) = spawn_many([spec(1, 60.0)])
    with OllamaPool([node.url]) as pool:
        with pytest.raises(StreamBroken) as caught:
            hear(pool, "chat", 5, lambda key: node.kill())
        assert right.startswith(caught.value.received)
        assert len(caught.value.received) >= 5


def test_many_streams_at_once_while_a_node_dies(right: str) -> None:
    async def main(nodes: Cluster) -> None:
        async def one(pool: AsyncOllamaPool) -> str:
            parts = [part.message.content async for part in await pool.chat(MODEL, MESSAGES, **ASKED)]
            return "".join(parts)

        async with AsyncOllamaPool(list(nodes)) as pool:
            streams = asyncio.gather(*(one(pool) for _ in range(12)))
            await asyncio.sleep(0.25)
            await asyncio.to_thread(nodes.do, lambda found: found[0].die())
            assert set(await streams) == {right}
            assert pool.get_stats()["failed_requests"] == 0

    with sim_cluster([spec(i, num_parallel=2) for i in (1, 2, 3)]) as nodes:
        asyncio.run(main(nodes))
