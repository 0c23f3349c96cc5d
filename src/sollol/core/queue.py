"""The waiting line of one model: bounded, by priority, and nobody starves.

Priority ages linearly: a task that waited AGEING longer than another counts as one level higher. With linear
ageing the order of two tasks never changes while they wait, so the key is fixed when they arrive,

    key = arrival - priority x AGEING,

and a plain heap serves them; nothing is ever re-sorted. A batch is keyed anew each time it is served, by the
moment of that service: it waits from its last chunk, and so never outranks an urgent call by its age.
"""

from __future__ import annotations

import heapq

from sollol.core.types import SECOND, Micros

AGEING: Micros = 10 * SECOND  # a LOW call passes a fresh HIGH one after a minute of waiting


class WaitingLine:
    """Task ids in the order in which they are to be served. Removal is lazy."""

    __slots__ = ("_heap", "_keys", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Micros, int, int]] = []
        self._keys: dict[int, tuple[Micros, int]] = {}
        self._serial = 0

    def push(self, task: int, priority: int, at: Micros) -> None:
        self._serial += 1
        key = (at - priority * AGEING, self._serial)
        self._keys[task] = key
        heapq.heappush(self._heap, (*key, task))

    def peek(self) -> int | None:
        while self._heap:
            *key, task = self._heap[0]
            if self._keys.get(task) == tuple(key):
                return task
            heapq.heappop(self._heap)
        return None

    def remove(self, task: int) -> None:
        self._keys.pop(task, None)
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._keys):
            self._heap = [entry for entry in self._heap if self._keys.get(entry[2]) == entry[:2]]
            heapq.heapify(self._heap)

    def first(self, count: int) -> list[int]:
        """The tasks to be served next, first one first."""
        return heapq.nsmallest(count, self._keys, key=self._keys.__getitem__)

    def __contains__(self, task: int) -> bool:
        return task in self._keys

    def __len__(self) -> int:
        return len(self._keys)
