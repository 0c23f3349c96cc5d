"""Spans in the memory of this process. A pool explains its own calls: `pool.explain(answer.routing.id)`."""

from __future__ import annotations

import functools
import inspect
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
KEPT: Final = 10_000  # spans
current_trace_id: ContextVar[str | None] = ContextVar("sollol_trace_id", default=None)
current_span_id: ContextVar[str | None] = ContextVar("sollol_span_id", default=None)


@dataclass
class Span:
    """One operation; times in seconds since 1970. `status`: "in_progress", "success", or the program's own word."""

    span_id: str
    trace_id: str
    parent_span_id: str | None
    operation: str
    backend: str
    start_time: float
    end_time: float | None = None
    status: str = "in_progress"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def duration_ms(self) -> float:
        """The time in ms, so far if it has not ended."""
        return 1000 * ((time.time() if self.end_time is None else self.end_time) - self.start_time)

    def to_dict(self) -> dict[str, Any]:
        """Return the span as plain values."""
        return {**vars(self), "metadata": dict(self.metadata), "duration_ms": self.duration_ms}


class DistributedTracer:
    """Keep the last 10,000 spans. A span that starts inside of another one becomes its child."""

    def __init__(self, dashboard: Any = None) -> None:
        self.spans: deque[Span] = deque(maxlen=KEPT)

    def start_trace(self, operation: str, backend: str = "unknown", **metadata: Any) -> Span:
        """Start a span; it is to be ended with `end_span`."""
        trace, parent = current_trace_id.get() or secrets.token_hex(16), current_span_id.get()
        span = Span(secrets.token_hex(8), trace, parent, operation, backend, time.time(), metadata=metadata)
        self.spans.append(span)
        current_trace_id.set(trace)
        current_span_id.set(span.span_id)
        return span

    def end_span(self, span: Span, status: str = "success", **metadata: Any) -> None:
        """End a span."""
        span.end_time, span.status = time.time(), status
        span.metadata.update(metadata)
        current_span_id.set(span.parent_span_id)
        if span.parent_span_id is None:
            current_trace_id.set(None)

    def get_trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace in the order of their starts."""
        return [span.to_dict() for span in list(self.spans) if span.trace_id == trace_id]

    def trace(self, operation: str | None = None, backend: str = "unknown") -> Callable[[F], F]:
        """Return a decorator that makes each call of a function, or a coroutine function, a span."""

        def decorate(function: F) -> F:
            name = operation or function.__name__

            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                span = self.start_trace(name, backend)
                try:
                    found = function(*args, **kwargs)
                except BaseException as error:
                    self.end_span(span, "error", error=str(error))
                    raise
                self.end_span(span)
                return found

            @functools.wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                span = self.start_trace(name, backend)
                try:
                    found = await function(*args, **kwargs)
                except BaseException as error:
                    self.end_span(span, "error", error=str(error))
                    raise
                self.end_span(span)
                return found

            made: Any = call_async if inspect.iscoroutinefunction(function) else call
            return made  # type: ignore[no-any-return]

        return decorate


_tracers: list[DistributedTracer] = []


def get_tracer(dashboard: Any = None) -> DistributedTracer:
    """Return the tracer of this process. `dashboard` is not used."""
    if not _tracers:
        _tracers.append(DistributedTracer(dashboard))
    return _tracers[0]
