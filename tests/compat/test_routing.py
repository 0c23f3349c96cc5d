"""Measures, routers, registries and hedging of 0.9 in a program that chooses nodes itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sollol import OllamaPool, TaskType
from sollol.compat import (
    adapters,
    adaptive_parallelism,
    distributed_tracing,
    docker_ip_resolver,
    hedging,
    intelligence,
    registry,
)
from sollol.errors import BadInput, NoNodeAvailable, NotSupported, SollolError

CHAT, EMBED = "llama3.2", "nomic-embed-text"


# --- measures ---


def test_percentiles_and_counts_of_a_programs_own_requests() -> None:
    metrics = adapters.MetricsCollector()
    assert metrics.get_latency_percentiles() == {f"p{n}_latency_ms": 0.0 for n in (50, 95, 99)}
    assert metrics.get_summary()["success_rate"] == 1.0
    for ms in range(1, 102):
        metrics.record_request_completion("critic", "http://a", "chat", 5, float(ms), ms != 1)
    metrics.record_routing_decision("critic", TaskType.CHAT, 5, "http://a", 1.0, 2.0)
    summary = metrics.get_summary()
    assert (summary["p50_latency_ms"], summary["p95_latency_ms"], summary["p99_latency_ms"]) == (51.0, 96.0, 100.0)
    assert (summary["total_requests"], summary["successful_requests"]) == (101, 100)
    assert (summary["total_routing_decisions"], summary["avg_routing_time_ms"]) == (1, 2.0)
    assert summary["task_types"] == {"chat": 1}
    assert summary["agents"]["critic"]["failed"] == 1


def test_a_memory_of_durations_falls_back_to_what_the_pool_measured(pool: OllamaPool) -> None:
    memory = adapters.PerformanceMemory(pool)
    memory.record_execution("http://a", "chat", CHAT, 10.0, True)
    memory.record_execution("http://a", "chat", CHAT, 30.0, True)
    memory.record_execution("http://a", "chat", CHAT, 999.0, False)
    assert memory.get_average_duration("http://a", "chat", CHAT) == 20.0
    assert memory.get_average_duration("http://a", "code") == 0.0
    assert {each["model"] for each in memory.history} == {CHAT}
    assert memory.get_success_rate("http://a") == pytest.approx(2 / 3)
    assert memory.get_success_rate("http://b") == 1.0
    node = pool.nodes[0]
    pool.generate(CHAT, "x", node=node.key, options={"num_predict": 1})
    assert memory.get_average_duration(node.url, "chat") == pool.stats["node_performance"][node.key]["latency_ms"] > 0


def test_whether_several_nodes_are_worth_it(pool: OllamaPool, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = adaptive_parallelism.AdaptiveParallelismStrategy()
    assert strategy.should_parallelize(5)[0]
    adaptive_parallelism.integrate_with_pool(pool, strategy)
    assert strategy.should_parallelize(1) == (False, strategy.should_parallelize(1)[1])
    assert strategy.should_parallelize(50)[1]["reason"] == "parallel"
    assert strategy.get_optimal_workers(50) == 4
    assert strategy.get_optimal_workers(1) == 1
    first, second = (node.key for node in pool.nodes)
    rows = {first: {"latency_ms": 1.0, "available": True}, second: {"latency_ms": 1000.0, "available": True}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "get_stats", lambda: {"nodes": list(rows), "node_performance": rows})
        parallel, why = strategy.should_parallelize(100)
        assert (parallel, why["reason"], why["recommended_node"]) == (False, "dominant_node", first)
        assert strategy.should_parallelize(2000)[0]
        assert strategy.get_recommended_node() == first
        rows[second]["available"] = False
        assert strategy.should_parallelize(100)[1]["reason"] == "single_node"
    strategy.record_decision(why, 1.5)
    assert strategy.recent_decisions[0]["actual_time"] == 1.5
    adaptive_parallelism.print_parallelism_report(pool)
    assert first in capsys.readouterr().out


def test_spans_of_one_process() -> None:
    tracer = distributed_tracing.DistributedTracer()
    outer = tracer.start_trace("outer", "a", user=1)
    inner = tracer.start_trace("inner")
    tracer.end_span(inner, "error", why="x")
    tracer.end_span(outer)
    found = tracer.get_trace(outer.trace_id)
    assert [(span["operation"], span["parent_span_id"]) for span in found] == [
        ("outer", None),
        ("inner", outer.span_id),
    ]
    assert found[1]["status"] == "error"
    assert found[0]["metadata"] == {"user": 1}
    assert distributed_tracing.current_trace_id.get() is None

    @tracer.trace()
    def plain() -> int:
        return 5

    @tracer.trace("named")
    async def fails() -> None:
        raise ZeroDivisionError

    assert plain() == 5
    with pytest.raises(ZeroDivisionError):
        asyncio.run(fails())
    assert [(span.operation, span.status) for span in tracer.spans][-2:] == [("plain", "success"), ("named", "error")]
    assert distributed_tracing.get_tracer() is distributed_tracing.get_tracer(dashboard=object())


# --- routers and hedging ---


def test_a_router_of_a_registrys_nodes(urls: list[str]) -> None:
    nodes = registry.NodeRegistry()
    for url in urls:
        nodes.add_node(url)
    with intelligence.IntelligentRouter(registry=nodes) as router:
        answer = router.route_request(CHAT, [{"role": "user", "content": "x"}], options={"num_predict": 2})
        assert answer.message.content
        assert {node.url for node in router.pool.nodes} == set(urls)
    with pytest.raises(BadInput, match="registry="):
        intelligence.IntelligentRouter(registry=5)
    assert intelligence.get_router() is intelligence.get_router()


def test_estimates_before_and_after_the_first_request() -> None:
    router = intelligence.IntelligentRouter()
    payload = {"model": CHAT, "prompt": "x" * 4000}
    context = router.analyze_request(payload)
    assert context.estimated_duration_ms == pytest.approx(128 / 20 * 1000 + 1000 / 200 * 1000)
    assert context.metadata == {"estimated_from": "prior"}
    router.record_performance("chat", CHAT, actual_duration_ms=77.0)
    context = router.analyze_request(payload)
    assert (context.estimated_duration_ms, context.metadata) == (77.0, {"estimated_from": "measured"})
    short = router.analyze_request({"model": EMBED, "prompt": "x" * 40})
    assert short.task_type is TaskType.EMBED
    assert short.estimated_duration_ms == pytest.approx(50.0)


@pytest.mark.parametrize("model", ["nomic-embed-text", "mxbai-embed-large:latest", "all-minilm", "bge-m3", "x/e5-base"])
def test_a_prompt_to_an_embedding_model_is_an_embedding(model: str) -> None:
    router = intelligence.IntelligentRouter()
    assert router.detect_task_type({"model": model, "prompt": "Summarise this."}) is TaskType.EMBED
    assert router.detect_task_type({"model": CHAT, "prompt": "Summarise this."}) is TaskType.SUMMARISE
    assert router.detect_task_type({"model": "e5mistral", "prompt": "Hello"}) is TaskType.CHAT


def test_a_complexity_is_a_number_and_unpacks_to_a_word_and_tokens() -> None:
    router = intelligence.IntelligentRouter()
    short, long = ({"model": CHAT, "prompt": "x" * size} for size in (40, 40_000))
    complexity = router.estimate_complexity(short)
    assert 1 <= complexity <= 10
    word, tokens = complexity
    assert (word, tokens) == ("simple", 10)
    word, tokens = router.estimate_complexity(long)
    assert tokens == 10_000
    assert word in ("medium", "complex")
    assert router.estimate_complexity("a text") == int(router.estimate_complexity("a text"))


def test_whether_a_request_of_a_programs_own_is_hedged() -> None:
    adaptive = hedging.AdaptiveHedging(hedging.HedgingStrategy(num_hedges=2))
    context = intelligence.TaskContext
    assert adaptive.should_hedge(context(priority=9), 10, 0.2)
    assert adaptive.should_hedge(context(complexity="complex"), 10, 0.2)
    assert adaptive.should_hedge(context(), estimated_latency_ms=5000, cluster_load=0.2)
    assert not adaptive.should_hedge(context(), estimated_latency_ms=5, cluster_load=0.2)
    assert not adaptive.should_hedge(context(priority=9), 5000, cluster_load=0.9)
    assert not hedging.AdaptiveHedging(1).should_hedge(context(priority=9), 5000, 0.1)


def test_plain_requests_race(urls: list[str]) -> None:
    result = hedging.hedge_embed_request(["http://127.0.0.1:9", *urls], EMBED, "a text")
    assert result.winner_node in urls
    assert len(result.response["embeddings"]) == 1
    answer = hedging.hedge_chat_request(urls, CHAT, [{"role": "user", "content": "x"}]).response
    assert answer["message"]["content"]
    with pytest.raises(NoNodeAvailable, match="all 1 nodes failed"):
        hedging.hedge_embed_request(urls[:1], "nowhere", "a text")


# --- nodes ---


def test_a_registry_of_nodes(urls: list[str], tmp_path: Any) -> None:
    nodes = registry.NodeRegistry()
    first = nodes.add_node(urls[0] + "/", name="one", priority=1)
    assert nodes.add_node(urls[0]) is first
    down = nodes.add_node("http://127.0.0.1:9")
    nodes.add_node(urls[1], check_health=False)
    assert len(nodes) == 3
    assert [node.url for node in nodes.get_healthy_nodes()] == urls
    assert nodes.health_check_all() == {urls[0]: True, down.url: False, urls[1]: True}
    assert down.metrics.last_error
    assert nodes.get_node_by_url(urls[0]) is first
    assert first.generate(CHAT, "x", system_prompt="y", format_json=True)["response"]
    with pytest.raises(SollolError):
        first.generate("nowhere", "x")
    assert (first.metrics.total_requests, first.metrics.failed_requests, first.metrics.successful_requests) == (2, 1, 1)
    assert first.metrics.avg_latency > 0
    assert first.probe_capabilities()
    assert f"{CHAT}:latest" in first.capabilities.models_loaded
    assert nodes.get_gpu_nodes() == [first]
    worker = nodes.get_worker_for_model(f"{CHAT}:latest")
    assert worker is first
    nodes.save_config(str(tmp_path / "nodes.json"))
    again = registry.NodeRegistry()
    assert again.load_config(str(tmp_path / "nodes.json")) == 3
    assert next(node.name for node in again.nodes.values()) == "one"
    with pytest.raises(BadInput, match="save_config"):
        again.load_config(str(tmp_path / "none.json"))
    assert nodes.remove_node(urls[0])
    assert not nodes.remove_node(urls[0])
    with pytest.raises(NotSupported, match="several machines"):
        nodes.create_cluster("big", urls, "llama3:70b")
    assert nodes.get_all_clusters() == []


def test_a_registry_finds_nodes_of_a_network(urls: list[str]) -> None:
    nodes = registry.NodeRegistry()
    port = int(urls[0].rpartition(":")[2])
    found = nodes.discover_nodes("127.0.0.1/32", port=port)
    assert [node.url for node in found] == urls[:1]


def test_addresses_of_containers(urls: list[str]) -> None:
    port = int(urls[0].rpartition(":")[2])
    assert docker_ip_resolver.is_docker_ip("172.17.0.5")
    assert docker_ip_resolver.is_docker_ip("10.0.0.5")
    assert not docker_ip_resolver.is_docker_ip("192.168.1.5")
    assert not docker_ip_resolver.is_docker_ip("a name")
    context = docker_ip_resolver.get_deployment_context()
    assert context["mode"] == ("docker" if context["is_docker"] else "bare_metal")
    here = {"is_docker": False}
    reached = docker_ip_resolver.resolve_docker_ip("172.17.0.5", port, 0.2, deployment_context=here)
    assert reached == "127.0.0.1"
    refused = docker_ip_resolver.resolve_docker_ip("172.17.0.5", port, 0.2, lambda *_: False, here)
    assert refused is None
    several = docker_ip_resolver.resolve_docker_ip_with_alternatives("172.17.0.5", port, 0.2, deployment_context=here)
    assert ("127.0.0.1", port) in several
    nodes: list[dict[str, Any]] = [{"host": "192.168.1.100", "port": "11434"}, {"host": "172.31.255.254", "port": port}]
    resolved = docker_ip_resolver.auto_resolve_ips(nodes, 0.1, deployment_context=here)
    assert resolved == [nodes[0], {"host": "127.0.0.1", "port": port}]
    assert docker_ip_resolver.resolve_docker_nodes([]) == []
