"""Pools that are used, and then forked, pickled, or used by another event loop. Real nodes as processes, real forks."""

from __future__ import annotations

import asyncio
import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BatchError, NoNodeAvailable, OllamaPool, ResponseError, RoutingMode, SollolError
from sollol.errors import QueueFull, StreamBroken
from sollol.gpu_controller import SOLLOLGPUController
from sollol.sim import NodeSpec, spawn_many
from sollol.transport.http import HttpTransport
from tests.pool.universe import CHAT, EMBED, MODELS, texts

HELLO = [{"role": "user", "content": "Hello, who is there?"}]
CHILD_S = 30  # a child that takes longer hangs


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    nodes = spawn_many([NodeSpec(models=MODELS, seed=i) for i in range(2)])
    try:
        yield [node.url for node in nodes]
    finally:
        for node in nodes:
            node.kill()


def forked(work: Callable[[], object]) -> str:
    """Return what `work` returns in the child of a fork, as text, or how the child ended."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, of a fork beside threads
        child = os.fork()
    if not child:
        signal.alarm(CHILD_S)
        try:
            told = str(work())
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return told if not status else f"status {status}"


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
def test_a_used_pool_works_in_the_child_of_a_fork_and_in_its_parent(urls: list[str]) -> None:
    with OllamaPool(urls, routing_mode="reliable") as pool:
        pool.chat(CHAT, HELLO)

        def child() -> object:
            several = [pool.chat(CHAT, HELLO).message.content for _ in range(3)]
            streamed = "".join(part.message.content for part in pool.chat(CHAT, HELLO, stream=True))
            vectors = len(pool.embed_batch(EMBED, texts(100)))
            answered = pool.stats["total_requests"]
            pool.close()
            return f"{all(several)} {bool(streamed)} {vectors} {answered} {pool.routing_mode}"

        assert forked(child) == "True True 100 5 reliable"
        assert pool.chat(CHAT, HELLO).message.content
        assert pool.stats["total_requests"] == 2


@fork
def test_a_child_of_a_child_works(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        pool.chat(CHAT, HELLO)

        def child() -> object:
            pool.chat(CHAT, HELLO)
            return forked(lambda: bool(pool.chat(CHAT, HELLO).message.content))

        assert forked(child) == "True"


@fork
def test_the_timeout_of_a_call_holds_in_the_child() -> None:
    with OllamaPool(["127.0.0.1:9"]) as pool:
        with pytest.raises(NoNodeAvailable):
            pool.chat(CHAT, HELLO, timeout=5)
        assert forked(lambda: pool.chat(CHAT, HELLO, timeout=5)).startswith("NoNodeAvailable")


@fork
def test_what_is_open_in_the_parent_goes_on_while_children_work(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        stream = pool.chat(CHAT, HELLO, stream=True, options={"num_predict": 200})
        first = next(stream)
        batch = pool.embed_stream(EMBED, iter(texts(3000)))
        seen = [next(batch)[0]]

        def child() -> object:
            answer = pool.chat(CHAT, HELLO).message.content
            gc.collect()
            pool.close()
            return bool(answer)

        assert [forked(child) for _ in range(3)] == ["True"] * 3
        seen += [index for index, _ in batch]
        assert sorted(seen) == list(range(3000))
        parts = [first, *stream]
        assert parts[-1].done
        assert parts[-1].routing.attempts == 1
        assert pool.stats["failed_requests"] == 0


@fork
def test_an_answer_of_the_parent_is_not_waited_for_in_the_child(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        stream = pool.chat(CHAT, HELLO, stream=True, options={"num_predict": 200})
        next(stream)
        assert "in the process that made the call" in forked(lambda: list(stream))
        begun_later = pool.chat(CHAT, HELLO, stream=True)
        assert forked(lambda: bool(list(begun_later))) == "True"
        assert list(stream)[-1].done


@fork
def test_a_fork_while_other_threads_call(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        over = threading.Event()
        failures: list[Exception] = []

        def call() -> None:
            while not over.is_set():
                try:
                    pool.embed(EMBED, "a text")
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            children = [forked(lambda: len(pool.embed(EMBED, "a text").embeddings)) for _ in range(5)]
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert children == ["1"] * 5
        assert not failures


def _embed_one(pool: OllamaPool) -> int:
    return len(pool.embed(EMBED, "a text").embeddings)


def _embed_in_worker(text: str) -> int:
    assert _shared is not None
    return len(_shared.embed(EMBED, text).embeddings)


_shared: OllamaPool | None = None


@fork
def test_multiprocessing_by_fork_inherits_the_pool(urls: list[str]) -> None:
    global _shared
    with OllamaPool(urls) as _shared:
        _shared.embed(EMBED, "before")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with multiprocessing.get_context("fork").Pool(2) as workers:
                assert workers.map_async(_embed_in_worker, texts(6)).get(CHILD_S) == [1] * 6


def test_multiprocessing_by_spawn_gets_the_pool_as_its_settings(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        pool.embed(EMBED, "before")
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            assert workers.apply_async(_embed_one, (pool,)).get(CHILD_S) == 1


def test_a_worker_that_ends_as_programs_do_says_nothing(urls: list[str]) -> None:
    program = f"""
import os, sys
from sollol import OllamaPool
pool = OllamaPool({urls!r})
pool.chat({CHAT!r}, {HELLO!r})
child = os.fork()
print(bool(pool.chat({CHAT!r}, {HELLO!r}).message.content), flush=True)
if not child:
    sys.exit(0)
print(os.waitpid(child, 0)[1])
"""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    # From 3.12 on Python warns of every fork beside a thread.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S, check=False)
    assert sorted(ran.stdout.split()) == ["0", "True", "True"]
    assert ran.stderr == ""


@pytest.mark.parametrize("make", [OllamaPool, AsyncOllamaPool])
@pytest.mark.parametrize("again", [lambda pool: pickle.loads(pickle.dumps(pool)), copy.copy, copy.deepcopy])
def test_a_pool_is_pickled_and_copied_as_its_settings(make: Any, again: Callable[[Any], Any]) -> None:
    pool = make(
        ["http://ann:secret@10.0.0.5:11434/team", "10.0.0.6"],
        routing_mode="fast",
        routing_strategy="least_loaded",
        app_name="indexer",
        timeout=7.5,
        seed=3,
    )
    pool.add_node("10.0.0.7")
    other = again(pool)
    assert type(other) is make
    assert [node.endpoint for node in other.nodes] == [node.endpoint for node in pool.nodes]
    assert (other.routing_mode, other.routing_strategy) == (RoutingMode.FAST, pool.routing_strategy)
    assert (other.app_name, other.timeout) == ("indexer", 7.5)
    other.add_node("10.0.0.8")
    assert len(pool.nodes) == 3


def test_a_pool_with_a_transport_of_its_own_says_why_it_cannot_be_pickled() -> None:
    with pytest.raises(SollolError, match=r"transport= .* cannot be pickled"):
        pickle.dumps(OllamaPool(transport=HttpTransport()))


@pytest.mark.parametrize(
    "error",
    [
        BatchError({1: ResponseError("bad", 400)}, None),
        ResponseError("model 'x' not found", 404),
        NoNodeAvailable("chat with m", [("a:1", "down")]),
        QueueFull("full", 1.5),
        StreamBroken("broke off", "half"),
    ],
)
def test_errors_cross_processes_with_all_that_they_tell(error: Exception) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == str(error)
    assert {name: str(value) for name, value in vars(other).items()} == {
        name: str(value) for name, value in vars(error).items()
    }


def test_results_cross_processes(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        batch = pool.embed_batch(EMBED, texts(20))
        chat = pool.chat(CHAT, HELLO)
    assert list(pickle.loads(pickle.dumps(batch))) == list(batch)
    assert pickle.loads(pickle.dumps(chat)) == chat


# --- a second event loop ---


def test_an_asynchronous_pool_works_in_a_second_event_loop(urls: list[str]) -> None:
    pool = AsyncOllamaPool(urls, routing_mode="reliable")

    async def use() -> list[Any]:
        answer = await pool.chat(CHAT, HELLO)
        streamed = [part async for part in await pool.chat(CHAT, HELLO, stream=True)]
        return [bool(answer.message.content), streamed[-1].done, len(await pool.embed_batch(EMBED, texts(50)))]

    for _ in range(3):
        assert asyncio.run(use()) == [True, True, 50]
    pool.add_node("127.0.0.1:9")  # between two loops
    assert pool.remove_node("127.0.0.1:9")
    assert asyncio.run(use()) == [True, True, 50]
    assert pool.routing_mode is RoutingMode.RELIABLE
    assert pool.stats["total_requests"] == 12
    asyncio.run(pool.aclose())
    with pytest.raises(SollolError, match="closed"):
        asyncio.run(use())


def test_the_end_of_an_event_loop_closes_what_its_pool_had_open(urls: list[str]) -> None:
    transport = HttpTransport()

    async def use() -> None:
        pool = AsyncOllamaPool(urls, transport=transport)
        await pool.chat(CHAT, HELLO)
        assert transport.stats.open

    asyncio.run(use())
    assert transport.closed
    assert transport.stats.open == 0


def test_an_event_loop_that_still_runs_keeps_its_pool(urls: list[str]) -> None:
    pool = AsyncOllamaPool(urls)
    problems: list[str] = []

    def elsewhere() -> None:
        try:
            asyncio.run(pool.chat(CHAT, HELLO))
        except SollolError as error:
            problems.append(str(error))

    async def here() -> None:
        async with pool:
            await pool.chat(CHAT, HELLO)
            await asyncio.to_thread(elsewhere)
            await pool.chat(CHAT, HELLO)

    asyncio.run(here())
    assert len(problems) == 1
    assert "a pool for each loop" in problems[0]


@fork
def test_an_asynchronous_pool_works_in_the_child_of_a_fork(urls: list[str]) -> None:
    pool = AsyncOllamaPool(urls)

    async def use() -> object:
        return bool((await pool.chat(CHAT, HELLO)).message.content)

    async def fork_inside() -> None:
        assert await use()
        assert forked(lambda: asyncio.run(use())) == "True"
        assert await use()
        await pool.aclose()

    asyncio.run(fork_inside())


@fork
def test_the_gpu_controller_of_a_used_pool_works_in_the_child_of_a_fork(urls: list[str]) -> None:
    with OllamaPool([url.replace("127.0.0.1", "localhost") for url in urls]) as pool:
        node = pool.nodes[0].url
        with SOLLOLGPUController(pool=pool) as controller:
            assert controller.force_gpu_load(node, CHAT)["success"]
            told = forked(
                lambda: (controller.force_gpu_load(node, CHAT)["success"], pool.embed(EMBED, "x").routing.node)
            )
            assert told.startswith("(True, 'localhost:")
            assert controller.force_gpu_load(node, CHAT)["success"]
