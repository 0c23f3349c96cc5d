"""The other router of 0.9 with Ray: a pool answers; one model over several machines is not supported yet."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from sollol.compat.hybrid_router import HybridRouter
from sollol.compat.node_cluster import absent


@dataclass
class BatchedRequest:
    """A waiting request of a batch."""

    messages: list[dict[str, Any]]
    future: asyncio.Future[Any]
    timestamp: float = field(default_factory=time.time)
    model: str = ""


class RayAdvancedRouter(HybridRouter):
    """Send chats to a pool. Batching and late second attempts are those of the pool."""

    router_type = "ray_advanced"

    async def get_stats(self) -> dict[str, Any]:  # type: ignore[override]  # as in 0.9
        """Return the statistics of the pool; `warm_pools` is empty."""
        features = {"warm_pools": False, "batching": False, "speculation": False}
        return {**super().get_stats(), "features": features, "warm_pools": {}, "total_pools": 0}

    async def add_warm_pool(self, model: str, num_pools: int = 1) -> None:
        """Raise NotSupported."""
        raise absent(f"add_warm_pool({model!r})")


class WarmModelPool:
    """Not supported yet: constructing one raises NotSupported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise absent("WarmModelPool")
