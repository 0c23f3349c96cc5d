"""A fixed number of the newest items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """Keep the newest `size` items. Adding one assigns a place of a list, without a call."""

    __slots__ = ("_items", "_oldest", "_size")

    def __init__(self, size: int) -> None:
        self._items: list[T] = []
        self._size = size
        self._oldest = 0

    def add(self, item: T) -> None:
        """Add an item in place of the oldest."""
        items, oldest = self._items, self._oldest
        if len(items) < self._size:
            items.append(item)
        else:
            items[oldest] = item
            self._oldest = oldest + 1 if oldest + 1 < self._size else 0

    def __iter__(self) -> Iterator[T]:
        """Yield the items, the oldest first."""
        return iter(self._items[self._oldest :] + self._items[: self._oldest])

    def __len__(self) -> int:
        return len(self._items)
