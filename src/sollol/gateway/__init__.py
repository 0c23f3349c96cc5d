"""The gateway: one address with the APIs of Ollama, OpenAI and Anthropic, and the whole cluster behind it.

The same journey as the pool's, with an HTTP request in front: no second scheduler, no second client.
"""

from __future__ import annotations

from typing import Any

from sollol.former import find_former


def __getattr__(name: str) -> Any:
    return find_former("gateway", name)
