"""Loads are predicted, and avoided where they would put out what others use."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, run
from tests.pool.universe import Universe, universe

HELLO = [{"role": "user", "content": "Hello"}]


def loads(here: Universe) -> int:
    return sum(sum(node.runners.loads.values()) for node in here.world.nodes.values())


def node(number: int, models: tuple[ModelSpec, ...], **more: Any) -> NodeSpec:
    given: dict[str, Any] = {"latency_s": 0.001, "decode_tokens_per_s": 50.0, "load_bytes_per_s": 2e9, **more}
    return NodeSpec(host=f"10.0.0.{number}", models=models, prefill_tokens_per_s=1000.0, **given)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("answer_s", [0.25, 0.5])
def test_models_that_do_not_fit_together_stay_where_they_are(seed: int, answer_s: float) -> None:
    """One model a node fits, three models, three nodes, six clients who mix them."""
    models = tuple(ModelSpec(name, size_bytes=10**9, mean_words=float("inf")) for name in "abc")

    async def main() -> None:
        specs = [node(n, models, vram_bytes=1_500_000_000, cpu_slowdown=20.0, max_loaded_models=1) for n in (1, 2, 3)]
        async with universe(specs, seed=seed) as here:
            began = asyncio.get_running_loop().time()

            dice = random.Random(seed)

            async def client() -> None:
                for _ in range(20):
                    await here.pool.chat(dice.choice("abc"), HELLO, options={"num_predict": round(answer_s * 50)})

            await asyncio.gather(*(client() for _ in range(6)))
            assert loads(here) <= 8
            assert asyncio.get_running_loop().time() - began <= 1.35 * (120 / 3 * (answer_s + 0.03))

    run(main())


def test_an_idle_node_that_has_to_load_a_small_model_is_used() -> None:
    """A fixed part of 0.25 s in a tiny load is no bandwidth of 2 MB/s."""
    tiny = ModelSpec("tiny", size_bytes=460_000, mean_words=float("inf"))
    small = ModelSpec("small", size_bytes=90_000_000, mean_words=float("inf"))

    async def main() -> None:
        specs = [node(1, (tiny, small), loaded=("tiny",)), node(2, (tiny, small), loaded=("small",))]
        async with universe(specs) as here:
            engine = here.pool._running()
            await here.pool.chat("tiny", HELLO, node="10.0.0.1:11434", options={"num_predict": 5})
            state = engine.scheduler.view().nodes["10.0.0.1:11434"]
            state.load_time.add(460_000, 262_000)
            answers = await asyncio.gather(
                *(here.pool.chat("small", HELLO, options={"num_predict": 50}) for _ in range(32))
            )
            shares = Counter(answer.routing.node for answer in answers)
            assert shares["10.0.0.1:11434"] >= 10

    run(main())


def test_a_fresh_pool_goes_by_the_contexts_that_are_loaded() -> None:
    """The smaller context is served by both runners, the larger one by one of them."""
    model = ModelSpec("m", size_bytes=2 * 10**9, mean_words=float("inf"), context_length=32_768)

    async def main() -> None:
        specs = [node(n, (model,), num_ctx=ctx, loaded=("m",)) for n, ctx in ((1, 2048), (2, 8192))]
        async with universe(specs) as here:
            before = loads(here)
            for turn in range(10):
                options = {"num_predict": 5, "num_ctx": (2048, 8192)[turn % 2]}
                answer = await here.pool.chat("m", HELLO, options=options)
                assert options["num_ctx"] == 2048 or answer.routing.node == "10.0.0.2:11434"
            assert loads(here) == before

    run(main())


def test_nodes_without_a_gpu_are_not_avoided_for_it() -> None:
    """In memory on fast A and B and slow C, all on CPUs."""
    model = ModelSpec("m", size_bytes=10**9, mean_words=float("inf"))

    async def main() -> None:
        specs = [
            node(n, (model,), loaded=("m",), vram_bytes=0, cpu_slowdown=1.0, decode_tokens_per_s=rate)
            for n, rate in ((1, 100.0), (2, 100.0), (3, 50.0))
        ]
        async with universe(specs) as here:
            shares: Counter[str] = Counter()
            began = asyncio.get_running_loop().time()

            async def client() -> None:
                for _ in range(10):
                    answer = await here.pool.chat("m", HELLO, options={"num_predict": 50})
                    shares[answer.routing.node[:8]] += 1

            await asyncio.gather(*(client() for _ in range(6)))
            assert shares["10.0.0.3"] <= 20
            assert min(shares["10.0.0.1"], shares["10.0.0.2"]) >= 18
            assert asyncio.get_running_loop().time() - began <= 1.2 * 60 / (2 * 1.9 + 0.97)

    run(main())


def test_a_model_that_fell_back_to_the_cpu_is_left_at_once() -> None:
    """Two equal nodes; one loses its GPU and loads anew."""
    model = ModelSpec("m", size_bytes=10**9, mean_words=float("inf"))

    async def main() -> None:
        async with universe([node(n, (model,), loaded=("m",)) for n in (1, 2)]) as here:
            for _ in range(10):
                await asyncio.gather(*(here.pool.chat("m", HELLO, options={"num_predict": 25}) for _ in range(2)))
            lost = here.world["10.0.0.1:11434"]
            lost.lose_gpu()
            lost.runners.unload("m:latest")
            await here.pool.chat("m", HELLO, node="10.0.0.1:11434", options={"num_predict": 25})
            await asyncio.sleep(6)  # a probe sees where the model runs
            shares: Counter[str] = Counter()
            for _ in range(20):
                answer = await here.pool.chat("m", HELLO, options={"num_predict": 25})
                shares[answer.routing.node] += 1
            assert shares["10.0.0.1:11434"] <= 1

    run(main())
