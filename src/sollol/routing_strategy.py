"""Which question decides where a call without a mode goes: `pool.routing_strategy = RoutingStrategy.LEAST_LOADED`."""

from __future__ import annotations

from sollol.core.types import RoutingStrategy

__all__ = ["RoutingStrategy"]
