"""Second copies of calls that are late: when, how many, who wins, and what becomes of the loser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol.core.actions import Abort, Start
from sollol.core.types import Cause, Kind, Status, Task
from sollol.hedging import AdaptiveHedging
from sollol.policies.hedging import BUDGET, RESERVE, SAMPLES_LEAST, LearnedHedgeBenefit
from sollol.sim import ModelSpec, run
from sollol.workload.task import unloads
from tests.pool.breaking import MODEL, Stage, staged, talker

HELLO = [{"role": "user", "content": "Hello"}]
TOKENS = 20  # 0.4 s
ASKED: dict[str, Any] = {"options": {"num_predict": TOKENS}}


async def learned(stage: Stage, calls: int = SAMPLES_LEAST + 4, **more: Any) -> None:
    """The pool has seen how long such calls take, on both nodes."""
    for _ in range(calls // 2):
        await asyncio.gather(*(said(stage, **more) for _ in range(2)))


async def said(stage: Stage, **more: Any) -> Any:
    """The last (or only) part of an answer."""
    answer = await stage.pool.chat(MODEL, HELLO, **ASKED | more)
    if not more.get("stream"):
        return answer
    async for part in answer:
        if part.done:
            return part
    raise AssertionError("a stream ends")


def straggle(stage: Stage, factor: float = 20.0) -> Any:
    """Whichever node is asked next takes so many times as long for that one answer."""
    before = len(stage.transport.sent)

    async def watch() -> None:
        while len(stage.transport.sent) == before:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.0001)
        node = stage.world[stage.transport.sent[before].node]
        node.slow(factor)

    return asyncio.ensure_future(watch())


@pytest.mark.parametrize("stream", [False, True])
def test_a_late_call_is_overtaken_by_its_second_copy(stream: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage, stream=stream)
            right = await said(stage)
            watch = straggle(stage)
            began = loop.time()
            answer = await said(stage, stream=stream, hedge=True)
            await watch
            first, second = stage.transport.sent[-2:]
            assert first.node != second.node
            assert answer.routing.node == second.node
            assert answer.routing.reasons[0].startswith(f"another copy: {first.node} is late")
            assert [(tried["node"], tried["outcome"]) for tried in answer.routing.tried] == [
                (first.node, Status.LEFT.value)
            ]
            assert loop.time() - began < 0.4 * 3.5  # not 20 times 0.4 s
            assert answer.eval_count == right.eval_count
            await asyncio.sleep(0.01)
            assert stage.world[first.node].counters.inflight == 0  # the loser was closed
            assert stage.world[first.node].counters.aborted == 1
            stats = stage.pool.get_stats()["node_performance"]
            assert all(row["failed_requests"] == 0 for row in stats.values())

    run(main())


def test_the_first_copy_to_yield_wins_and_says_everything() -> None:
    """The first node begins to speak just before the second: the second is closed, and the text is of one node."""

    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage, stream=True)
            whole = await said(stage)
            for factor in (2.0, 3.0, 4.0, 5.0, 7.0):
                watch = straggle(stage, factor)
                parts = [p async for p in await stage.pool.chat(MODEL, HELLO, stream=True, hedge=True, **ASKED)]
                await watch
                assert "".join(part.message.content for part in parts) == whole.message.content
                assert parts[-1].routing.seams == []
                for node in stage.world.nodes.values():
                    node.heal()
                await asyncio.sleep(0.01)
                assert sum(node.counters.inflight for node in stage.world.nodes.values()) == 0

    run(main())


def test_none_before_enough_was_seen_and_none_unless_wanted() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            for more in ({"hedge": True}, {"hedge": None}, {"hedge": False, "mode": "fast"}, {"mode": "reliable"}):
                if more != {"hedge": True}:
                    await learned(stage)
                before = len(stage.transport.sent)
                watch = straggle(stage)
                await said(stage, **more)
                await watch
                assert len(stage.transport.sent) == before + 1, more
                for node in stage.world.nodes.values():
                    node.heal()
            watch = straggle(stage)
            before = len(stage.transport.sent)
            await said(stage, mode="fast")
            await watch
            assert len(stage.transport.sent) == before + 2

    run(main())


def test_only_where_a_slot_is_free() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage)
            watch = straggle(stage)
            late = asyncio.ensure_future(said(stage, hedge=True))
            await watch
            slow = stage.transport.sent[-1].node
            other = next(node for node in stage.world.nodes if node != slow)
            await said(
                stage, node=other, options={"num_predict": 150}
            )  # three seconds, and it was late after half a one
            began = loop.time()
            assert [request.node for request in stage.transport.sent[-2:]] == [slow, other]
            answer = await late
            assert answer.routing.node == other
            assert loop.time() - began < 0.6
        async with staged([talker(1)]) as stage:  # nor where there is no other node at all
            await learned(stage)
            watch = straggle(stage)
            before = len(stage.transport.sent)
            await said(stage, hedge=True)
            await watch
            assert len(stage.transport.sent) == before + 1

    run(main())


def test_second_copies_keep_to_their_budget() -> None:
    async def main() -> None:
        async with staged([talker(i) for i in (1, 2, 3)]) as stage:
            await learned(stage)
            before, calls = len(stage.transport.sent), 60
            for _ in range(calls):  # every one of them is late
                watch = straggle(stage)
                await said(stage, hedge=True)
                await watch
                for node in stage.world.nodes.values():
                    node.heal()
            copies = len(stage.transport.sent) - before - calls
            assert RESERVE <= copies <= RESERVE + BUDGET * calls

    run(main())


def copies_while_others_wait(stage: Stage) -> list[Start]:
    """Fills while the test goes on."""
    copies: list[Start] = []
    stage.pool.engine.journal.subscribe(
        lambda entry: copies.extend(
            action
            for action in entry.actions
            if isinstance(action, Start)
            and action.cause is Cause.HEDGE
            and stage.pool.engine.scheduler.view().waiting()
        )
    )
    return copies


def test_those_who_wait_go_before_second_copies_of_answers_that_are_just_long() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage)
            long = {"options": {"num_predict": 5 * TOKENS}}
            for _ in range(4):
                await said(stage, **long)
            copies = copies_while_others_wait(stage)
            await asyncio.gather(*(said(stage, hedge=True, **(long if i % 5 == 0 else {})) for i in range(40)))
            assert not copies

    run(main())


def test_where_nodes_hang_now_and_then_a_second_copy_goes_before_those_who_wait() -> None:
    async def main(hedge: bool) -> tuple[float, int]:
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage)
            copies = copies_while_others_wait(stage)
            for node in stage.world.nodes.values():
                node.stragglers(0.05, 20.0)
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(said(stage, hedge=hedge) for _ in range(100)))
            return asyncio.get_running_loop().time() - began, len(copies)

    alone_s, none = run(main(False))
    hedged_s, some = run(main(True))
    assert (none, some > 0) == (0, True)
    assert hedged_s < alone_s


@pytest.mark.parametrize("stream", [False, True])
def test_late_answers_tell_whether_a_copy_would_have_come_first(stream: bool) -> None:
    async def main(factor: float) -> float:
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage, stream=stream)
            benefit = stage.pool.engine.scheduler.view().policies.hedge_benefit
            assert isinstance(benefit, LearnedHedgeBenefit)
            for _ in range(3):
                watch = straggle(stage, factor)
                length = {} if factor > 1 else {"options": {"num_predict": 5 * TOKENS}}
                await said(stage, stream=stream, **length)
                await watch
                for node in stage.world.nodes.values():
                    node.heal()
            return float(benefit.share(Task(0, Kind.CHAT, f"{MODEL}:latest", stream=stream)))

    assert run(main(200.0)) > 0.7
    assert run(main(1.0)) == (0.5 if stream else pytest.approx(0.125))  # a long answer begins no later


def test_embeddings_have_none() -> None:
    async def main() -> None:
        model = ModelSpec("nomic-embed-text", "embed")
        specs = [talker(i, models=(model,), loaded=(model.name,), embed_items_per_s=10.0) for i in (1, 2)]
        async with staged(specs) as stage:
            starts: list[Start] = []
            stage.pool.engine.journal.subscribe(
                lambda entry: starts.extend(action for action in entry.actions if isinstance(action, Start))
            )
            for number in range(SAMPLES_LEAST + 5):
                await stage.pool.embed(model.name, f"text {number}", mode="fast")
            for node in stage.world.nodes.values():
                node.slow(20.0)
            await stage.pool.embed(model.name, "late", mode="fast")
            assert len(starts) == SAMPLES_LEAST + 6

    run(main())


def test_none_where_it_would_load_or_unload_a_model() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            await learned(stage)
            for more in (
                {"options": {"num_predict": TOKENS, "num_batch": 64}},
                {"keep_alive": 0},
                {"keep_alive": "0s"},
            ):
                await said(stage, **more | {"keep_alive": None})  # the node that does it has the options then
                before = len(stage.transport.sent)
                watch = straggle(stage)
                await said(stage, hedge=True, **more)
                await watch
                assert len(stage.transport.sent) == before + 1, more
                for node in stage.world.nodes.values():
                    node.heal()
                await said(stage)
            assert not unloads("5m")
            assert not unloads(-1)
            assert not unloads("1h30m")
            assert unloads(0.0)

    run(main())


def test_when_the_first_copy_fails_the_second_is_enough() -> None:
    """A late node that then dies is a fault of it, and the copy under way goes on: no third attempt."""

    async def main() -> None:
        async with staged([talker(1), talker(2), talker(3)]) as stage:
            await learned(stage)
            watch = straggle(stage)
            call = asyncio.ensure_future(said(stage, hedge=True))
            await watch
            before = len(stage.transport.sent)
            while len(stage.transport.sent) == before:  # noqa: ASYNC110 - simulated time
                await asyncio.sleep(0.01)
            first, second = stage.transport.sent[-2:]
            stage.world[first.node].die()
            answer = await call
            assert answer.routing.node == second.node
            assert len(stage.transport.sent) == before + 1
            assert answer.routing.tried[0]["outcome"] in (Status.FAILED.value, Status.UNREACHABLE.value)

    run(main())


def test_adaptive_hedging_is_the_same() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            hedging = AdaptiveHedging(num_hedges=2)
            for _ in range(SAMPLES_LEAST + 4):
                await hedging.request_with_hedging(pool=stage.pool, model=MODEL, messages=HELLO, **ASKED)
            aborts: list[Abort] = []
            stage.pool.engine.journal.subscribe(
                lambda entry: aborts.extend(action for action in entry.actions if isinstance(action, Abort))
            )
            watch = straggle(stage)
            answer = await hedging.request_with_hedging(pool=stage.pool, model=MODEL, messages=HELLO, **ASKED)
            await watch
            assert answer.routing.reasons[0].startswith("another copy")
            assert len(aborts) == 1
            one = AdaptiveHedging(num_hedges=1)
            before = len(stage.transport.sent)
            await one.request_with_hedging(pool=stage.pool, model=MODEL, messages=HELLO, **ASKED)
            assert len(stage.transport.sent) == before + 1

    run(main())
