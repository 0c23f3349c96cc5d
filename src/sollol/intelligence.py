"""Routers that take a description of the task: `IntelligentRouter(pool).route_request(...)`."""

from __future__ import annotations

from typing import Any

from sollol.compat.intelligence import (
    IntelligentRouter,
    TaskContext,
)
from sollol.former import find_former

__all__ = [
    "IntelligentRouter",
    "TaskContext",
]


def __getattr__(name: str) -> Any:
    return find_former("intelligence", name)
