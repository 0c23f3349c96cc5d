"""The pool of the process: `get_pool()`."""

from __future__ import annotations

import threading

from sollol.pool.sync import OllamaPool

_lock = threading.Lock()
_pools: list[OllamaPool] = []


def get_pool() -> OllamaPool:
    """Return the pool of this process; found and constructed by the first call."""
    with _lock:
        if not _pools:
            _pools.append(OllamaPool.auto_configure())
        return _pools[0]
