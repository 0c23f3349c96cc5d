"""Bounded queue between the event loop that records and a reader that may be slow."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")
MOST: Final = 20_000  # entries: ten seconds at 2,000 requests/s


class Subscription(Generic[T]):
    """Keep the newest entries for one reader, on any thread. A slow reader loses the oldest.

    Attributes:
        name: Name of the reader, in metrics and messages.
        sampled: It receives only the sampled share of the records.
        lost: Entries lost so far.
    """

    def __init__(self, name: str, most: int = MOST, *, sampled: bool = True) -> None:
        self.name = name
        self.sampled = sampled
        self.lost = 0
        self._entries: deque[T] = deque(maxlen=most)

    def put(self, entry: T) -> None:
        """Add an entry, in place of the oldest if the queue is full."""
        entries = self._entries
        if len(entries) == entries.maxlen:
            self.lost += 1
        entries.append(entry)

    def take(self, most: int = MOST) -> list[T]:
        """Remove and return up to `most` entries, the oldest first."""
        taken: list[T] = []
        entries = self._entries
        while entries and len(taken) < most:
            taken.append(entries.popleft())
        return taken

    def __len__(self) -> int:
        return len(self._entries)
