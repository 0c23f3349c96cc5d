"""Exceptions of the library. A message names the value at fault, the expected one, and the next step.

SollolError
├── BadInput            (ValueError)    an argument cannot be used
│   ├── ConfigError                     a setting in a file or an environment variable cannot be used
│   └── AddressUnavailable              an address cannot be listened on
├── NoNodeAvailable     (RuntimeError)  every node that could serve it failed, or none has the model
├── ResponseError                       Ollama itself refused (same shape as the official client's)
├── BatchError                          some items of a batch failed; carries all results
├── StreamBroken                        an answer ended early; carries the received part
├── QueueFull                           the queue is at its limit
├── NotSupported        (NotImplementedError)  a capability that SOLLOL does not have
│   ├── FormerName      (ImportError)   an imported name of SOLLOL 0.9 that is gone
│   └── FormerAttribute (AttributeError)  the same, where an attribute is looked up
└── DeadlineExceeded    (TimeoutError)  the caller's time ran out, waiting included
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class SollolError(Exception):
    """Base of all exceptions of this library.

    `task_id` is the number of the failed call, for `pool.explain`; None before a call got a number.
    """

    task_id: int | None = None


class BadInput(SollolError, ValueError):
    """An argument cannot be used. The message has its name, its value and the expected values."""


class ConfigError(BadInput):
    """A setting in a file or an environment variable cannot be used."""


class AddressUnavailable(BadInput):
    """An address cannot be listened on. `is_passing`: another process holds it, so it may become free."""

    def __init__(self, message: str, is_passing: bool = False) -> None:
        self.is_passing = is_passing
        super().__init__(message)


class NoNodeAvailable(SollolError, RuntimeError):
    """No node could serve the request.

    `tried` has one (node, reason) pair for every node that was considered. `retry_after_s`: seconds after which a busy
    node accepts a retry, None if no node sent them.
    """

    def __init__(self, message: str, tried: Sequence[tuple[str, str]] = (), retry_after_s: float | None = None) -> None:
        self.tried = tuple(tried)
        self.retry_after_s = retry_after_s
        lines = [message, *(f"  {node}: {why}" for node, why in self.tried)]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self),), self.__dict__


class ResponseError(SollolError):
    """Ollama refused the request: a fault of the caller (4xx), not of a node."""

    def __init__(self, error: str, status_code: int = -1) -> None:
        self.error = error
        self.status_code = status_code
        super().__init__(error)

    def __str__(self) -> str:
        return f"{self.error} (status code: {self.status_code})"


class BatchError(SollolError):
    """Some items of a batch failed.

    `errors` maps the position of each failed item to its exception; `results` has all items in order, None for a
    failed one.
    """

    def __init__(self, errors: Mapping[int, Exception], results: Any) -> None:
        self.errors = dict(errors)
        self.results = results
        total = len(results) if results is not None else "?"
        shown = [f"  item {i}: {error}" for i, error in list(self.errors.items())[:5]]
        more = len(self.errors) - len(shown)
        if more:
            shown.append(f"  and {more} more (see .errors)")
        head = f"{len(self.errors)} of {total} items failed; the others are in .results"
        super().__init__("\n".join([head, *shown]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors, self.results)


class StreamBroken(SollolError):
    """A streamed answer ended before it was complete.

    The received part: `received` (text), `thinking`, `tool_calls` (as sent by the node).
    """

    def __init__(
        self, message: str, received: str = "", thinking: str = "", tool_calls: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.received = received
        self.thinking = thinking
        self.tool_calls = list(tool_calls)
        super().__init__(message)


class NotSupported(SollolError, NotImplementedError):
    """SOLLOL does not have this capability. The message has what to use instead."""


class FormerName(NotSupported, ImportError):
    """A name of SOLLOL 0.9 is gone. The message has the reason, and what to use instead."""


class FormerAttribute(NotSupported, AttributeError):
    """The same as `FormerName`, where an attribute is looked up; so `hasattr` is false."""


class QueueFull(SollolError):
    """The queue is at its limit. `retry_after_s`: seconds until a place is expected, None if unknown."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DeadlineExceeded(SollolError, TimeoutError):
    """The caller's `timeout` ran out; the time spent waiting for a node counts."""
