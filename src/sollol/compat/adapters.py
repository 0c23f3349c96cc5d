"""Measures of requests that a program routes and sends itself. A pool measures its own calls."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final

KEPT: Final = 10_000  # requests


class PerformanceMemory:
    """Record durations by node, task type and model.

    With a pool, averages of nodes without a recorded request are those that the pool has measured.
    """

    def __init__(self, pool: Any = None) -> None:
        self._pool = pool
        self.history: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def record_execution(self, node_url: str, task_type: str, model: str, duration_ms: float, success: bool) -> None:
        """Record a request of a program's own."""
        self.history.append(
            {
                "node_url": node_url,
                "task_type": str(task_type),
                "model": model,
                "duration_ms": duration_ms,
                "success": success,
            }
        )

    def get_average_duration(self, node_url: str, task_type: str, model: str | None = None) -> float:
        """Return the mean duration in ms of good requests, 0.0 if none is known."""
        found = self._of(node_url, str(task_type), model)
        good = [each["duration_ms"] for each in found if each["success"]]
        return sum(good) / len(good) if good else float(self._measured(node_url).get("latency_ms", 0.0))

    def get_success_rate(self, node_url: str, task_type: str | None = None) -> float:
        """Return the share of good requests, 1.0 if none is known."""
        found = [each["success"] for each in self._of(node_url, task_type and str(task_type), None)]
        return sum(found) / len(found) if found else float(self._measured(node_url).get("success_rate", 1.0))

    def _of(self, node_url: str, task_type: str | None, model: str | None) -> list[dict[str, Any]]:
        return [
            each
            for each in list(self.history)
            if each["node_url"] == node_url
            and task_type in (None, each["task_type"])
            and model in (None, each["model"])
        ]

    def _measured(self, node_url: str) -> dict[str, Any]:
        if self._pool is None:
            return {}
        rows: dict[str, Any] = self._pool.get_stats()["node_performance"]
        found: dict[str, Any] = rows.get(node_url.rpartition("//")[2].rstrip("/"), {})
        return found


class MetricsCollector:
    """Count routed and finished requests, and keep the durations of the last ones. Thread-safe."""

    def __init__(self) -> None:
        self.task_type_counts: Counter[str] = Counter()
        self.agent_stats: dict[str, dict[str, Any]] = {}
        self._durations_ms: deque[float] = deque(maxlen=KEPT)
        self._totals = {"routed": 0, "done": 0, "good": 0}
        self._routing_ms = 0.0
        self._lock = threading.Lock()

    def record_routing_decision(
        self,
        agent_name: str,
        task_type: str,
        priority: int,
        selected_node: str,
        score: float,
        routing_time_ms: float,
    ) -> None:
        """Count a decision and its time in ms."""
        with self._lock:
            self._totals["routed"] += 1
            self._routing_ms += routing_time_ms
            self.task_type_counts[str(task_type)] += 1

    def record_request_completion(
        self, agent_name: str, node_url: str, task_type: str, priority: int, duration_ms: float, success: bool
    ) -> None:
        """Count a finished request and its duration in ms."""
        with self._lock:
            self._totals["done"] += 1
            self._totals["good"] += success
            self._durations_ms.append(duration_ms)
            agent = self.agent_stats.setdefault(agent_name, {"requests": 0, "failed": 0, "total_ms": 0.0})
            agent["requests"] += 1
            agent["failed"] += not success
            agent["total_ms"] += duration_ms

    def get_latency_percentiles(self) -> dict[str, float]:
        """Return `p50_latency_ms`, `p95_latency_ms`, `p99_latency_ms` of the last 10,000 requests; 0.0 without one."""
        with self._lock:
            ordered = sorted(self._durations_ms)
        return {f"p{share}_latency_ms": _percentile(ordered, share / 100) for share in (50, 95, 99)}

    def get_summary(self) -> dict[str, Any]:
        """Return the counts, the shares, the means and the percentiles; times in ms."""
        percentiles = self.get_latency_percentiles()
        with self._lock:
            routed, done, good = self._totals["routed"], self._totals["done"], self._totals["good"]
            return {
                "total_routing_decisions": routed,
                "total_requests": done,
                "successful_requests": good,
                "success_rate": good / done if done else 1.0,
                "avg_duration_ms": sum(self._durations_ms) / len(self._durations_ms) if self._durations_ms else 0.0,
                "task_types": dict(self.task_type_counts),
                "agents": {name: dict(agent) for name, agent in self.agent_stats.items()},
                "avg_routing_time_ms": self._routing_ms / routed if routed else 0.0,
                **percentiles,
            }


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value at a share of a sorted list, between two of its values."""
    if not ordered:
        return 0.0
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
