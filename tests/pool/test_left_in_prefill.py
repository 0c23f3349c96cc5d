"""Whether a node reads a prompt on after its caller left is learned from the first call behind one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, run
from tests.pool.universe import Universe, universe

MODEL = ModelSpec("m", size_bytes=10**9, mean_words=float("inf"), context_length=65_536)
KEY = "10.0.0.1:11434"
RATE = 500.0  # tokens of a prompt a second: a batch of 512 takes a second


def question(number: int, words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{number} " + "the small node waits " * (words // 4)}]


async def ask(here: Universe, number: int, words: int, **more: Any) -> Any:
    options = {"num_predict": 5, "num_ctx": 65_536}
    return await here.pool.chat("m", question(number, words), options=options, **more)


@asynccontextmanager
async def one_node(prefill_batch: int | None) -> AsyncIterator[Universe]:
    spec = NodeSpec(
        host="10.0.0.1",
        models=(MODEL,),
        loaded=("m",),
        latency_s=0.001,
        num_ctx=65_536,
        decode_tokens_per_s=50.0,
        prefill_tokens_per_s=RATE,
        prefill_batch=prefill_batch,
    )
    async with universe([spec]) as here:
        for number in range(3):
            await ask(here, -number - 1, 400)
        yield here


async def leave(here: Universe, number: int, words: int, after_s: float) -> None:
    call = asyncio.ensure_future(ask(here, number, words))
    await asyncio.sleep(after_s)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


def reads_on(here: Universe) -> bool | None:
    return here.pool._running().scheduler.view().nodes[KEY].reads_on


@pytest.mark.parametrize("words", [200, 10_000])
def test_a_node_that_stops_at_the_next_batch_is_used_at_once(words: int) -> None:
    async def main() -> None:
        async with one_node(512) as here:
            loop = asyncio.get_running_loop()
            for number in range(3):
                began = loop.time()
                await leave(here, 10 * number, 10_000, 4.4)  # of 20 s
                await ask(here, 10 * number + 1, words)
                assert loop.time() - began <= 4.4 + 2 * 512 / RATE + words / RATE + 0.5
                assert reads_on(here) is False

    run(main())


@pytest.mark.parametrize("words", [200, 10_000])
def test_a_node_that_reads_to_the_end_is_waited_for_here(words: int) -> None:
    async def main() -> None:
        async with one_node(None) as here:
            await leave(here, 1, 10_000, 4.4)
            await ask(here, 2, words)
            assert reads_on(here) is True
            await leave(here, 3, 10_000, 4.4)
            asked = here.world[KEY].counters.requests["POST /api/chat"]
            call = asyncio.ensure_future(ask(here, 4, words))
            await asyncio.sleep(10)
            assert here.world[KEY].counters.requests["POST /api/chat"] == asked, "it waits here"
            answer = await call
            assert answer.routing.attempts == 1
            assert answer.routing.actual_ms == pytest.approx(answer.routing.predicted_ms, rel=0.1)

    run(main())
