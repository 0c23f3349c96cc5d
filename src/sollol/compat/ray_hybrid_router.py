"""The router of 0.9 with Ray: a pool answers, without Ray; one model over several machines is not supported yet."""

from __future__ import annotations

from typing import Any

from sollol.compat.hybrid_router import HybridRouter
from sollol.compat.node_cluster import absent


class RayHybridRouter(HybridRouter):
    """Send chats to a pool."""

    router_type = "ray_hybrid"


class ShardedModelPool:
    """Not supported yet: constructing one raises NotSupported."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise absent("ShardedModelPool")
