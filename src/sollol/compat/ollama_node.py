"""A node of a NodeRegistry: what it reports, and plain requests to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sollol.compat.http_calls import call
from sollol.core.endpoint import parse_endpoint
from sollol.errors import SollolError

PROBE_S = 3.0
MB = 1024 * 1024


@dataclass
class NodeCapabilities:
    """The report of a node on itself. Its cores and memory are not known: 0."""

    has_gpu: bool = False
    gpu_count: int = 0
    gpu_memory_mb: int = 0
    cpu_cores: int = 0
    total_memory_mb: int = 0
    models_loaded: list[str] = field(default_factory=list)
    cpu_count: int = 1


@dataclass
class NodeMetrics:
    """Counters of the requests that a program has sent; times in seconds."""

    total_requests: int = 0
    failed_requests: int = 0
    avg_response_time: float = 0.0
    last_response_time: float = 0.0
    last_health_check: datetime | None = None
    is_healthy: bool = True
    load_score: float = 0.0
    last_error: str | None = None

    @property
    def successful_requests(self) -> int:
        """Requests without an error."""
        return self.total_requests - self.failed_requests

    @property
    def avg_latency(self) -> float:
        """The mean time of a request in ms."""
        return 1000 * self.avg_response_time


class OllamaNode:
    """A node by URL. `priority` is the program's own."""

    def __init__(self, url: str, name: str | None = None, priority: int = 0) -> None:
        endpoint = parse_endpoint(url)
        self.url = endpoint.url
        self.name = name or endpoint.key
        self.priority = priority
        self.capabilities = NodeCapabilities()
        self.metrics = NodeMetrics()

    @property
    def is_healthy(self) -> bool:
        """The result of the last probe or request; True before the first."""
        return self.metrics.is_healthy

    @property
    def last_health_check(self) -> datetime | None:
        """When it was probed last."""
        return self.metrics.last_health_check

    def health_check(self, timeout: float = PROBE_S) -> bool:
        """Check that Ollama answers; `timeout` in seconds."""
        return self._read("/api/version", timeout) is not None

    def probe_capabilities(self, timeout: float = PROBE_S) -> bool:
        """Read the loaded models and their GPU memory; return False if the node does not answer."""
        found = self._read("/api/ps", timeout)
        if not isinstance(found, dict):
            return False
        models = [model for model in found.get("models") or () if isinstance(model, dict)]
        vram = sum(int(model.get("size_vram") or 0) for model in models)
        names = [str(model.get("name", "")) for model in models]
        self.capabilities = NodeCapabilities(vram > 0, int(vram > 0), vram // MB, models_loaded=names)
        return True

    def generate(
        self,
        model: str,
        prompt: str,
        system_prompt: str | None = None,
        format_json: bool = False,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Send a prompt to this node alone; return Ollama's answer.

        Raises:
            SollolError: The node failed or refused.
        """
        body: dict[str, Any] = {"model": model, "prompt": prompt, "stream": False}
        body |= {"system": system_prompt} if system_prompt else {}
        body |= {"format": "json"} if format_json else {}
        metrics, began = self.metrics, time.monotonic()
        metrics.total_requests += 1
        try:
            found: dict[str, Any] = call(self.url, "/api/generate", body, timeout)
        except SollolError as error:
            metrics.failed_requests += 1
            metrics.last_error = str(error)
            raise
        metrics.last_response_time = time.monotonic() - began
        good = metrics.successful_requests
        metrics.avg_response_time += (metrics.last_response_time - metrics.avg_response_time) / good
        return found

    def calculate_load_score(self) -> float:
        """Return a score, lower for nodes that answered quicker and failed less: mean seconds, times failures."""
        metrics = self.metrics
        failed = metrics.failed_requests / metrics.total_requests if metrics.total_requests else 0.0
        metrics.load_score = metrics.avg_response_time * (1 + 4 * failed) + (0 if self.is_healthy else 100)
        return metrics.load_score

    def to_dict(self) -> dict[str, Any]:
        """Return address and state as plain values."""
        return {"url": self.url, "name": self.name, "priority": self.priority, "is_healthy": self.is_healthy}

    def _read(self, path: str, timeout: float) -> Any:
        metrics = self.metrics
        metrics.last_health_check = datetime.now(UTC)
        try:
            found = call(self.url, path, timeout_s=timeout)
        except SollolError as error:
            metrics.is_healthy, metrics.last_error = False, str(error)
            return None
        metrics.is_healthy = True
        return found

    def __repr__(self) -> str:
        return f"<OllamaNode {self.name} {self.url} {'healthy' if self.is_healthy else 'unhealthy'}>"
