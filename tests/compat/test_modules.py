"""What the modules of 0.9 do here: tables, queues, executors, registries, clients, loggers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from sollol import OllamaPool, TaskType
from sollol.compat import (
    adapters,
    adaptive_parallelism,
    aggregation,
    app_config,
    client,
    dashboard_client,
    distributed_tracing,
    docker_ip_resolver,
    execution,
    hedging,
    integration,
    intelligence,
    network_observer,
    prioritization,
    priority_helpers,
    registry,
    routing_logger,
    sync_wrapper,
    tasks,
)
from sollol.compat import (
    pool as pool_of_process,
)
from sollol.compat import (
    sollol as legacy,
)
from sollol.errors import BadInput, DeadlineExceeded, NoNodeAvailable, NotSupported, ResponseError, SollolError
from sollol.sim import NodeSpec, sim_cluster

CHAT, EMBED = "llama3.2", "nomic-embed-text"


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with sim_cluster([NodeSpec(), NodeSpec()]) as nodes:
        yield nodes.urls


@pytest.fixture
def pool(urls: list[str]) -> Iterator[OllamaPool]:
    with OllamaPool(urls) as made:
        yield made


# --- priorities ---


def test_a_queue_by_priority_then_by_age() -> None:
    async def main() -> None:
        queue = prioritization.PriorityQueue(max_queue_size=4)
        for name, priority in (("a", 5), ("b", 8), ("c", 5), ("d", prioritization.PRIORITY_BATCH)):
            future = await queue.enqueue({"name": name}, priority, task_id=name)
            assert isinstance(future, asyncio.Future)
        with pytest.raises(BadInput, match="Queue full"):
            await queue.enqueue({})
        assert (await queue.get_stats())["current_priorities"] == {8: 1, 5: 2, 1: 1}
        assert (await queue.get_stats())["utilization"] == 1.0
        assert [task.task_id for task in queue.queue] == ["b", "a", "c", "d"]
        taken = [await queue.dequeue() for _ in range(5)]
        assert [task and task.task_id for task in taken] == ["b", "a", "c", "d", None]
        assert taken[0] is not None
        assert taken[1] is not None
        assert taken[0] < taken[1]
        stats = await queue.get_stats()
        assert (stats["queue_size"], stats["total_queued"], stats["total_processed"]) == (0, 4, 4)
        assert set(stats["avg_wait_times_ms"]) == {8, 5, 1}

    asyncio.run(main())
    assert prioritization.get_priority_for_task_type("interactive") == 10
    assert prioritization.get_priority_for_task_type("?") == prioritization.PRIORITY_NORMAL
    assert prioritization.get_priority_queue() is prioritization.get_priority_queue()


def test_words_for_priorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("AGENT_ROLE_PRIORITIES", "TASK_TYPE_PRIORITIES"):
        monkeypatch.setattr(priority_helpers, table, dict(getattr(priority_helpers, table)))
    role, task = priority_helpers.get_priority_for_role, priority_helpers.get_priority_for_task
    assert role(" Researcher ") == 8 > role("nobody") == 5 > task("batch") == 1
    assert role("nobody", 2) == 2
    priority_helpers.register_role_priority("Nobody", 9)
    priority_helpers.register_task_priority("x", 0)
    assert (role("nobody"), task("X")) == (9, 0)
    with pytest.raises(BadInput):
        priority_helpers.register_role_priority("x", 11)
    assert "nobody" in priority_helpers.list_available_roles()
    assert "x" in priority_helpers.list_available_tasks()
    mapper = priority_helpers.PriorityMapper()
    mapper.add_role("mine", 3)
    mapper.add_task("mine", 4)
    assert (mapper.get_role_priority("MINE"), mapper.get_task_priority("mine")) == (3, 4)
    mapper.remove_role("mine")
    mapper.remove_task("mine")
    assert "mine" not in {**mapper.list_roles(), **mapper.list_tasks()}
    text = priority_helpers.explain_priority_system()
    assert all(f"{level:>2}  {name}" in text for name, level in priority_helpers.LEVELS.items())


# --- executors ---


def described(count: int, **more: Any) -> list[tasks.DistributedTask]:
    payload = {"model": CHAT, "prompt": "Name a colour."}
    return [tasks.DistributedTask(f"task-{n}", payload, priority=n % 11, **more) for n in range(count)]


def test_tasks_run_at_once_in_order_with_an_error_each(pool: OllamaPool) -> None:
    together = threading.Barrier(3)

    def work(task: tasks.DistributedTask, url: str) -> str:
        if task.task_id == "task-1":
            raise ZeroDivisionError("no")
        together.wait(20)
        return f"{task.task_id} on {url}"

    executor = execution.DistributedExecutor(pool, max_workers=4)
    result = executor.execute_parallel(described(4), work)
    assert [one.task_id for one in result.individual_results] == [f"task-{n}" for n in range(4)]
    assert [one.success for one in result.individual_results] == [True, False, True, True]
    assert result.individual_results[1].error == "no"
    assert result.individual_results[0].agent_name == "task-0"
    assert result.merged_result == [one.result for one in result.individual_results if one.success]
    assert {one.node_url for one in result.individual_results} == {node.url for node in pool.nodes}
    assert result["statistics"]["successful"] == 3
    assert result.success_rate == 0.75
    assert result.speedup_factor > 0
    assert result.total_duration_ms > 0
    assert result.avg_task_duration_ms > 0
    assert result.individual_results[0].routing_metadata["_sollol_routing"]["host"]
    executor.shutdown()


def test_a_task_that_takes_too_long_fails(pool: OllamaPool) -> None:
    ends = threading.Event()
    result = execution.DistributedExecutor(pool).execute_parallel(
        described(2, timeout=0.05), lambda task, url: ends.wait(20) if task.task_id == "task-0" else "quick"
    )
    ends.set()
    assert [one.success for one in result.individual_results] == [False, True]
    assert "0.05 s" in str(result.individual_results[0].error)


def test_coroutines_run_at_once(pool: OllamaPool) -> None:
    async def main() -> None:
        together = asyncio.Barrier(3)

        async def work(task: tasks.DistributedTask, url: str) -> str:
            await together.wait()
            return url

        executor = execution.AsyncDistributedExecutor(pool)
        result = await executor.execute_parallel_async(described(3), work, "vote")
        assert result.success_rate == 1.0
        assert result.merged_result in {node.url for node in pool.nodes}
        with pytest.raises(BadInput, match="strategy="):
            await executor.execute_parallel_async(described(1), work, "guess")

    asyncio.run(main())


def test_an_application_that_routes_itself_is_asked_and_told() -> None:
    """As SynapticLlamas' own load balancer is."""

    class Balancer:
        def __init__(self) -> None:
            self.recorded: list[tuple[str, bool]] = []

        def route_request(self, payload: Any, agent_name: str, priority: int) -> Any:
            return type("Decision", (), {"node": type("Node", (), {"url": f"http://{agent_name}"})})

        def record_performance(self, decision: Any, actual_duration_ms: float, success: bool, error: Any) -> None:
            assert actual_duration_ms > 0
            self.recorded.append((decision.node.url, success))

        def get_routing_metadata(self, decision: Any) -> dict[str, Any]:
            return {"mine": decision.node.url}

    balancer = Balancer()
    result = execution.DistributedExecutor(balancer).execute_parallel(described(1), lambda task, url: url)
    assert result.merged_result == ["http://task-0"]
    assert balancer.recorded == [("http://task-0", True)]
    assert result.individual_results[0].routing_metadata == {"mine": "http://task-0"}


def test_results_are_merged() -> None:
    def results(*values: Any) -> list[tasks.TaskResult]:
        return [tasks.TaskResult(str(n), "", value, 10.0 - n, value is not None) for n, value in enumerate(values)]

    merge = aggregation.ResultAggregator().merge
    assert merge(results(1, None, 2), "collect") == [1, 2]
    assert merge(results({"a": 1}, {"b": 2}), "merge") == {"a": 1, "b": 2}
    assert merge(results([1], [2]), "merge") == [1, 2]
    assert merge(results("x", 2), "merge") == "x\n\n2"
    assert merge(results("a", "b", "b"), "vote") == "b"
    assert merge(results("a", "b"), "best") == "b"
    assert merge(results("a", "b"), "first") == "a"
    assert merge(results(None), "vote") is None
    rated = aggregation.ResultAggregator().quality_weighted_merge
    assert rated(results("a", "b"), [0.9, 0.1]) == "a"
    with pytest.raises(BadInput):
        rated(results("a"), [])


def test_a_load_balancer_for_requests_of_a_programs_own(pool: OllamaPool) -> None:
    balancer = integration.SOLLOLLoadBalancer(pool)
    payload = {"model": CHAT, "prompt": "x"}
    first, second = balancer.route_request(payload), balancer.route_request(payload)
    assert first.node.url != second.node.url, "what runs elsewhere counts"
    balancer.record_performance(first, 5.0, True)
    balancer.record_performance(second, 5000.0, True)
    assert balancer.route_request(payload).node.url == first.node.url
    assert balancer.get_stats()["successful"] == 2
    assert balancer.get_routing_metadata(first)["_sollol_routing"]["task_type"] == "chat"

    def fails_there(url: str) -> str:
        if url == first.node.url:
            raise OSError("down")
        return url

    assert balancer.execute_with_failover(payload, fails_there) != first.node.url
    with pytest.raises(NoNodeAvailable, match="all 2 nodes failed"):
        balancer.execute_with_failover(payload, lambda url: 1 / 0)
    assert balancer.suggest_execution_mode() == "parallel"
    with pytest.raises(BadInput):
        integration.SOLLOLLoadBalancer(5)


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


# --- clients ---


def test_a_gateway_in_a_thread_and_its_client(urls: list[str]) -> None:
    config = app_config.SOLLOLConfig(hosts=urls, gateway_port=_free())
    gateway = legacy.SOLLOL(config)
    assert gateway.get_health() == {"error": "SOLLOL is not running; call start()"}
    gateway.start()
    try:
        status = gateway.get_status()
        assert status["running"]
        assert status["ollama_nodes"] == 2
        assert gateway.get_health()["status"] == "ok"
        assert len(gateway.get_stats()["hosts"]) == 2
        with client.connect(status["endpoints"]["gateway"], default_priority=7) as speaks:
            answer = speaks.chat("Name a colour.", system_prompt="Be brief.", conversation_history=[
                {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}])  # fmt: skip
            assert answer["message"]["content"] == answer.message.content
            assert asyncio.run(speaks.chat_async("Name a colour."))["message"]["content"]
            vector = speaks.embed("a text")
            assert speaks.batch_embed(["a text", "other"])["embeddings"][0] == pytest.approx(vector)
            assert speaks.health()["status"] == "ok"
            assert {row["url"] for row in speaks.health()["hosts"]} == set(urls)
            assert speaks.stats()["hosts"][0]["state"] == "up"
            assert speaks.dashboard()["nodes"]
            with pytest.raises(ResponseError, match="nowhere"):
                speaks.chat("x", model="nowhere")
            with pytest.raises(BadInput, match="priority"):
                speaks.chat("x", priority=11)
        gateway.start()  # runs already
    finally:
        gateway.stop()
    assert not gateway.get_status()["running"]
    with pytest.raises(NoNodeAvailable):
        client.SOLLOLClient(client.SOLLOLConfig(status["endpoints"]["gateway"])).health()
    gateway.update_config(gateway_port=9999)
    assert gateway.config is not None
    assert gateway.config.gateway_port == 9999


def test_a_taken_port_is_named(urls: list[str]) -> None:
    port = int(urls[0].rpartition(":")[2])
    with pytest.raises(BadInput, match=str(port)):
        legacy.SOLLOL(port=port, ollama_nodes=urls).start()


@pytest.mark.filterwarnings("ignore:.*no effect any more")
def test_a_configuration_of_0_9() -> None:
    config = app_config.SOLLOLConfig.from_dict({"hosts": ["a:1"], "ray_workers": 8, "routing_strategy": "round_robin"})
    assert app_config.SOLLOLConfig.from_dict(config.to_dict()) == config
    assert config.pool_arguments() == {"nodes": ["a:1"], "routing_strategy": "round_robin", "timeout": 300.0}
    wrongs: list[dict[str, Any]] = [
        {"hosts": []},
        {"gateway_port": 0},
        {"routing_strategy": "best"},
        {"log_level": "LOUD"},
        {"x": 1},
    ]
    for wrong in wrongs:
        with pytest.raises(BadInput):
            app_config.SOLLOLConfig.from_dict(wrong)


def _free() -> int:
    from sollol.sim import free_port

    return free_port()


@pytest.mark.filterwarnings("ignore:.*is taken")
def test_a_pool_whose_answers_are_texts(urls: list[str]) -> None:
    ollama = client.Ollama(nodes=urls)
    assert isinstance(ollama.chat(CHAT, "Name a colour."), str)
    assert ollama.chat(CHAT, [{"role": "user", "content": "Name a colour."}], temperature=0.1)
    assert ollama.generate(CHAT, "Name a colour.", options={"num_predict": 3}).strip()
    assert len(ollama.embed(EMBED, "a text")) > 1
    assert ollama.get_stats()["nodes_configured"] == 2
    with pytest.raises(NotSupported, match="stream"):
        ollama.chat(CHAT, "x", stream=True)
    ollama.close()


def test_the_pool_of_the_process(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_of_process, "_pools", [])
    monkeypatch.setenv("SOLLOL_NODES", ",".join(urls))
    monkeypatch.setenv("SOLLOL_DISCOVERY_SUBNETS", "127.0.0.1/32")
    made = pool_of_process.get_pool()
    assert {node.url for node in made.nodes} == set(urls)
    assert pool_of_process.get_pool() is made
    made.close()


def test_coroutines_without_an_event_loop() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    assert sync_wrapper.sync_wrapper(double)(4) == 8
    runner = sync_wrapper.get_event_loop()
    assert runner.run_coroutine(double(1)) == 2
    with pytest.raises(DeadlineExceeded):
        runner.run_coroutine(asyncio.sleep(30), timeout=0.01)
    assert sync_wrapper.OllamaPool is OllamaPool


# --- observers ---


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch) -> network_observer.NetworkObserver:
    monkeypatch.setattr(network_observer, "_observers", [])
    monkeypatch.setattr(routing_logger, "_loggers", [])
    return network_observer.get_observer()


def test_the_observer_of_the_process_hears_every_pool(
    urls: list[str], observer: network_observer.NetworkObserver
) -> None:
    with OllamaPool(urls) as later, OllamaPool(urls) as other:
        for each in (later, other):
            each.generate(CHAT, "x", options={"num_predict": 1})
        kinds = [event["event_type"] for event in observer.get_recent_events()]
        assert kinds.count("ollama_request") == kinds.count("ollama_response") == 2
        assert observer.get_active_requests() == {}
        assert observer.get_stats()["backends_tracked"] >= 1
        key = observer.get_recent_events(1)[0]["backend"]
        assert observer.get_backend_metrics(key)["events"] == observer.get_backend_metrics()[key]["events"] > 0

        async def coroutines() -> None:
            from sollol import AsyncOllamaPool

            async with AsyncOllamaPool(urls) as third:
                await third.generate(CHAT, "x", options={"num_predict": 1})

        asyncio.run(coroutines())
        kinds = [event["event_type"] for event in observer.get_recent_events(1000)]
        assert kinds.count("ollama_response") == 3


def test_it_hears_pools_that_run_already(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaPool(urls) as earlier:
        earlier.generate(CHAT, "x", options={"num_predict": 1})
        monkeypatch.setattr(network_observer, "_observers", [])
        made = network_observer.get_observer()
        earlier.generate(CHAT, "x", options={"num_predict": 1})
        answers = list(made.get_recent_events(1000, "ollama_response"))
        assert len(answers) == 1


def test_events_of_a_programs_own(observer: network_observer.NetworkObserver) -> None:
    network_observer.log_rpc_request("a:50052", "big")
    network_observer.log_rpc_response("a:50052", "big", 5.0)
    network_observer.log_rpc_error("a:50052", "big", "down")
    network_observer.log_node_health_check("a:1", "up", 1.0)
    network_observer.log_node_status_change("a:1", "up", "down")
    kinds = [event["event_type"] for event in observer.get_recent_events(5)]
    assert kinds == ["node_status_change", "node_health_check", "rpc_error", "rpc_response", "rpc_request"]


def test_decisions_are_logged(
    urls: list[str], observer: network_observer.NetworkObserver, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    assert observer
    caplog.set_level(logging.INFO, "sollol.routing")
    routing_logger.enable_console_routing_log()
    log = routing_logger.get_routing_logger()
    assert log.enabled
    assert not log.redis_available
    with OllamaPool(urls) as pool:
        pool.generate(CHAT, "x", options={"num_predict": 1})
    out = capsys.readouterr().out
    assert '"event_type": "ROUTE_DECISION"' in out
    assert f'"model": "{CHAT}:latest"' in out
    log.log_task_queued("1", CHAT)
    log.log_task_start("1", CHAT, "a")
    log.log_task_complete("1", CHAT, "a", 0.5)
    log.log_worker_load("a", 1)
    log.log_fallback(CHAT, "a", "b", "down")
    log.log_model_switch("x", "y", "a")
    log.log_coordinator_start(CHAT, 1)
    log.log_coordinator_stop(CHAT)
    log.log_rpc_backend_selected("a", 50052, "only one")
    log.log_ollama_node_selected("http://a", "quick", CHAT)
    kinds = [record.args[0] for record in caplog.records if record.name == "sollol.routing" and record.args]
    assert kinds[-10:] == [
        "TASK_QUEUED", "TASK_START", "TASK_COMPLETE", "WORKER_LOAD", "FALLBACK_TRIGGERED", "MODEL_SWITCH",
        "COORDINATOR_START", "COORDINATOR_STOP", "RPC_BACKEND_SELECTED", "OLLAMA_NODE_SELECTED",
    ]  # fmt: skip
    log.enabled = False
    log.log_coordinator_stop(CHAT)
    assert capsys.readouterr().out.count("COORDINATOR_STOP") == 1


def test_lines_for_a_redis_delay_nobody() -> None:
    sent: list[tuple[str, str]] = []
    arrived = threading.Event()

    class Client:
        broken = True

        def publish(self, channel: str, line: str) -> None:
            if self.broken:
                raise OSError("no Redis")
            sent.append((channel, line))

        def xadd(self, stream: str, fields: dict[str, str], maxlen: int, approximate: bool) -> None:
            sent.append((stream, fields["data"]))
            arrived.set()

    redis = Client()
    log = routing_logger.RoutingEventLogger(redis)
    log.log_coordinator_stop("x")
    until = time.monotonic() + 20
    while log.redis_available and time.monotonic() < until:
        time.sleep(0.005)
    assert not log.redis_available
    redis.broken = False
    log.log_coordinator_stop("y")
    assert arrived.wait(20)
    assert [place for place, _ in sent] == [routing_logger.CHANNEL, routing_logger.STREAM]
    assert '"model": "y"' in sent[0][1]


def test_an_application_without_a_dashboard_is_not_registered() -> None:
    made = dashboard_client.DashboardClient("mine", dashboard_url="http://127.0.0.1:9", metadata={"nodes": 2})
    assert not made.registered
    assert not made.heartbeat()
    assert made.app_id
    made.update_metadata({"nodes": 3})
    made.unregister()
