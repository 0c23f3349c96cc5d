"""Leaving is real: the node's connection is closed at once, wherever the call is, and the node is not blamed for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from sollol import AsyncOllamaPool, DeadlineExceeded, OllamaPool
from sollol.core.state.replica import Replica
from sollol.sim import SimNode, run, serve, sim_cluster
from tests.pool.breaking import MODEL, Stage, staged, talker

READ, SAY = 3000, 200  # words of a prompt, tokens of an answer: three seconds of prefill, four of decode
PREFILL_S, DECODE_S = READ / 1000, SAY / 50
BIG = talker(1, num_ctx=16_384, model={"context_length": 16_384})


def question(number: int, words: int = READ) -> list[dict[str, str]]:
    """Each begins otherwise, so that no prompt is warm."""
    return [{"role": "user", "content": f"{number} " + "the small node waits " * (words // 4)}]


def ask(pool: AsyncOllamaPool, number: int, **more: Any) -> Any:
    return pool.chat(MODEL, question(number), options={"num_predict": SAY, "num_ctx": 16_384}, **more)


def asked(node: SimNode) -> int:
    return node.counters.requests.get("POST /api/chat", 0)


def replica_of(stage: Stage) -> Replica:
    return stage.pool.engine.scheduler.view().nodes[BIG.key].replicas[f"{MODEL}:latest"]


@asynccontextmanager
async def calm(warm: int = 2) -> AsyncIterator[tuple[Stage, SimNode]]:
    """One node with one slot, of which the pool has learned how fast it is. At the end: nobody blames it."""
    async with staged([BIG]) as stage:
        node = stage.world[BIG.key]
        for number in range(warm):
            await ask(stage.pool, -number - 1)
        before = stage.pool.get_stats()["node_performance"][BIG.key]
        yield stage, node
        after = stage.pool.get_stats()["node_performance"][BIG.key]
        for name in ("failed_requests", "success_rate"):
            assert after[name] == before[name]
        replica = replica_of(stage)
        assert replica.breaker.closed
        assert replica.reliability.read() == 1.0
        assert replica.limiter.limit >= 1
        assert not stage.pool.engine.scheduler.view().attempts


async def begun(stage: Stage, call: Coroutine[Any, Any, Any], after_s: float) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(after_s)
    return task


async def gone(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def whole(stage: Stage, stream: bool, **more: Any) -> None:
    answer = await ask(stage.pool, 1, stream=stream, **more)
    if stream:
        async for _ in answer:
            pass


PLACES = {"prefill": 1.0, "decode": PREFILL_S + 1.5}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_call_closes_its_connection_at_once(place: str, stream: bool) -> None:
    async def main() -> None:
        async with calm() as (stage, node):
            before = node.counters.aborted

            task = await begun(stage, whole(stage, stream), PLACES[place])
            assert node.counters.inflight == 1
            await gone(task)
            await asyncio.sleep(0.001)
            assert node.counters.inflight == 0
            assert node.counters.aborted == before + 1
            assert stage.ledger.cancelled == 1
            await asyncio.sleep(10)

    run(main())


@pytest.mark.parametrize("leave", ["break", "aclose", "throw"])
def test_a_closed_iterator_closes_the_connection(leave: str) -> None:
    async def main() -> None:
        async with calm() as (stage, node):
            stream = await ask(stage.pool, 1, stream=True)
            count = 0
            if leave == "break":
                async for _ in stream:
                    count += 1
                    if count == 5:
                        break
                del stream  # nobody can go on with it
            else:
                while count < 5:
                    await anext(stream)
                    count += 1
                if leave == "aclose":
                    await stream.aclose()
                else:
                    with pytest.raises(KeyError):
                        await stream.athrow(KeyError("mine"))
            await asyncio.sleep(0.05)
            assert node.counters.inflight == 0
            assert node.counters.aborted == 1
            assert not stage.pool.engine.scheduler.view().attempts

    run(main())


def test_a_call_that_leaves_the_line_is_never_sent() -> None:
    async def main() -> None:
        async with calm() as (stage, node):
            first = await begun(stage, ask(stage.pool, 1), 0.1)
            second = await begun(stage, ask(stage.pool, 2), 0.1)
            third = await begun(stage, ask(stage.pool, 3), 0.1)
            assert stage.pool.engine.scheduler.view().waiting() == 2
            sent = asked(node)
            await gone(second)
            assert stage.pool.engine.scheduler.view().waiting() == 1
            await first
            await third
            assert asked(node) == sent + 1

    run(main())


def test_a_slot_that_was_left_in_prefill_is_held_until_that_would_have_ended() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with calm() as (stage, _):
            began = loop.time()
            task = await begun(stage, ask(stage.pool, 1), 1.0)
            await gone(task)
            replica = replica_of(stage)
            at = stage.pool.engine.dispatcher.now()
            assert not replica.free(at)
            assert len(replica.still_draining(at)) == 1
            answer = await ask(stage.pool, 2)
            started = loop.time() - answer.routing.actual_ms / 1000
            assert started - began == pytest.approx(PREFILL_S, rel=0.1)
            # It had not to wait in the node, where nobody sees it.
            assert answer.routing.actual_ms == pytest.approx(answer.routing.predicted_ms, rel=0.1)

    run(main())


def test_a_slot_that_was_left_in_decode_is_free_at_once() -> None:
    async def main() -> None:
        async with calm() as (stage, _):
            await gone(await begun(stage, ask(stage.pool, 1), PREFILL_S + 1))
            replica = replica_of(stage)
            assert replica.free(stage.pool.engine.dispatcher.now())
            answer = await ask(stage.pool, 2)
            assert answer.routing.queue_ms == 0
            assert answer.routing.actual_ms == pytest.approx((PREFILL_S + DECODE_S) * 1000, rel=0.1)

    run(main())


def test_meanwhile_another_node_is_taken() -> None:
    """A slot that drains counts with the time for which it does."""

    async def main() -> None:
        async with staged([BIG, replace(BIG, host="10.0.0.2")]) as stage:
            for number in range(4):
                await asyncio.gather(ask(stage.pool, -2 * number), ask(stage.pool, -2 * number - 1))
            await gone(await begun(stage, ask(stage.pool, 1), 0.5))
            left = stage.transport.sent[-1].node
            answer = await ask(stage.pool, 2)
            assert answer.routing.node != left
            assert answer.routing.queue_ms == 0

    run(main())


@pytest.mark.parametrize(("timeout_s", "place"), [(1.0, "prefill"), (PREFILL_S + 1, "decode")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_closes_the_connection(timeout_s: float, place: str, stream: bool) -> None:
    async def main() -> None:
        async with calm() as (stage, node):
            began = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceeded, match=f"running on {BIG.key}"):
                await whole(stage, stream, timeout=timeout_s)
            assert asyncio.get_running_loop().time() - began == pytest.approx(timeout_s)
            await asyncio.sleep(0.001)
            assert node.counters.inflight == 0
            assert bool(replica_of(stage).draining) == (place == "prefill")
            await asyncio.sleep(10)

    run(main())


def test_a_timeout_counts_the_line() -> None:
    async def main() -> None:
        async with calm() as (stage, node):
            first = await begun(stage, ask(stage.pool, 1), 0.1)
            sent = asked(node)
            with pytest.raises(DeadlineExceeded, match="waiting for a free node"):
                await ask(stage.pool, 2, timeout=2.0)
            await first
            assert asked(node) == sent

    run(main())


def test_leaving_while_another_node_goes_on() -> None:
    """The caller leaves just when the answer moves from one node to another: nothing goes on without it."""

    async def main() -> None:
        for wait_s in (0.0, 0.0005, 0.001, 0.002, 0.003, 0.02):
            async with staged([talker(1), talker(2)], [("cut_after", 3)]) as stage:
                stream = await stage.pool.chat(MODEL, question(1, 8), stream=True, options={"num_predict": 50})
                for _ in range(3):
                    await anext(stream)
                await asyncio.sleep(wait_s)
                await stream.aclose()
                await asyncio.sleep(0.01)
                assert sum(node.counters.inflight for node in stage.world.nodes.values()) == 0
                assert not stage.pool.engine.scheduler.view().tasks

    run(main())


# --- on real sockets -------------------------------------------------------------------------------------------------


async def until(what: Callable[[], bool], within_s: float = 2.0) -> None:
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - the node has no event for it
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("place", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
def test_on_sockets_the_connection_is_closed(place: str, stream: bool) -> None:
    async def call(pool: AsyncOllamaPool) -> None:
        words = READ if place == "prefill" else 8
        answer: Any = await pool.chat(MODEL, question(1, words), stream=stream, options={"num_ctx": 16_384})
        if stream:
            async for _ in answer:
                pass

    async def main() -> None:
        node = SimNode(BIG)
        served = await serve(node)
        try:
            async with AsyncOllamaPool([served.url]) as pool:
                task = asyncio.ensure_future(call(pool))
                await until(lambda: asked(node) == 1)
                if place == "decode":
                    await until(lambda: any(runner.decoding for runner in node.runners.loaded.values()))
                await gone(task)
                await until(lambda: node.counters.aborted == 1 and node.counters.inflight == 0)
                assert pool.get_stats()["node_performance"][pool.nodes[0].key]["failed_requests"] == 0
        finally:
            await served.close()

    asyncio.run(main())


def test_the_synchronous_pool_leaves_too() -> None:
    def wait(what: Callable[[SimNode], bool]) -> None:
        for _ in range(400):
            if nodes.do(lambda found: what(found[0])):
                return
            threading.Event().wait(0.005)
        raise AssertionError("it did not happen within two seconds")

    with sim_cluster([talker(1)]) as nodes, OllamaPool(list(nodes)) as pool:
        stream = pool.chat(MODEL, question(1, 8), stream=True)
        next(stream)
        stream.close()
        wait(lambda node: node.counters.inflight == 0 and node.counters.aborted == 1)

        async def main() -> None:
            task = asyncio.ensure_future(pool.chat_async(MODEL, question(1, 8)))
            await asyncio.to_thread(wait, lambda node: node.counters.inflight == 1)
            await gone(task)
            parts = await pool.chat_async(MODEL, question(1, 8), stream=True)
            await anext(parts)
            await parts.aclose()

        asyncio.run(main())
        wait(lambda node: node.counters.inflight == 0 and node.counters.aborted == 3)
        assert pool.get_stats()["node_performance"][pool.nodes[0].key]["failed_requests"] == 0
