"""The guide's trouble "Models loading on CPU instead of GPU", over HTTP: the symptom, the block, the cure."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sollol import AsyncOllamaPool, OllamaPool
from sollol.core.events import LoadRequested, UnloadRequested
from sollol.gpu_controller import SOLLOLGPUController, integrate_with_router
from sollol.intelligence import IntelligentRouter
from sollol.observe.journal import Entry
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

GUIDE = Path(__file__).parents[1] / "fixtures" / "guide.md"
CHAT, CODER = "llama3.2", "qwen2.5-coder:7b"
MODELS = (ModelSpec(CHAT, size_bytes=2_000_000), ModelSpec(CODER, size_bytes=5_000_000))
HELLO = [{"role": "user", "content": "Hello"}]
WAIT_S = 60.0


def block() -> str:
    """The code of the guide's solution."""
    part = GUIDE.read_text().split("### Issue: Models loading on CPU instead of GPU")[1]
    found = re.search(r"```python\n(.*?)```", part, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes whose models have fallen to the CPU, since other programs had their GPUs, which are free again."""
    specs = [NodeSpec(models=MODELS, decode_tokens_per_s=200.0, seed=seed) for seed in (1, 2)]
    with sim_cluster(specs) as running:
        running.do(lambda nodes: [node.lose_gpu() for node in nodes])
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster)) as made:
        made.wait_ready()
        yield made


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def places(pool: OllamaPool) -> dict[str, set[str]]:
    """What the nodes list: the processors of each model."""
    found: dict[str, set[str]] = {}
    for node in pool.snapshot()["nodes"]:
        for row in node["loaded"]:
            found.setdefault(row["model"], set()).add(row["processor"])
    return found


def test_the_block_brings_the_models_onto_gpus(pool: OllamaPool, cluster: Cluster) -> None:
    for url in cluster:
        for model in (CHAT, CODER):
            answer = pool.chat(model, HELLO, options={"num_predict": 4}, node=url.removeprefix("http://"))
    slow_s = answer["eval_duration"] / answer["eval_count"]
    until(lambda: places(pool) == {f"{CHAT}:latest": {"100% CPU"}, CODER: {"100% CPU"}})

    cluster.do(lambda nodes: [node.regain_gpu() for node in nodes])
    events: list[Entry] = []
    engine = pool._engine
    assert engine is not None
    engine.journal.subscribe(events.append)
    given: dict[str, Any] = {"pool": pool}
    exec(block(), given)
    controller: SOLLOLGPUController = given["gpu_controller"]
    until(lambda: controller.get_placement_stats()["gpu_placements"] >= 2)
    for model in (CHAT, CODER):
        node = controller.ensure_on_gpu(model)
        assert node is not None
        answer = pool.chat(model, HELLO, options={"num_predict": 4})
        assert answer.routing.node == node, "the replica on the GPU is predicted to be faster"
        assert controller.verify_routing_decision(node, model)
        assert answer["eval_duration"] / answer["eval_count"] * 5 < slow_s
    controller.close()
    changes = [entry.event for entry in events if isinstance(entry.event, LoadRequested | UnloadRequested)]
    assert {type(event) for event in changes} == {LoadRequested, UnloadRequested}
    assert {event.why for event in changes} == {"the GPU controller places it on a GPU"}, "the journal has the reason"


def test_a_router_with_the_controller_forces_the_model_before_the_call(pool: OllamaPool, cluster: Cluster) -> None:
    pool.chat(CODER, HELLO, options={"num_predict": 2}, node=cluster[0].removeprefix("http://"))
    cluster.do(lambda nodes: [node.regain_gpu() for node in nodes])
    with SOLLOLGPUController(pool=pool, priority_models=[CODER], warm=False) as controller:
        router = IntelligentRouter()
        integrate_with_router(router, controller)
        answer = router.route_request(CODER, HELLO, {"requires_gpu": True}, options={"num_predict": 2})
        assert answer.routing.gpu_node == answer.routing.node
        assert controller.verify_routing_decision(answer.routing.node, CODER)


def test_a_model_in_use_is_not_unloaded(pool: OllamaPool, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sollol.compat.gpu_placement.UNLOAD_S", 0.5)
    node = cluster[0].removeprefix("http://")
    stream = pool.chat(CHAT, HELLO, stream=True, options={"num_predict": 10_000}, node=node)
    next(iter(stream))
    cluster.do(lambda nodes: [one.regain_gpu() for one in nodes])
    with SOLLOLGPUController(pool=pool) as controller:
        told = controller.force_gpu_load(node, CHAT)
    assert (told["success"], told["message"]) == (False, f"{CHAT}:latest is in use and was not unloaded")
    assert next(iter(stream))["message"]["content"]
    stream.close()


def test_a_caller_on_the_loop_of_its_pool_does_not_wait_for_itself(cluster: Cluster) -> None:
    """A blocking method in a coroutine stops the event loop on which the pool's scheduler runs."""
    cluster.do(lambda nodes: [node.regain_gpu() for node in nodes])

    async def main() -> dict[str, Any]:
        async with AsyncOllamaPool(list(cluster)) as pool:
            await pool.wait_ready()
            with SOLLOLGPUController(pool=pool) as controller:
                return controller.force_gpu_load(cluster[0], CHAT, timeout_s=WAIT_S)

    assert asyncio.run(main())["success"]
