"""Decide whether several tasks end sooner on all nodes. A batch of a pool decides this itself, chunk by chunk."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

DECISIONS_KEPT: Final = 100
SLOTS: Final = 2  # workers for each node


class AdaptiveParallelismStrategy:
    """Compare the nodes of a pool by what it has measured."""

    def __init__(self, pool: Any = None) -> None:
        self.pool = pool
        self.recent_decisions: deque[dict[str, Any]] = deque(maxlen=DECISIONS_KEPT)

    def set_pool(self, pool: Any) -> None:
        """Set the pool."""
        self.pool = pool

    def should_parallelize(self, batch_size: int, model_name: str | None = None) -> tuple[bool, dict[str, Any]]:
        """Return whether a batch should use all nodes, and why.

        It should from two tasks and two healthy nodes on, unless one node alone would have done all of them before the
        next quickest has done one.
        """
        if self.pool is None:
            return True, {"reason": "no_pool", "detail": "no pool is set", "available_nodes": 0}
        rows = _rows(self.pool)
        healthy = {key: row["latency_ms"] for key, row in rows.items() if row.get("available", True)}
        known = sorted((ms, key) for key, ms in healthy.items() if ms > 0)
        best = known[0][1] if known else next(iter(healthy), None)
        why: dict[str, Any] = {
            "available_nodes": len(healthy),
            "batch_size": batch_size,
            "fastest_node": best,
            "recommended_node": best,
        }
        why["speed_ratio"] = known[-1][0] / known[0][0] if known else 1.0
        if len(healthy) < 2:
            return False, {**why, "reason": "single_node", "detail": "fewer than two nodes are healthy"}
        if batch_size < 2:
            return False, {**why, "reason": "single_task", "detail": "there is only one task"}
        if len(known) == len(healthy) and known[0][0] * batch_size < known[1][0]:
            detail = f"{best} has done all {batch_size} before another node has done one"
            return False, {**why, "reason": "dominant_node", "detail": detail}
        workers = self.get_optimal_workers(batch_size)
        detail = f"{len(healthy)} nodes share {batch_size} tasks"
        return True, {**why, "reason": "parallel", "detail": detail, "parallel_workers": workers}

    def get_optimal_workers(self, batch_size: int) -> int:
        """Return how many tasks a program of its own should send at once; a pool queues what is too much."""
        nodes = [node for node in self.pool.nodes if node.is_healthy] if self.pool is not None else []
        return max(1, min(batch_size, SLOTS * max(1, len(nodes))))

    def get_recommended_node(self, model_name: str | None = None) -> str | None:
        """Return the healthy node with the lowest latency, None without one."""
        found: str | None = self.should_parallelize(1, model_name)[1].get("fastest_node")
        return found

    def record_decision(self, decision: dict[str, Any], actual_time: float) -> None:
        """Keep a decision with the seconds that the batch took."""
        self.recent_decisions.append({**decision, "actual_time": actual_time})

    def print_parallelism_report(self, batch_size: int) -> None:
        """Print the decision for a batch."""
        parallel, why = self.should_parallelize(batch_size)
        print(f"{batch_size} tasks on {why['available_nodes']} nodes: {'all nodes' if parallel else 'one node'}")
        print(f"  because {why['detail']}")
        if why.get("fastest_node"):
            print(f"  quickest so far: {why['fastest_node']}, {why['speed_ratio']:.1f} times as quick as the slowest")


def integrate_with_pool(pool: Any, strategy: AdaptiveParallelismStrategy) -> None:
    """Set the pool of a strategy; the pool's batches decide themselves."""
    strategy.set_pool(pool)


def print_parallelism_report(pool: Any) -> None:
    """Print the measures of a pool's nodes, and how it would spread 100 tasks."""
    AdaptiveParallelismStrategy(pool).print_parallelism_report(100)
    for key, row in _rows(pool).items():
        rate = row.get("batch_throughput", 0.0)
        print(f"  {key}: {row['latency_ms']:.0f} ms a request, {rate:.1f} items/s, {row['total_requests']} requests")


def _rows(pool: Any) -> dict[str, Any]:
    """Return the rows of the pool's nodes, without notes of programs on others."""
    stats = pool.get_stats()
    return {key: stats["node_performance"][key] for key in stats["nodes"]}
