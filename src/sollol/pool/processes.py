"""List the pools of this process, and replace their engines in a forked one.

A fork copies memory but only one thread. In the child, the pool's loop has no thread, and its sockets and its epoll are
shared with the parent: closing or unregistering them would break the parent's calls. So the child drops its references
without closing anything, and keeps the objects alive so that nothing is finalised.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, Protocol
from weakref import WeakSet


class ForkAware(Protocol):
    """A pool that can drop its engine after a fork."""

    def _leave_process(self) -> Any:
        """Drop and return the objects that must not be used in this process."""
        ...


_pools: Final[WeakSet[Any]] = WeakSet()
_listeners: Final[list[Callable[[Any], None]]] = []
_parents: Final[list[Any]] = []  # objects of the parent process; never finalised here


def watch(pool: ForkAware) -> None:
    """Replace the engine of this pool in the child of every later fork."""
    _pools.add(pool)


def living() -> list[Any]:
    """Return the pools of this process."""
    return list(_pools)


def on_engine(listener: Callable[[Any], None]) -> None:
    """Call `listener` with the engine of every pool that is started from now on, in the thread of its loop."""
    _listeners.append(listener)


def announce(engine: Any) -> None:
    """Call the listeners with a new engine."""
    for listener in tuple(_listeners):
        listener(engine)


def _in_child() -> None:
    for pool in list(_pools):
        _parents.append(pool._leave_process())


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_in_child)
