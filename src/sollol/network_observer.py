"""Events of calls and nodes: `get_observer().get_recent_events()`."""

from __future__ import annotations

from sollol.compat.network_observer import (
    EventType,
    NetworkEvent,
    NetworkObserver,
    get_observer,
    log_ollama_error,
    log_ollama_request,
    log_ollama_response,
)

__all__ = [
    "EventType",
    "NetworkEvent",
    "NetworkObserver",
    "get_observer",
    "log_ollama_error",
    "log_ollama_request",
    "log_ollama_response",
]
