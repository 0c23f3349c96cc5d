"""Read the caller's place in a trace from OpenTelemetry, where the program uses it."""

from __future__ import annotations

import sys


def current_trace() -> tuple[str, str] | None:
    """Return `traceparent` and `tracestate` of the current span, None without one.

    A program that has a current span has imported OpenTelemetry; it is not imported here.
    """
    read = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if read is None:  # also while another thread imports it
        return None
    context = read().get_span_context()
    if not context.is_valid:
        return None
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return parent, context.trace_state.to_header()
