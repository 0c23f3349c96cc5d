"""Run a program's own function for several tasks on several nodes at once.

The nodes come from a pool, a registry, or a load balancer with `route_request`. For chats and prompts
`pool.batch_chat` and `batch_generate` are shorter, and choose a node when it is free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sollol.compat.aggregation import ResultAggregator
from sollol.compat.integration import SOLLOLLoadBalancer
from sollol.compat.tasks import DistributedTask, ExecutionResult, TaskResult
from sollol.errors import DeadlineExceeded
from sollol.workload.validation import check_count

WORKERS = 10
log = logging.getLogger("sollol.execution")


class DistributedExecutor:
    """Run tasks in threads, `max_workers` at once, each on the node that the load balancer chooses for it."""

    def __init__(self, load_balancer: Any, max_workers: int = WORKERS) -> None:
        self.load_balancer = _balancer(load_balancer)
        self.max_workers = check_count("max_workers", max_workers)
        self._aggregator = ResultAggregator()

    def execute_parallel(
        self,
        tasks: Sequence[DistributedTask],
        executor_fn: Callable[[DistributedTask, str], Any],
        merge_strategy: str = "collect",
    ) -> ExecutionResult:
        """Call `executor_fn(task, node_url)` for each task; tasks with a higher priority start first.

        A failed task has its error in its result. A task that takes longer than its `timeout` fails, though its thread
        goes on: a thread cannot be stopped.
        """
        began = time.monotonic()
        self._aggregator.merge([], merge_strategy)
        order = sorted(range(len(tasks)), key=lambda place: -tasks[place].priority)
        workers = ThreadPoolExecutor(min(self.max_workers, max(1, len(tasks))), thread_name_prefix="sollol-task")
        try:
            running = {place: workers.submit(self._run, tasks[place], executor_fn) for place in order}
            found = []
            for place, task in enumerate(tasks):
                try:
                    found.append(running[place].result(task.timeout))
                except TimeoutError:
                    running[place].cancel()
                    found.append(_failed(task, "", task.timeout, DeadlineExceeded(f"no result in {task.timeout:g} s")))
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
        return _summary(self._aggregator, found, began, merge_strategy, "parallel")

    def _run(self, task: DistributedTask, function: Callable[[DistributedTask, str], Any]) -> TaskResult:
        began, url, decision = time.monotonic(), "", None
        try:
            decision = self.load_balancer.route_request(task.payload, task.task_id, task.priority)
            url = decision.node.url
            result = _done(task, url, time.monotonic() - began, function(task, url))
        except Exception as error:
            result = _failed(task, url, time.monotonic() - began, error)
        _record(self.load_balancer, decision, result)
        return result

    def shutdown(self) -> None:
        """Do nothing: threads end with their tasks."""


class AsyncDistributedExecutor:
    """Run coroutines for tasks at once, each on the node that the load balancer chooses for it."""

    def __init__(self, load_balancer: Any) -> None:
        self.load_balancer = _balancer(load_balancer)
        self._aggregator = ResultAggregator()

    async def execute_parallel_async(
        self,
        tasks: Sequence[DistributedTask],
        executor_fn: Callable[[DistributedTask, str], Any],
        merge_strategy: str = "collect",
    ) -> ExecutionResult:
        """Await `executor_fn(task, node_url)` for all tasks at once. A failed task has its error in its result."""
        began = time.monotonic()
        self._aggregator.merge([], merge_strategy)
        found = await asyncio.gather(*(self._run(task, executor_fn) for task in tasks))
        return _summary(self._aggregator, list(found), began, merge_strategy, "async_parallel")

    async def _run(self, task: DistributedTask, function: Callable[[DistributedTask, str], Any]) -> TaskResult:
        began, url, decision = time.monotonic(), "", None
        try:
            decision = self.load_balancer.route_request(task.payload, task.task_id, task.priority)
            url = decision.node.url
            async with asyncio.timeout(task.timeout):
                result = _done(task, url, time.monotonic() - began, await function(task, url))
        except Exception as error:
            result = _failed(task, url, time.monotonic() - began, error)
        _record(self.load_balancer, decision, result)
        return result


def _balancer(given: Any) -> Any:
    return (
        given
        if callable(getattr(given, "execute_with_failover", None)) or _routes(given)
        else SOLLOLLoadBalancer(given)
    )


def _routes(given: Any) -> bool:
    """Check for a load balancer: it routes and records. A pool does neither."""
    return callable(getattr(given, "route_request", None)) and callable(getattr(given, "record_performance", None))


def _done(task: DistributedTask, url: str, seconds: float, value: Any) -> TaskResult:
    return TaskResult(task.task_id, url, value, 1000 * seconds, True)


def _failed(task: DistributedTask, url: str, seconds: float, error: Exception) -> TaskResult:
    log.warning("task %s on %s failed: %s: %s", task.task_id, url or "no node", type(error).__name__, error)
    return TaskResult(task.task_id, url, None, 1000 * seconds, False, str(error) or type(error).__name__)


def _record(balancer: Any, decision: Any, result: TaskResult) -> None:
    if decision is not None:
        balancer.record_performance(decision, max(result.duration_ms, 0.001), result.success, result.error)
        result.routing_metadata = dict(balancer.get_routing_metadata(decision))


def _summary(
    aggregator: ResultAggregator, found: list[TaskResult], began: float, strategy: str, mode: str
) -> ExecutionResult:
    total_ms = 1000 * (time.monotonic() - began)
    summed_ms = sum(result.duration_ms for result in found)
    good = sum(result.success for result in found)
    statistics = {
        "total_tasks": len(found),
        "successful": good,
        "failed": len(found) - good,
        "total_duration_ms": total_ms,
        "avg_task_duration_ms": summed_ms / len(found) if found else 0.0,
        "speedup_factor": summed_ms / total_ms if total_ms and found else 1.0,
        "nodes_used": sorted({result.node_url for result in found if result.node_url}),
    }
    return ExecutionResult(aggregator.merge(found, strategy), found, statistics, mode)
