"""How many calls were answered, and how many were not."""

from __future__ import annotations


class Totals:
    __slots__ = ("failed", "successful")

    def __init__(self) -> None:
        self.successful = 0
        self.failed = 0

    def count(self, ok: bool) -> None:
        if ok:
            self.successful += 1
        else:
            self.failed += 1

    def told(self) -> dict[str, int]:
        """By the names of the pool's statistics."""
        return {
            "total_requests": self.successful + self.failed,
            "successful_requests": self.successful,
            "failed_requests": self.failed,
        }
