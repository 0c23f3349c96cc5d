"""`SOLLOL`: a gateway in a thread of the program."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sollol.compat.app_config import SOLLOLConfig
from sollol.compat.client import SOLLOLClient
from sollol.compat.client import SOLLOLConfig as ClientConfig
from sollol.compat.gateway import UNUSED, GatewayThread
from sollol.errors import SollolError
from sollol.pool.keywords import accept_old

PORT = 11434  # as in 0.9: the gateway takes the place of a local Ollama


class SOLLOL:
    """A gateway over the nodes of a SOLLOLConfig, of `ollama_nodes`, or over those that are found."""

    def __init__(
        self,
        port: int | SOLLOLConfig | None = None,
        *,
        config: SOLLOLConfig | None = None,
        ollama_nodes: Sequence[Any] | None = None,
        rpc_backends: Sequence[Any] | None = None,
        **old: Any,
    ) -> None:
        if isinstance(port, SOLLOLConfig):
            port, config = None, port
        accept_old("SOLLOL", old | ({"rpc_backends": rpc_backends} if rpc_backends else {}), UNUSED | {"rpc_backends"})
        self.config = config
        self.ollama_nodes = ollama_nodes
        from_environment = os.environ.get("SOLLOL_PORT") or os.environ.get("PORT")
        self.port = port or (config.gateway_port if config else int(from_environment or PORT))
        self._serving: GatewayThread | None = None

    def start(self, blocking: bool = False) -> None:
        """Serve in a thread, or with `blocking` until Ctrl-C.

        Raises:
            AddressUnavailable: The port is taken.
        """
        if self._serving is not None and self._serving.running:
            return
        config = self.config
        arguments = {} if config is None else config.pool_arguments()
        nodes = arguments.pop("nodes", None) if self.ollama_nodes is None else self.ollama_nodes
        arguments.pop("nodes", None)
        host = config.gateway_host if config else "127.0.0.1"
        self._serving = GatewayThread(nodes, self.port, host, **arguments)
        self._serving.start()
        self.port = self._serving.port
        if blocking:
            try:
                self._serving.wait()
            except KeyboardInterrupt:
                self.stop()

    def stop(self) -> None:
        """End the gateway. It may be called more than once."""
        if self._serving is not None:
            self._serving.stop()

    def update_config(self, **changes: Any) -> None:
        """Set fields of the configuration for the next `start()`."""
        self.config = replace(self.config or SOLLOLConfig(), **changes)

    def get_status(self) -> dict[str, Any]:
        """Return `running`, `port`, the number of nodes, and the addresses."""
        url = f"http://localhost:{self.port}"
        nodes = self.ollama_nodes if self.config is None else self.config.hosts
        return {
            "running": self._serving is not None and self._serving.running,
            "port": self.port,
            "ray_workers": 0,
            "dask_workers": 0,
            "batch_processing_enabled": True,
            "ollama_nodes": "auto-discover" if nodes is None else len(nodes),
            "rpc_backends": 0,
            "timestamp": datetime.now(UTC).isoformat(),
            "endpoints": {
                "gateway": url,
                "api_docs": f"{url}/sollol/openapi.json",
                "health": f"{url}/sollol/health",
                "stats": f"{url}/sollol/snapshot",
                "dashboard": f"{url}/dashboard",
            },
        }

    def get_health(self) -> dict[str, Any]:
        """Return the gateway's health, or `error` with the reason."""
        return self._ask("health")

    def get_stats(self) -> dict[str, Any]:
        """Return the gateway's statistics, or `error` with the reason."""
        return self._ask("stats")

    def _ask(self, what: str) -> dict[str, Any]:
        if self._serving is None or not self._serving.running:
            return {"error": "SOLLOL is not running; call start()"}
        try:
            found: dict[str, Any] = getattr(SOLLOLClient(ClientConfig(self._serving.url)), what)()
            return found
        except SollolError as error:
            return {"error": str(error)}
