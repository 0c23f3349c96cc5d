"""What is kept of calls and batches, and that it can be read from any thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BadInput, NoNodeAvailable, OllamaPool, SollolError
from sollol.observe import history
from sollol.pool import displays
from sollol.sim import NodeSpec, run, sim_cluster
from tests.pool.universe import CHAT, EMBED, MODELS, node, texts, universe

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_batch_is_a_call_of_the_history() -> None:
    async def main() -> None:
        async with universe([node(1, 100.0), node(2, 50.0)]) as u:
            await u.pool.chat(CHAT, HELLO)
            result = await u.pool.embed_batch(EMBED, texts(300))
            newest, oldest = u.pool.snapshot()["recent"]
            assert oldest["kind"] == "chat"
            assert (newest["kind"], newest["outcome"], newest["model"]) == ("embed", "ok", f"{EMBED}:latest")
            assert newest["node"] == "10.0.0.2:11434, 10.0.0.3:11434"
            assert newest["attempts"] == result.report.requests
            assert newest["actual_ms"] + newest["queue_ms"] == pytest.approx(result.report.seconds * 1000)
            assert newest.keys() == oldest.keys()
            told = u.pool.explain(newest["id"])
            assert told["state"] == "done"
            assert told["items"] == 300
            assert told["reasons"] == [newest["reason"]]
            assert told["nodes"]["10.0.0.2:11434"]["items"] > told["nodes"]["10.0.0.3:11434"]["items"]
            assert u.pool.snapshot()["calibration"]["count"] == 1  # nothing was predicted for a batch as a whole

    run(main())


def test_a_batch_that_failed_and_one_that_was_left_are_told_too() -> None:
    async def main() -> None:
        async with universe([node(1, 20.0)]) as u:
            with pytest.raises(NoNodeAvailable):
                await u.pool.embed_batch("no-such-model", texts(3))
            assert u.pool.snapshot()["recent"][0]["outcome"] == "no node"
            stream = u.pool.embed_stream(EMBED, texts(100))
            await anext(stream)
            (running, *_) = u.pool.snapshot()["running"]
            told = u.pool.explain(running["id"])
            assert told["state"] == "running"
            assert told["items"]["waiting"] + told["items"]["running"] + told["items"]["answered"] == 100
            await stream.aclose()
            left = u.pool.snapshot()["recent"][0]
            assert (left["id"], left["outcome"]) == (running["id"], "left")

    run(main())


def test_a_source_that_begins_anew_each_time_is_read_once() -> None:
    class Source:
        async def __aiter__(self) -> AsyncIterator[str]:
            for text in texts(1000):
                yield text

    async def main() -> None:
        async with universe([node(1, 1000.0)]) as u:
            assert sorted([index async for index, _ in u.pool.embed_stream(EMBED, Source())]) == list(range(1000))

    run(main())


def totals(pool: Any) -> tuple[int, int, int]:
    stats = pool.get_stats()
    return stats["total_requests"], stats["successful_requests"], stats["failed_requests"]


def test_every_call_counts_once() -> None:
    async def main() -> None:
        async with universe([node(1, 100.0)]) as u:
            await u.pool.chat(CHAT, HELLO)
            await u.pool.embed_batch(EMBED, texts(10))
            assert len([row async for row in u.pool.embed_stream(EMBED, iter(texts(10)))]) == 10
            assert totals(u.pool) == (3, 3, 0)
            stream = u.pool.embed_stream(EMBED, texts(100))
            await anext(stream)
            await stream.aclose()
            with pytest.raises(NoNodeAvailable):
                await u.pool.embed_batch("no-such-model", texts(3))
            assert totals(u.pool) == (5, 3, 2)

    run(main())
    with sim_cluster([NodeSpec(models=MODELS)]) as nodes, OllamaPool(list(nodes)) as pool:
        pool.chat(CHAT, HELLO)
        pool.embed_batch(EMBED, texts(10))
        assert len(list(pool.embed_stream(EMBED, iter(texts(10))))) == 10
        rows = pool.embed_stream(EMBED, iter(texts(1000)))
        next(rows)
        rows.close()
        assert totals(pool) == (4, 3, 1)


def test_calibration_is_a_statistic() -> None:
    async def main() -> None:
        async with universe([node(1, None, decode_tokens_per_s=50.0, prefill_tokens_per_s=1000.0)]) as u:
            assert u.pool.get_stats()["calibration"] == {"median": None, "p90": None, "count": 0}
            for _ in range(20):
                await u.pool.chat(CHAT, HELLO, options={"num_predict": 20})
            calibration = u.pool.get_stats()["calibration"]
            assert calibration["count"] == 20
            assert 0.6 < calibration["median"] < 1.4
            assert calibration == u.pool.snapshot()["calibration"]

    run(main())


def test_what_is_not_observed_is_not_kept() -> None:
    async def main() -> None:
        async with universe([node(1, 100.0)]) as u:
            u.pool.engine.observe(0.0)
            await u.pool.chat(CHAT, HELLO)
            await u.pool.embed_batch(EMBED, texts(10))
            assert u.pool.snapshot()["recent"] == []

    run(main())


def test_a_call_that_was_shown_can_be_asked_for_when_many_others_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "REMEMBERED", 20)
    monkeypatch.setattr(history, "SHOWN", 10)
    monkeypatch.setattr(history, "SHOWN_KEPT", 30)

    async def main() -> None:
        async with universe([node(1, 100.0)]) as u:

            async def calls(count: int) -> list[int]:
                return [(await u.pool.chat(CHAT, HELLO)).routing.id for _ in range(count)]

            unseen, seen = await calls(10), await calls(10)
            assert [row["id"] for row in u.pool.snapshot()["recent"]] == seen[::-1]
            await calls(20)
            for task in seen:
                assert u.pool.explain(task)["candidates"]
            for task in unseen:
                with pytest.raises(BadInput, match="is unknown"):
                    u.pool.explain(task)
            for _ in range(2):
                u.pool.snapshot()
                await calls(20)
            assert u.pool.explain(seen[0])["id"] == seen[0]
            u.pool.snapshot()
            with pytest.raises(BadInput, match="is unknown"):
                u.pool.explain(seen[0])

    run(main())


def test_good_and_bad_calls_and_batches_are_forgotten_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good call is written over the oldest, whatever that was, and the reverse."""
    monkeypatch.setattr(history, "REMEMBERED", 6)

    async def main() -> None:
        async with universe([node(1, 1000.0), node(2, 500.0)]) as u:
            told: list[tuple[str, str, int]] = []  # kind, outcome, candidates
            for turn in range(40):
                if turn % 5 == 3:
                    with pytest.raises(NoNodeAvailable):
                        await u.pool.chat("no-such-model", HELLO)
                    told.append(("chat", "no node", 0))
                elif turn % 7 == 6:
                    await u.pool.embed_batch(EMBED, texts(10))
                    told.append(("embed", "ok", 0))
                else:
                    await u.pool.chat(CHAT, HELLO)
                    told.append(("chat", "ok", 2))
                snapshot = u.pool.snapshot()
                recent = [(row["kind"], row["outcome"]) for row in snapshot["recent"]]
                assert recent == [one[:2] for one in told[:-7:-1]]
                assert snapshot["calibration"]["count"] == recent.count(("chat", "ok"))
                for row, (_, _, candidates) in zip(snapshot["recent"], told[::-1], strict=False):
                    record = u.pool.explain(row["id"])
                    assert len(record["candidates"]) == candidates
                    if candidates:
                        assert record["candidates"][0]["node"] == record["node"]
                        terms = record["candidates"][0]["terms"]
                        assert sum(terms.values()) == pytest.approx(record["predicted_ms"], abs=0.01)
            with pytest.raises(BadInput, match="is unknown"):
                u.pool.explain(0)

    run(main())


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
def test_it_can_be_read_from_any_thread(kind: str) -> None:
    """Many threads read while calls come and go, and what they see is whole."""
    specs = [NodeSpec(models=MODELS, seed=i) for i in range(3)]
    problems: list[Any] = []
    seen: list[int] = []
    over = threading.Event()

    def read(pool: Any) -> None:
        try:
            while not over.is_set():
                snapshot = pool.snapshot()
                seen.append(len(snapshot["recent"]))
                for row in snapshot["recent"][:3]:
                    assert pool.explain(row["id"])["id"] == row["id"]
                assert len(pool.get_stats()["node_performance"]) == 3
                assert len(pool.nodes) == 3
                repr(pool)
        except Exception as problem:
            problems.append(problem)

    def readers(pool: Any) -> list[threading.Thread]:
        threads = [threading.Thread(target=read, args=(pool,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        return threads

    async def work(chat: Any) -> None:
        for _ in range(10):
            await asyncio.gather(*(chat(CHAT, HELLO) for _ in range(12)))

    with sim_cluster(specs) as nodes:
        if kind == "synchronous":
            with OllamaPool(list(nodes)) as pool:
                threads = readers(pool)
                asyncio.run(work(pool.chat_async))
                over.set()
                for thread in threads:
                    thread.join(10)
        else:

            async def main() -> None:
                async with AsyncOllamaPool(list(nodes)) as pool:
                    threads = readers(pool)
                    await work(pool.chat)
                    over.set()
                    for thread in threads:
                        await asyncio.to_thread(thread.join, 10)

            asyncio.run(main())
    assert not problems
    assert max(seen) > 10


def test_a_loop_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "READ_S", 0.05)

    async def main() -> None:
        async with AsyncOllamaPool(["127.0.0.1:1"]) as pool:
            found: list[Any] = []

            def read() -> None:
                try:
                    found.append(pool.snapshot())
                except SollolError as error:
                    found.append(error)

            thread = threading.Thread(target=read)
            thread.start()
            time.sleep(0.3)  # noqa: ASYNC251 - the loop is busy, which is the point
            await asyncio.to_thread(thread.join)
            assert "has not answered for 0.05 s" in str(found[0])

    asyncio.run(main())
    pool = AsyncOllamaPool(["127.0.0.1:1"])
    assert pool.snapshot()["recent"] == []  # never used: there is no loop to ask
