"""What a caller says of a call holds on every path: each verb, whole and streamed, synchronous and not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BadInput, DeadlineExceeded, NoNodeAvailable, OllamaPool
from sollol.core.events import Submitted
from sollol.core.types import Task
from sollol.observe.journal import Entry
from sollol.sim import Cluster, NodeSpec, sim_cluster
from tests.pool.universe import CHAT, EMBED, MODELS, texts

HELLO = [{"role": "user", "content": "Hello, who is there?"}]
Call = Callable[[Any, dict[str, Any]], Any]
VERBS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "chat": ("chat", (CHAT, HELLO), {}),
    "chat, streamed": ("chat", (CHAT, HELLO), {"stream": True}),
    "generate": ("generate", (CHAT, "Hello"), {}),
    "generate, streamed": ("generate", (CHAT, "Hello"), {"stream": True}),
    "embed": ("embed", (EMBED, "a text"), {}),
    "embed, a list": ("embed", (EMBED, texts(40)), {}),
    "embeddings": ("embeddings", (EMBED, "a text"), {}),
    "embed_batch": ("embed_batch", (EMBED, texts(200)), {}),
    "embed_batch, fixed": ("embed_batch", (EMBED, texts(200)), {"use_adaptive": False, "max_workers": 4}),
    "embed_batch, of an iterator": ("embed_batch", (EMBED, iter(())), {}),
    "embed_stream": ("embed_stream", (EMBED, texts(200)), {}),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    given: dict[str, Any] = {"models": MODELS, "loaded": (CHAT, EMBED), "embed_items_per_s": 20_000.0}
    given |= {"decode_tokens_per_s": 5_000.0, "prefill_tokens_per_s": 50_000.0}
    specs = [NodeSpec(seed=0, vram_bytes=0, cpu_slowdown=1.0, **given), *(NodeSpec(seed=i, **given) for i in (1, 2))]
    with sim_cluster(specs) as running:
        yield running


class Caller:
    """A pool of either kind; `call` performs one verb to its end and returns the tasks and nodes that it became."""

    def __init__(self, urls: list[str], asynchronous: bool) -> None:
        self.urls, self.asynchronous = urls, asynchronous

    def call(self, verb: str, **how: Any) -> tuple[Task, set[str]]:
        name, args, more = VERBS[verb]
        if verb.endswith("iterator"):
            args = (args[0], iter(texts(200)))
        made: list[tuple[Task, set[str]]] = []
        if self.asynchronous:
            asyncio.run(self._perform_async(name, args, {**more, **how}, made))
        else:
            self._perform(name, args, {**more, **how}, made)
        return made[0]

    def _perform(self, name: str, args: Any, given: dict[str, Any], made: list[Any]) -> None:
        with OllamaPool(self.urls) as pool:
            pool.wait_ready()
            tasks = _watched(pool._running())
            answer = getattr(pool, name)(*args, **given)
            if given.get("stream") or name == "embed_stream":
                list(answer)
            made.append((tasks[0], set(pool.get_stats()["nodes_used"])))

    async def _perform_async(self, name: str, args: Any, given: dict[str, Any], made: list[Any]) -> None:
        async with AsyncOllamaPool(self.urls) as pool:
            await pool.wait_ready()
            tasks = _watched(pool.engine)
            answer = getattr(pool, name)(*args, **given)
            if name != "embed_stream":
                answer = await answer
            if given.get("stream") or name == "embed_stream":
                async for _ in answer:
                    pass
            made.append((tasks[0], set(pool.get_stats()["nodes_used"])))


def _watched(engine: Any) -> list[Task]:
    tasks: list[Task] = []

    def hear(entry: Entry) -> None:
        if isinstance(entry.event, Submitted):
            tasks.append(entry.event.task)

    engine.journal.subscribe(hear)
    return tasks


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def caller(request: pytest.FixtureRequest, cluster: Cluster) -> Caller:
    return Caller(list(cluster), request.param)


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_goes_to_the_node_that_is_named(verb: str, caller: Caller) -> None:
    for url in caller.urls:
        key = url.removeprefix("http://")
        _, nodes = caller.call(verb, node=url)
        assert nodes == {key}


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_avoids_nodes_on_their_cpu(verb: str, caller: Caller) -> None:
    on_cpu = caller.urls[0].removeprefix("http://")
    for _ in range(2):
        _, nodes = caller.call(verb, requires_gpu=True)
        assert nodes
        assert on_cpu not in nodes
    with pytest.raises(NoNodeAvailable, match=r"it runs on 100% CPU"):
        caller.call(verb, requires_gpu=True, node=on_cpu, timeout=20)


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_keeps_the_rest(verb: str, caller: Caller) -> None:
    task, _ = caller.call(verb, mode="reliable", priority=8, hedge=False, timeout=30)
    assert (task.mode, task.priority, task.hedge) == ("reliable", 8, False)
    assert task.deadline_us is not None


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_ends_when_its_time_is_over(verb: str, caller: Caller, cluster: Cluster) -> None:
    cluster.do(lambda nodes: [node.slow(1e6) for node in nodes])
    try:
        with pytest.raises(DeadlineExceeded):
            caller.call(verb, timeout=0.2)
    finally:
        cluster.do(lambda nodes: [node.heal() for node in nodes])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "wrong", [{"node": 3}, {"node": []}, {"requires_gpu": 1}, {"mode": "soon"}, {"priority": 11}, {"timeout": 0}]
)
def test_every_path_refuses_what_cannot_be_used(verb: str, wrong: dict[str, Any], caller: Caller) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        caller.call(verb, **wrong)


def test_the_modes_of_a_batch_choose_its_nodes() -> None:
    from sollol.sim import World
    from sollol.sim.loop import run
    from tests.pool.universe import node

    async def main() -> None:
        world = World([node(1, 200.0), node(2, 50.0), node(3, 50.0)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            await pool.embed_batch(EMBED, texts(500))
            background = await pool.embed_batch(EMBED, texts(500), mode="async")
            assert background.report is not None
            assert set(background.report.nodes) == {"10.0.0.3:11434", "10.0.0.4:11434"}
            fast = await pool.embed_batch(EMBED, texts(500), mode="fast")
            assert fast.report is not None
            assert len(fast.report.nodes) == 3
            replica = pool.engine.scheduler.view().groups[f"{EMBED}:latest"].replicas["10.0.0.2:11434"]
            for _ in range(20):
                replica.reliability.add(0.0)
            reliable = await pool.embed_batch(EMBED, texts(500), mode="reliable")
            assert reliable.report is not None
            assert "10.0.0.2:11434" not in reliable.report.nodes
            explained = pool.explain(pool.snapshot()["recent"][0]["id"])
            assert explained["mode"] == "reliable"

    run(main())


def test_a_batch_that_unloads_its_model_does_so_once() -> None:
    from sollol.sim import World
    from sollol.sim.loop import run
    from tests.pool.universe import node

    async def main() -> None:
        world = World([node(1, 50.0), node(2, 50.0)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            result = await pool.embed_batch(EMBED, texts(1000), keep_alive=0)
            assert result.report is not None
            assert result.report.requests > 10
            await asyncio.sleep(1)
            for each in world.nodes.values():
                assert each.loads.get(f"{EMBED}:latest", 0) <= 1
            assert f"{EMBED}:latest" not in [row["model"] for row in (await pool.ps()).models]

    run(main())
