"""What a caller wants of a call, and how urgent it is: `pool.set_routing_mode(RoutingMode.FAST)`,
`pool.chat(..., priority=TaskPriority.HIGH)`. Strings and numbers do as well: "fast", 8."""

from __future__ import annotations

from sollol.core.types import RoutingMode, TaskPriority

__all__ = ["RoutingMode", "TaskPriority"]
