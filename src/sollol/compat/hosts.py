"""Descriptions of hosts for `IntelligentRouter.select_optimal_node`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sollol.compat.background import check_number
from sollol.errors import BadInput
from sollol.workload.validation import short

CPU_TIMES = 20.0  # rough ratio of times on a CPU and on a GPU
BUSY_MOST = 0.95  # limit of the processor load


class Host(NamedTuple):
    """An application's description of a host. `gpu` None: unknown."""

    name: str
    available: bool = True
    latency_ms: float = 0.0
    success_rate: float = 1.0
    load: float = 0.0
    active: float = 0.0
    gpu: bool | None = None

    def predict_ms(self, latency_ms: float, requires_gpu: bool) -> float:
        """Return the predicted ms: latency, times the requests in front, divided by the success rate squared."""
        busy = (1 + self.active) / (1 - min(self.load, BUSY_MOST))
        slow = CPU_TIMES if requires_gpu and self.gpu is False else 1.0
        return max(latency_ms, 0.001) * busy * slow / max(self.success_rate, 0.1) ** 2

    def why(self, requires_gpu: bool) -> str:
        """Return the reason of the prediction in words."""
        parts = [f"latency {self.latency_ms:.0f} ms"] if self.latency_ms else ["latency not known"]
        parts += [f"{self.success_rate:.0%} good answers"] if self.success_rate < 1 else []
        parts += [f"{self.active:.0f} requests under way"] if self.active else []
        parts += [{True: "has a GPU", False: "has no GPU", None: "GPU not known"}[self.gpu]] if requires_gpu else []
        return ", ".join(parts)


def read_host(given: Any) -> Host:
    """Return a Host for a name, a mapping, or a node of a pool.

    Raises:
        BadInput: It is none of these.
    """
    if isinstance(given, str) and given:
        return Host(given)
    if isinstance(given, Mapping):
        return _from_mapping(given)
    key, healthy = getattr(given, "key", None), getattr(given, "is_healthy", True)
    if isinstance(key, str):
        return Host(key, bool(healthy))
    raise BadInput(
        f"available_hosts: {short(given)}; expected a name, a dict with 'host' or 'url', or a node of a pool"
    )


def _from_mapping(given: Mapping[str, Any]) -> Host:
    name = given.get("host") or given.get("url")
    if not isinstance(name, str):
        raise BadInput(f"available_hosts: {dict(given)!r} has no 'host' and no 'url'")
    if "port" in given and ":" not in name.rsplit("]")[-1]:
        name = f"{name}:{given['port']}"
    capabilities = given.get("capabilities") if isinstance(given.get("capabilities"), Mapping) else {}
    gpu = capabilities.get("has_gpu") if capabilities else None
    if gpu is None and given.get("gpu_free_mem") is not None:
        gpu = _number(given, "gpu_free_mem", 0.0) > 0
    return Host(
        name,
        bool(given.get("available", True)),
        _number(given, "latency_ms", 0.0),
        _number(given, "success_rate", 1.0, 1.0),
        _number(given, "cpu_load", 0.0),
        _number(given, "active_requests", 0.0),
        gpu,
    )


def _number(given: Mapping[str, Any], field: str, default: float, most: float = float("inf")) -> float:
    value = given.get(field)
    return default if value is None else check_number(f"available_hosts: {field}", value, 0, most)
