"""The router of 0.9 between a pool, which answers, and one model over several machines, not supported yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sollol.compat.node_cluster import LARGE, absent, billions, needs_partitioning
from sollol.compat.rpc_discovery import auto_discover_rpc_backends, parse_backend
from sollol.compat.rpc_registry import RPCBackendRegistry
from sollol.errors import BadInput, NoNodeAvailable
from sollol.pool.keywords import accept_old
from sollol.workload.validation import short

GB_PER_BILLION: Final = 0.6  # at 4 bits
LAYERS: Final = 80
UNUSED: Final = frozenset(
    [
        "coordinator_host", "coordinator_port", "coordinator_base_port", "auto_setup_rpc", "num_rpc_backends",
        "auto_fallback", "debug_coordinator_recovery", "backends_per_pool", "num_pools", "model_vram_threshold_mb",
        "enable_remote_coordinator", "ctx_size", "warm_models", "enable_batching", "enable_speculation", "batch_size",
        "batch_timeout_ms", "min_sharding_layers",
    ]
)  # fmt: skip


class ModelProfile(NamedTuple):
    """The size of a model: billions of parameters, and GB at 4 bits."""

    name: str
    parameter_count: float
    estimated_memory_gb: float
    requires_distributed: bool
    num_layers: int = 0


def _profile(name: str, size: float) -> ModelProfile:
    return ModelProfile(name, size, size * GB_PER_BILLION, size >= LARGE, LAYERS if size >= LARGE else 32)


MODEL_PROFILES: Final = {
    name: _profile(name, size)
    for name, size in {
        "llama3.2:1b": 1.2, "llama3.2": 3.2, "llama3.2:3b": 3.2, "llama3.1": 8.0, "llama3.1:8b": 8.0, "mistral": 7.2,
        "qwen2.5:14b": 14.8, "qwen2.5:32b": 32.8, "mixtral:8x7b": 46.7, "llama3.1:70b": 70.6, "llama3.3:70b": 70.6,
        "llama3.1:405b": 405.9,
    }.items()
}  # fmt: skip


class HybridRouter:
    """Send chats to a pool. `rpc_backends`: workers of llama.cpp, which are listed and not used.

    Without `rpc_backends`, the networks are searched when they are first read.
    """

    router_type = "hybrid"
    coordinator = None
    coordinator_model = None

    def __init__(
        self,
        ollama_pool: Any = None,
        rpc_backends: Sequence[Any] | None = None,
        *,
        enable_distributed: bool = True,
        auto_discover_rpc: bool = True,
        **old: Any,
    ) -> None:
        if ollama_pool is not None and not callable(getattr(ollama_pool, "chat", None)):
            raise BadInput(f"ollama_pool={short(ollama_pool)}; expected an OllamaPool, an AsyncOllamaPool, or None")
        accept_old(type(self).__name__, {name: value for name, value in old.items() if value is not None}, UNUSED)
        self.ollama_pool = ollama_pool
        self.enable_distributed = enable_distributed
        self.auto_discover_rpc = auto_discover_rpc
        self.rpc_registry = RPCBackendRegistry()
        self._backends = None if rpc_backends is None else [_backend(given) for given in rpc_backends]
        self.rpc_registry.load_from_config(self._backends or ())

    @property
    def pool(self) -> Any:
        """The pool, for dashboards."""
        return self.ollama_pool

    @property
    def rpc_backends(self) -> list[dict[str, Any]]:
        """The workers: those given, else those that answer on the networks, searched once."""
        if self._backends is None:
            self._backends = auto_discover_rpc_backends() if self.auto_discover_rpc else []
            self.rpc_registry.load_from_config(self._backends)
        return self._backends

    def should_use_distributed(self, model: str) -> bool:
        """Check that a model is too large for one usual machine, by the size in its name."""
        return self.enable_distributed and needs_partitioning(model)

    async def route_request(self, model: str, messages: Sequence[Any], stream: bool = False, **kwargs: Any) -> Any:
        """Send a chat to the pool; return its answer, or with `stream` an asynchronous iterator.

        Raises:
            NotSupported: There is no pool, or no node of it has this large model.
        """
        try:
            if hasattr(self.ollama_pool, "chat_async"):
                return await self.ollama_pool.chat_async(model, messages, stream, **kwargs)
            return await self._pool_for(model).chat(model, messages, stream, **kwargs)
        except NoNodeAvailable as error:
            raise self._too_large(model, error) from error

    def route(self, model: str, messages: Sequence[Any], stream: bool = False, **kwargs: Any) -> Any:
        """Send a chat to a synchronous pool; return its answer."""
        try:
            return self._pool_for(model).chat(model, messages, stream, **kwargs)
        except NoNodeAvailable as error:
            raise self._too_large(model, error) from error

    def _pool_for(self, model: str) -> Any:
        if self.ollama_pool is None:
            raise absent(f"{type(self).__name__} without a pool cannot answer for {model}")
        return self.ollama_pool

    def _too_large(self, model: str, error: NoNodeAvailable) -> Exception:
        return (
            absent(f"no node has {model} ({billions(model):g} billion parameters)")
            if needs_partitioning(model)
            else error
        )

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics of the pool, and what is known of the workers."""
        pool, backends = self.ollama_pool, self._backends or []
        stats = None if pool is None else pool.get_stats()
        return {
            "router_type": self.router_type,
            "task_distribution": {"enabled": pool is not None, "ollama_stats": stats},
            "model_sharding": {"enabled": False, "reason": "not supported yet", "rpc_backends": len(backends)},
            "routing_cache": {"cached_models": 0, "ollama_models": [], "rpc_models": []},
            "ollama_pool": stats and {"nodes": len(stats["nodes"]), "requests": stats["total_requests"]},
            "ray_pools": {
                "num_pools": 0,
                "backends_per_pool": 0,
                "total_backends": len(backends),
                "current_model": None,
            },
        }

    async def shutdown(self) -> None:
        """Do nothing: the pool belongs to the program."""


def _backend(given: Any) -> dict[str, Any]:
    host, port = parse_backend(given)
    return {"host": host, "port": port}
