"""Silence inside a stream: what is alive is waited for, what can go on exactly elsewhere is moved."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol.errors import DeadlineExceeded, StreamBroken
from sollol.policies.lateness import STALL_LEAST
from sollol.sim import ModelSpec, run
from tests.pool.breaking import MESSAGES, MODEL, RATE, WORDS, Heard, Stage, staged, talker

TOKENS = 20
ASKED: dict[str, Any] = {"stream": True, "options": {"num_predict": TOKENS, "seed": 5}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def pausing(stage: Stage, after: int, pause_s: float) -> None:
    """Each node falls silent after so many tokens, for so long from now on."""

    def heal() -> None:
        for endpoint in stage.world.endpoints:
            stage.world[endpoint.key].heal()

    for endpoint in stage.world.endpoints:
        stage.world[endpoint.key].stall_after(after)
    asyncio.get_running_loop().call_later(pause_s, heal)


async def listened(stage: Stage, **more: Any) -> Heard:
    return await Heard().listen(await stage.pool.chat(MODEL, MESSAGES, **{**ASKED, **more}))


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    "asked", [{"tools": TOOLS}, {"format": "json"}, {"think": True}], ids=["tools", "format", "think"]
)
@pytest.mark.parametrize("pause_s", [12.0, 900.0])
def test_a_pause_that_is_a_part_of_the_answer_is_waited_for(nodes: int, asked: dict[str, Any], pause_s: float) -> None:
    async def main() -> None:
        model = ModelSpec(MODEL, size_bytes=2_000_000_000, tools=True, thinking=True, words=WORDS)
        specs = [talker(i, models=(model,)) for i in range(1, nodes + 1)]
        async with staged(specs) as stage:
            pausing(stage, 2, pause_s)
            heard = await listened(stage, **asked)
            assert heard.error is None
            assert heard.last.done
            assert len(stage.transport.sent) == 1

    run(main())


@pytest.mark.parametrize("pause_s", [12.0, 900.0])
def test_a_plain_pause_on_the_only_node_is_waited_for(pause_s: float) -> None:
    async def main() -> None:
        async with staged([talker(1)]) as stage:
            pausing(stage, 5, pause_s)
            heard = await listened(stage)
            assert heard.error is None
            assert heard.last.eval_count == TOKENS
            assert stage.pool.get_stats()["failed_requests"] == 0
            assert (await listened(stage)).error is None  # and the node is used as before

    run(main())


def test_the_callers_own_timeout_bounds_it() -> None:
    async def main() -> None:
        async with staged([talker(1)]) as stage:
            pausing(stage, 5, 900.0)
            began = asyncio.get_running_loop().time()
            heard = await listened(stage, timeout=30.0)
            assert isinstance(heard.error, DeadlineExceeded)
            assert asyncio.get_running_loop().time() - began == pytest.approx(30.0, abs=0.1)

    run(main())


def test_a_consumer_that_is_slow_is_no_silence_of_the_node() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            stream = await stage.pool.chat(MODEL, MESSAGES, stream=True, options={"num_predict": 600, "seed": 5})
            count = 0
            async for _ in stream:
                count += 1
                if count == 100:
                    await asyncio.sleep(120)
            assert count == 601
            assert len(stage.transport.sent) == 1

    run(main())


def test_other_versions_of_the_model_cannot_go_on_so_it_is_waited_for() -> None:
    async def main() -> None:
        other = ModelSpec(MODEL, size_bytes=2_000_000_000, words=WORDS, digest="f" * 64)
        async with staged([talker(1), talker(2, models=(other,))]) as stage:
            pausing(stage, 5, 100.0)
            heard = await listened(stage)
            assert heard.error is None
            assert len(stage.transport.sent) == 1

    run(main())


def test_a_stream_that_can_go_on_elsewhere_is_moved_and_so_are_the_calls_behind_it() -> None:
    """A runner is stopped: its stream stalls, and what it was given besides is not waited for either."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged([talker(i, num_parallel=4) for i in (1, 2)]) as stage:
            for key in [endpoint.key for endpoint in stage.world.endpoints]:
                await stage.pool.chat(MODEL, MESSAGES, node=key, options={"num_predict": 5})
            first, second = (stage.world[endpoint.key] for endpoint in stage.world.endpoints)
            replica = (
                stage.pool.engine.scheduler.view().groups[f"{MODEL}:latest"].replicas[stage.world.endpoints[0].key]
            )
            replica.limit = 4  # as if learned
            setattr(replica.limiter, "limit", 4)  # noqa: B010  its protocol only reads it
            first.stall_after(5)
            stream = await stage.pool.chat(MODEL, MESSAGES, node=[e.key for e in stage.world.endpoints], **ASKED)
            heard = Heard()
            listening = asyncio.ensure_future(heard.listen(stream))
            await asyncio.sleep(1)
            first.stall_after(0)
            short = {"num_predict": 5}
            behind = [asyncio.ensure_future(stage.pool.chat(MODEL, MESSAGES, options=short)) for _ in range(2)]
            began = loop.time()
            await asyncio.wait([listening, *behind])
            took = loop.time() - began
            assert took < STALL_LEAST / 1e6 + 10 * TOKENS / RATE
            assert heard.error is None
            assert heard.last.eval_count == TOKENS
            assert second.counters.inflight == first.counters.inflight == 0

    run(main())


def test_an_answer_that_only_repeats_itself_is_an_end_and_costs_no_retry() -> None:
    async def main() -> None:
        model = ModelSpec(MODEL, size_bytes=2_000_000_000, tools=True, words=(".",), mean_words=float("inf"))
        async with staged([talker(i, models=(model,)) for i in (1, 2)]) as stage:
            for more in ({}, {"logprobs": True}) * 15:
                heard = await listened(stage, options={}, **more)
                assert heard.error is None
                assert heard.text.endswith("." * 30)
                assert heard.last.done_reason == "length"
            assert len(stage.transport.sent) == 30

    run(main())


# --- what is said of a stream that broke -----------------------------------------------------------------------------


def test_a_broken_stream_names_what_was_received_of_thoughts_too() -> None:
    async def main() -> None:
        model = ModelSpec(MODEL, size_bytes=2_000_000_000, thinking=True, words=WORDS)
        async with staged([talker(1, models=(model,))], [("cut_after", 6)]) as stage:
            heard = await listened(stage, think=True)
            assert isinstance(heard.error, StreamBroken)
            assert heard.error.thinking
            assert f"{len(heard.error.received)} characters, {len(heard.error.thinking)} characters of thinking" in str(
                heard.error
            )

    run(main())


def test_a_pool_does_not_wait_for_nodes_that_drop_what_it_sends() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged([talker(1), talker(2)]) as stage:
            stage.world[stage.world.endpoints[0].key].black_hole()
            await asyncio.sleep(120)
            for ask in (stage.pool.list, stage.pool.ps, stage.pool.version):
                began = loop.time()
                assert await ask()
                assert loop.time() - began < 0.1

    run(main())
