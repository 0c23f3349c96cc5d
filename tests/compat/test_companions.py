"""Programs that use the names as the public ones do: FlockParser, SynapticLlamas, Hydra, NERVA, LlamaForge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import sollol
from sollol import OllamaPool
from sollol.discovery import discover_ollama_nodes
from sollol.sim import Cluster, ModelSpec, NodeSpec, free_port, sim_cluster

CHAT, EMBED = "llama3.2", "nomic-embed-text"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*no effect any more", "ignore:.*is taken", "ignore:.*today", "ignore:.*no call is routed"
)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    models = (ModelSpec(CHAT, mean_words=30), ModelSpec(EMBED, "embed", 274_000_000))
    with sim_cluster([NodeSpec(models=models, decode_tokens_per_s=400.0)] * 3) as cluster:
        monkeypatch.setenv("SOLLOL_NODES", ",".join(cluster.urls))
        monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.1/32")
        monkeypatch.setenv("SOLLOL_DISCOVERY_PORTS", str(free_port()))
        yield cluster


def test_an_indexer_that_patches_the_pool(nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FlockParser: it replaces methods of the class, adds others, and writes what it has measured before."""
    from sollol.routing_logger import get_routing_logger  # type: ignore[import-not-found]
    from sollol.vram_monitor import monitor_distributed_nodes  # type: ignore[import-not-found]

    from sollol.network_observer import get_observer, logger
    from sollol.routing_strategy import RoutingStrategy

    assert logger.name == "sollol.network_observer"
    monkeypatch.setattr(OllamaPool, "_make_request", lambda *given: 1 / 0, raising=False)
    monkeypatch.setattr(
        OllamaPool,
        "instances",
        property(lambda self: [f"http://{n['host']}:{n['port']}" for n in self.nodes]),
        raising=False,
    )
    pool: Any = OllamaPool(
        nodes=None,
        routing_strategy=RoutingStrategy.ROUND_ROBIN,
        exclude_localhost=True,
        discover_all_nodes=True,
        app_name="indexer",
        enable_ray=False,
        enable_dask=True,
        enable_gpu_redis=True,
        redis_host="localhost",
        redis_port=6379,
        register_with_dashboard=False,
    )
    with pool:
        assert sorted(pool.instances) == sorted(nodes.urls)
        pool.stats["node_performance"] = {"elsewhere:1": {"batch_throughput": 5.5}}
        observer = get_observer()
        before = observer.get_stats()["total_events"]
        chunks = [f"passage {i} of a document" for i in range(60)]
        results = pool.embed_batch(model=EMBED, inputs=chunks, priority=7, use_adaptive=True, keep_alive="1h")
        assert all(result.get("embeddings", [])[0] for result in results)
        observer._flush_dashboard_batch()
        assert observer.get_stats()["total_events"] > before
        assert observer.redis_client is None
        pool.routing_strategy = RoutingStrategy.INTELLIGENT
        answer = pool.chat(model=CHAT, messages=[{"role": "user", "content": "What?"}], keep_alive="15m", priority=5)
        assert answer["message"]["content"]
        assert get_routing_logger().enabled
        with pool._lock:
            assert list(getattr(pool, "_latency_buffer", [])) == []
        found = monitor_distributed_nodes(pool.instances)
        assert {row["status"] for row in found.values()} == {"online"}
        assert set(found) == set(nodes.urls)
        host, _, port = nodes.urls[0].removeprefix("http://").partition(":")
        described = {"host": host, "port": int(port), "api_key": "a-secret"}
        assert set(monitor_distributed_nodes([described])) == {nodes.urls[0]}


def test_agents_that_share_a_router(nodes: Cluster) -> None:
    """As SynapticLlamas: an asynchronous router on an event loop of its own, and tasks for several nodes."""
    from sollol.integration import SOLLOLLoadBalancer  # type: ignore[import-not-found]
    from sollol.ray_hybrid_router import RayHybridRouter  # type: ignore[import-not-found]
    from sollol.rpc_registry import RPCBackendRegistry  # type: ignore[import-not-found]

    from sollol import DistributedExecutor, DistributedTask
    from sollol.registry import NodeRegistry

    registry = NodeRegistry()
    for url in nodes.urls:
        registry.add_node(url)
    assert RPCBackendRegistry().backends == {}
    described = [{"host": url.split("://")[1].split(":")[0], "port": url.split(":")[-1]} for url in nodes.urls]
    pool = OllamaPool(nodes=described, app_name="agents", register_with_dashboard=False)
    router = RayHybridRouter(
        ollama_pool=pool, rpc_backends=[], coordinator_host=None, coordinator_base_port=None, enable_distributed=True
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def ask(prompt: str) -> str:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        work = router.route_request(model=CHAT, messages=messages, stream=False, timeout=60)
        text: str = asyncio.run_coroutine_threadsafe(work, loop).result(60)["message"].get("content", "")
        return text

    with ThreadPoolExecutor(3) as agents:
        texts = list(agents.map(ask, ["research", "criticise", "edit"]))
    assert all(texts)
    tasks = [DistributedTask(name, {"prompt": name, "model": CHAT}, priority=5, timeout=60) for name in "abc"]
    executor = DistributedExecutor(SOLLOLLoadBalancer(registry), max_workers=10)
    result = executor.execute_parallel(
        tasks, lambda task, url: registry.nodes[url].generate(CHAT, task.payload["prompt"])["response"], "collect"
    )
    assert result["statistics"]["successful"] == 3
    assert len(result.merged_result) == 3
    assert pool.get_stats()["successful_requests"] == 3
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    pool.close()


def test_streams_of_a_program_of_coroutines_survive_a_node(nodes: Cluster) -> None:
    """As Hydra: streams with its keywords, all at once; one node dies in the middle."""

    async def main() -> list[str]:
        pool: Any = OllamaPool(app_name="Hydra", register_with_dashboard=True, enable_intelligent_routing=True,
                               discover_all_nodes=True, exclude_localhost=False, enable_ray=True)  # fmt: skip
        assert len(pool.nodes) == 3
        assert [node.get("id", node["host"]) for node in pool.nodes] == ["127.0.0.1"] * 3

        async def stream(number: int) -> str:
            parts = pool.generate(
                model=CHAT,
                prompt=f"question {number}",
                options={"temperature": 0.1, "num_predict": 40},
                stream=True,
                priority=5,
                routing_mode=["fast", "reliable", "async", None][number % 4],
                prefer_cpu=number % 4 == 2,
                min_success_rate=0.0,
            )
            assert hasattr(parts, "__aiter__")
            return "".join([part["response"] async for part in parts])

        running = [asyncio.ensure_future(stream(number)) for number in range(8)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(nodes.do, lambda found: found[0].die())
        texts = await asyncio.gather(*running)
        cluster = {"nodes": len(pool.nodes), "gpu": sum(1 for node in pool.nodes if node.gpu_available)}
        assert cluster["nodes"] == 3
        await pool.close()
        return list(texts)

    texts = asyncio.run(main())
    with OllamaPool(nodes.urls[1:]) as other:
        options = {"temperature": 0.1, "num_predict": 40}
        expected = [other.generate(CHAT, f"question {number}", options=options).response for number in range(8)]
    assert texts == expected


def test_a_client_of_the_gateway(nodes: Cluster) -> None:
    """As NERVA: it looks for a gateway by its health, and sends a conversation."""
    from sollol.client import SOLLOLClient, SOLLOLConfig  # type: ignore[import-not-found]

    from sollol.compat.http_calls import call

    gateway = sollol.SOLLOL(port=free_port())
    gateway.start(blocking=False)
    try:
        base = gateway.get_status()["endpoints"]["gateway"]
        assert call(base, "/api/health")["status"]
        config = SOLLOLConfig(base_url=base, default_model=CHAT, default_priority=7)
        speaks = SOLLOLClient(config)
        history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        answer = asyncio.run(
            speaks.chat_async(
                message="Name a colour", model=CHAT, priority=7, system_prompt="Be brief", conversation_history=history
            )
        )
        assert "error" not in answer
        assert answer["message"]["content"]
    finally:
        gateway.stop()


def test_a_plan_for_several_machines(nodes: Cluster) -> None:
    """As the launcher of LlamaForge."""
    found = discover_ollama_nodes(discover_all_nodes=True, timeout=1.0)
    assert {f"http://{node['host']}:{node['port']}" for node in found} == set(nodes.urls)
    pool = OllamaPool(nodes=found)
    assert pool.count_unique_physical_hosts() == 1
    assert not pool.should_use_parallel_execution(num_tasks=2)
    assert OllamaPool(nodes=[*found, "gpu-1.invalid"]).should_use_parallel_execution(num_tasks=2)
