"""Second copies of late calls: `AdaptiveHedging().request_with_hedging(...)`."""

from __future__ import annotations

from typing import Any

from sollol.compat.hedging import (
    AdaptiveHedging,
    HedgeResult,
    HedgingStrategy,
)
from sollol.former import find_former

__all__ = [
    "AdaptiveHedging",
    "HedgeResult",
    "HedgingStrategy",
]


def __getattr__(name: str) -> Any:
    return find_former("hedging", name)
