"""Counters of answered and failed calls."""

from __future__ import annotations


class Totals:
    """Counters of answered and failed calls of one pool."""

    __slots__ = ("failed", "successful")

    def __init__(self) -> None:
        self.successful = 0
        self.failed = 0

    def count(self, ok: bool) -> None:
        """Count one finished call."""
        if ok:
            self.successful += 1
        else:
            self.failed += 1

    def as_dict(self) -> dict[str, int]:
        """Return the counters by their names in the pool's statistics."""
        return {
            "total_requests": self.successful + self.failed,
            "successful_requests": self.successful,
            "failed_requests": self.failed,
        }
