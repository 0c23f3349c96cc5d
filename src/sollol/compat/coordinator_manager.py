"""The manager of a llama.cpp coordinator: it checks one that runs, and starts none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sollol.compat.http_calls import call_async
from sollol.compat.node_cluster import absent
from sollol.errors import NoNodeAvailable, ResponseError

CHECK_S = 3.0


@dataclass
class CoordinatorConfig:
    """The address of a coordinator, and what it was to serve."""

    host: str = "127.0.0.1"
    port: int = 18080
    model_path: str | None = None
    rpc_backends: list[str] | None = None
    ctx_size: int | None = None
    parallel: int = 1
    auto_start: bool = True


class CoordinatorManager:
    """Check a coordinator. Where one has to be started, NotSupported is raised."""

    process = None

    def __init__(self, config: CoordinatorConfig, redis_url: str | None = None) -> None:
        self.config = config

    @property
    def url(self) -> str:
        """The URL of the coordinator."""
        return f"http://{self.config.host}:{self.config.port}"

    async def check_health(self) -> bool:
        """Check that a llama-server answers there."""
        try:
            await call_async(self.url, "/health", timeout_s=CHECK_S)
        except (NoNodeAvailable, ResponseError):
            return False
        return True

    async def ensure_running(self) -> bool:
        """Check that a coordinator runs; return False without one and without `auto_start`.

        Raises:
            NotSupported: None runs, and one has to be started.
        """
        if await self.check_health():
            return True
        if self.config.auto_start:
            raise absent(f"no coordinator answers at {self.url}, and SOLLOL starts none")
        return False

    async def start(self) -> bool:
        """Return True if a coordinator runs already.

        Raises:
            NotSupported: None runs.
        """
        if await self.check_health():
            return True
        raise absent(f"no coordinator answers at {self.url}, and SOLLOL starts none")

    async def get_metrics(self) -> dict[str, Any]:
        """Return whether the coordinator answers."""
        return {"url": self.url, "healthy": await self.check_health()}

    async def shutdown(self) -> None:
        """Do nothing: SOLLOL has started no coordinator."""

    async def get_status(self) -> dict[str, Any]:
        """Return the coordinator, its workers and its model as far as they are known."""
        path, backends = self.config.model_path, self.config.rpc_backends or []
        return {
            "coordinator": {"url": self.url, "healthy": await self.check_health(), "pid": None},
            "rpc_backends": [{"address": address, "healthy": None} for address in backends],
            "model": {"path": path, "name": Path(path).name if path else None},
        }
