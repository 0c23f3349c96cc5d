"""Routers that take a description of the task: `IntelligentRouter(pool).route_request(...)`."""

from __future__ import annotations

from sollol.compat.intelligence import (
    IntelligentRouter,
    TaskContext,
)

__all__ = [
    "IntelligentRouter",
    "TaskContext",
]
