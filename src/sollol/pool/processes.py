"""Pools and processes: a pool that was in use when its process forked works in the child with a new engine.

A fork copies memory but only one thread. In the child, the pool's loop has no thread, and its sockets and its epoll
are shared with the parent. To close or unregister them in the child would break the parent's calls. So the child
drops its references to them without closing anything, and keeps the objects alive so that nothing is finalised.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol
from weakref import WeakSet


class Forgetful(Protocol):
    def _leave_process(self) -> Any:
        """Return what must not be used in this process, and drop it."""
        ...


_pools: Final[WeakSet[Any]] = WeakSet()
_parents: Final[list[Any]] = []  # what belongs to the parent process; never finalised here


def watch(pool: Forgetful) -> None:
    """Give this pool a new engine in the child of every later fork."""
    _pools.add(pool)


def _in_child() -> None:
    for pool in list(_pools):
        _parents.append(pool._leave_process())


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
