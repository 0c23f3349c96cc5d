"""Priorities, queues and executors of 0.9, and how results are merged."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from sollol import OllamaPool
from sollol.compat import (
    aggregation,
    execution,
    integration,
    prioritization,
    priority_helpers,
    tasks,
)
from sollol.errors import BadInput, NoNodeAvailable

CHAT = "llama3.2"


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


@pytest.mark.parametrize("word", [None, 7, ["researcher"]])
def test_a_role_or_kind_that_is_no_text(word: Any) -> None:
    for call in (priority_helpers.get_priority_for_role, priority_helpers.get_priority_for_task):
        with pytest.raises(BadInput, match="names no role or kind of task; expected a text"):
            call(word)
