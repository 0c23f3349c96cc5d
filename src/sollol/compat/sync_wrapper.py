"""Coroutines in programs without an event loop. `OllamaPool` is synchronous itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from sollol.compat.background import submit
from sollol.compat.hybrid_router import HybridRouter as AsyncHybridRouter
from sollol.errors import DeadlineExceeded
from sollol.pool.sync import OllamaPool as OllamaPool

T = TypeVar("T")


class AsyncEventLoop:
    """Run coroutines in one background thread."""

    def run_coroutine(self, coro: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine and return its result.

        Raises:
            DeadlineExceeded: It took longer than `timeout` seconds, and was cancelled.
        """
        future = submit(coro)
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.cancel():
                raise DeadlineExceeded(f"no result in {timeout:g} s") from None
            raise

    def close(self) -> None:
        """Do nothing: the thread is a daemon and is shared."""


_loop = AsyncEventLoop()


def get_event_loop() -> AsyncEventLoop:
    """Return the runner of this process."""
    return _loop


def sync_wrapper(async_func: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """Return a function that runs a coroutine function and returns its result."""

    @functools.wraps(async_func)
    def call(*args: Any, **kwargs: Any) -> T:
        return _loop.run_coroutine(async_func(*args, **kwargs))

    return call


class HybridRouter:
    """A HybridRouter for programs without an event loop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._router = AsyncHybridRouter(*args, **kwargs)

    def route_request(self, model: str, messages: Sequence[Any], timeout: float | None = 300, **kwargs: Any) -> Any:
        """Send a chat to the pool, `timeout` in seconds.

        Raises:
            NotSupported: The model was to be spread over several machines.
        """
        return self._router.route(model, messages, timeout=timeout, **kwargs)

    def should_use_distributed(self, model: str) -> bool:
        """Check that a model is too large for one machine."""
        return self._router.should_use_distributed(model)

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics of the pool, and the workers."""
        return self._router.get_stats()

    def close(self) -> None:
        """Do nothing: the pool belongs to the program."""
