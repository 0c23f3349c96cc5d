"""Second copies of late calls: `AdaptiveHedging().request_with_hedging(...)`."""

from __future__ import annotations

from sollol.compat.hedging import (
    AdaptiveHedging,
    HedgeResult,
    HedgingStrategy,
)

__all__ = [
    "AdaptiveHedging",
    "HedgeResult",
    "HedgingStrategy",
]
