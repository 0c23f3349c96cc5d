"""Define the bounds of an HTTP server, without which any client could exhaust its memory or connections."""

from __future__ import annotations

from typing import Annotated

import msgspec

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class ServerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limit heads, bodies, times and connections."""

    max_body_mb: Annotated[int, msgspec.Meta(ge=1, le=4_096)] = 100
    max_head_kb: Annotated[int, msgspec.Meta(ge=1, le=1_024)] = 64
    header_timeout_s: Seconds = 10.0
    body_timeout_s: Seconds = 30.0
    body_total_s: Seconds = 300.0
    min_body_kb_per_s: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] = 4.0
    max_arriving_mb: Annotated[int, msgspec.Meta(ge=1)] = 32
    max_held_mb: Annotated[int, msgspec.Meta(ge=1)] = 256
    idle_timeout_s: Seconds = 75.0
    max_connections: Annotated[int, msgspec.Meta(ge=1)] = 10_000

    @property
    def max_body_bytes(self) -> int:
        """Return the largest body in bytes."""
        return self.max_body_mb * 1024 * 1024

    @property
    def min_body_rate(self) -> float:
        """Return the slowest rate of a body in bytes per second."""
        return self.min_body_kb_per_s * 1024

    @property
    def max_head_bytes(self) -> int:
        """Return the largest head in bytes."""
        return self.max_head_kb * 1024
