"""The synchronous pool on real sockets, with simulated nodes as servers and as processes that are killed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sollol import AsyncOllamaPool, BadInput, BatchError, DeadlineExceeded, NoNodeAvailable, OllamaPool
from sollol.core.types import Decision, Task
from sollol.pool import thread as pool_thread
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster, spawn_many
from tests.pool.universe import CHAT, EMBED, MODELS, texts

HELLO = [{"role": "user", "content": "Hello, who is there?"}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(models=MODELS, seed=i) for i in range(2)]) as running:
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster)) as pool:
        yield pool


def test_chat_reads_both_ways_and_tells_its_routing(pool: OllamaPool, cluster: Cluster) -> None:
    answer = pool.chat(CHAT, HELLO)
    assert answer["message"]["content"] == answer.message.content != ""
    assert answer.done_reason == "stop"
    assert f"http://{answer.routing.node}" in list(cluster)
    assert answer["_sollol_routing"]["actual_ms"] > 0
    assert answer.routing.attempts == 1


def test_streams_say_the_same_as_the_whole_answer(pool: OllamaPool) -> None:
    whole = pool.chat(CHAT, HELLO, options={"seed": 7})
    parts = list(pool.chat(CHAT, HELLO, stream=True, options={"seed": 7}))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].done
    assert pool.generate(CHAT, "Say something").response
    assert "".join(part.response for part in pool.generate(CHAT, "Say it", stream=True))


class Faulty:
    """Somebody's own hedging policy, with a fault."""

    def deposit(self, task: Task) -> None:
        raise ZeroDivisionError("of the policy")

    def learn(self, task: Task, decision: Decision, elapsed_us: int) -> None: ...
    def after(self, task: Task, decision: Decision) -> int | None:
        return None

    def withdraw(self) -> bool:
        return False


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_callers_own_policy_is_told_to_him(pool: OllamaPool, stream: bool) -> None:
    with pytest.raises(ZeroDivisionError, match="of the policy"):
        list(pool.chat(CHAT, HELLO, stream=stream, hedge=Faulty()))
    assert pool.snapshot()["waiting"] == pool.snapshot()["running"] == []
    assert pool.chat(CHAT, HELLO).done


def test_embed_batch_and_stream_agree_with_embed(pool: OllamaPool) -> None:
    inputs = texts(300)
    result = pool.embed_batch(EMBED, inputs)
    assert result.vectors.shape == (300, 64)
    direct = pool.embed(EMBED, inputs[:3])
    assert np.allclose(result.vectors[:3], direct.embeddings, atol=1e-6)
    streamed = dict(pool.embed_stream(EMBED, iter(inputs)))
    assert len(streamed) == 300
    assert streamed[42].tolist() == result.vectors[42].tolist()
    row = result[42]
    assert row is not None
    assert row.get("embeddings") == row.embeddings
    assert result.report.items == 300
    assert result.report.efficiency > 0


def test_an_iterable_is_read_in_the_callers_thread(pool: OllamaPool) -> None:
    threads = set()

    def source() -> Iterator[str]:
        for text in texts(500):
            threads.add(threading.get_ident())
            yield text

    assert len(pool.embed_batch(EMBED, source())) == 500
    assert threads == {threading.get_ident()}


def test_model_verbs(pool: OllamaPool, cluster: Cluster) -> None:
    names = {row.model for row in pool.list().models}
    assert names == {f"{EMBED}:latest", f"{CHAT}:latest"}
    assert len(pool.list().models[0].nodes) == 2
    assert pool.show(EMBED).details.family
    assert pool.version().version
    pool.chat(CHAT, HELLO)
    assert {row.model for row in pool.ps().models} >= {f"{CHAT}:latest"}
    assert pool.copy(CHAT, "other").status == "success"
    assert pool.delete("other").status == "success"
    with pytest.raises(Exception, match="not found on any node"):
        pool.delete("other")
    assert pool.embeddings(EMBED, "a text").embedding


def test_errors_name_the_field_the_value_and_what_was_expected(pool: OllamaPool) -> None:
    anything: Any = pool  # its arguments are wrong
    for call, words in (
        (lambda: pool.chat("", HELLO), "expected the name of a model"),
        (lambda: anything.chat(CHAT, "hello"), "expected a list"),
        (lambda: pool.chat(CHAT, HELLO, priority=-1), "from 0"),
        (lambda: pool.chat(CHAT, HELLO, timeout=0), "above 0"),
        (lambda: anything.chat(CHAT, HELLO, fromat="json"), "did you mean 'format'"),
        (lambda: anything.embed_batch(EMBED, ["a", 7]), r"inputs\[1\] is 7 \(int\)"),
        (lambda: pool.embed_batch(EMBED, ["a"], on_error="ignore"), "'raise' or 'return'"),
        (lambda: list(anything.embed_stream(EMBED, iter(["a", None]))), r"inputs\[1\] is None"),
        (lambda: OllamaPool(["not a host!"]), "is not an address"),
    ):
        with pytest.raises(BadInput, match=words):
            call()
    assert pool.get_stats()["running"] == 0


def test_no_nodes_says_how_to_add_one() -> None:
    with OllamaPool() as pool:
        with pytest.raises(NoNodeAvailable, match="add_node"):
            pool.chat(CHAT, HELLO)
        assert isinstance(NoNodeAvailable("x"), RuntimeError)


def test_old_keywords_warn_once() -> None:
    with pytest.warns(UserWarning, match="enable_ray"):
        OllamaPool(enable_ray=True)
    OllamaPool(enable_ray=True)


def test_coroutines_of_the_synchronous_pool(pool: OllamaPool) -> None:
    async def main() -> None:
        answer = await pool.chat_async(CHAT, HELLO)
        assert answer.message.content
        parts = [part async for part in await pool.chat_async(CHAT, HELLO, stream=True)]
        assert parts[-1].done
        assert (await pool.embed_async(EMBED, "x")).embeddings

    asyncio.run(main())


def test_asynchronous_pool(cluster: Cluster) -> None:
    async def main() -> None:
        async with AsyncOllamaPool(list(cluster)) as pool:
            answers = await asyncio.gather(*(pool.chat(CHAT, HELLO) for _ in range(8)))
            assert len({answer.message.content for answer in answers}) == 1
            result = await pool.embed_batch(EMBED, texts(50))
            assert len(result) == 50

            async def source() -> object:
                for text in texts(50):
                    yield text

            assert len([row async for row in pool.embed_stream(EMBED, source())]) == 50  # type: ignore[arg-type]

    asyncio.run(main())


def test_threads_share_a_pool(pool: OllamaPool) -> None:
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(pool.chat(CHAT, HELLO).message.content)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert pool.get_stats()["successful_requests"] >= 16


def test_threads_may_make_the_first_calls_together(pool: OllamaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(AsyncOllamaPool):
        def __init__(self) -> None:
            time.sleep(0.05)  # as on a busy machine: the other threads come in the middle of the start
            super().__init__()

    monkeypatch.setattr(pool_thread, "AsyncOllamaPool", Slow)
    done: list[int] = []

    def first(after_s: float) -> None:
        time.sleep(after_s)
        done.append(len(pool.embed_batch(EMBED, texts(5))))

    threads = [threading.Thread(target=first, args=(0.005 * number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [5] * 20


def test_stats_have_the_known_names(pool: OllamaPool) -> None:
    pool.chat(CHAT, HELLO)
    stats = pool.get_stats()
    assert stats["total_requests"] == stats["successful_requests"] == 1
    assert stats["failed_requests"] == 0
    for row in stats["node_performance"].values():
        assert {"host", "latency_ms", "success_rate", "total_requests", "failed_requests", "available"} <= set(row)
        assert {"active_requests", "batch_throughput", "loaded_models"} <= set(row)


def test_nodes_read_both_ways(pool: OllamaPool, cluster: Cluster) -> None:
    pool.wait_ready()
    node = pool.nodes[0]
    assert node["host"] == node.host == "127.0.0.1"
    assert isinstance(node["port"], int)
    assert node.is_healthy
    assert node.models == [f"{CHAT}:latest", f"{EMBED}:latest"]
    assert pool.count_unique_physical_hosts() == 1
    assert not pool.should_use_parallel_execution(num_tasks=4)  # one machine
    assert not pool.should_use_parallel_execution(num_tasks=1)
    assert pool.remove_node(node.host, node.port)
    assert pool.add_node(node.url)
    assert not pool.add_node(node.host, node.port)


def test_a_deadline_counts_the_waiting() -> None:
    slow = NodeSpec(models=MODELS, decode_tokens_per_s=0.001)
    with (
        sim_cluster([slow]) as nodes,
        OllamaPool(list(nodes)) as pool,
        pytest.raises(DeadlineExceeded, match="no answer in"),
    ):
        pool.chat(CHAT, HELLO, timeout=0.4)


def test_close_ends_the_thread(cluster: Cluster) -> None:
    pool = OllamaPool(list(cluster))
    pool.chat(CHAT, HELLO)
    before = threading.active_count()
    pool.close()
    pool.stop()
    assert threading.active_count() < before
    with pytest.raises(Exception, match="closed"):
        pool.chat(CHAT, HELLO)


def test_a_killed_process_loses_nothing() -> None:
    models = (ModelSpec(EMBED, "embed"),)
    nodes = spawn_many([NodeSpec(models=models, embed_items_per_s=rate, loaded=(EMBED,)) for rate in (400.0, 200.0)])
    try:
        with OllamaPool([node.url for node in nodes]) as pool:
            threading.Timer(0.5, nodes[0].kill).start()
            inputs = texts(500)
            result = pool.embed_batch(EMBED, inputs)
            assert len(result) == 500
            assert not result.errors
            sample = pool.embed(EMBED, inputs[::50]).embeddings
            assert np.allclose(result.vectors[::50], sample, atol=1e-6)
    finally:
        for node in nodes:
            node.kill()


def test_a_failed_item_stands_as_none(pool: OllamaPool) -> None:
    inputs = [*texts(20), "word " * 20_000]
    result = pool.embed_batch(EMBED, inputs, truncate=False, on_error="return")
    assert result[20] is None
    with pytest.raises(BatchError, match="1 of 21 items failed"):
        pool.embed_batch(EMBED, inputs, truncate=False)
