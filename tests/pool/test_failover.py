"""Another node does what one does wrong: never the same node twice, each call settled once; whose fault it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sollol import AsyncOllamaPool, NoNodeAvailable, ResponseError
from sollol.core.events import NodeSeen
from sollol.core.state.replica import Replica
from sollol.core.types import Status
from sollol.policies.breaker import PAUSE, THRESHOLD
from sollol.policies.lateness import HUNG_LEAST
from sollol.sim import NodeSpec, SimNode, run
from tests.pool.breaking import MODEL, Stage, staged, talker

ASKED: dict[str, Any] = {"options": {"num_predict": 5}}
HELLO = [{"role": "user", "content": "Hello"}]
FAST, SLOW = "10.0.0.1:11434", "10.0.0.2:11434"

# What is wrong with a node, and what its attempts end in.
FAULTS: dict[str, tuple[Callable[[SimNode], None], Status]] = {
    "refuses": (SimNode.die, Status.UNREACHABLE),
    "unreachable": (SimNode.black_hole, Status.UNREACHABLE),
    "500": (lambda node: node.error_rate(1.0, status=500), Status.FAILED),
    "502": (lambda node: node.error_rate(1.0, status=502), Status.FAILED),
    "429": (lambda node: node.error_rate(1.0, status=429), Status.BUSY),
    "503": (lambda node: node.error_rate(1.0, status=503), Status.BUSY),
    "cut": (lambda node: node.cut_after(0), Status.FAILED),
    "cut answer": (lambda node: node.cut_after(2), Status.FAILED),
    "late error": (lambda node: node.late_error_after(0), Status.FAILED),
    "not JSON": (lambda node: node.wrong("not-json"), Status.FAILED),
    "empty object": (lambda node: node.wrong("empty-object"), Status.FAILED),
    "frozen": (SimNode.freeze, Status.UNREACHABLE),
}


def unequal() -> list[NodeSpec]:
    """The first has the model in memory, so that it is asked first."""
    return [talker(1), talker(2, loaded=())]


def replica_of(stage: Stage, key: str) -> Replica:
    return stage.pool.engine.scheduler.view().nodes[key].replicas[f"{MODEL}:latest"]


def ask(pool: AsyncOllamaPool, **more: Any) -> Any:
    return pool.chat(MODEL, HELLO, **ASKED | more)


@pytest.mark.parametrize("fault", FAULTS)
def test_another_node_answers(fault: str) -> None:
    throw, how = FAULTS[fault]

    async def main() -> None:
        async with staged(unequal()) as stage:
            throw(stage.world[FAST])
            answer = await ask(stage.pool)
            assert answer.message.content
            assert answer.routing.node == SLOW
            assert [(tried["node"], tried["outcome"]) for tried in answer.routing.tried] in (
                [(FAST, how.value)],
                [(FAST, Status.LEFT.value)],  # a probe knew before the attempt did
                [(FAST, Status.TIMEOUT.value)],  # another copy was sooner
            )
            assert stage.pool.get_stats()["successful_requests"] == 1

    run(main())


@pytest.mark.parametrize("fault", FAULTS)
def test_many_calls_under_a_fault(fault: str) -> None:
    """None fails, each is settled once, and (but for a busy node) none goes back to where it failed."""
    throw, how = FAULTS[fault]

    async def main() -> None:
        async with staged([talker(i) for i in (1, 2, 3)]) as stage:
            calls = [asyncio.ensure_future(ask(stage.pool, priority=i % 11)) for i in range(30)]
            await asyncio.sleep(0.3)
            throw(stage.world[FAST])
            answers = await asyncio.gather(*calls)
            assert len({answer.message.content for answer in answers}) == 1
            assert all(answer.routing.attempts <= 2 for answer in answers)
            if how is Status.BUSY:
                replica = replica_of(stage, FAST)
                assert replica.breaker.closed

    run(main())


def test_a_busy_node_is_left_for_the_others_and_waited_for_if_there_is_none() -> None:
    async def main() -> None:
        async with staged(unequal()) as stage:
            stage.world[FAST].error_rate(1.0, status=503)
            stage.world[SLOW].slow(50.0)
            answer = await ask(stage.pool)
            assert [request.node for request in stage.transport.sent] == [FAST, SLOW]
            assert answer.routing.node == SLOW
        async with staged(unequal()[:1]) as stage:
            stage.world[FAST].error_rate(1.0, status=429)
            call = asyncio.ensure_future(ask(stage.pool))
            await asyncio.sleep(2.0)
            assert len(stage.transport.sent) > 2
            stage.world[FAST].heal()
            assert (await call).routing.node == FAST
        async with staged(unequal()[:1]) as stage:
            stage.world[FAST].error_rate(1.0, status=503)
            with pytest.raises(NoNodeAvailable, match=f"{FAST}: simulated fault"):
                await ask(stage.pool)

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_that_lives_and_whose_runner_hangs(stream: bool) -> None:
    """It says how it is whenever it is asked, and nothing of the answer: another node gets a copy."""

    async def said(stage: Stage) -> Any:
        answer = await ask(stage.pool, stream=stream)
        return [part async for part in answer][-1] if stream else answer

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with staged(unequal()) as stage:
            stage.world[SLOW].slow(3.0)  # so that the other one is asked first
            for key in (FAST, SLOW) * 2:
                await ask(stage.pool, node=key)
            for number in range(THRESHOLD):
                began = loop.time()
                stage.world[FAST].stall_after(0)
                answer = await said(stage)
                assert answer.routing.node == SLOW
                if number == 0:
                    assert answer.routing.reasons[0].startswith(f"another copy: {FAST} is silent")
                assert loop.time() - began < HUNG_LEAST / 1e6 + 10
                assert stage.world[FAST].counters.inflight == 0
            replica = replica_of(stage, FAST)
            assert replica.failed >= 1
            stage.world[FAST].heal()
            assert (await ask(stage.pool, node=[FAST])).routing.node == FAST
        if not stream:
            return
        async with staged(unequal()[:1]) as stage:  # without another node it is waited for
            await ask(stage.pool)
            stage.world[FAST].stall_after(0)
            call = asyncio.ensure_future(said(stage))
            await asyncio.sleep(200)
            stage.world[FAST].heal()
            assert (await call).routing.node == FAST

    run(main())


# --- whose fault -----------------------------------------------------------------------------------------------------


def test_what_two_nodes_refuse_is_the_callers_error() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            for more in (
                {"tools": [{"type": "function", "function": {"name": "x"}}]},
                {"messages": [{"role": "user", "content": "x", "images": ["aGVsbG8="]}]},
                {"options": {"num_ctx": "many"}},
            ):
                before = len(stage.transport.sent)
                with pytest.raises(ResponseError) as caught:
                    await stage.pool.chat(MODEL, **{"messages": HELLO} | more)
                assert caught.value.status_code in (400, 500)
                assert len(stage.transport.sent) == before + 2  # a second node says the same
            stats = stage.pool.get_stats()
            assert stats["failed_requests"] == 3
            for row in stats["node_performance"].values():
                assert row["failed_requests"] == 0
            assert replica_of(stage, FAST).breaker.closed

    run(main())


def test_an_error_in_the_same_words_of_all_nodes_is_the_callers() -> None:
    async def main() -> None:
        async with staged([talker(i) for i in (1, 2, 3, 4)]) as stage:
            for node in stage.world.nodes.values():
                node.error_rate(1.0)
            with pytest.raises(ResponseError, match="simulated fault") as caught:
                await ask(stage.pool)
            assert caught.value.status_code == 500
            assert len(stage.transport.sent) == 4

    run(main())


def test_when_every_node_fails_in_its_own_way_each_is_told() -> None:
    async def main() -> None:
        async with staged([talker(i) for i in (1, 2, 3)]) as stage:
            nodes = list(stage.world.nodes.values())
            nodes[0].error_rate(1.0)
            nodes[1].wrong("not-json")
            nodes[2].die()
            with pytest.raises(NoNodeAvailable) as caught:
                await ask(stage.pool)
            told = dict(caught.value.tried)
            assert "simulated fault" in told[FAST]
            assert "not in the format of Ollama" in told[SLOW]
            assert "refused" in told["10.0.0.3:11434"]

    run(main())


def test_retries_have_a_budget() -> None:
    """A cluster that fails altogether is not asked several times as often."""

    async def main() -> None:
        async with staged([talker(i) for i in range(1, 7)]) as stage:
            for node in stage.world.nodes.values():
                node.cut_after(0)
            failed = await asyncio.gather(*(ask(stage.pool) for _ in range(200)), return_exceptions=True)
            assert all(isinstance(error, NoNodeAvailable) for error in failed)
            assert len(stage.transport.sent) <= 200 + 20 + 0.2 * 200 + 6  # and the first failure of each node

    run(main())


# --- breaker and recovery --------------------------------------------------------------------------------------------


@asynccontextmanager
async def flood(stage: Stage, width: int = 3) -> AsyncIterator[list[Any]]:
    """Callers who never rest; their answers."""
    answers: list[Any] = []

    async def work() -> None:
        while True:
            answers.append(await ask(stage.pool))

    workers = [asyncio.ensure_future(work()) for _ in range(width)]
    try:
        yield answers
    finally:
        for worker in workers:
            worker.cancel()
        ends = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not what():  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.01)


def test_a_breaker_opens_lets_a_trial_through_and_closes() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            dispatcher = stage.pool.engine.dispatcher
            async with flood(stage) as answers:
                await asyncio.sleep(5)
                replica = replica_of(stage, FAST)
                stage.world[FAST].error_rate(1.0)
                await until(lambda: not replica.breaker.closed)
                opened, sent = dispatcher.now(), replica.failed
                assert sent == THRESHOLD
                await asyncio.sleep(PAUSE / 1e6 * 0.9)
                assert replica.failed == sent  # nothing goes there
                await asyncio.sleep(PAUSE / 1e6 * 3)
                assert replica.failed == sent + 1  # one trial, which made the pause longer
                stage.world[FAST].heal()
                await until(lambda: replica.breaker.closed)
                assert dispatcher.now() - opened < 10e6
                before = replica.answers
                await asyncio.sleep(3)
                assert replica.answers > before + 10
            assert answers
            assert stage.pool.get_stats()["failed_requests"] == 3  # those that were cancelled in the end

    run(main())


@pytest.mark.parametrize("fault", ["refuses", "unreachable", "frozen"])
def test_a_node_that_comes_back_is_noticed_without_traffic(fault: str) -> None:
    throw = FAULTS[fault][0]

    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            state = stage.pool.engine.scheduler.view().nodes[FAST]
            stage.world[SLOW].slow(3.0)
            async with flood(stage):
                await asyncio.sleep(2)
                throw(stage.world[FAST])
                await until(lambda: not state.up)
            sent = len(stage.transport.sent)
            await asyncio.sleep(20)
            assert state.up is False
            assert [node.state for node in stage.pool.nodes] == ["down", "up"]
            assert stage.pool.nodes[0].why
            seen: list[float] = []
            loop, back = asyncio.get_running_loop(), asyncio.get_running_loop().time()
            stage.pool.engine.journal.subscribe(
                lambda entry: (
                    seen.append(loop.time()) if isinstance(entry.event, NodeSeen) and entry.event.node == FAST else None
                )
            )
            stage.world[FAST].heal()
            await asyncio.sleep(10)
            assert state.up is True
            assert seen[0] - back < 10
            assert len(stage.transport.sent) == sent  # by asking how it is, not by a call
            assert (await ask(stage.pool, node=FAST)).routing.node == FAST

    run(main())


def test_the_pool_works_again_after_all_nodes_were_away() -> None:
    async def main() -> None:
        async with staged([talker(1), talker(2)]) as stage:
            await ask(stage.pool)
            for node in stage.world.nodes.values():
                node.die()
            with pytest.raises(NoNodeAvailable, match="refused"):
                await ask(stage.pool)
            for node in stage.world.nodes.values():
                node.revive()
            assert (await ask(stage.pool)).message.content  # without waiting for a probe

    run(main())
