"""Racing anything, and the pool's own hedging behind the old name."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sollol import AsyncOllamaPool, BadInput, DeadlineExceeded, NoNodeAvailable, OllamaPool
from sollol.hedging import AdaptiveHedging, HedgingStrategy
from sollol.policies.hedging import SAMPLES_LEAST
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

CHAT = "llama3.2"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]


def sleeper(node: str, seconds: dict[str, float]) -> str:
    time.sleep(seconds[node])
    return f"from {node}"


async def async_sleeper(node: str, seconds: dict[str, float]) -> str:
    await asyncio.sleep(seconds[node])
    return f"from {node}"


@pytest.mark.parametrize("function", [sleeper, async_sleeper])
def test_the_first_answer_counts(function: Any) -> None:
    race = HedgingStrategy(2, hedge_delay_ms=0)
    result = race.hedge_request(
        nodes=["a", "b", "c"], request_fn=function, request_args={"seconds": {"a": 2, "b": 0.02}}
    )
    assert (result.winner_node, result.response) == ("b", "from b")
    assert (result.num_requests_sent, result.num_responses_received, result.cancelled_nodes) == (2, 1, ["a"])
    assert result.latency_ms > 15


def test_a_loser_is_cancelled() -> None:
    ended: list[str] = []

    async def request(node: str) -> str:
        try:
            await asyncio.sleep(5 if node == "slow" else 0.01)
        except asyncio.CancelledError:
            ended.append(node)
            raise
        return node

    HedgingStrategy(2, hedge_delay_ms=0).hedge_request(["slow", "quick"], request)
    assert ended == ["slow"]


def test_a_loser_in_a_thread_is_told() -> None:
    told = threading.Event()

    def request(node: str, cancelled: threading.Event) -> str:
        if node == "slow":
            assert cancelled.wait(5)
            told.set()
        return node

    assert HedgingStrategy(2, hedge_delay_ms=0).hedge_request(["slow", "quick"], request).response == "quick"
    assert told.wait(5)


def test_a_failure_goes_to_the_next_node_at_once() -> None:
    asked: list[str] = []

    def request(node: str) -> str:
        asked.append(node)
        if node != "good":
            raise ConnectionError(f"{node} is away")
        return node

    result = HedgingStrategy(1, hedge_delay_ms=10_000).hedge_request(["bad", "worse", "good"], request)
    assert asked == ["bad", "worse", "good"]
    assert result.tried == [("bad", "ConnectionError: bad is away"), ("worse", "ConnectionError: worse is away")]


def test_when_all_fail_each_is_named() -> None:
    def request(node: str) -> None:
        raise StopIteration if node == "b" else ValueError(f"{node} will not")

    with pytest.raises(NoNodeAvailable, match="all 2 nodes failed") as caught:
        HedgingStrategy().hedge_request(["a", "b"], request)
    assert caught.value.tried == (("a", "ValueError: a will not"), ("b", "RuntimeError: StopIteration: "))


def test_a_bound_on_time() -> None:
    with pytest.raises(DeadlineExceeded, match="no answer in"):
        HedgingStrategy().hedge_request(["a"], async_sleeper, {"seconds": {"a": 1e6}}, timeout_ms=50)


def test_the_delay_is_learned_and_the_budget_kept() -> None:
    strategy = HedgingStrategy(2)
    times = {"a": 0.002, "b": 0.002}
    for _ in range(SAMPLES_LEAST + 1):
        strategy.hedge_request(["a", "b"], async_sleeper, {"seconds": times})
    at_first = strategy.get_stats()["total_wasted_requests"]
    assert at_first <= 3  # while nothing is known: the reserve
    assert 2 < strategy.get_stats()["hedge_delay_ms"] < 50
    straggler = {"a": 0.5, "b": 0.002}
    latencies = [
        strategy.hedge_request(["a", "b"], async_sleeper, {"seconds": straggler if i % 25 == 24 else times}).latency_ms
        for i in range(100)
    ]
    assert max(latencies[24::25]) < 400  # each had a second copy
    stats = strategy.get_stats()
    assert stats["total_requests"] == SAMPLES_LEAST + 101
    assert stats["total_wasted_requests"] <= 2 + 0.05 * stats["total_requests"]


def test_a_node_that_is_always_slow_is_no_straggler() -> None:
    strategy = HedgingStrategy(2)
    slow = {"a": 0.03, "b": 0.03}
    for _ in range(60):
        strategy.hedge_request(["a", "b"], async_sleeper, {"seconds": slow})
    assert strategy.get_stats()["total_wasted_requests"] <= 5


def test_racing_on_a_running_loop() -> None:
    async def main() -> None:
        race = HedgingStrategy(2, hedge_delay_ms=0)
        result = await race.hedge_request_async(["a", "b"], sleeper, {"seconds": {"a": 1, "b": 0.01}})
        assert result.winner_node == "b"
        blocked = race.hedge_request(["a"], async_sleeper, {"seconds": {"a": 0.01}})  # blocks this loop, and works
        assert blocked.winner_node == "a"
        task = asyncio.create_task(race.hedge_request_async(["a"], async_sleeper, {"seconds": {"a": 5}}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_many_threads_share_a_strategy() -> None:
    strategy = HedgingStrategy(2)
    threads = [
        threading.Thread(target=strategy.hedge_request, args=(["a", "b"], async_sleeper, {"seconds": {"a": 0, "b": 0}}))
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert strategy.get_stats()["total_requests"] == 50


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HedgingStrategy(0), "num_hedges=0; expected"),
        (lambda: HedgingStrategy(True), "num_hedges=True"),
        (lambda: HedgingStrategy(2, hedge_delay_ms=-1), "hedge_delay_ms=-1; expected a number of at least 0"),
        (lambda: HedgingStrategy(budget=2), "budget=2; expected a number from 0 to 1"),
        (lambda: HedgingStrategy(hedge_delay=5), "unknown keyword 'hedge_delay'"),
        (lambda: HedgingStrategy().hedge_request([], sleeper), r"nodes=\[\]"),
        (lambda: HedgingStrategy().hedge_request("http://a", sleeper), "expected a list"),
        (lambda: cast("Any", HedgingStrategy()).hedge_request(["a"], 7), "request_fn=7"),
        (lambda: cast("Any", HedgingStrategy()).hedge_request(["a"], sleeper, ["b"]), "request_args="),
        (lambda: HedgingStrategy().hedge_request(["a"], sleeper, timeout_ms=0), "timeout_ms=0"),
        (lambda: AdaptiveHedging(0), "num_hedges=0"),
        (lambda: AdaptiveHedging().request_with_hedging(pool=7, model="m", messages=[]), "pool=7; expected"),
        (lambda: AdaptiveHedging().request_with_hedging(OllamaPool(), "m"), "either messages or a prompt"),
    ],
)
def test_what_cannot_be_used_is_told(call: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call()


def test_old_keywords_warn_once() -> None:
    with pytest.warns(UserWarning, match="enable_cancellation"):
        HedgingStrategy(enable_cancellation=True)
    HedgingStrategy(enable_cancellation=True)


# --- the pool's hedging ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(models=(ModelSpec(CHAT),), seed=i) for i in range(2)]) as running:
        yield running


class Listening:
    """A pool that only notes what it was asked."""

    def chat(self, model: str, messages: Any, **more: Any) -> dict[str, Any]:
        return {"model": model, "messages": messages, **more}

    def generate(self, model: str, prompt: str, **more: Any) -> dict[str, Any]:
        return {"model": model, "prompt": prompt, **more}


def test_what_the_pool_is_asked() -> None:
    pool = Listening()
    asked = AdaptiveHedging(num_hedges=2).request_with_hedging(pool=pool, model="m", messages=HELLO, priority=8)
    assert asked == {"model": "m", "messages": HELLO, "hedge": True, "priority": 8}
    assert AdaptiveHedging(1).request_with_hedging(pool, "m", HELLO)["hedge"] is False
    assert AdaptiveHedging().request_with_hedging(pool, "m", prompt="p") == {"model": "m", "prompt": "p", "hedge": True}
    hedger = AdaptiveHedging(HedgingStrategy(2, hedge_delay_ms=50)).request_with_hedging(pool, "m", HELLO)["hedge"]
    assert hedger.after(None, None) == 50_000
    assert AdaptiveHedging(base_strategy=HedgingStrategy(1)).num_hedges == 1
    with pytest.warns(UserWarning, match="at most two copies"):
        assert AdaptiveHedging(5).request_with_hedging(pool, "m", HELLO)["hedge"] is True


def test_a_late_call_gets_a_second_copy(cluster: Cluster) -> None:
    hedging = AdaptiveHedging(HedgingStrategy(2, hedge_delay_ms=60))
    with OllamaPool(list(cluster)) as pool:
        pool.wait_ready()
        first = hedging.request_with_hedging(pool=pool, model=CHAT, messages=HELLO)
        other = next(node for node in pool.nodes if node.key != first.routing.node)
        cluster.do(lambda nodes: [node.slow(1) for node in nodes])
        try:
            cluster.do(lambda nodes: [n.freeze() for n, url in zip(nodes, cluster, strict=True) if url != other.url])
            answers = [hedging.request_with_hedging(pool=pool, model=CHAT, messages=HELLO) for _ in range(3)]
            assert {answer.routing.node for answer in answers} == {other.key}
        finally:
            cluster.do(lambda nodes: [node.heal() for node in nodes])


def test_with_an_asynchronous_pool(cluster: Cluster) -> None:
    async def main() -> None:
        async with AsyncOllamaPool(list(cluster)) as pool:
            answer = await AdaptiveHedging().request_with_hedging(pool=pool, model=CHAT, messages=HELLO)
            assert answer.message.content

    asyncio.run(main())
