"""Batches of chats and prompts: in order, each item once, an error an item, near the fluid bound."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, OllamaPool
from sollol.errors import BadInput, BatchError, DeadlineExceeded, NoNodeAvailable, ResponseError, SollolError
from sollol.sim import FaultEvent, ModelSpec, NodeSpec, fluid_bound, run, sim_cluster
from tests.pool.universe import CHAT, universe

ENDLESS = ModelSpec(CHAT, size_bytes=2_000_000_000, mean_words=float("inf"))  # answers are as long as `num_predict`
TOKENS = 60


def node(number: int, speed: float, slots: int = 1) -> NodeSpec:
    return NodeSpec(
        host=f"10.0.0.{number}",
        models=(ENDLESS,),
        loaded=(CHAT,),
        latency_s=0.001,
        decode_tokens_per_s=30 * speed,
        prefill_tokens_per_s=500 * speed,
        num_parallel=slots,
    )


def prompts(count: int, seed: int = 1) -> list[str]:
    """Texts of different lengths without a common beginning."""
    dice = random.Random(seed)
    return [
        f"{i}: " + " ".join(dice.choice("abcdefgh") * 5 for _ in range(dice.randint(20, 120))) for i in range(count)
    ]


def number_of(prompt: str) -> int:
    return int(prompt.split(":")[0])


async def seconds_of(specs: list[NodeSpec], count: int, schedule: list[FaultEvent]) -> tuple[float, Any]:
    async with universe(specs, schedule) as u:
        inputs = prompts(count)
        result = await u.pool.batch_generate(CHAT, inputs, options={"num_predict": TOKENS})
        direct = [await u.pool.generate(CHAT, text, options={"num_predict": TOKENS}) for text in inputs[:: count // 10]]
        assert [a.response for a in direct] == [a.response for a in result[:: count // 10] if a], "misplaced"
        return result.report.seconds, result


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("dying", [0, 1, 2, 3])
def test_two_hundred_prompts_on_unequal_nodes_one_killed(slots: int, dying: int) -> None:
    """4:2:1, one killed in the middle of its work: within 8 % of what nodes that never idle could do."""
    speeds, dies_s = [4.0, 2.0, 1.0], 20.0
    specs = [node(i, speed, slots) for i, speed in enumerate(speeds, 1)]
    alone = [run(seconds_of([spec], 30, []))[0] for spec in specs]  # what each node really does of such prompts
    rates = [30 / seconds for seconds in alone]
    schedule = [FaultEvent(dies_s, "die", f"10.0.0.{dying}:11434")] if dying else []
    seconds, result = run(seconds_of(specs, 200, schedule))
    bound = fluid_bound(200, [(r, 0.0, dies_s if i == dying else 1e9) for i, r in enumerate(rates, 1)])
    assert seconds <= 1.08 * bound, f"{seconds / bound:.3f} times the bound"
    assert len(result) == 200
    assert not result.errors
    assert result.report.items == 200
    assert sum(share.items for share in result.report.nodes.values()) == 200
    assert 0.9 <= result.report.efficiency <= 1.05


def test_a_conversation_or_a_text_and_bad_ones_before_anything_is_sent() -> None:
    async def main() -> None:
        async with universe([node(1, 1), node(2, 1)]) as u:
            options: dict[str, Any] = {"num_predict": 5}
            with pytest.raises(BadInput, match=r"batch_chat: inputs\[1\]"):
                await u.pool.batch_chat(CHAT, ["fine", 7], options=options)
            assert not u.pool._running().scheduler.view().tasks
            assert u.pool.totals.as_dict()["total_requests"] == 0
            messages = [{"role": "user", "content": "the same"}]
            result = await u.pool.batch_chat(CHAT, ["the same", messages], options=options)
            assert result[0] is not None
            assert result[1] is not None
            assert result[0].message.content == result[1].message.content

    run(main())


def test_errors_of_items_are_raised_at_the_end_or_returned() -> None:
    """A node refuses long prompts; the others are answered all the same."""

    async def main() -> None:
        async with universe([node(1, 1)]) as u:
            inputs = ["short", "word " * 9_000, "also short"]
            more: dict[str, Any] = {"truncate": False, "options": {"num_predict": 5}}
            with pytest.raises(BatchError) as raised:
                await u.pool.batch_generate(CHAT, inputs, **more)
            assert list(raised.value.errors) == [1]
            assert isinstance(raised.value.errors[1], ResponseError)
            assert [item is None for item in raised.value.results] == [False, True, False]
            result = await u.pool.batch_generate(CHAT, inputs, on_error="return", **more)
            assert list(result.errors) == [1]
            assert result[1] is None
            assert result.report.failed == 1
            assert result.model_dump()[1] is None
            assert result.report.errors[1]
            with pytest.raises(ResponseError):  # not one was answered: its error as it is
                await u.pool.batch_generate(CHAT, inputs[1:2], **more)
            assert (u.pool.totals.successful, u.pool.totals.failed) == (4, 3)

    run(main())


def test_without_the_model_every_item_says_so() -> None:
    async def main() -> None:
        async with universe([node(1, 1)]) as u:
            with pytest.raises(NoNodeAvailable, match="does not have nowhere"):
                await u.pool.batch_chat("nowhere", ["a", "b"])
            result = await u.pool.batch_chat("nowhere", ["a", "b"], on_error="return")
            assert list(result) == [None, None]
            assert sorted(result.errors) == [0, 1]
        async with AsyncOllamaPool([]) as empty:
            with pytest.raises(NoNodeAvailable, match="no nodes"):
                await empty.batch_chat(CHAT, ["a"])

    run(main())


def test_the_timeout_is_for_the_batch() -> None:
    async def main() -> None:
        async with universe([node(1, 1)]) as u:
            loop = asyncio.get_running_loop()
            began = loop.time()
            result = await u.pool.batch_generate(
                CHAT, prompts(200), timeout=30.0, on_error="return", options={"num_predict": TOKENS}
            )
            assert loop.time() - began == pytest.approx(30.0, abs=0.5)
            assert 0 < result.report.items < 200
            assert result.report.items + result.report.failed == 200
            assert all(isinstance(error, DeadlineExceeded) for error in result.errors.values())
            assert len(result) == 200

    run(main())


def test_an_urgent_call_does_not_wait_for_the_batch() -> None:
    async def main() -> None:
        async with universe([node(1, 1)]) as u:
            options: dict[str, Any] = {"num_predict": TOKENS}
            batch = asyncio.ensure_future(u.pool.batch_generate(CHAT, prompts(40), priority=2, options=options))
            await asyncio.sleep(10)
            began = asyncio.get_running_loop().time()
            await u.pool.generate(CHAT, "urgent", priority=9, options=options)
            waited = asyncio.get_running_loop().time() - began
            whole = (await batch).report.seconds
            assert waited < whole / 8

    run(main())


@pytest.mark.parametrize("width", [1, 3])
def test_max_workers_is_the_most_in_flight(width: int) -> None:
    async def main() -> None:
        async with universe([node(1, 1, 4), node(2, 1, 4)]) as u:
            most = 0
            view = u.pool._running().scheduler.view()

            def watch(entry: Any) -> None:
                nonlocal most
                most = max(most, len(view.tasks))

            u.pool._running().journal.subscribe(watch)
            result = await u.pool.batch_generate(CHAT, prompts(20), max_workers=width, options={"num_predict": 5})
            assert len(result) == 20
            assert most == width

    run(main())


def test_items_are_read_when_they_are_needed() -> None:
    """A generator of any length: the queue holds a few dozen, and the first is sent before the second is read."""

    async def main() -> None:
        read = 0

        async def slow() -> AsyncIterator[str]:
            nonlocal read
            for text in prompts(300):
                await asyncio.sleep(0.01 if read > 3 else 5)
                read += 1
                yield text

        async with universe([node(1, 4)]) as u:
            batch = asyncio.ensure_future(u.pool.batch_generate(CHAT, slow(), options={"num_predict": 5}))
            await asyncio.sleep(8)
            assert u.world["10.0.0.1:11434"].counters.requests["POST /api/generate"] == 1
            await asyncio.sleep(20)
            assert read < 220
            result = await batch
            assert len(result) == 300
            assert read == 300

    run(main())


def test_leaving_cancels_what_is_under_way() -> None:
    async def main() -> None:
        async with universe([node(1, 1)]) as u:
            batch = asyncio.ensure_future(u.pool.batch_generate(CHAT, prompts(50), options={"num_predict": TOKENS}))
            await asyncio.sleep(5)
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            await asyncio.sleep(0.1)
            assert not u.pool._running().scheduler.view().tasks

    run(main())


def test_an_item_of_an_iterator_that_cannot_be_sent_has_an_error_of_its_own() -> None:
    async def main() -> None:
        async with universe([node(1, 1), node(2, 1)]) as u:
            given = iter(["fine", 7, "fine, too", None, "the last"])
            result = await u.pool.batch_chat(CHAT, given, options={"num_predict": 5}, on_error="return")
            assert [answer is not None for answer in result] == [True, False, True, False, True]
            assert [type(error) for error in result.errors.values()] == [BadInput, BadInput]
            assert "inputs[3]" in str(result.errors[3])
            with pytest.raises(BadInput, match="expected a list or an iterator"):
                await u.pool.batch_chat(CHAT, None)  # type: ignore[arg-type]

    run(main())


# --- OllamaPool, on sockets ---


def test_the_synchronous_pool_reads_iterators_in_its_callers_thread() -> None:
    import threading

    here = threading.get_ident()

    def chats() -> Iterator[Any]:
        for i in range(20):
            assert threading.get_ident() == here
            yield f"{i}: hello" if i % 2 else [{"role": "user", "content": f"{i}: hello"}]

    with sim_cluster([NodeSpec(), NodeSpec()]) as cluster, OllamaPool(cluster.urls) as pool:
        result = pool.batch_chat("llama3.2", chats(), options={"num_predict": 8})
        direct = [
            pool.chat("llama3.2", [{"role": "user", "content": f"{i}: hello"}], options={"num_predict": 8})
            for i in range(20)
        ]
        assert [a.message.content for a in result if a] == [a.message.content for a in direct]
        assert pool.batch_chat("llama3.2", []) == []
        assert pool.batch_generate("llama3.2", ["a"], progress=True)[0] is not None
        with pytest.raises(BadInput, match="expected a list with an item for each"):
            pool.batch_chat("llama3.2", [{"role": "user", "content": "one conversation"}])
        with pytest.raises(BadInput, match=r"inputs\[0\]"):
            pool.batch_generate("llama3.2", [None])  # type: ignore[list-item]
        with pytest.raises(BatchError, match=r"inputs\[1\]") as failed:
            pool.batch_generate("llama3.2", iter(["a", None, "b"]))  # type: ignore[arg-type]
        assert [answer is not None for answer in failed.value.results] == [True, False, True]
        with pytest.raises(BadInput, match="raise"):
            pool.batch_generate("llama3.2", ["a"], on_error="skip")

        def broken() -> Iterator[str]:
            yield "a"
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            pool.batch_generate("llama3.2", broken())


def test_closing_the_pool_ends_a_batch_that_waits() -> None:
    import threading

    spec = NodeSpec(models=(ModelSpec("llama3.2", mean_words=float("inf")),), decode_tokens_per_s=5.0)
    with sim_cluster([spec]) as cluster:
        pool = OllamaPool(cluster.urls)
        failed: list[BaseException] = []
        begun = threading.Event()

        def work() -> None:
            def texts() -> Iterator[str]:
                for i in range(500):
                    if i == 10:
                        begun.set()
                    yield f"text {i}"

            try:
                pool.batch_generate("llama3.2", texts())
            except SollolError as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(20)
        pool.close()
        thread.join(20)
        assert not thread.is_alive()
        assert failed
