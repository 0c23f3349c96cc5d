"""Events of calls and nodes: `get_observer().get_recent_events()`."""

from __future__ import annotations

from typing import Any

from sollol.compat.network_observer import (
    EventType,
    NetworkEvent,
    NetworkObserver,
    get_observer,
    log_ollama_error,
    log_ollama_request,
    log_ollama_response,
)
from sollol.former import find_former

__all__ = [
    "EventType",
    "NetworkEvent",
    "NetworkObserver",
    "get_observer",
    "log_ollama_error",
    "log_ollama_request",
    "log_ollama_response",
]


def __getattr__(name: str) -> Any:
    return find_former("network_observer", name)
