"""Names whose capability comes later: they list what is there, and send ordinary models to the pool."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, NotSupported, OllamaPool
from sollol.compat import (
    coordinator_manager,
    hybrid_router,
    llama_cpp_coordinator,
    llama_cpp_rpc,
    node_cluster,
    ray_advanced_router,
    ray_hybrid_router,
    rpc_auto_setup,
    rpc_discovery,
    rpc_registry,
    sync_wrapper,
)
from sollol.errors import BadInput, NoNodeAvailable
from sollol.sim import NodeSpec, free_port, sim_cluster

CHAT = "llama3.2"
HELLO = [{"role": "user", "content": "Hello"}]
ROUTERS = [hybrid_router.HybridRouter, ray_hybrid_router.RayHybridRouter, ray_advanced_router.RayAdvancedRouter]
pytestmark = pytest.mark.filterwarnings("ignore:.*no effect any more")


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with sim_cluster([NodeSpec(), NodeSpec()]) as nodes:
        yield nodes.urls


@pytest.fixture
def worker() -> Iterator[int]:
    """A port on which something accepts connections, as a worker of llama.cpp does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


# --- workers ---


def test_workers_are_found_on_loopback(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rpc_discovery.check_rpc_server("127.0.0.1", worker)
    assert not rpc_discovery.check_rpc_server("127.0.0.1", free_port(), 0.2)
    assert rpc_discovery.discover_rpc_backends("127.0.0.1/32", worker) == [{"host": "127.0.0.1", "port": worker}]
    assert rpc_discovery.discover_rpc_backends("127.0.0.1/32", free_port(), 0.2) == []
    with pytest.raises(BadInput, match=r"8\.8\.8"):
        rpc_discovery.discover_rpc_backends("8.8.8.0/24")
    monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.1/32")
    assert rpc_discovery.auto_discover_rpc_backends(worker) == [{"host": "127.0.0.1", "port": worker}]
    monkeypatch.setenv("RPC_BACKENDS", f"127.0.0.1:{worker}, 127.0.0.1:{free_port()}")
    found = [{"host": "127.0.0.1", "port": worker}]
    assert rpc_discovery.auto_discover_rpc_backends() == found
    assert rpc_auto_setup.auto_setup_rpc_backends(4) == found
    monkeypatch.setenv("RPC_BACKENDS", f"127.0.0.1:{free_port()}")
    with pytest.raises(NotSupported, match="rpc-server yourself"):
        rpc_auto_setup.auto_setup_rpc_backends()


def test_the_resources_of_another_machine_are_not_known() -> None:
    here, there = (rpc_discovery.detect_node_resources(host) for host in ("localhost", "10.0.0.9"))
    assert here["known"]
    assert here["cpu_ram_mb"] > 0
    assert (there["known"], there["has_gpu"], there["cpu_ram_mb"]) == (False, False, 0)
    assert here.keys() == there.keys()


def test_a_registry_checks_workers(worker: int) -> None:
    registry = rpc_registry.RPCBackendRegistry()
    registry.load_from_config([{"host": "127.0.0.1", "port": worker}, {"host": "127.0.0.1", "port": free_port()}])
    good, bad = registry.get_all_backends()
    assert not good.is_healthy, "nothing runs in the background"
    assert registry.health_check_all(0.5) == {good.address: True, bad.address: False}
    assert registry.get_healthy_backends() == [good]
    assert registry.get_best_backend() is good
    assert good.metrics.avg_latency > 0
    assert (good.metrics.success_rate, bad.metrics.success_rate) == (1.0, 0.0)
    stats = registry.get_stats()
    assert (stats["total_backends"], stats["healthy_backends"]) == (2, 1)
    assert stats["backends"][0]["metrics"]["last_check"] > 0
    assert registry.add_backend(url=f"grpc://127.0.0.1:{worker}") is good
    assert registry.remove_backend("127.0.0.1", bad.port)
    assert not registry.remove_backend("127.0.0.1", bad.port)
    registry.stop_heartbeat()
    for wrong in ("a:b", {"port": 1}, 5, "a:70000"):
        with pytest.raises(BadInput, match="host:port"):
            registry.load_from_config([wrong])


# --- routers ---


@pytest.mark.parametrize("kind", ROUTERS)
def test_ordinary_models_go_to_the_pool(kind: Any, urls: list[str]) -> None:
    async def main() -> None:
        with OllamaPool(urls) as pool:
            router = kind(pool, rpc_backends=[], coordinator_host=None, coordinator_base_port=18080)
            answer = await router.route_request(CHAT, HELLO, timeout=60, options={"num_predict": 3})
            assert answer["message"]["content"]
            assert answer.routing.host
            parts = await router.route_request(CHAT, HELLO, stream=True, options={"num_predict": 3})
            assert [part async for part in parts][-1].done
            assert router.pool is pool
        async with AsyncOllamaPool(urls) as other:
            assert (await kind(other, rpc_backends=[]).route_request(CHAT, HELLO)).message.content
        await router.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_large_model_that_no_node_has_is_not_supported(kind: Any, urls: list[str]) -> None:
    async def main() -> None:
        with OllamaPool(urls) as pool:
            router = kind(pool, rpc_backends=["a:50052"])
            assert router.should_use_distributed("llama3.1:405b")
            assert not router.should_use_distributed(CHAT)
            with pytest.raises(NotSupported, match="several machines"):
                await router.route_request("llama3.1:405b", HELLO)
            with pytest.raises(NoNodeAvailable, match="nowhere"):
                await router.route_request("nowhere", HELLO)
        with pytest.raises(NotSupported, match="without a pool"):
            await kind(rpc_backends=[]).route_request(CHAT, HELLO)

    asyncio.run(main())
    with pytest.raises(BadInput, match="ollama_pool=5"):
        kind(5)


def test_workers_of_a_router_are_searched_when_they_are_read(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPC_BACKENDS", f"127.0.0.1:{worker}")
    router = hybrid_router.HybridRouter()
    assert router.get_stats()["ray_pools"]["total_backends"] == 0
    assert router.rpc_backends == [{"host": "127.0.0.1", "port": worker}]
    assert router.get_stats()["ray_pools"]["total_backends"] == 1
    assert list(router.rpc_registry.backends) == [f"127.0.0.1:{worker}"]
    assert hybrid_router.HybridRouter(auto_discover_rpc=False).rpc_backends == []
    assert router.coordinator is None


def test_statistics_of_routers(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        stats = ray_hybrid_router.RayHybridRouter(pool, rpc_backends=[]).get_stats()
        assert stats["ollama_pool"] == {"nodes": 2, "requests": 0}
        assert stats["model_sharding"]["enabled"] is False
        advanced = asyncio.run(ray_advanced_router.RayAdvancedRouter(pool, rpc_backends=[]).get_stats())
        assert (advanced["warm_pools"], advanced["total_pools"], advanced["router_type"]) == ({}, 0, "ray_advanced")
        assert not any(advanced["features"].values())


def test_a_router_for_programs_without_an_event_loop(urls: list[str]) -> None:
    with OllamaPool(urls) as pool:
        router = sync_wrapper.HybridRouter(pool, rpc_backends=[])
        assert router.route_request(CHAT, HELLO, timeout=60).message.content
        assert not router.should_use_distributed(CHAT)
        assert router.get_stats()["ollama_pool"]["requests"] == 1
        with pytest.raises(NotSupported):
            router.route_request("mixtral:8x22b", HELLO)
        router.close()


@pytest.mark.parametrize(
    ("model", "large"),
    [
        ("llama3.2", False),
        ("llama3:70b", True),
        ("mixtral:8x7b", True),
        ("qwen3:8b", False),
        ("llama3.1:405b-q4", True),
    ],
)
def test_large_models_by_their_names(model: str, large: bool) -> None:
    assert node_cluster.needs_partitioning(model) is large
    assert all(one.requires_distributed is (one.parameter_count >= 40) for one in hybrid_router.MODEL_PROFILES.values())


# --- the absent part itself ---

ABSENT: list[Callable[[], Any]] = [
    lambda: ray_hybrid_router.ShardedModelPool([]),
    lambda: ray_advanced_router.WarmModelPool([], "m", "p"),
    lambda: asyncio.run(ray_advanced_router.RayAdvancedRouter(rpc_backends=[]).add_warm_pool("m")),
    lambda: node_cluster.NodeCluster("c", [], "llama3:70b"),
    lambda: node_cluster.LayerPartitioner.calculate_partitions(node_cluster.ModelSpec("m", 1, 1.0, 1.0), []),
    lambda: asyncio.run(llama_cpp_coordinator.LlamaCppCoordinator("m.gguf").start()),
    lambda: asyncio.run(llama_cpp_coordinator.LlamaCppCoordinator("m.gguf").generate("x")),
    lambda: asyncio.run(llama_cpp_coordinator.LlamaCppCoordinator("m.gguf").chat([])),
    lambda: asyncio.run(llama_cpp_coordinator.start_rpc_backend()),
    lambda: asyncio.run(llama_cpp_rpc.LlamaCppRPCClient(llama_cpp_rpc.LlamaCppNode("a", 1)).generate("x")),
    lambda: asyncio.run(llama_cpp_rpc.LlamaCppDistributedCluster([]).generate("x")),
    lambda: llama_cpp_rpc.resolve_model_path("m"),
]


@pytest.mark.parametrize("use", ABSENT)
def test_the_absent_part_raises_what_to_use(use: Callable[[], Any]) -> None:
    with pytest.raises(NotSupported, match=r"several machines.*OllamaPool"):
        use()


def test_servers_of_llama_cpp_are_checked(worker: int) -> None:
    async def main() -> None:
        up, down = (llama_cpp_rpc.LlamaCppNode("127.0.0.1", port) for port in (worker, free_port()))
        assert (await llama_cpp_rpc.LlamaCppRPCClient(up).get_node_info())["healthy"]
        cluster = llama_cpp_rpc.LlamaCppDistributedCluster([up, down])
        assert not await cluster.health_check()
        assert (up.is_healthy, down.is_healthy) == (True, False)
        assert up.http_url == f"http://{up.url}"
        await cluster.close()
        await llama_cpp_coordinator.LlamaCppCoordinator("m").stop()

    asyncio.run(main())


def test_a_coordinator_that_runs_is_seen_and_none_is_started(urls: list[str]) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Healthy)
    Thread(target=server.serve_forever, daemon=True).start()

    async def main() -> None:
        config = coordinator_manager.CoordinatorConfig(port=server.server_port, rpc_backends=["a:50052"])
        manager = coordinator_manager.CoordinatorManager(config, redis_url="redis://x")
        assert await manager.ensure_running()
        assert await manager.start()
        status = await manager.get_status()
        assert status["coordinator"] == {"url": manager.url, "healthy": True, "pid": None}
        assert status["rpc_backends"][0]["address"] == "a:50052"
        assert (await manager.get_metrics())["healthy"]
        config.port = free_port()
        with pytest.raises(NotSupported, match="no coordinator answers"):
            await manager.ensure_running()
        config.auto_start = False
        assert not await manager.ensure_running()
        await manager.shutdown()

    asyncio.run(main())
    server.shutdown()
    server.server_close()
