"""Send identical queries to the nodes once, and keep the last lists of slow nodes.

Interfaces poll the lists of models; a query that is sent again before its answer has come waits for that answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from sollol.transport.base import Fault, TransportFault

T = TypeVar("T")
KEPT: Final = frozenset(("/api/tags", "/v1/models"))  # read from the node's disk, which may be slow


class SharedQueries:
    """Share the answers of queries under way."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._last: dict[str, dict[str, Any]] = {}  # path -> node -> its last list

    def with_last_lists(self, path: str, answers: dict[str, Any]) -> dict[str, Any]:
        """Return the answers, with a node's last list instead of a fault for one that was too slow."""
        if path not in KEPT:
            return answers
        last = self._last.get(path, {})
        late = {key for key, answer in answers.items() if isinstance(answer, TransportFault) and _is_late(answer)}
        found = {key: last[key] if key in late and key in last else answer for key, answer in answers.items()}
        self._last[path] = {key: answer for key, answer in found.items() if not isinstance(answer, Exception)}
        return found

    async def run(self, name: str, query: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of the query `name`, which is sent unless it is under way."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.ensure_future(_await(query))
            task.add_done_callback(lambda done: self._finished(name, done))
        found: T = await asyncio.shield(task)  # a client that leaves must not take the answer from the others
        return found

    def _finished(self, name: str, task: asyncio.Task[Any]) -> None:
        self._running.pop(name, None)
        if not task.cancelled():
            task.exception()  # retrieved here, because all who waited may have left


async def _await(query: Callable[[], Awaitable[T]]) -> T:
    return await query()


def _is_late(fault: TransportFault) -> bool:
    return fault.fault.is_timeout or fault.fault is Fault.TOO_LARGE
