"""Routing with a word about the task."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from sollol import AsyncOllamaPool, BadInput, NoNodeAvailable, OllamaPool, TaskType
from sollol.gpu_controller import SOLLOLGPUController, integrate_with_router
from sollol.intelligence import IntelligentRouter, TaskContext
from sollol.routing_modes import RoutingMode, TaskPriority
from sollol.routing_strategy import RoutingStrategy
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster

CHAT = "llama3.2"
HELLO = [{"role": "user", "content": "Hello, who is there?"}]
SUMMARY = [{"role": "user", "content": "Summarize this article: it rained."}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with sim_cluster([NodeSpec(seed=i) for i in range(2)]) as running:
        yield running


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster)) as pool:
        yield pool


# --- TaskContext ---


def test_a_context_may_be_empty() -> None:
    context = TaskContext()
    assert (context.task_type, context.complexity, context.priority, context.metadata) == (None, None, 5, {})


@pytest.mark.parametrize(
    ("word", "type_"),
    [
        ("code_generation", TaskType.CODE),
        ("Code Review", TaskType.CODE),
        ("summarization", TaskType.SUMMARISE),
        ("text-classification", TaskType.CLASSIFY),
        ("entity_extraction", TaskType.EXTRACT),
        ("embedding", TaskType.EMBED),
        ("generation", None),
        ("research", None),
    ],
)
def test_operations_name_a_type(word: str, type_: TaskType | None) -> None:
    assert TaskContext(operation=word).task_type is type_


def test_old_words_for_types_and_complexities() -> None:
    context = TaskContext(
        task_type="generation",
        complexity="complex",
        estimated_tokens=1000,
        model_preference=CHAT,
        priority=TaskPriority.HIGH,
        requires_gpu=True,
        estimated_duration_ms=3000.0,
        metadata={"agent": "planner"},
    )
    assert (context.task_type, context.complexity, context.priority) == (TaskType.CHAT, 8, 8)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"complexity": 11}, "complexity=11; expected a whole number from 1 to 10"),
        ({"complexity": "hard"}, "complexity='hard'"),
        ({"complexity": 2.5}, "complexity=2.5"),
        ({"priority": 11}, "priority=11"),
        ({"task_type": "singing"}, "task_type='singing'; expected one of 'chat'"),
        ({"operation": 7}, "operation=7"),
        ({"requires_gpu": "yes"}, "requires_gpu='yes'; expected True or False"),
        ({"estimated_tokens": -1}, "estimated_tokens=-1"),
        ({"estimated_duration_ms": "long"}, "estimated_duration_ms='long'"),
        ({"model_preference": ""}, "expected the name of a model"),
        ({"metadata": []}, r"metadata=\[\]; expected a dict"),
    ],
)
def test_a_context_is_checked(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        TaskContext(**fields)


# --- routing ---


def test_a_context_reaches_the_pool(pool: OllamaPool) -> None:
    router = IntelligentRouter(pool)
    context = TaskContext(operation="code_generation", complexity=7, priority=8)
    answer = router.route_request(model=CHAT, messages=HELLO, task_context=context)
    assert answer.message.content
    routing = answer.routing
    assert (routing.task_type, routing.operation, routing.complexity) == ("code", "code_generation", 7)
    assert pool.explain(routing.id)["task_type"] == "code"


def test_a_type_is_detected_without_a_context(pool: OllamaPool) -> None:
    router = IntelligentRouter(pool)
    assert router.route_request(CHAT, SUMMARY).routing.task_type == "summarise"
    assert router.route_request(CHAT, prompt="Summarize: it rained.").routing.task_type == "summarise"
    told = router.route_request(messages=HELLO, task_context={"model_preference": CHAT, "operation": "generation"})
    assert (told.routing.task_type, told.routing.complexity) == ("chat", 1)


def test_streams_and_other_keywords_pass(pool: OllamaPool) -> None:
    router = IntelligentRouter(pool)
    parts = list(router.route_request(CHAT, HELLO, stream=True, options={"num_predict": 3}))
    assert parts[-1].done
    assert router.route_request(CHAT, HELLO, mode="reliable").routing.mode == "reliable"


def test_an_asynchronous_pool_is_awaited(cluster: Cluster) -> None:
    async def main() -> None:
        async with AsyncOllamaPool(list(cluster)) as pool:
            router = IntelligentRouter(pool)
            with SOLLOLGPUController(pool) as controller:
                integrate_with_router(router, controller)
                answer = await router.route_request(CHAT, HELLO, TaskContext(requires_gpu=True))
                assert answer.routing.gpu_node in {node.key for node in pool.nodes}
            parts = [part async for part in await IntelligentRouter(pool).route_request(CHAT, HELLO, stream=True)]
            assert parts[-1].done

    asyncio.run(main())


def test_a_gpu_is_seen_to(pool: OllamaPool) -> None:
    router = IntelligentRouter()
    with SOLLOLGPUController(pool=pool) as controller:
        integrate_with_router(router, controller)
        assert router.pool is pool
        answer = router.route_request(CHAT, HELLO, TaskContext(requires_gpu=True))
        assert controller.verify_routing_decision(answer.routing.gpu_node, CHAT)
        assert "gpu_node" not in router.route_request(CHAT, HELLO).routing
        controller.priority_models = [f"{CHAT}:latest"]
        assert router.route_request(CHAT, HELLO).routing.gpu_node


def test_calls_that_require_a_gpu_go_there() -> None:
    """The model is in memory on two nodes without a GPU, and on the disk of one that has one."""
    model = ModelSpec(CHAT, size_bytes=1_000_000_000, mean_words=10)
    specs = [
        NodeSpec(models=(model,), vram_bytes=vram, decode_tokens_per_s=200, prefill_tokens_per_s=20_000, seed=i)
        for i, vram in enumerate((10**10, 0, 0))
    ]
    with sim_cluster(specs) as nodes, OllamaPool(list(nodes)) as pool, SOLLOLGPUController(pool) as controller:
        for url in nodes[1:]:
            pool.warm_model(CHAT, node=url)
        router = IntelligentRouter()
        integrate_with_router(router, controller)
        answers = [
            router.route_request(CHAT, prompt=f"{i * 7919} is which number?", task_context={"requires_gpu": True})
            for i in range(30)
        ]
    gpu = nodes[0].removeprefix("http://")
    assert {answer.routing.gpu_node for answer in answers} == {gpu}
    assert {answer.routing.node for answer in answers} == {gpu}


def test_without_a_controller_a_call_that_requires_a_gpu_goes_to_no_node_that_holds_the_model_on_its_cpu() -> None:
    model = ModelSpec(CHAT, size_bytes=1_000_000_000, mean_words=10)
    specs = [NodeSpec(models=(model,), vram_bytes=vram, loaded=(CHAT,), seed=i) for i, vram in enumerate((0, 10**10))]
    with sim_cluster(specs) as nodes, OllamaPool(list(nodes)) as pool:
        router = IntelligentRouter(pool)
        asked = [router.route_request(CHAT, HELLO, TaskContext(requires_gpu=True)) for _ in range(6)]
        assert {answer.routing.node for answer in asked} == {nodes[1].removeprefix("http://")}
        pool.remove_node(nodes[1])
        with pytest.raises(NoNodeAvailable, match="a GPU is required for all of"):
            router.route_request(CHAT, HELLO, TaskContext(requires_gpu=True))
        assert pool.chat(CHAT, HELLO).routing.node == nodes[0].removeprefix("http://")
        with pytest.raises(NoNodeAvailable, match="not among the nodes"):
            pool.chat(CHAT, HELLO, node="10.0.0.1")


def test_a_pool_is_made_when_it_is_needed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLLOL_NODES", " ".join(cluster))
    with IntelligentRouter() as router:
        assert router.route_request(CHAT, HELLO).message.content
        made = router.pool
        assert made is router.pool
    with pytest.raises(Exception, match="closed"):
        made.chat(CHAT, HELLO)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda router: router.route_request(CHAT), "either messages or a prompt"),
        (lambda router: router.route_request(CHAT, HELLO, prompt="p"), "either messages or a prompt"),
        (lambda router: router.route_request(messages=HELLO), "expected the name of a model"),
        (lambda router: router.route_request(CHAT, HELLO, 7), "task_context=7; expected a TaskContext"),
        (lambda router: router.route_request(CHAT, HELLO, {"prio": 7}), "task_context=.*'prio'"),
        (lambda router: router.route_request(CHAT, HELLO, fromat="json"), "did you mean 'format'"),
        (lambda router: IntelligentRouter("pool"), "pool='pool'; expected an OllamaPool"),
        (lambda router: router.analyze_request(["text"]), "payload is list; expected a dict"),
        (lambda router: router.analyze_request({"prompt": "p"}, priority=11), "priority=11"),
        (lambda router: router.record_performance("code", CHAT, -1), "duration_ms=-1"),
        (lambda router: router.record_performance("singing", CHAT, 1), "task_type='singing'"),
        (lambda router: router.select_optimal_node(TaskContext(), []), "No available hosts"),
        (lambda router: router.select_optimal_node(TaskContext(), "host"), "expected a list of hosts"),
        (lambda router: router.select_optimal_node(TaskContext(), [7]), "available_hosts: 7"),
        (lambda router: router.select_optimal_node(TaskContext(), [{"name": "a"}]), "no 'host' and no 'url'"),
        (lambda router: router.select_optimal_node(TaskContext(), [{"host": "a", "success_rate": 2}]), "from 0 to 1"),
    ],
)
def test_what_cannot_be_used_is_told(pool: OllamaPool, call: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call(IntelligentRouter(pool))


# --- analysing, and choosing a host for others ---


def test_a_payload_becomes_a_context() -> None:
    router = IntelligentRouter()
    payload = {"model": CHAT, "messages": SUMMARY}
    context = router.analyze_request(payload, priority=7)
    assert (context.task_type, context.priority, context.model_preference) == (TaskType.SUMMARISE, 7, CHAT)
    assert context.estimated_tokens == len(SUMMARY[0]["content"]) // 4
    assert context.estimated_duration_ms == pytest.approx(6440)  # 128 tokens and the prompt at usual rates
    assert context.metadata == {"estimated_from": "prior"}
    for duration_ms in (1000, 2000, 9000):
        router.record_performance("summarization", CHAT, duration_ms)
    assert router.analyze_request(payload).estimated_duration_ms == 2000
    assert router.detect_task_type(payload) is TaskType.SUMMARISE
    assert router.estimate_complexity(payload) == context.complexity
    assert router.analyze_request({"model": "m", "input": ["ab" * 10, "cd"]}).estimated_tokens == 5


HOSTS = [
    {"host": "10.0.0.2:11434", "available": True, "latency_ms": 120.0, "success_rate": 0.98, "gpu_free_mem": 16384},
    {"host": "10.0.0.3:11434", "available": True, "latency_ms": 200.0, "success_rate": 0.95, "gpu_free_mem": 8192},
    {"host": "10.0.0.4:11434", "available": True, "latency_ms": 80.0, "success_rate": 0.99, "gpu_free_mem": 0},
]


def test_the_host_where_it_ends_first() -> None:
    router = IntelligentRouter()
    host, decision = router.select_optimal_node(TaskContext(task_type="generation"), HOSTS)
    assert host == decision["host"] == "10.0.0.4:11434"
    assert decision["fallbacks"] == ["10.0.0.2:11434", "10.0.0.3:11434"]
    assert decision["score"] == pytest.approx(1000 / decision["predicted_ms"])
    assert "80 ms" in decision["reasoning"]
    assert decision["task_type"] == "chat"


def test_what_a_choice_depends_on() -> None:
    choose = IntelligentRouter().select_optimal_node
    assert choose(TaskContext(requires_gpu=True), HOSTS)[0] == "10.0.0.2:11434"
    assert choose({}, [HOSTS[0], {**HOSTS[2], "cpu_load": 0.9}])[0] == "10.0.0.2:11434"
    assert choose({}, [HOSTS[0], {**HOSTS[2], "active_requests": 3}])[0] == "10.0.0.2:11434"
    assert choose({}, [HOSTS[0], {**HOSTS[2], "success_rate": 0.3}])[0] == "10.0.0.2:11434"
    assert choose({}, [HOSTS[0], {**HOSTS[2], "available": False}])[0] == "10.0.0.2:11434"
    assert choose({}, ["a", "b"])[0] == "a"
    assert choose({}, [{"host": "10.0.0.9", "port": 11434}])[0] == "10.0.0.9:11434"
    assert (
        choose({}, [{"url": "http://10.0.0.9:11434", "capabilities": {"has_gpu": True}}])[0] == "http://10.0.0.9:11434"
    )
    assert choose({}, OllamaPool(["10.0.0.9"]).nodes)[0] == "10.0.0.9:11434"
    with pytest.raises(NoNodeAvailable, match="No available hosts"):
        choose({}, [{"host": "a", "available": False}])


def test_it_learns_from_what_was_recorded() -> None:
    router = IntelligentRouter()
    context = TaskContext(operation="code_generation", model_preference=CHAT)
    assert router.select_optimal_node(context, ["a", "b"])[0] == "a"
    router.record_performance("code_generation", CHAT, 5000, host="a")
    router.record_performance("code_generation", CHAT, 700, host="b")
    assert router.select_optimal_node(context, ["a", "b"])[0] == "b"
    for _ in range(10):
        router.record_performance("code_generation", CHAT, 2000, host="b", success=False)
    assert router.select_optimal_node(context, ["a", "b"])[0] == "a"


def test_the_names_of_modes_and_strategies() -> None:
    assert [mode.value for mode in RoutingMode] == ["fast", "reliable", "async"]
    priorities = [TaskPriority.CRITICAL, TaskPriority.URGENT, TaskPriority.HIGH, TaskPriority.NORMAL]
    assert [*priorities, TaskPriority.LOW, TaskPriority.DEFERRED] == [10, 10, 8, 5, 2, 0]
    assert {strategy.name for strategy in RoutingStrategy} == {
        "ROUND_ROBIN", "LATENCY_FIRST", "LEAST_LOADED", "FAIRNESS", "INTELLIGENT"
    }  # fmt: skip
