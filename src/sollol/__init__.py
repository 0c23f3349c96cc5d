"""SOLLOL: one fast, reliable cluster out of all the Ollama nodes you own.

Importing starts nothing and loads nothing: the names below are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sollol.former import find_former, install
from sollol.version import __version__ as __version__

if TYPE_CHECKING:
    from sollol.answers import (
        Answer,
        ChatResponse,
        EmbeddingsResponse,
        EmbedResponse,
        GenerateResponse,
        Message,
        ToolCall,
    )
    from sollol.compat.gpu_controller import SOLLOLGPUController
    from sollol.compat.hedging import AdaptiveHedging, HedgingStrategy
    from sollol.compat.intelligence import IntelligentRouter, TaskContext
    from sollol.core.types import RoutingMode, RoutingStrategy, TaskPriority, TaskType
    from sollol.dashboard import UnifiedDashboard, run_unified_dashboard
    from sollol.discovery import discover_ollama_nodes
    from sollol.errors import (
        BadInput,
        BatchError,
        ConfigError,
        DeadlineExceeded,
        NoNodeAvailable,
        NotSupported,
        QueueFull,
        ResponseError,
        SollolError,
        StreamBroken,
    )
    from sollol.pool.aio import AsyncOllamaPool
    from sollol.pool.batch_result import BatchAnswers, BatchResult
    from sollol.pool.sync import OllamaPool

_HOMES = {
    "OllamaPool": "sollol.pool.sync",
    "AsyncOllamaPool": "sollol.pool.aio",
    "BatchAnswers": "sollol.pool.batch_result",
    "BatchResult": "sollol.pool.batch_result",
    **dict.fromkeys(
        [
            "Answer",
            "ChatResponse",
            "EmbedResponse",
            "EmbeddingsResponse",
            "GenerateResponse",
            "Message",
            "ToolCall",
        ],
        "sollol.answers",
    ),
    "RoutingMode": "sollol.core.types",
    "RoutingStrategy": "sollol.core.types",
    "TaskPriority": "sollol.core.types",
    "TaskType": "sollol.core.types",
    "IntelligentRouter": "sollol.compat.intelligence",
    "TaskContext": "sollol.compat.intelligence",
    "SOLLOLGPUController": "sollol.compat.gpu_controller",
    "AdaptiveHedging": "sollol.compat.hedging",
    "HedgingStrategy": "sollol.compat.hedging",
    "discover_ollama_nodes": "sollol.discovery",
    "UnifiedDashboard": "sollol.dashboard",
    "run_unified_dashboard": "sollol.dashboard",
    **dict.fromkeys(
        [
            "BadInput",
            "BatchError",
            "ConfigError",
            "DeadlineExceeded",
            "NoNodeAvailable",
            "NotSupported",
            "QueueFull",
            "ResponseError",
            "SollolError",
            "StreamBroken",
        ],
        "sollol.errors",
    ),
}

__all__ = [
    "AdaptiveHedging",
    "Answer",
    "AsyncOllamaPool",
    "BadInput",
    "BatchAnswers",
    "BatchError",
    "BatchResult",
    "ChatResponse",
    "ConfigError",
    "DeadlineExceeded",
    "EmbedResponse",
    "EmbeddingsResponse",
    "GenerateResponse",
    "HedgingStrategy",
    "IntelligentRouter",
    "Message",
    "NoNodeAvailable",
    "NotSupported",
    "OllamaPool",
    "QueueFull",
    "ResponseError",
    "RoutingMode",
    "RoutingStrategy",
    "SOLLOLGPUController",
    "SollolError",
    "StreamBroken",
    "TaskContext",
    "TaskPriority",
    "TaskType",
    "ToolCall",
    "UnifiedDashboard",
    "discover_ollama_nodes",
    "run_unified_dashboard",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    value = find_former("", name) if home is None else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()  # modules of SOLLOL 0.9 are found when they are imported
