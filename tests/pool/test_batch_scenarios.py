"""Batches against nodes that misbehave, in simulated time: nothing is lost, whatever the nodes do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol.errors import BatchError, NoNodeAvailable, ResponseError
from sollol.sim import FaultEvent, NodeSpec, fluid_bound, run
from sollol.sim.vectors import embed
from tests.pool.universe import EMBED, node, texts, universe, whole


def key(number: int) -> str:
    return f"10.0.0.{number + 1}:11434"


def reference(text: str) -> list[float]:
    from array import array

    return array("f", embed([text], 64)[0]).tolist()


def batch(specs: list[NodeSpec], count: int, schedule: list[Any] | None = None, **more: Any) -> tuple[float, Any]:
    """Seconds and result of one cold batch; everything about it checked."""

    async def main() -> tuple[float, Any]:
        async with universe(specs, schedule or []) as u:
            began = asyncio.get_running_loop().time()
            inputs = texts(count)
            result = await u.pool.embed_batch(EMBED, inputs, **more)
            seconds = asyncio.get_running_loop().time() - began
            whole(result, inputs, reference)
            return seconds, result

    return run(main())


@pytest.mark.parametrize("count", [1, 2, 7, 298, 625])
def test_two_unequal_nodes_end_together(count: int) -> None:
    seconds, result = batch([node(1, 100), node(2, 18)], count)
    assert result.report.items == count
    if count >= 298:
        assert seconds <= 1.04 * count / 118


def test_eight_nodes_of_doubling_speed_one_joins_one_dies() -> None:
    specs = [node(i, 2.0 * 2**i) for i in range(8)]
    late, dying = 6, 7  # 128 and 256 items/s

    async def main() -> None:
        async with universe([*specs[:late], specs[dying]], [FaultEvent(4.0, "die", key(dying))]) as u:
            loop = asyncio.get_running_loop()
            inputs = texts(5000)
            running = asyncio.ensure_future(u.pool.embed_batch(EMBED, inputs))
            began = loop.time()
            await asyncio.sleep(3.0)
            joined = u.world.add(specs[late])
            u.pool.add_node(joined.spec.host)
            result = await running
            seconds = loop.time() - began
            whole(result, inputs, reference)
            rates = [(2.0 * 2**i, 0.0, 1e9) for i in range(late)]
            bound = fluid_bound(5000, [*rates, (128.0, 3.0, 1e9), (256.0, 0.0, 4.0)])
            assert seconds <= 1.05 * bound

    run(main())


def test_thirty_per_cent_errors_lose_nothing() -> None:
    for when in ("before", "after"):
        schedule = [FaultEvent(0.0, "error_rate", "", (("share", 0.3), ("when", when)))]
        _, result = batch([node(1, 100), node(2, 18)], 625, schedule)
        assert result.report.retries > 0


def test_busy_above_five_loses_nothing() -> None:
    schedule = [FaultEvent(0.0, "busy_above", "", (("n", 5),))]
    batch([node(1, 100), node(2, 18)], 625, schedule)


def test_dead_node_first() -> None:
    seconds, _ = batch([node(1, 100), node(2, 50)], 298, [FaultEvent(0.0, "die", key(1))])
    assert seconds <= 1.1 * 298 / 50


def test_node_dies_and_gives_its_work_back() -> None:
    seconds, result = batch([node(1, 100), node(2, 50)], 600, [FaultEvent(2.0, "die", key(1))])
    assert seconds <= 1.05 * fluid_bound(600, [(100, 0, 2), (50, 0, 1e9)])
    assert result.report.nodes[key(2)].items > result.report.nodes[key(1)].items


def test_node_returns_and_is_used_again() -> None:
    schedule = [FaultEvent(1.0, "die", key(1)), FaultEvent(3.0, "revive", key(1))]
    _, result = batch([node(1, 100), node(2, 10)], 1000, schedule)
    assert result.report.nodes[key(1)].items > 800


@pytest.mark.parametrize("at_s", [0.0, 1.0])
def test_frozen_node_is_overtaken(at_s: float) -> None:
    seconds, result = batch([node(1, 100), node(2, 50)], 298, [FaultEvent(at_s, "freeze", key(1))])
    assert seconds < 12
    assert result.report.nodes[key(2)].items > 200


def test_black_hole_from_the_start() -> None:
    seconds, _ = batch([node(1, 100), node(2, 50)], 298, [FaultEvent(0.0, "black_hole", key(1))])
    assert seconds <= 1.1 * 298 / 50


def test_only_node_restarts_within_patience() -> None:
    schedule = [FaultEvent(1.0, "die", key(1)), FaultEvent(5.0, "revive", key(1))]
    seconds, _ = batch([node(1, 50)], 200, schedule)
    assert seconds < 15


@pytest.mark.parametrize("wrong", ["missing-vector", "extra-vector", "dimension", "not-json", "empty-object"])
def test_wrong_answers_are_noticed_and_done_elsewhere(wrong: str) -> None:
    schedule = [FaultEvent(0.5, "wrong", key(1), (("kind", wrong),))]
    batch([node(1, 100), node(2, 50)], 298, schedule)


def test_slow_node_that_becomes_slower_still() -> None:
    schedule = [FaultEvent(1.0, "slow", key(1), (("factor", 20.0),))]
    seconds, _ = batch([node(1, 100), node(2, 50)], 600, schedule)
    assert seconds <= 1.1 * fluid_bound(600, [(100, 0, 1), (5, 1, 1e9), (50, 0, 1e9)])


def test_every_node_dead_says_which_and_why() -> None:
    async def main() -> None:
        async with universe([node(1, 10), node(2, 10)], [FaultEvent(0.0, "die")]) as u:
            with pytest.raises(NoNodeAvailable, match="no node can take the batch;") as caught:
                await u.pool.embed_batch(EMBED, texts(10))
            assert {name for name, _ in caught.value.tried} == {key(1), key(2)}

    run(main())


def test_items_that_no_node_is_left_for_say_so() -> None:
    async def main() -> None:
        async with universe([node(1, 10), node(2, 10)], [FaultEvent(2.0, "die")]) as u:
            with pytest.raises(BatchError, match="no node can take the rest of the batch;"):
                await u.pool.embed_batch(EMBED, texts(100))

    run(main())


def test_unknown_model_says_which_node_has_what() -> None:
    async def main() -> None:
        async with universe([node(1, 10)]) as u:
            with pytest.raises(
                NoNodeAvailable,
                match=r"does not have missing:latest; it has .*nomic-embed-text",
            ):
                await u.pool.embed_batch("missing", texts(10))

    run(main())


def test_refused_item_is_isolated_by_bisection() -> None:
    inputs = texts(100)
    inputs[37] = "word " * 5000  # longer than the context, and not to be truncated

    async def main() -> None:
        async with universe([node(1, 100), node(2, 50)]) as u:
            with pytest.raises(BatchError) as caught:
                await u.pool.embed_batch(EMBED, inputs, truncate=False)
            assert list(caught.value.errors) == [37]
            assert isinstance(caught.value.errors[37], ResponseError)
            assert sum(item is not None for item in caught.value.results) == 99
            result = await u.pool.embed_batch(EMBED, inputs, truncate=False, on_error="return")
            assert result[37] is None
            assert result[36] is not None

    run(main())


def test_a_call_that_is_wrong_as_a_whole_fails_once_and_soon() -> None:
    async def main() -> None:
        async with universe([node(1, 100)]) as u:
            with pytest.raises(ResponseError) as caught:
                await u.pool.embed_batch("llama3.2", texts(1000))  # a chat model
            assert caught.value.status_code == 501
            assert len([e for e in u.world[key(1)].counters.log if "embed" in str(e)]) < 30

    run(main())


def test_fixed_width_keeps_exactly_so_many_in_flight() -> None:
    async def main() -> None:
        async with universe([node(1, 100), node(2, 100)]) as u:
            widths: list[int] = []
            engine = u.pool._running()
            engine.journal.subscribe(lambda entry: widths.append(len(engine.scheduler.view().attempts)))
            inputs = texts(300)
            whole(await u.pool.embed_batch(EMBED, inputs, use_adaptive=False, max_workers=6), inputs, reference)
            assert max(widths) == 6

    run(main())


def test_iterables_are_read_as_needed_and_in_order() -> None:
    read = 0

    def source() -> Any:
        nonlocal read
        for read in range(20_000):
            yield f"text number {read}"

    async def main() -> None:
        async with universe([node(1, 1000), node(2, 500)], checked=False) as u:
            seen: dict[int, Any] = {}
            ahead = 0
            async for index, vector in u.pool.embed_stream(EMBED, source()):
                assert index not in seen
                seen[index] = vector
                ahead = max(ahead, read - len(seen))
            assert sorted(seen) == list(range(20_000))
            assert ahead < 8_000  # a few seconds of work, not the whole input
            assert seen[77].tolist() == reference("text number 77")

    run(main())


def test_cancelling_stops_the_nodes_at_once() -> None:
    async def main() -> None:
        async with universe([node(1, 5), node(2, 5)]) as u:
            running = asyncio.ensure_future(u.pool.embed_batch(EMBED, texts(500)))
            await asyncio.sleep(1.0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.sleep(0.01)
            before = sum(n.counters.items_embedded for n in u.world.nodes.values())
            await asyncio.sleep(5.0)
            assert sum(n.counters.items_embedded for n in u.world.nodes.values()) == before
            assert not u.pool._running().scheduler.view().attempts

    run(main())


def test_two_batches_and_a_chat_share_the_nodes() -> None:
    async def main() -> None:
        async with universe([node(1, 100), node(2, 50)]) as u:
            inputs = texts(200)
            low, high = await asyncio.gather(
                u.pool.embed_batch(EMBED, inputs, priority=2), u.pool.embed_batch(EMBED, inputs, priority=9)
            )
            whole(low, inputs, reference)
            whole(high, inputs, reference)
            assert high.report.seconds < low.report.seconds

    run(main())


def test_same_seed_same_journal() -> None:
    async def main() -> str:
        schedule = [
            FaultEvent(0.0, "error_rate", "", (("share", 0.2),)),
            FaultEvent(1.0, "die", key(1)),
            FaultEvent(2.0, "revive", key(1)),
        ]
        async with universe([node(i, 10.0 * i) for i in range(1, 6)], schedule) as u:
            await u.pool.embed_batch(EMBED, texts(600))
            return u.digest.hexdigest()

    assert run(main(), seed=5) == run(main(), seed=5)
