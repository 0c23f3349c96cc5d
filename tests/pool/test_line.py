"""The waiting line through the pool: who is next, who is told what, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol import BadInput, DeadlineExceeded, QueueFull, TaskPriority
from sollol.core.state.queue import AGEING_INTERVAL
from sollol.pool.requests import chat_request
from sollol.sim import run
from tests.pool.breaking import MODEL, Stage, staged, talker

TOKENS = 50  # one second
HELLO = [{"role": "user", "content": "Hello"}]
ONE = [talker(1)]


def ask(stage: Stage, done: list[Any], name: Any, **more: Any) -> asyncio.Task[Any]:
    """A call of a second; its name goes into `done` when it is answered."""

    async def call() -> Any:
        answer = await stage.pool.chat(MODEL, HELLO, **{"options": {"num_predict": TOKENS}} | more)
        done.append(name)
        return answer

    return asyncio.ensure_future(call())


async def busy(stage: Stage, calls: int = 3) -> asyncio.Task[Any]:
    """The pool knows how long a call takes, and the node's only slot is taken."""
    for number in range(calls):
        await ask(stage, [], number)
    task = ask(stage, [], "first", priority=10)
    await asyncio.sleep(0.001)
    return task


def test_the_highest_priority_goes_first_and_equals_in_their_order() -> None:
    async def main() -> None:
        async with staged(ONE) as stage:
            first = await busy(stage)
            done: list[Any] = []
            calls = [ask(stage, done, (p, n), priority=p) for n in range(2) for p in (2, 5, TaskPriority.HIGH, 0)]
            await asyncio.gather(first, *calls)
            assert done == [(8, 0), (8, 1), (5, 0), (5, 1), (2, 0), (2, 1), (0, 0), (0, 1)]

    run(main())


def test_a_critical_call_behind_twenty_low_ones_is_next() -> None:
    async def main() -> None:
        async with staged(ONE) as stage:
            await busy(stage)
            done: list[Any] = []
            calls = [ask(stage, done, number, priority=TaskPriority.LOW) for number in range(20)]
            await asyncio.sleep(3.5)
            served = len(done)
            calls.append(ask(stage, done, "critical", priority=TaskPriority.CRITICAL))
            await asyncio.gather(*calls)
            assert done.index("critical") == served + 1  # after the one that runs

    run(main())


def test_a_low_call_under_an_endless_flood_of_high_ones_is_served() -> None:
    async def main() -> None:
        async with staged(ONE) as stage:
            await busy(stage)
            done: list[Any] = []
            floods = [ask(stage, done, "high", priority=8) for _ in range(3)]
            low = ask(stage, done, "low", priority=2)
            began = asyncio.get_running_loop().time()
            while not low.done():
                floods.append(ask(stage, done, "high", priority=8))
                await asyncio.sleep(0.9)
            waited = asyncio.get_running_loop().time() - began
            assert waited <= (8 - 2) * AGEING_INTERVAL / 1e6 + 3
            assert done.count("high") > 20
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)

    run(main())


def test_applications_share_by_tokens() -> None:
    """One sends ten times as many calls as the other, and longer ones: while both wait, each has half of the tokens."""

    async def main() -> None:
        async with staged(ONE) as stage:
            first = await busy(stage)
            engine, given = stage.pool.engine, {"greedy": 0, "modest": 0}
            calls: list[asyncio.Task[Any]] = []

            async def one(app: str, tokens: int) -> None:
                request = chat_request(
                    MODEL, HELLO, False, stage.pool._call_options(5, None), {"options": {"num_predict": tokens}}
                )
                engine._app = app  # as two pools, or two keys of a gateway, that share an engine
                answer = await stage.pool._perform(request)
                given[app] += answer.prompt_eval_count + answer.eval_count

            for _ in range(100):
                calls.append(asyncio.ensure_future(one("greedy", 40)))
                await asyncio.sleep(0)
            for _ in range(50):
                calls.append(asyncio.ensure_future(one("modest", 10)))
                await asyncio.sleep(0)
            await asyncio.sleep(16)
            shares = list(given.values())
            assert all(shares)
            assert sum(shares) ** 2 / (2 * sum(share**2 for share in shares)) >= 0.98
            for call in calls:
                call.cancel()
            await asyncio.gather(first, *calls, return_exceptions=True)

    run(main())


def test_a_deadline_counts_the_line_and_is_told() -> None:
    async def main() -> None:
        async with staged(ONE) as stage:
            first = await busy(stage)
            done: list[Any] = []
            other = ask(stage, done, "other")
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceeded, match=r"no answer in 1\.5 s \(waiting for a free node\)"):
                await stage.pool.chat(MODEL, HELLO, timeout=1.5)
            assert asyncio.get_running_loop().time() - began == pytest.approx(1.5)
            await asyncio.gather(first, other)

    run(main())


def test_a_full_line_says_when_to_come_again() -> None:
    async def main() -> None:
        async with staged(ONE) as stage:
            stage.pool.engine.set_queue_bound(5)
            first = await busy(stage)
            done: list[Any] = []
            calls = [ask(stage, done, number) for number in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="5 tasks are waiting already") as caught:
                await stage.pool.chat(MODEL, HELLO, priority=10)
            assert caught.value.retry_after_s == pytest.approx(5, rel=0.3)  # five calls of a second
            with pytest.raises(QueueFull):
                async for _ in await stage.pool.chat(MODEL, HELLO, stream=True):
                    pass
            await asyncio.gather(first, *calls)
            assert done == [0, 1, 2, 3, 4]
            assert (await stage.pool.chat(MODEL, HELLO, options={"num_predict": 1})).done

    run(main())


def test_position_and_eta_can_be_read() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged(ONE) as stage:
            first = await busy(stage)
            done: list[Any] = []
            calls = {number: ask(stage, done, number, priority=5) for number in range(6)}
            urgent = ask(stage, done, "urgent", priority=9)
            await asyncio.sleep(0)
            rows = stage.pool.snapshot()["waiting"]
            assert [row["position"] for row in rows] == list(range(1, 8))
            assert rows[0]["priority"] == 9
            for place, row in enumerate(rows, 1):
                told = stage.pool.explain(row["id"])
                assert told["state"] == "waiting"
                assert told["position"] == place
                assert told["eta_ms"] == row["eta_ms"]
            asked_s = loop.time()
            etas = {row["id"]: row["eta_ms"] / 1000 for row in rows}
            answers = await asyncio.gather(urgent, *calls.values(), first)
            for answer in answers[:-1]:
                started = asked_s + answer.routing.queue_ms / 1000
                assert etas[answer.routing.id] == pytest.approx(started - asked_s, abs=0.6)
            assert stage.pool.explain(answers[0].routing.id)["state"] == "done"
            with pytest.raises(BadInput, match="task_id=99999 is unknown"):
                stage.pool.explain(99999)

    run(main())


def test_a_running_call_is_explained() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            await asyncio.gather(*(ask(stage, [], n) for n in range(4)))
            call = ask(stage, [], "x")
            await asyncio.sleep(0.5)
            (row,) = stage.pool.snapshot()["running"]
            told = stage.pool.explain(row["id"])
            assert told["state"] == "running"
            (attempt,) = told["running"]
            assert attempt["elapsed_ms"] == pytest.approx(500, abs=2)
            assert attempt["node"] == row["node"]
            assert {c["node"] for c in attempt["candidates"]} == set(stage.world.nodes)
            for candidate in attempt["candidates"]:
                assert sum(candidate["terms"].values()) == pytest.approx(candidate["finish_ms"], abs=0.01)
            answer = await call
            done = stage.pool.explain(answer.routing.id)
            assert done["predicted_ms"] == answer.routing.predicted_ms
            assert done["actual_ms"] == pytest.approx(done["predicted_ms"], rel=0.15)

    run(main())
