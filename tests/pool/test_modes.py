"""Modes and strategies do what docs/pools.md says of them, and a call may be kept to some nodes, or to GPUs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sollol import BadInput, NoNodeAvailable, OllamaPool, RoutingMode, RoutingStrategy
from sollol.sim import NodeSpec, run, sim_cluster
from tests.pool.breaking import MODEL, Stage, staged, talker

HELLO = [{"role": "user", "content": "Hello"}]
KEYS = [f"10.0.0.{i}:11434" for i in (1, 2, 3, 4)]


def paced(*rates: float) -> list[NodeSpec]:
    """Nodes that say so many tokens a second; the first has the first of KEYS."""
    return [replace(talker(i), decode_tokens_per_s=rate) for i, rate in enumerate(rates, 1)]


async def ask(stage: Stage, **more: Any) -> Any:
    return await stage.pool.chat(MODEL, HELLO, **{"options": {"num_predict": 20}} | more)


async def known(stage: Stage, times: int = 3) -> None:
    """Each node has answered some calls, so that nothing is left to explore."""
    for _ in range(times):
        for key in stage.world.nodes:
            await ask(stage, node=key)


async def nodes_of(stage: Stage, calls: int, **more: Any) -> list[str]:
    """Where calls go that come one after another."""
    return [(await ask(stage, **more)).routing.node for _ in range(calls)]


# --- which mode a call has -------------------------------------------------------------------------------------------


def test_a_mode_is_set_for_the_pool_a_block_or_a_call() -> None:
    async def main() -> None:
        async with staged(paced(50.0), routing_mode="reliable") as stage:
            pool = stage.pool

            async def mode(**more: Any) -> str | None:
                answer = await ask(stage, **more)
                found: str | None = answer.routing.mode
                return found

            assert await mode() == "reliable"
            assert await mode(mode=RoutingMode.FAST) == "fast"
            with pool.mode("async"):
                assert await mode() == "async"
                assert await mode(mode="FAST") == "fast"
                with pool.mode(RoutingMode.FAST):
                    assert pool.routing_mode is RoutingMode.FAST
                    assert await mode() == "fast"
                assert await mode() == "async"
            pool.set_routing_mode(None)
            assert await mode() is None

            async def inside(name: str) -> str | None:
                with pool.mode(name):
                    await asyncio.sleep(0.01)
                    return await mode()

            found = await asyncio.gather(inside("fast"), inside("async"), mode())
            assert list(found) == ["fast", "async", None]
            for bad in ("quick", 7):
                with pytest.raises(BadInput, match="'fast', 'reliable', 'async'"):
                    await ask(stage, mode=bad)
                with pytest.raises(BadInput), pool.mode(bad):  # type: ignore[arg-type]
                    raise AssertionError("it is told at once")

    run(main())


def test_a_block_counts_for_its_own_thread_and_for_coroutines() -> None:
    seen: dict[str, Any] = {}
    with sim_cluster([replace(talker(1), decode_tokens_per_s=None)]) as nodes, OllamaPool(list(nodes)) as pool:

        def other() -> None:
            seen["other"] = pool.chat(MODEL, HELLO, options={"num_predict": 1}).routing.mode

        with pool.mode("reliable"):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            seen["mine"] = pool.chat(MODEL, HELLO, options={"num_predict": 1}).routing.mode
            answer = asyncio.run(pool.chat_async(MODEL, HELLO, options={"num_predict": 1}))
            seen["async"] = answer.routing.mode
    assert seen == {"other": None, "mine": "reliable", "async": "reliable"}


# --- what they do ----------------------------------------------------------------------------------------------------


def test_no_mode_and_fast_take_the_node_that_finishes_first() -> None:
    async def main() -> None:
        async with staged(paced(20.0, 80.0, 40.0)) as stage:
            await known(stage)
            for mode in (None, "fast"):
                assert set(await nodes_of(stage, 5, mode=mode)) == {KEYS[1]}
            answers = await asyncio.gather(*(ask(stage) for _ in range(3)))
            # 20 tokens take 0.25, 0.5 and 1 s: rather a second turn on the fastest than the slowest.
            assert sorted(answer.routing.node for answer in answers) == [KEYS[1], KEYS[1], KEYS[2]]

    run(main())


def test_reliable_prefers_a_slower_node_that_does_not_fail() -> None:
    async def main() -> None:
        async with staged(paced(80.0, 50.0)) as stage:
            await known(stage)
            stage.world[KEYS[0]].error_rate(0.6)
            for _ in range(25):
                await ask(stage, node=KEYS)
            assert stage.pool.engine.scheduler.view().nodes[KEYS[0]].failed > 3
            await asyncio.sleep(60)  # no breaker is open any more
            first = (await ask(stage, mode="reliable")).routing
            assert first.node == KEYS[1]
            assert "when failures count" in first.reasons[0]
            assert {c["node"]: c["finish_ms"] for c in first.candidates}[KEYS[0]] < first.predicted_ms

    run(main())


def test_async_leaves_the_fast_nodes_to_others() -> None:
    async def main() -> None:
        async with staged(paced(100.0, 20.0, 2.0)) as stage:
            await known(stage)
            background = [asyncio.ensure_future(ask(stage, mode="async")) for _ in range(1)]
            await asyncio.sleep(0)
            quick = await ask(stage)
            assert quick.routing.node == KEYS[0]
            assert quick.routing.queue_ms == 0
            routing = (await background[0]).routing
            assert routing.node == KEYS[1]  # the slowest, but the third takes more than 20 times as long as the first
            assert "leaves faster nodes free" in routing.reasons[0]

    run(main())


STRATEGIES: list[tuple[RoutingStrategy, Sequence[str]]] = [
    (RoutingStrategy.ROUND_ROBIN, [KEYS[0], KEYS[1], KEYS[2]] * 3),
    (RoutingStrategy.FAIRNESS, [KEYS[0], KEYS[1], KEYS[2]] * 3),
    (RoutingStrategy.LATENCY_FIRST, [KEYS[1]] * 9),
    (RoutingStrategy.INTELLIGENT, [KEYS[1]] * 9),
]


@pytest.mark.parametrize(("strategy", "expected"), STRATEGIES)
def test_strategies(strategy: RoutingStrategy, expected: Sequence[str]) -> None:
    async def main() -> None:
        async with staged(paced(20.0, 80.0, 40.0)) as stage:
            await known(stage)
            stage.pool.routing_strategy = strategy.value
            assert stage.pool.routing_strategy is strategy
            found = await nodes_of(stage, 9)
            assert sorted(found) == sorted(expected)
            if strategy is RoutingStrategy.ROUND_ROBIN:
                assert found[:3] == found[3:6] == found[6:]
            # A mode of the call's own goes before the strategy.
            routing = (await ask(stage, mode="async")).routing
            assert "leaves faster nodes free" in routing.reasons[0]

    run(main())


def test_least_loaded_spreads_what_runs() -> None:
    async def main() -> None:
        async with staged(paced(20.0, 80.0, 40.0), routing_strategy="least_loaded") as stage:
            await known(stage)
            answers = await asyncio.gather(*(ask(stage) for _ in range(3)))
            assert sorted(answer.routing.node for answer in answers) == KEYS[:3]
            assert "requests under way there" in answers[0].routing.reasons[0]
        with pytest.raises(BadInput, match="routing_strategy='random'"):
            stage.pool.routing_strategy = "random"

    run(main())


@pytest.mark.parametrize("strategy", RoutingStrategy)
def test_every_strategy_passes_over_a_node_that_fails(strategy: RoutingStrategy) -> None:
    async def main() -> None:
        async with staged(paced(50.0, 50.0, 50.0), routing_strategy=strategy) as stage:
            await known(stage)
            stage.world[KEYS[1]].die()
            answers = await asyncio.gather(*(ask(stage) for _ in range(12)))
            assert {answer.routing.node for answer in answers} == {KEYS[0], KEYS[2]}

    run(main())


# --- kept to some nodes ----------------------------------------------------------------------------------------------


def gpu_fleet() -> list[NodeSpec]:
    """The model is on the CPU of the first, on the GPU of the second, in part on that of the third, on the fourth's
    disk."""
    half = talker(3, vram_bytes=1_000_000_000)
    return [talker(1, vram_bytes=0), talker(2), half, talker(4, loaded=())]


def test_a_call_that_requires_a_gpu_goes_where_the_model_is_or_may_come_to_one() -> None:
    async def main() -> None:
        async with staged(gpu_fleet()) as stage:
            calls = [asyncio.ensure_future(ask(stage, requires_gpu=True)) for _ in range(40)]
            answers = await asyncio.gather(*calls)
            assert not {KEYS[0], KEYS[2]} & {answer.routing.node for answer in answers}, "a part is not the model"
            assert (await ask(stage, node=KEYS[0])).routing.node == KEYS[0]  # the others still may

    run(main())


def test_where_no_node_has_a_gpu_each_is_named() -> None:
    async def main() -> None:
        async with staged([talker(1, vram_bytes=0), talker(2), talker(3, models=(), loaded=())]) as stage:
            stage.world[KEYS[1]].die()
            with pytest.raises(NoNodeAvailable) as caught:
                await ask(stage, requires_gpu=True)
            told = dict(caught.value.tried)
            assert told[KEYS[0]] == f"a GPU is required for all of {MODEL}:latest: it runs on 100% CPU (by /api/ps)"
            assert "refused" in told[KEYS[1]]
            assert "does not have" in told[KEYS[2]]
            with pytest.raises(BadInput, match="requires_gpu='yes'"):
                await ask(stage, requires_gpu="yes")

    run(main())


def test_a_call_that_is_kept_to_some_nodes_fails_over_among_them_only() -> None:
    async def main() -> None:
        async with staged(paced(50.0, 50.0, 50.0, 50.0)) as stage:
            two = [KEYS[0], f"http://{KEYS[1]}"]
            await nodes_of(stage, 4, node=two)
            stage.world[KEYS[0]].error_rate(1.0)
            assert set(await nodes_of(stage, 4, node=two)) == {KEYS[1]}
            stage.world[KEYS[1]].die()
            with pytest.raises(NoNodeAvailable) as caught:
                await ask(stage, node=two)
            told = dict(caught.value.tried)
            assert told[KEYS[2]] == told[KEYS[3]] == "not among the nodes that the call may go to"
            assert {request.node for request in stage.transport.sent} <= set(KEYS[:2])
            bad: Any
            for bad in ([], "not a host!"):
                with pytest.raises(BadInput):
                    await ask(stage, node=bad)

    run(main())
