"""Clients of llama.cpp for one model over several machines: not supported yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sollol.compat.node_cluster import absent
from sollol.compat.rpc_discovery import check_rpc_server

REDIS_RPC_ACTIVITY_CHANNEL: Final = "sollol:dashboard:rpc:activity"
MODEL_PATH_MAP: Final[dict[str, str]] = {}


@dataclass
class LlamaCppNode:
    """The address of a server of llama.cpp, and its layers."""

    host: str
    port: int
    model_path: str = ""
    layers_start: int = 0
    layers_end: int = 0
    is_healthy: bool = True

    @property
    def url(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def http_url(self) -> str:
        """The URL of the server."""
        return f"http://{self.host}:{self.port}"


class LlamaCppRPCClient:
    """Check a server. `generate` raises NotSupported."""

    def __init__(self, node: LlamaCppNode, timeout: float = 300.0) -> None:
        self.node = node
        self.timeout = timeout

    async def health_check(self) -> bool:
        """Check that the server accepts connections."""
        self.node.is_healthy = await asyncio.to_thread(check_rpc_server, self.node.host, self.node.port)
        return self.node.is_healthy

    async def get_node_info(self) -> dict[str, Any]:
        """Return the address, and whether it accepts connections."""
        return {"host": self.node.host, "port": self.node.port, "healthy": await self.health_check()}

    async def generate(self, prompt: str, options: dict[str, Any] | None = None) -> NoReturn:
        """Raise NotSupported."""
        raise absent("LlamaCppRPCClient.generate()")

    async def close(self) -> None:
        """Do nothing: no connection is held."""


class LlamaCppDistributedCluster:
    """Check several servers. `generate` raises NotSupported."""

    def __init__(self, nodes: Sequence[LlamaCppNode], model_name: str = "distributed", timeout: float = 300.0) -> None:
        self.nodes = list(nodes)
        self.model_name = model_name
        self._clients = [LlamaCppRPCClient(node, timeout) for node in nodes]

    async def health_check(self) -> bool:
        """Check that all servers accept connections."""
        return all([await client.health_check() for client in self._clients])

    async def generate(self, prompt: str, options: dict[str, Any] | None = None) -> NoReturn:
        """Raise NotSupported."""
        raise absent(f"LlamaCppDistributedCluster.generate() for {self.model_name}")

    async def close(self) -> None:
        """Do nothing: no connection is held."""


def resolve_model_path(ollama_model_name: str) -> NoReturn:
    """Raise NotSupported: files of models stay with their nodes."""
    raise absent(f"resolve_model_path({ollama_model_name!r})")
