"""Models on GPUs: what /api/ps says, and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sollol import AsyncOllamaPool, BadInput, OllamaPool, SollolError
from sollol.compat.gpu_placement import Location, location_of
from sollol.core.types import LoadedModel
from sollol.gpu_controller import SOLLOLGPUController, integrate_with_router
from sollol.intelligence import IntelligentRouter
from sollol.sim import Cluster, ModelSpec, NodeSpec, SimNode, free_port, sim_cluster

CHAT, CODER, EMBED = "llama3.2", "qwen2.5-coder:7b", "nomic-embed-text"
MODELS = (ModelSpec(CHAT, size_bytes=2_000), ModelSpec(CODER, size_bytes=5_000), ModelSpec(EMBED, "embed", 300))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A node with a GPU for everything, one for small models only, and one without."""
    specs = [NodeSpec(models=MODELS, vram_bytes=vram, seed=i) for i, vram in enumerate((10_000, 3_000, 0))]
    with sim_cluster(specs) as running:
        yield running


@pytest.fixture
def controller(cluster: Cluster) -> Iterator[SOLLOLGPUController]:
    with SOLLOLGPUController(list(cluster)) as made:
        yield made


def loads(cluster: Cluster) -> list[dict[str, int]]:
    return cluster.do(lambda nodes: [dict(node.loads) for node in nodes])


@pytest.mark.parametrize(
    ("size", "vram", "location"),
    [(100, 100, "GPU"), (100, 120, "GPU"), (100, 0, "CPU"), (100, 99, "partial"), (0, 0, "unknown"), (0, 5, "unknown")],
)
def test_where_a_model_is(size: int, vram: int, location: str) -> None:
    assert location_of(LoadedModel(size, vram)) == Location(location)


def test_forcing_tells_the_truth(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    big, small, none = cluster
    told = controller.force_gpu_load(big, CODER)
    assert (told["success"], told["location"]) == (True, "GPU")
    assert told["vram_mb"] == told["size_mb"] == 5_000 / 1024 / 1024
    partly = controller.force_gpu_load(small, CODER)
    assert (partly["success"], partly["location"]) == (False, "partial")
    assert "only in part" in partly["message"]
    nowhere = controller.force_gpu_load(none, CODER)
    assert (nowhere["success"], nowhere["location"]) == (False, "CPU")
    assert "unloaded again" in nowhere["message"]
    assert controller.get_model_status(none)["models"] == []
    assert controller.force_gpu_load(big, EMBED)["success"]  # an embedding model takes another way


def test_verifying(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    big, small, none = cluster
    with OllamaPool(list(cluster)) as pool:
        for url in cluster:
            pool.warm_model(CODER, node=url)
    verify = controller.verify_routing_decision
    assert verify(big, CODER)
    assert verify(big, CODER, expected_location="gpu")
    assert not verify(small, CODER)
    assert verify(small, CODER, "partial")
    assert verify(none, CODER, "CPU")
    assert not verify(none, CODER)
    assert not verify(big, CHAT)  # not loaded
    assert not verify(f"http://127.0.0.1:{free_port()}", CODER)  # nobody there


def test_a_model_that_fell_to_the_cpu_is_brought_back(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    big = cluster[0]
    controller.force_gpu_load(big, CHAT)
    cluster.do(lambda nodes: (nodes[0].lose_gpu(), nodes[0].runners.unload(f"{CHAT}:latest")))
    with OllamaPool([big]) as pool:
        pool.chat(CHAT, [{"role": "user", "content": "Hi"}])
        assert controller.verify_routing_decision(big, CHAT, "CPU")
        assert not controller.force_gpu_load(big, CHAT)["success"]
        cluster.do(lambda nodes: nodes[0].regain_gpu())
        told = controller.force_gpu_load(big, CHAT)
        assert (told["success"], told["message"]) == (True, f"{CHAT}:latest is on the GPU")
        before = loads(cluster)[0]
        assert "already" in controller.force_gpu_load(big, CHAT)["message"]
        pool.chat(CHAT, [{"role": "user", "content": "Hi"}])
    assert loads(cluster)[0] == before  # it was not loaded once more, by us or by the call


def test_pins_stay(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    big, _, none = cluster
    controller.force_gpu_load(big, CHAT)
    before = loads(cluster)
    assert controller.pin(big, CHAT)["success"]
    assert loads(cluster) == before  # pinning is not loading
    (row,) = controller.get_model_status(big)["models"]
    assert row["expires_at"] > "2200"
    assert not controller.pin(none, CHAT)["success"]
    assert controller.pins == [(big.removeprefix("http://"), f"{CHAT}:latest")]
    assert controller.unpin(big, CHAT)
    assert not controller.unpin(big, CHAT)
    (row,) = controller.get_model_status(big)["models"]
    assert row["expires_at"] < "2200"


def test_ensuring_takes_the_best_candidate(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    keys = [url.removeprefix("http://") for url in cluster]
    assert controller.ensure_on_gpu(CHAT) == keys[0]
    assert sum(sum(node.values()) for node in loads(cluster)) == 1
    assert controller.ensure_on_gpu(CHAT) == keys[0]
    assert sum(sum(node.values()) for node in loads(cluster)) == 1
    assert controller.ensure_on_gpu("no-such-model") is None


def test_what_was_in_vain_is_not_tried_again(cluster: Cluster) -> None:
    with SOLLOLGPUController([cluster[2]]) as controller:
        assert controller.ensure_on_gpu(CHAT) is None
        assert controller.ensure_on_gpu(CHAT) is None
    assert loads(cluster)[2] == {f"{CHAT}:latest": 1}


def test_nothing_waits_for_longer_than_it_may(cluster: Cluster) -> None:
    slow = NodeSpec(models=MODELS, load_bytes_per_s=0.001)  # a load without an end
    with sim_cluster([slow]) as nodes, SOLLOLGPUController(list(nodes)) as controller:
        assert controller.ensure_on_gpu(CODER, timeout_s=0.2) is None
        told = controller.force_gpu_load(nodes[0], CODER, timeout_s=0.1)
        assert "still being loaded" in told["message"]
        nodes.do(lambda nodes: nodes[0].freeze())
        assert "error" in controller.get_model_status(nodes[0])
        nodes.do(lambda nodes: nodes[0].thaw())


def test_a_load_that_nobody_waits_for_goes_on() -> None:
    slow = NodeSpec(models=MODELS, load_bytes_per_s=10_000)  # half a second
    with sim_cluster([slow]) as nodes, SOLLOLGPUController(list(nodes)) as controller:
        assert controller.ensure_on_gpu(CODER, timeout_s=0.05) is None
        until = time.perf_counter() + 60
        while not controller.verify_routing_decision(nodes[0], CODER):
            assert time.perf_counter() < until
        assert nodes.do(lambda nodes: dict(nodes[0].loads)) == {CODER: 1}


def test_warming_and_optimizing(controller: SOLLOLGPUController, cluster: Cluster) -> None:
    report = controller.pre_warm_gpu_nodes([CHAT, EMBED, "no-such-model"])
    assert list(report) == list(cluster)
    assert [[row["result"]["location"] for row in rows] for rows in report.values()] == [["GPU"] * 2] * 2 + [["CPU"]]
    report = controller.optimize_cluster([CODER, CHAT, "no-such-model"])
    found: dict[str, Any] = dict(report)
    assert found["gpu_nodes"] == list(cluster)[:2]
    assert found["unknown_nodes"] == list(cluster)[2:]  # nothing is loaded there any more
    assert [(row["node"], row["result"]["success"]) for row in report["assignments"]] == [
        (cluster[0], True),
        (cluster[0], True),
        (None, False),
    ]
    stats = controller.get_placement_stats()
    assert (stats["total_placements"], stats["gpu_placements"], stats["gpu_percentage"]) == (5, 5, 100.0)
    assert {one.location for one in controller.placements()} == {"GPU"}


def test_the_table(controller: SOLLOLGPUController, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    controller.force_gpu_load(cluster[0], CHAT)
    controller.set_registry([*cluster, f"127.0.0.1:{free_port()}"])
    controller.print_cluster_status()
    out = capsys.readouterr().out
    assert "GPU" in out
    assert "nothing loaded" in out


def test_priority_models_are_loaded_at_once(cluster: Cluster) -> None:
    with OllamaPool(list(cluster)) as pool, SOLLOLGPUController(pool=pool, priority_models=[CHAT, CODER]) as controller:
        until = time.perf_counter() + 60
        while controller.get_placement_stats()["gpu_placements"] < 2:
            assert time.perf_counter() < until
    before = loads(cluster)
    with SOLLOLGPUController(list(cluster), [CHAT], warm=False):
        time.sleep(0.05)
    assert loads(cluster) == before


def test_making_one_starts_nothing_without_models(cluster: Cluster) -> None:
    before = threading.active_count()
    controller = SOLLOLGPUController(list(cluster))
    assert threading.active_count() == before
    controller.close()
    controller.close()
    with pytest.raises(SollolError, match="closed"):
        controller.ensure_on_gpu(CHAT)


def test_all_kinds_of_nodes(cluster: Cluster) -> None:
    url = cluster[0]
    for source in (
        [url],
        {"host": "127.0.0.1", "port": int(url.rsplit(":")[-1])},
        SimpleNamespace(nodes={"a": SimpleNamespace(url=url)}),
        SimpleNamespace(nodes=[url]),
        OllamaPool([url]),
        AsyncOllamaPool([url]),
    ):
        with SOLLOLGPUController(source) as controller:
            assert controller.placements() == []
    with SOLLOLGPUController(registry=[url]) as controller:
        assert controller.get_model_status(url)["models"] == []
    with SOLLOLGPUController() as controller:
        assert controller.placements() == []
        assert controller.ensure_on_gpu(CHAT) is None


def test_integration(cluster: Cluster) -> None:
    router, controller = IntelligentRouter(), SOLLOLGPUController()
    integrate_with_router(router, controller, registry=list(cluster))
    assert router.gpu_controller is controller
    assert controller.ensure_on_gpu(CHAT)
    integrate_with_router(router, controller, [cluster[1]])
    assert [one.node_url for one in controller.placements()] == []
    controller.close()


def test_it_does_not_block_a_loop(cluster: Cluster) -> None:
    async def main() -> int:
        ticks = 0
        with SOLLOLGPUController(list(cluster)) as controller:
            cluster.do(lambda nodes: [node.slow(1) for node in nodes])
            ensuring = asyncio.create_task(controller.ensure_on_gpu_async(CHAT))
            while not ensuring.done():
                ticks += 1
                await asyncio.sleep(0)
            assert ensuring.result()
        return ticks

    assert asyncio.run(main()) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: SOLLOLGPUController(7), "pool=7; expected a pool"),
        (lambda c: SOLLOLGPUController(priority_models="llama3.2"), "expected a list of names"),
        (lambda c: SOLLOLGPUController(priority_models=[""]), "expected the name of a model"),
        (lambda c: c.force_gpu_load("http://a b", CHAT), "is not an address"),
        (lambda c: c.force_gpu_load("a", CHAT, timeout_s=-1), "timeout_s=-1"),
        (lambda c: c.force_gpu_load("a", CHAT, layers=3), "unknown keyword 'layers'"),
        (lambda c: c.verify_routing_decision("a", CHAT, "TPU"), "expected_location='TPU'; expected one of 'GPU'"),
        (lambda c: c.optimize_cluster("llama3.2"), "expected a list of names"),
        (lambda c: c.pre_warm_gpu_nodes([CHAT], max_concurrent=0), "max_concurrent=0"),
        (lambda c: integrate_with_router(IntelligentRouter(), cast("Any", 7)), "gpu_controller=7; expected"),
        (lambda c: integrate_with_router(cast("Any", 7), c), "router=7; expected an IntelligentRouter"),
    ],
)
def test_what_cannot_be_used_is_told(controller: SOLLOLGPUController, call: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call(controller)


def test_zero_of_zero_is_not_taken_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    node = SimNode(NodeSpec(models=(ModelSpec(CHAT, size_bytes=0),), loaded=(CHAT,)))
    with sim_cluster([node]) as nodes, SOLLOLGPUController(list(nodes)) as controller:
        told = controller.force_gpu_load(nodes[0], CHAT)
        assert (told["success"], told["location"]) == (False, "unknown")
        assert "does not report" in told["message"]
        assert not controller.verify_routing_decision(nodes[0], CHAT)
        assert nodes.do(lambda nodes: sum(nodes[0].loads.values())) <= 1  # it was left alone
