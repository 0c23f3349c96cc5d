"""Several models of one node: nobody starves because another model was there first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, generation, run
from tests.pool.universe import Universe, universe

HELLO = [{"role": "user", "content": "Hello"}]
RATE = 50.0  # tokens a second
MODELS = (
    ModelSpec("a", size_bytes=10**9, mean_words=float("inf")),
    ModelSpec("b", size_bytes=10**9, mean_words=float("inf")),
    ModelSpec("e", "embed", size_bytes=10**8),
)


def node(number: int, **more: Any) -> NodeSpec:
    given: dict[str, Any] = {"models": MODELS, "loaded": ("a", "b", "e"), "latency_s": 0.001, **more}
    return NodeSpec(
        host=f"10.0.0.{number}",
        decode_tokens_per_s=RATE,
        prefill_tokens_per_s=1000.0,
        embed_items_per_s=100.0,
        load_bytes_per_s=1e9,
        **given,
    )


async def ask(here: Universe, model: str, seconds: float, priority: int = 5) -> float:
    """One call that takes so many seconds alone; how long it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await here.pool.chat(model, HELLO, priority=priority, options={"num_predict": round(seconds * RATE)})
    return loop.time() - began


@asynccontextmanager
async def for_ever(
    here: Universe, model: str, callers: int, seconds: float, priority: int
) -> AsyncIterator[list[float]]:
    """Callers who ask again as soon as they are answered; the times of their answers."""
    ends: list[float] = []

    async def call() -> None:
        while True:
            await ask(here, model, seconds, priority)
            ends.append(asyncio.get_running_loop().time())

    calls = [asyncio.ensure_future(call()) for _ in range(callers)]
    yield ends
    for each in calls:
        each.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def known(here: Universe, models: Sequence[str] = ("a", "b")) -> None:
    """Every model has been asked for before."""
    for model in models:
        await ask(here, model, 0.2)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("warm", [True, False])
def test_an_urgent_chat_starts_within_a_chunk_of_a_batch(slots: int, warm: bool) -> None:
    async def main() -> None:
        async with universe([node(1, num_parallel=slots)]) as here:
            if warm:
                await known(here, ("a",))
            batch = asyncio.ensure_future(here.pool.embed_batch("e", [f"text {i}" for i in range(10_000)], priority=0))
            await asyncio.sleep(5)
            assert await ask(here, "a", 1, priority=10) <= 2
            batch.cancel()
            await asyncio.gather(batch, return_exceptions=True)

    run(main())


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("warm", [True, False])
def test_a_higher_priority_waits_for_the_running_answer_at_most(slots: int, warm: bool) -> None:
    async def main() -> None:
        async with universe([node(1, num_parallel=slots)]) as here:
            if warm:
                await known(here)
            async with for_ever(here, "a", 4, 5, priority=0):
                await asyncio.sleep(23)
                assert await ask(here, "b", 1, priority=10) <= 6

    run(main())


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_at_equal_priority_models_alternate(slots: int) -> None:
    async def main() -> None:
        async with universe([node(1, num_parallel=slots)]) as here, for_ever(here, "a", 4, 5, priority=5):
            await asyncio.sleep(23)
            for _ in range(5):
                assert await ask(here, "b", 1) <= 11

    run(main())


def test_three_calls_of_another_model_on_three_nodes() -> None:
    async def main() -> None:
        nodes = [node(n) for n in (1, 2, 3)]
        async with universe(nodes) as here, for_ever(here, "a", 12, 5, priority=5) as ends:
            await asyncio.sleep(21)
            took = await asyncio.gather(*(ask(here, "b", 1) for _ in range(3)))
            assert max(took) <= 7
            done = len(ends)
            await asyncio.sleep(100)
            assert len(ends) - done >= 0.95 * 100 / 5 * 3

    run(main())


def test_a_lower_priority_is_served_now_and_then() -> None:
    async def main() -> None:
        async with universe([node(1)]) as here, for_ever(here, "a", 4, 5, priority=8):
            await asyncio.sleep(23)
            assert await ask(here, "b", 1, priority=2) <= 45

    run(main())


def share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all models of a simulated node share its rate, as on one GPU."""

    def token_s(self: Any, runner: Any) -> float:
        at_work = sum(each.decoding for each in self.node.runners.loaded.values())
        return float(max(1, at_work) / RATE)

    monkeypatch.setattr(generation._AnswerRun, "_token_s", token_s)


@pytest.mark.parametrize("tokens", [25, 100])
def test_calls_of_two_models_on_one_gpu_are_served_in_the_order_in_which_they_came(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_one_gpu(monkeypatch)

    async def main() -> None:
        async with universe([node(1)]) as here:
            loop = asyncio.get_running_loop()
            took: dict[str, list[float]] = {"a": [], "b": []}

            async def call(model: str) -> None:
                while True:
                    began = loop.time()
                    answer = await here.pool.chat(model, HELLO, stream=True, options={"num_predict": tokens})
                    async for _ in answer:
                        pass
                    took[model].append(loop.time() - began)

            await known(here)
            calls = [asyncio.ensure_future(call("a")) for _ in range(4)]
            await asyncio.sleep(7)
            calls += [asyncio.ensure_future(call("b")) for _ in range(4)]
            await asyncio.sleep(200)
            for each in calls:
                each.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            round_s = 8 * tokens / RATE  # until all have had a turn
            assert max(took["a"] + took["b"]) <= 2 * round_s
            assert (len(took["a"]) + len(took["b"])) * tokens / RATE >= 0.95 * 200

    run(main())
