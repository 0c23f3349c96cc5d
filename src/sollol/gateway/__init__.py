"""The gateway: one address that speaks as Ollama, OpenAI and Anthropic do, with the whole cluster behind it.

The same journey as the pool's, with an HTTP request in front: no second scheduler, no second client.
"""

from __future__ import annotations

from typing import Any

from sollol.former import find_former


def __getattr__(name: str) -> Any:
    return find_former("gateway", name)
