"""Define modes and priorities of calls.

`pool.set_routing_mode(RoutingMode.FAST)`, `pool.chat(..., priority=TaskPriority.HIGH)`. Strings and numbers can be used
as well: "fast", 8.
"""

from __future__ import annotations

from typing import Any

from sollol.core.types import RoutingMode, TaskPriority
from sollol.former import find_former

__all__ = ["RoutingMode", "TaskPriority"]


def __getattr__(name: str) -> Any:
    return find_former("routing_modes", name)
