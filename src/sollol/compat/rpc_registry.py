"""A registry of llama.cpp's workers that checks them. SOLLOL sends them no requests."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sollol.compat.rpc_discovery import RPC_PORT, check_rpc_server, parse_backend

CHECK_S = 1.0


@dataclass
class RPCMetrics:
    """The results of a worker's checks. `last_health_check`: seconds since 1970, 0.0 before the first."""

    total_requests: int = 0
    total_failures: int = 0
    total_latency_ms: float = 0.0
    last_health_check: float = 0.0
    last_health_status: bool = False

    @property
    def avg_latency(self) -> float:
        """The mean time of a connection in ms."""
        good = self.total_requests - self.total_failures
        return self.total_latency_ms / good if good else 0.0

    @property
    def success_rate(self) -> float:
        """The share of good checks, 1.0 before the first."""
        return 1 - self.total_failures / self.total_requests if self.total_requests else 1.0


@dataclass
class RPCBackend:
    """One worker."""

    host: str
    port: int = RPC_PORT
    metrics: RPCMetrics = field(default_factory=RPCMetrics)

    def check_health(self, timeout: float = CHECK_S) -> bool:
        """Check that it accepts connections now; `timeout` in seconds."""
        began = time.monotonic()
        good = check_rpc_server(self.host, self.port, timeout)
        metrics = self.metrics
        metrics.total_requests += 1
        metrics.last_health_check, metrics.last_health_status = time.time(), good
        if good:
            metrics.total_latency_ms += 1000 * (time.monotonic() - began)
        else:
            metrics.total_failures += 1
        return good

    @property
    def is_healthy(self) -> bool:
        """The result of the last check; False before the first."""
        return self.metrics.last_health_status

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        """Return the worker as plain values."""
        metrics = self.metrics
        return {
            "host": self.host,
            "port": self.port,
            "healthy": self.is_healthy,
            "metrics": {
                "total_requests": metrics.total_requests,
                "total_failures": metrics.total_failures,
                "avg_latency_ms": metrics.avg_latency,
                "success_rate": metrics.success_rate,
                "last_check": metrics.last_health_check,
            },
        }


class RPCBackendRegistry:
    """Workers by `host:port`. `health_check_all` checks them, and so do methods that return healthy ones."""

    def __init__(self, enable_heartbeat: bool = True) -> None:
        self.backends: dict[str, RPCBackend] = {}

    def stop_heartbeat(self) -> None:
        """Do nothing: nothing runs in the background."""

    def add_backend(self, host: str = "", port: int = RPC_PORT, *, url: str = "", **more: Any) -> RPCBackend:
        """Add a worker by host and port, or by URL; return it. `more` is not used."""
        name, at = parse_backend(url) if url else (host, port)
        backend = RPCBackend(name, int(at))
        return self.backends.setdefault(backend.address, backend)

    def remove_backend(self, host: str, port: int = RPC_PORT) -> bool:
        """Remove a worker; return False if it was not there."""
        return self.backends.pop(f"{host}:{port}", None) is not None

    def get_all_backends(self) -> list[RPCBackend]:
        """Return all workers."""
        return list(self.backends.values())

    def get_healthy_backends(self) -> list[RPCBackend]:
        """Return the workers that answer; those that were never checked are checked now."""
        for backend in self.backends.values():
            if not backend.metrics.last_health_check:
                backend.check_health()
        return [backend for backend in self.backends.values() if backend.is_healthy]

    def get_best_backend(self) -> RPCBackend | None:
        """Return the healthy worker with the least time of a connection, None without one."""
        return min(self.get_healthy_backends(), key=lambda one: one.metrics.avg_latency, default=None)

    def health_check_all(self, timeout: float = CHECK_S) -> dict[str, bool]:
        """Check all workers, `timeout` seconds each; return the results by `host:port`."""
        return {address: backend.check_health(timeout) for address, backend in self.backends.items()}

    def get_stats(self) -> dict[str, Any]:
        """Return the numbers of all and of healthy workers, and a row for each in `backends`."""
        healthy = sum(backend.is_healthy for backend in self.backends.values())
        rows = [backend.to_dict() for backend in self.backends.values()]
        return {"total_backends": len(rows), "healthy_backends": healthy, "backends": rows}

    def load_from_config(self, rpc_backends: Iterable[Any]) -> None:
        """Add workers from a list of dicts with `host` and `port`."""
        for given in rpc_backends:
            self.add_backend(*parse_backend(given))
