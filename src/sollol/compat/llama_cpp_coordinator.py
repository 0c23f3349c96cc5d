"""The coordinator of one model over several machines: not supported yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from sollol.compat.node_cluster import absent
from sollol.compat.rpc_registry import RPCBackend as RPCBackend


class LlamaCppCoordinator:
    """Hold the description of a coordinator. `start`, `generate` and `chat` raise NotSupported."""

    def __init__(
        self,
        model_path: str = "",
        rpc_backends: Sequence[Any] = (),
        host: str = "127.0.0.1",
        port: int = 8080,
        **more: Any,
    ) -> None:
        self.model_path = model_path
        self.rpc_backends = list(rpc_backends)
        self.host = host
        self.port = more.get("coordinator_port", port)

    async def start(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise NotSupported."""
        raise absent("LlamaCppCoordinator.start()")

    async def generate(self, prompt: str, **kwargs: Any) -> NoReturn:
        """Raise NotSupported."""
        raise absent("LlamaCppCoordinator.generate()")

    async def chat(self, messages: Sequence[Any], **kwargs: Any) -> NoReturn:
        """Raise NotSupported."""
        raise absent("LlamaCppCoordinator.chat()")

    async def stop(self) -> None:
        """Do nothing: nothing was started."""


async def start_rpc_backend(host: str = "127.0.0.1", port: int = 50052, mem_mb: int = 2048) -> NoReturn:
    """Raise NotSupported: SOLLOL starts no workers."""
    raise absent(f"start_rpc_backend({host!r}, {port})")
