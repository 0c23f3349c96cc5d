"""Workers of llama.cpp that run already. SOLLOL builds and starts none."""

from __future__ import annotations

from typing import Any

from sollol.compat.rpc_discovery import auto_discover_rpc_backends
from sollol.errors import NotSupported
from sollol.pool.keywords import accept_old

UNUSED = frozenset(["llama_dir", "auto_build", "auto_start", "default_port", "default_host"])


class RPCAutoSetup:
    """Find workers."""

    def __init__(self, **old: Any) -> None:
        accept_old("RPCAutoSetup", old, UNUSED)

    def get_or_create_backends(self, num_backends: int = 1, discover_network: bool = True) -> list[dict[str, Any]]:
        """Return the workers that answer.

        Raises:
            NotSupported: There are none, or the search is off.
        """
        found = auto_discover_rpc_backends() if discover_network else []
        if not found:
            where = "no worker answers on port 50052" if discover_network else "the search is off"
            raise NotSupported(f"{where}, and SOLLOL builds and starts none; start llama.cpp's rpc-server yourself")
        return found

    def stop_all_servers(self) -> None:
        """Do nothing: none was started."""


def auto_setup_rpc_backends(
    num_backends: int = 1, llama_dir: str | None = None, auto_build: bool = True, discover_network: bool = True
) -> list[dict[str, Any]]:
    """Return the workers that answer.

    Raises:
        NotSupported: There are none, or the search is off.
    """
    return RPCAutoSetup().get_or_create_backends(num_backends, discover_network)
