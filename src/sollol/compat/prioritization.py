"""A queue of tasks by priority, for requests that a program sends itself. Calls of a pool take `priority=`."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter, deque
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from sollol.errors import BadInput
from sollol.workload.validation import check_count

PRIORITY_CRITICAL: Final = 10
PRIORITY_HIGH: Final = 8
PRIORITY_NORMAL: Final = 5
PRIORITY_LOW: Final = 3
PRIORITY_BATCH: Final = 1
WAITS_KEPT: Final = 100  # waits of each priority
_TASK_TYPES: Final = {
    "interactive": PRIORITY_CRITICAL,
    "chat": PRIORITY_HIGH,
    "classification": PRIORITY_HIGH,
    "extraction": PRIORITY_NORMAL,
    "analysis": PRIORITY_NORMAL,
    "generation": PRIORITY_NORMAL,
    "summarization": PRIORITY_NORMAL,
    "embedding": PRIORITY_LOW,
    "batch": PRIORITY_BATCH,
}


@dataclass(eq=False)
class PrioritizedTask:
    """A task of a PriorityQueue. Tasks compare by priority, the highest first, then by `timestamp` in seconds."""

    priority: int
    timestamp: float
    task_id: str
    payload: dict[str, Any]
    future: asyncio.Future[Any]

    def __lt__(self, other: PrioritizedTask) -> bool:
        return (-self.priority, self.timestamp) < (-other.priority, other.timestamp)


class PriorityQueue:
    """Hold up to `max_queue_size` tasks: the highest priority first, within a priority the oldest."""

    def __init__(self, max_queue_size: int = 1000) -> None:
        self.max_queue_size = check_count("max_queue_size", max_queue_size)
        self.total_queued = 0
        self.total_processed = 0
        self.queue_wait_times: dict[int, deque[float]] = {}  # priority -> seconds
        self._tasks: list[tuple[int, int, PrioritizedTask]] = []
        self._numbers = count()

    @property
    def queue(self) -> list[PrioritizedTask]:
        """The queued tasks, the next first."""
        return [task for _, _, task in sorted(self._tasks)]

    async def enqueue(
        self, payload: dict[str, Any], priority: int = PRIORITY_NORMAL, task_id: str | None = None
    ) -> asyncio.Future[Any]:
        """Queue a task; return its future, for your own code to set.

        Raises:
            BadInput: The queue is full.
        """
        if len(self._tasks) >= self.max_queue_size:
            raise BadInput(f"Queue full: {len(self._tasks)} tasks wait; expected {self.max_queue_size} at most")
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        task = PrioritizedTask(priority, time.time(), task_id or f"task_{number}", payload, future)
        heapq.heappush(self._tasks, (-priority, number, task))
        self.total_queued += 1
        return future

    async def dequeue(self) -> PrioritizedTask | None:
        """Remove and return the next task, None if there is none."""
        if not self._tasks:
            return None
        _, _, task = heapq.heappop(self._tasks)
        waits = self.queue_wait_times.setdefault(task.priority, deque(maxlen=WAITS_KEPT))
        waits.append(max(0.0, time.time() - task.timestamp))
        self.total_processed += 1
        return task

    async def size(self) -> int:
        """Return the number of queued tasks."""
        return len(self._tasks)

    async def get_stats(self) -> dict[str, Any]:
        """Return `queue_size`, totals, `avg_wait_times_ms` and `current_priorities` by priority, and `utilization`."""
        waits = {each: 1000 * sum(found) / len(found) for each, found in self.queue_wait_times.items()}
        return {
            "queue_size": len(self._tasks),
            "total_queued": self.total_queued,
            "total_processed": self.total_processed,
            "avg_wait_times_ms": waits,
            "current_priorities": dict(Counter(task.priority for _, _, task in self._tasks)),
            "utilization": len(self._tasks) / self.max_queue_size,
        }


_queues: list[PriorityQueue] = []


def get_priority_queue() -> PriorityQueue:
    """Return the queue of this process."""
    if not _queues:
        _queues.append(PriorityQueue())
    return _queues[0]


def get_priority_for_task_type(task_type: str) -> int:
    """Return a priority for a word such as "interactive" or "batch", by default PRIORITY_NORMAL."""
    return _TASK_TYPES.get(task_type.lower(), PRIORITY_NORMAL)
