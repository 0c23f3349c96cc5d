"""How many calls a node works on at once is found within three lengths of an answer, and followed when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, SimNode, run
from sollol.sim.runner import Slots
from tests.pool.universe import Universe, universe

MODEL = ModelSpec("m", size_bytes=10**9, mean_words=float("inf"))
EMBED = ModelSpec("e", "embed", size_bytes=10**8)
HELLO = [{"role": "user", "content": "Hello"}]
KEY = "10.0.0.1:11434"


def node(number: int, slots: int, **more: Any) -> NodeSpec:
    given: dict[str, Any] = {"latency_s": 0.001, "decode_tokens_per_s": 50.0, "parallel_gain": 1.0, **more}
    return NodeSpec(
        host=f"10.0.0.{number}",
        models=(MODEL, EMBED),
        loaded=("m", "e"),
        prefill_tokens_per_s=1000.0,
        embed_items_per_s=100.0,
        num_parallel=slots,
        **given,
    )


async def chat(here: Universe, tokens: int, stream: bool) -> None:
    answer: Any = await here.pool.chat("m", HELLO, stream=stream, options={"num_predict": tokens})
    if stream:
        async for _ in answer:
            pass


class Loop:
    """Callers in a closed loop, and when their answers ended."""

    def __init__(self, here: Universe, callers: int, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self._node = here.world[KEY]
        self.ends: list[float] = []
        self._calls = [asyncio.ensure_future(self._call()) for _ in range(callers)]

    async def _call(self) -> None:
        while True:
            await self._ask()
            self.ends.append(asyncio.get_running_loop().time())

    async def rate(self, seconds: float) -> tuple[float, int]:
        """Answers a second during the next seconds, and the most calls that waited in the node's own queue."""
        before, most, steps = len(self.ends), 0, round(seconds * 100)
        for _ in range(steps):
            await asyncio.sleep(seconds / steps)
            runner = self._node.runners.loaded.get("m:latest")
            most = max(most, len(runner.slots.line) if runner else 0)
        return (len(self.ends) - before) / seconds, most

    async def stop(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)


def resize(node: SimNode, count: int) -> None:
    """Give the model other slots while it runs, as a restarted node has."""
    slots = node.runners.look()["m:latest"].slots
    release, slots.free = slots.release, slots.free + count - slots.count
    slots.count = count

    def give_back() -> None:
        if slots.free < 0:
            slots.free += 1
        else:
            release()

    slots.release = give_back  # type: ignore[method-assign]
    _let_in(slots)


def _let_in(slots: Slots) -> None:
    while slots.free > 0 and slots.line:
        slots.free -= 1
        slots.line.popleft().set_result(None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slots", [1, 4, 8, 16, 64])
@pytest.mark.parametrize("length_s", [0.2, 10.0])
def test_all_slots_are_used_from_the_third_answer_on(slots: int, stream: bool, length_s: float) -> None:
    async def main() -> None:
        async with universe([node(1, slots)]) as here:
            loop = Loop(here, max(32, slots + 8), lambda: chat(here, round(50 * length_s), stream))
            await asyncio.sleep(3 * length_s)
            rate, _ = await loop.rate(5 * length_s)
            assert rate >= 0.9 * slots / (length_s + 0.02)
            _, most = await loop.rate(5 * length_s)
            assert most <= 1
            await loop.stop()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slots", [8, 64])
def test_slots_are_found_with_answers_too_short_to_be_seen_beside_each_other(slots: int, stream: bool) -> None:
    async def main() -> None:
        async with universe([node(1, slots, decode_tokens_per_s=250.0)]) as here:
            loop = Loop(here, slots + 16, lambda: chat(here, 10, stream))
            await asyncio.sleep(1)
            rate, _ = await loop.rate(3)
            assert rate >= 0.9 * slots / 0.063
            await loop.stop()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_change_of_slots_is_followed_within_three_answers(before: int, after: int, stream: bool) -> None:
    async def main() -> None:
        async with universe([node(1, before)]) as here:
            loop = Loop(here, 16, lambda: chat(here, 10, stream))
            await asyncio.sleep(3)
            resize(here.world[KEY], after)
            await asyncio.sleep(3 * 0.22 + 0.05)
            rate, _ = await loop.rate(2)
            assert rate >= 0.9 * after / 0.22
            _, most = await loop.rate(2)
            assert most <= 1
            await loop.stop()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_slots_that_share_one_rate_are_used_one_at_a_time(stream: bool) -> None:
    async def main() -> None:
        async with universe([node(1, 4, parallel_gain=0.055)]) as here:
            loop = Loop(here, 8, lambda: chat(here, 50, stream))
            await asyncio.sleep(10)
            rate, most = await loop.rate(10)
            assert rate >= 0.95
            assert most <= 1
            await loop.stop()

    run(main())


def test_a_distant_node_is_kept_busy_with_single_embeddings() -> None:
    async def main() -> None:
        async with universe([node(1, 1, latency_s=0.06)]) as here:
            loop = Loop(here, 8, lambda: here.pool.embed("e", "hello world"))
            await asyncio.sleep(0.5)
            rate, _ = await loop.rate(5)
            assert rate >= 0.9 * 100
            await loop.stop()

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_short_calls_do_not_wait_for_a_long_one_where_there_are_more_slots(stream: bool) -> None:
    async def main() -> None:
        nodes = [node(n, 8, decode_tokens_per_s=500.0) for n in (1, 2)]
        async with universe(nodes) as here:
            loop = asyncio.get_running_loop()
            for _ in range(40):
                await chat(here, 11, stream)
            held = [asyncio.ensure_future(chat(here, 1000, stream)) for _ in nodes]
            await asyncio.sleep(0.01)

            async def one() -> float:
                began = loop.time()
                await chat(here, 11, stream)
                return loop.time() - began

            calls = []
            for _ in range(200):
                calls.append(asyncio.ensure_future(one()))
                await asyncio.sleep(0.01)
            took = sorted(await asyncio.gather(*calls))
            assert took[-2] <= 0.25
            await asyncio.gather(*held)

    run(main())


def test_a_call_that_only_waited_in_the_node_leaves_no_trace() -> None:
    async def main() -> None:
        async with universe([node(1, 1)]) as here:
            answers: list[Any] = []

            async def one() -> None:
                answers.append(await here.pool.chat("m", HELLO, options={"num_predict": 10}))

            await asyncio.gather(*(one() for _ in range(20)))
            assert here.world[KEY].counters.aborted > 0, "trials were withdrawn"
            assert {answer.routing.attempts for answer in answers} == {1}
            assert not any(answer.routing.tried for answer in answers)
            assert here.pool.get_stats()["failed_requests"] == 0

    run(main())
