"""Choose nodes for requests that a program sends itself. A pool chooses, sends and retries in one call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sollol.compat.intelligence import IntelligentRouter, TaskContext
from sollol.errors import BadInput, NoNodeAvailable
from sollol.workload.validation import short


@dataclass
class RoutingDecision:
    """A chosen node with its reason; `fallback_nodes` are the others, best first."""

    node: Any
    task_context: TaskContext
    decision_score: float
    reasoning: str
    timestamp: datetime = field(default_factory=datetime.now)
    fallback_nodes: list[Any] = field(default_factory=list)


class SOLLOLLoadBalancer:
    """Choose among the nodes of a pool, or of a registry with `get_healthy_nodes()`.

    The node with the least predicted time is chosen, by the durations that `record_performance` is given and the
    requests under way here.
    """

    def __init__(self, registry: Any) -> None:
        if not hasattr(registry, "nodes") and not callable(getattr(registry, "get_healthy_nodes", None)):
            raise BadInput(f"registry={short(registry)}; expected a pool, or an object with get_healthy_nodes()")
        self.registry = registry
        self.intelligence = IntelligentRouter()
        self._running: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _nodes(self) -> list[Any]:
        read = getattr(self.registry, "get_healthy_nodes", None)
        return list(read()) if callable(read) else [node for node in self.registry.nodes if node.is_healthy]

    def route_request(
        self, payload: Mapping[str, Any], agent_name: str = "Unknown", priority: int = 5
    ) -> RoutingDecision:
        """Return the node for a payload of Ollama's API. To be followed by `record_performance`.

        Raises:
            NoNodeAvailable: No node is healthy.
        """
        context = self.intelligence.analyze_request(payload, priority)
        nodes = {node.url: node for node in self._nodes()}
        if not nodes:
            raise NoNodeAvailable("no healthy node is known")
        with self._lock:
            hosts = [{"url": url, "active_requests": self._running[url]} for url in nodes]
            best, decision = self.intelligence.select_optimal_node(context, hosts)
            self._running[best] += 1
            self._totals["routed"] += 1
        others = [nodes[url] for url in decision["fallbacks"]]
        return RoutingDecision(nodes[best], context, decision["score"], decision["reasoning"], fallback_nodes=others)

    def route_with_retry(
        self,
        payload: Mapping[str, Any],
        agent_name: str = "Unknown",
        priority: int = 5,
        max_retries: int = 3,
        backoff_multiplier: float = 0.5,
    ) -> RoutingDecision:
        """Return `route_request(...)`: a second look at the same nodes would not find others."""
        return self.route_request(payload, agent_name, priority)

    def execute_with_failover(
        self,
        payload: Mapping[str, Any],
        execute_fn: Callable[[str], Any],
        agent_name: str = "Unknown",
        priority: int = 5,
        max_retries: int = 3,
        backoff_multiplier: float = 0.5,
    ) -> Any:
        """Call `execute_fn(node_url)` for the best node, then for the others until one succeeds.

        Raises:
            NoNodeAvailable: All failed, or none is healthy.
        """
        decision = self.route_request(payload, agent_name, priority)
        tried: list[tuple[str, str]] = []
        for node in [decision.node, *decision.fallback_nodes][: max_retries + 1]:
            began = datetime.now()
            try:
                answer = execute_fn(node.url)
            except Exception as error:
                tried.append((node.url, f"{type(error).__name__}: {error}"))
                continue
            taken_ms = (datetime.now() - began).total_seconds() * 1000
            decision.node = node
            self.record_performance(decision, max(taken_ms, 0.001), True)
            return answer
        self.record_performance(decision, 0.001, False, tried[-1][1])
        raise NoNodeAvailable(f"all {len(tried)} nodes failed", tried)

    def record_performance(
        self, decision: RoutingDecision, actual_duration_ms: float, success: bool, error: str | None = None
    ) -> None:
        """Record how long a routed request took, in ms, and that it has ended."""
        context, url = decision.task_context, decision.node.url
        with self._lock:
            self._running[url] = max(0, self._running[url] - 1)
            self._totals["successful" if success else "failed"] += 1
        if context.model_preference and context.task_type:
            self.intelligence.record_performance(
                context.task_type, context.model_preference, actual_duration_ms, url, success
            )

    def get_routing_metadata(self, decision: RoutingDecision) -> dict[str, Any]:
        """Return the decision as plain values, under `_sollol_routing`."""
        context = decision.task_context
        return {
            "_sollol_routing": {
                "host": decision.node.url,
                "task_type": None if context.task_type is None else str(context.task_type),
                "complexity": context.complexity,
                "priority": context.priority,
                "estimated_tokens": context.estimated_tokens,
                "estimated_duration_ms": context.estimated_duration_ms,
                "decision_score": decision.decision_score,
                "reasoning": decision.reasoning,
                "timestamp": decision.timestamp.isoformat(),
                "fallback_nodes_available": len(decision.fallback_nodes),
            }
        }

    def get_stats(self) -> dict[str, Any]:
        """Return the numbers of routed, successful and failed requests, and of those under way by node."""
        with self._lock:
            return {
                **{name: self._totals[name] for name in ("routed", "successful", "failed")},
                "running": +self._running,
            }

    def should_use_parallel(self) -> bool:
        """Check that more than one node is healthy."""
        return len(self._nodes()) > 1

    def suggest_execution_mode(self) -> str:
        """Return "parallel" if more than one node is healthy, else "sequential"."""
        return "parallel" if self.should_use_parallel() else "sequential"
