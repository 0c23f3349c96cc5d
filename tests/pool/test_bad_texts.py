"""Batches in which some texts always fail, or lists of some length do: exactly the bad ones are lost, and cheaply."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sollol.core.endpoint import Endpoint
from sollol.errors import BatchError, ResponseError
from sollol.observe.journal import Digest
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import World, run
from sollol.sim.reply import JSON, SimReply
from sollol.transport.base import Call, Fault, TransportFault
from tests.pool.universe import EMBED, node, texts

Judge = Callable[[str, list[str]], "str | None"]  # (node, texts) -> why this node fails them


class Poisoned:
    """The transport of a world whose nodes fail some lists: with a 500, or by a runner that dies."""

    def __init__(self, world: World, judge: Judge, how: str = "500", late_s: float = 0.0, quick: bool = False) -> None:
        self._inner = world.transport()
        self._quick = quick  # failures come at once, not when an answer would
        self._late_s = late_s  # that a failure takes beyond what an answer would
        self._judge = judge
        self._how = how
        self.lists: list[int] = []  # items of each request

    async def send(self, target: Endpoint, call: Call) -> Any:
        if call.path != "/api/embed":
            return await self._inner.send(target, call)
        given_texts = msgspec.json.decode(call.body)["input"]  # type: ignore[arg-type]
        self.lists.append(len(given_texts))
        why = self._judge(target.key, given_texts)
        reply = None if why and self._quick else await self._inner.send(target, call)
        if why is None:
            return reply
        await asyncio.sleep(0.002 if self._quick else self._late_s)
        if self._how == "cut":
            raise TransportFault(Fault.CUT, f"{target.key} closed the connection before it answered")
        return SimReply.of(int(self._how), msgspec.json.encode({"error": why}), JSON)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Ran:
    def __init__(self, result: Any, transport: Poisoned, pauses: int, seconds: float) -> None:
        self.result, self.transport, self.pauses, self.seconds = result, transport, pauses, seconds


def batch(
    count: int,
    nodes: int,
    judge: Judge,
    how: str = "500",
    source: Callable[[list[str]], Any] = list,
    seed: int = 1,
    late_s: float = 0.0,
    quick: bool = False,
) -> Ran:
    """One batch, checked after every event; how many breakers were seen open."""

    async def main() -> Ran:
        world = World([node(i, 100) for i in range(1, nodes + 1)])
        transport = Poisoned(world, judge, how, late_s, quick)
        async with AsyncOllamaPool(world.endpoints, transport=transport, seed=seed) as pool:
            engine, digest = pool.engine, Digest()
            opened: set[str] = set()

            def check(entry: Any) -> None:
                engine.scheduler.invariants()
                for state in engine.scheduler.view().nodes.values():
                    opened.update(replica.key for replica in state.replicas.values() if not replica.breaker.closed)

            engine.journal.subscribe(digest)
            engine.journal.subscribe(check)
            result = await pool.embed_batch(EMBED, source(texts(count)), on_error="return")
            return Ran(result, transport, len(opened), result.report.seconds)

    return run(main())


def number_of(text: str) -> int:
    return int(text.split()[2])


def failing(bad: set[int]) -> Judge:
    def judge(key: str, given_texts: list[str]) -> str | None:
        found = [number_of(text) for text in given_texts if number_of(text) in bad]
        return f"failed to encode response: json: unsupported value: NaN {found[0]}" if found else None

    return judge


def usual_requests(count: int, nodes: int) -> int:
    return len(batch(count, nodes, lambda key, given_texts: None).transport.lists)


def usual_seconds(count: int, nodes: int) -> float:
    return batch(count, nodes, lambda key, given_texts: None).seconds


FEW = 16


def check_cost(ran: Ran, count: int, nodes: int, bad: int, confirmed: int = 1) -> None:
    """A halving costs a request; besides, so many for each bad text: it has to fail often enough to be sure."""
    chunk = max(ran.transport.lists)
    extra = len(ran.transport.lists) - usual_requests(count, nodes)
    assert extra <= bad * (math.ceil(math.log2(max(2, chunk))) + confirmed) + FEW


@pytest.mark.parametrize("how", ["500", "400", "cut"])
@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_one_text_that_always_fails_is_the_only_one_lost(nodes: int, how: str) -> None:
    ran = batch(1000, nodes, failing({2}), how)
    assert set(ran.result.errors) == {2}
    if how != "cut":
        error = ran.result.errors[2]
        assert isinstance(error, ResponseError)
        assert error.status_code == int(how)
        assert error.error.endswith("NaN 2")
    assert ran.pauses == 0
    check_cost(ran, 1000, nodes, 1)


@pytest.mark.parametrize("late_s", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("bad", [0, 77, 599])
@pytest.mark.parametrize("nodes", [2, 3, 6])
def test_a_text_whose_failure_takes_longer_than_an_answer_ends(nodes: int, bad: int, late_s: float) -> None:
    """Idle nodes do not take it over from each other for ever."""
    ran = batch(600, nodes, failing({bad}), late_s=late_s)
    assert set(ran.result.errors) == {bad}
    assert ran.pauses == 0
    assert ran.seconds <= usual_seconds(600, nodes) + 16 * (late_s + 0.1)
    if late_s < 1:  # later, idle nodes are right to help a node that may be frozen
        check_cost(ran, 600, nodes, 1)


@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_one_per_cent_of_bad_texts_are_the_only_ones_lost(nodes: int) -> None:
    bad = set(random.Random(nodes).sample(range(2000), 20))
    ran = batch(2000, nodes, failing(bad))
    assert set(ran.result.errors) == bad
    assert {int(error.error.split()[-1]) for error in ran.result.errors.values()} == bad  # each with its own words
    assert all(int(error.error.split()[-1]) == item for item, error in ran.result.errors.items())
    assert ran.pauses == 0
    check_cost(ran, 2000, nodes, len(bad))


@pytest.mark.parametrize("bad", [range(0, 40), range(300, 340), range(460, 500), range(0, 500, 2)])
@pytest.mark.parametrize("nodes", [1, 3])
def test_bad_texts_in_a_row(nodes: int, bad: range) -> None:
    ran = batch(500, nodes, failing(set(bad)))
    assert set(ran.result.errors) == set(bad)
    assert ran.pauses == 0
    check_cost(ran, 500, nodes, len(bad), confirmed=3)


@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_a_runner_that_dies_on_lists_longer_than_eight(nodes: int) -> None:
    def judge(key: str, given_texts: list[str]) -> str | None:
        return "llama runner process has terminated: exit status 2" if len(given_texts) > 8 else None

    ran = batch(1000, nodes, judge)
    assert not ran.result.errors
    assert ran.pauses == 0
    assert sum(size > 8 for size in ran.transport.lists) <= 10 * nodes
    assert len(ran.transport.lists) <= 1000 / 8 + 40 * nodes


def test_a_length_that_one_node_cannot_take_is_learned_for_that_node() -> None:
    def judge(key: str, given_texts: list[str]) -> str | None:
        return "EOF" if key == "10.0.0.2:11434" and len(given_texts) > 8 else None

    ran = batch(1000, 2, judge)
    assert not ran.result.errors
    assert ran.pauses == 0
    assert all(share.items > 300 for share in ran.result.report.nodes.values())


def test_a_node_that_fails_everything_is_the_nodes_fault() -> None:
    ran = batch(1000, 3, lambda key, given_texts: "out of memory" if key == "10.0.0.3:11434" else None)
    assert not ran.result.errors
    assert ran.pauses == 1
    assert ran.result.report.nodes["10.0.0.3:11434"].requests <= 20
    assert ran.seconds <= 1.1 * 1000 / 200


def test_the_only_node_fails_for_a_while() -> None:
    """Items are not taken for bad because their node is."""
    turn = 0

    def judge(key: str, given_texts: list[str]) -> str | None:
        nonlocal turn
        turn += 1
        return "out of memory" if 20 <= turn < 45 else None

    ran = batch(1000, 1, judge)
    assert not ran.result.errors
    assert ran.pauses == 1


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_most_texts_are_bad(nodes: int) -> None:
    bad = set(random.Random(nodes).sample(range(300), 250))
    assert set(batch(300, nodes, failing(bad)).result.errors) == bad
    bad = set(range(19))
    assert set(batch(20, nodes, failing(bad)).result.errors) == bad


def test_a_runner_that_dies_on_long_lists_and_on_texts() -> None:
    bad = set(random.Random(3).sample(range(1000), 10))
    always = failing(bad)
    ran = batch(1000, 2, lambda key, texts: always(key, texts) or ("EOF" if len(texts) > 8 else None), "cut")
    assert set(ran.result.errors) == bad
    assert ran.pauses == 0


def test_bad_texts_of_an_iterator() -> None:
    bad = {0, 7, 900, 2500}
    ran = batch(3000, 2, failing(bad), source=iter)
    assert set(ran.result.errors) == bad
    assert ran.pauses == 0


def test_a_single_text_that_is_bad() -> None:
    async def main() -> None:
        world = World([node(1, 100)])
        transport = Poisoned(world, failing({0}))
        async with AsyncOllamaPool(world.endpoints, transport=transport, seed=1) as pool:
            with pytest.raises((BatchError, RuntimeError, ResponseError), match="NaN 0"):
                await pool.embed_batch(EMBED, texts(1))
            assert len(transport.lists) <= 24

    run(main())


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.integers(1, 400),
    st.sets(st.integers(0, 399), max_size=30),
    st.sampled_from([0.0, 0.0, 0.1, 0.3]),
    st.integers(0, 100),
)
def test_exactly_the_bad_ones_fail(nodes: int, count: int, bad: set[int], share: float, seed: int) -> None:
    """Whatever the place of the bad texts, also where nodes fail at random."""
    dice = random.Random(seed)
    bad = {item for item in bad if item < count}
    if len(bad) > 0.7 * count:
        bad = set()
    always = failing(bad)

    def judge(key: str, given_texts: list[str]) -> str | None:
        return always(key, given_texts) or ("at random" if dice.random() < share else None)

    ran = batch(count, nodes, judge, seed=seed)
    assert set(ran.result.errors) == bad


def test_a_bad_text_that_two_nodes_try_at_once() -> None:
    """The last item is taken over by the idle node, and fails on both."""
    for how in ("400", "500"):
        ran = batch(21, 2, failing({20}), how)
        assert set(ran.result.errors) == {20}
        assert len(ran.transport.lists) <= 24


@pytest.mark.parametrize(("nodes", "how"), [(2, "500"), (3, "500"), (6, "500"), (8, "500"), (2, "400"), (2, "422")])
def test_one_well_node_among_many_that_fail_everything_does_the_batch(nodes: int, how: str) -> None:
    """The others fail far sooner than it answers; nothing is lost as long as it was not asked."""
    ran = batch(
        60, nodes, lambda key, given_texts: None if key == "10.0.0.2:11434" else "out of memory", how, quick=True
    )
    assert not ran.result.errors
    assert ran.result.report.nodes["10.0.0.2:11434"].items == 60


def test_texts_without_a_utf8_form_fail_alone_and_nobody_is_blamed() -> None:
    given = [f"text {number}" for number in range(500)]
    given[7] = given[8] = given[499] = "a\ud800b"

    async def main() -> tuple[Any, list[tuple[int, Any]], list[int]]:
        world = World([node(1, 100), node(2, 100)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            result = await pool.embed_batch(EMBED, given, on_error="return")
            pairs = [pair async for pair in pool.embed_stream(EMBED, iter(given), on_error="return")]
            return result, pairs, [state.failed for state in pool.engine.scheduler.view().nodes.values()]

    result, pairs, failed = run(main())
    assert sorted(result.errors) == [7, 8, 499]
    assert "lone surrogate (U+D800)" in str(result.errors[7])
    assert sum(item is not None for item in result) == 497
    assert sorted(index for index, found in pairs if isinstance(found, Exception)) == [7, 8, 499]
    assert len(pairs) == 500
    assert failed == [0, 0]
