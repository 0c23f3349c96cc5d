"""A stream of a synchronous pool: an iterator for a thread, and an asynchronous one for an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, TypeVar

T = TypeVar("T")


class Stream(Generator[T, Any, None]):
    """The parts of an answer. Lazy: the request is sent when the first part is read.

    In a coroutine `async for` reads them without blocking the event loop.
    """

    __slots__ = ("_elsewhere", "_parts")

    def __init__(self, parts: Generator[T], elsewhere: Callable[[], AsyncIterator[T]]) -> None:
        self._parts = parts
        self._elsewhere = elsewhere

    def send(self, value: Any) -> T:
        """Return the next part."""
        return self._parts.send(value)

    def throw(self, *error: Any) -> T:
        """Raise an exception inside the stream, which ends it."""
        return self._parts.throw(*error)

    def close(self) -> None:
        """End the stream and stop the node."""
        self._parts.close()

    def __next__(self) -> T:
        return next(self._parts)

    def __aiter__(self) -> AsyncIterator[T]:
        return self._elsewhere()
