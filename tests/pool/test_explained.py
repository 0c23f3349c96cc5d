"""Calls that failed are explained: what was tried, what each node said, and in what it ended. Simulated time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol import BatchError, DeadlineExceeded, NoNodeAvailable, ResponseError, SollolError, StreamBroken
from sollol.sim.loop import run
from tests.pool.universe import CHAT, EMBED, Universe, node, texts, universe

HELLO = [{"role": "user", "content": "Hello"}]
FIRST, SECOND, THIRD = (f"10.0.0.{number}:11434" for number in (2, 3, 4))


def three(**more: Any) -> list[Any]:
    return [node(1, 100.0, **more), node(2, 100.0, **more), node(3, 100.0, **more)]


async def failed(u: Universe, call: Any) -> tuple[SollolError, dict[str, Any]]:
    with pytest.raises(SollolError) as caught:
        await call
    assert caught.value.task_id is not None
    return caught.value, u.pool.explain(caught.value.task_id)


def reasons(told: dict[str, Any]) -> dict[str, str]:
    return {row["node"]: f"{row['outcome']}: {row['why']}" for row in told["tried"]}


def test_a_call_that_every_node_failed_tells_the_error_of_each() -> None:
    async def main() -> None:
        async with universe(three()) as u:
            await u.pool.wait_ready()
            u.world[FIRST].error_rate(1.0, status=500)
            u.world[SECOND].wrong("not-json")
            u.world[THIRD].die()
            error, told = await failed(u, u.pool.chat(CHAT, HELLO))
            assert told["state"] == "done"
            assert told["outcome"] != "ok"
            assert told["error"]
            assert told["attempts"] == len([row for row in told["tried"] if row["outcome"] != "not asked"])
            assert set(reasons(told)) == {FIRST, SECOND, THIRD}
            assert all(row["why"] for row in told["tried"])
            assert u.pool.snapshot()["recent"][0]["error"] == told["error"]
            assert isinstance(error, (NoNodeAvailable, ResponseError))

    run(main())


def test_a_call_that_no_node_was_asked_tells_why_of_each() -> None:
    async def main() -> None:
        async with universe(three()) as u:
            await u.pool.wait_ready()
            u.world[FIRST].die()
            _, told = await failed(u, u.pool.chat("no-such-model", HELLO))
            assert told["outcome"] == "no node"
            assert told["attempts"] == 0
            assert "no node can serve it" in told["error"]
            found = reasons(told)
            assert set(found) == {FIRST, SECOND, THIRD}
            assert "does not have no-such-model" in found[SECOND]
            assert found[SECOND].startswith("not asked")

    run(main())


def test_a_refused_call_tells_what_ollama_said() -> None:
    async def main() -> None:
        async with universe(three()) as u:
            error, told = await failed(u, u.pool.embed(CHAT, "x"))
            assert isinstance(error, ResponseError)
            assert (told["error"], told["status"]) == (error.error, error.status_code)
            assert told["node"]

    run(main())


def test_a_stream_that_broke_tells_where() -> None:
    async def main() -> None:
        async with universe(three()) as u:
            await u.pool.wait_ready()
            for each in u.world.nodes.values():
                each.cut_after(5)

            async def read() -> None:
                async for _ in await u.pool.chat(CHAT, HELLO, stream=True):
                    pass

            error, told = await failed(u, read())
            assert isinstance(error, StreamBroken)
            assert told["error"]
            assert told["tried"]
            assert told["seams"] == []

    run(main())


def test_a_call_whose_time_ran_out_tells_where_it_was() -> None:
    async def main() -> None:
        async with universe([node(1, 100.0)]) as u:
            await u.pool.wait_ready()
            u.world[FIRST].freeze()
            error, told = await failed(u, u.pool.chat(CHAT, HELLO, timeout=2))
            assert isinstance(error, DeadlineExceeded)
            assert told["outcome"] == "deadline"
            assert FIRST in told["error"]
            assert told["node"] == FIRST

    run(main())


def test_a_call_that_was_cancelled_is_known() -> None:
    async def main() -> None:
        async with universe([node(1, 100.0)]) as u:
            await u.pool.wait_ready()
            u.world[FIRST].freeze()
            call = asyncio.create_task(u.pool.chat(CHAT, HELLO))
            await asyncio.sleep(0.05)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            newest = u.pool.snapshot()["recent"][0]
            assert (newest["outcome"], newest["error"]) == ("left", "the caller left")

    run(main())


def test_a_batch_tells_the_errors_of_its_items_and_nodes() -> None:
    async def main() -> None:
        async with universe(three()) as u:
            inputs = texts(100)
            inputs[7] = "word " * 20_000
            with pytest.raises(BatchError) as caught:
                await u.pool.embed_batch(EMBED, inputs, truncate=False)
            assert caught.value.task_id is not None
            told = u.pool.explain(caught.value.task_id)
            assert told["failed_items"] == 1
            assert list(told["item_errors"]) == ["7"]
            assert "exceeds the context length" in told["item_errors"]["7"]
            assert any("exceeds the context length" in row["why"] for row in told["tried"])
            for each in u.world.nodes.values():
                each.die()
            error, told = await failed(u, u.pool.embed_batch(EMBED, texts(10)))
            assert isinstance(error, NoNodeAvailable)
            assert set(reasons(told)) == {FIRST, SECOND, THIRD}
            assert told["error"]

    run(main())
