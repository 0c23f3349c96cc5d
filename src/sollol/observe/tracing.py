"""Give requests and their attempts a place in a trace, as W3C Trace Context describes it.

Nothing here depends on OpenTelemetry: `exporters.otel` turns the result into spans. Source of the headers:
https://www.w3.org/TR/trace-context/ (level 1).
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Final, NamedTuple

from sollol.core.actions import Start
from sollol.core.types import Micros, Outcome
from sollol.observe.request_record import RequestRecord
from sollol.observe.subscription import Subscription

OPEN_MOST: Final = 50_000  # requests whose end is awaited; a request that was refused before its submission has none
ATTEMPTS_MOST: Final = 200  # attempts kept of one request, as of a batch
STATE_MOST: Final = 512  # characters of a tracestate
_PARENT: Final = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
MEMBERS_MOST: Final = 32  # of a tracestate, by the standard
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_*/-]{0,240}(@[a-z][a-z0-9_*/-]{0,13})?="
    r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_lines: ContextVar[bytes] = ContextVar("sollol_trace_headers", default=b"")  # of the attempt that is being sent


class Parent(NamedTuple):
    """Hold the caller's place in a trace."""

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""


def parent_of(traceparent: str, tracestate: str = "") -> Parent | None:
    """Parse the headers of a caller; return None for invalid ones, as the standard demands."""
    found = _PARENT.fullmatch(traceparent.strip())
    if found is None or (found[1] == "00" and found[5]):
        return None
    return Parent(found[2], found[3], bool(int(found[4], 16) & 1), _valid_state(tracestate))


def _valid_state(tracestate: str) -> str:
    """Return a tracestate, "" for one that is not valid: exporters warn of each such member."""
    if len(tracestate) > STATE_MOST:
        return ""
    members = [member.strip() for member in tracestate.split(",") if member.strip()]
    keys = {member.partition("=")[0] for member in members}
    is_valid = len(members) <= MEMBERS_MOST and len(keys) == len(members)
    return ",".join(members) if is_valid and all(_MEMBER.fullmatch(member) for member in members) else ""


class AttemptTrace(NamedTuple):
    """Hold one finished attempt, or one chunk of a batch. Times are in seconds before the end of the request."""

    span_id: str
    node: str
    cause: str
    outcome: Outcome
    began_s: float
    ended_s: float
    predicted_s: float
    items: int


class RequestTrace:
    """Hold the place of one request in a trace. Without `span_id` it is only passed on, and not recorded."""

    __slots__ = ("_ended", "attempts", "dropped", "is_sampled", "parent_id", "span_id", "spans", "state", "trace_id")

    def __init__(self, trace_id: str, span_id: str, parent_id: str, is_sampled: bool, state: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.is_sampled = is_sampled
        self.state = state
        self.spans: dict[int, str] = {}  # span by attempt, of those in flight
        self._ended: list[tuple[str, Start, Outcome, Micros, Micros]] = []
        self.attempts: list[AttemptTrace] = []  # set at the end
        self.dropped = 0

    def begin(self, attempt: int) -> str:
        """Return the id of the span of a new attempt, or of the caller's span."""
        if not self.span_id:
            return self.parent_id
        self.spans[attempt] = found = secrets.token_hex(8)
        return found

    def end(self, start: Start, outcome: Outcome, began: Micros, ended: Micros) -> None:
        """Keep the end of an attempt."""
        span = self.spans.pop(start.attempt, "")
        if not span:
            return
        if len(self._ended) >= ATTEMPTS_MOST:
            self.dropped += 1
        else:
            self._ended.append((span, start, outcome, began, ended))

    def close(self, now: Micros) -> None:
        """Set the attempts relative to the end of the request."""
        self.attempts = [
            AttemptTrace(
                span,
                start.node,
                start.cause.value,
                outcome,
                (now - began) / 1e6,
                (now - ended) / 1e6,
                start.decision.predicted_us / 1e6,
                start.items.total() if start.items else 0,
            )
            for span, start, outcome, began, ended in self._ended
        ]
        self._ended.clear()


class TracedRequest(NamedTuple):
    """Hold a finished request, with its place in a trace if it was sampled."""

    record: RequestRecord
    trace: RequestTrace | None


class Tracing:
    """Follow the requests of an engine and their attempts.

    Args:
        is_sampled: Check whether a request belongs to the sample, by its number.
    """

    def __init__(self, is_sampled: Callable[[int], bool]) -> None:
        self.finished: Subscription[TracedRequest] = Subscription("otel")
        self._is_sampled = is_sampled
        self._open: OrderedDict[int, RequestTrace] = OrderedDict()

    def begin(self, task: int, given: tuple[str, str] | None) -> None:
        """Place a new request into the trace of its caller (`traceparent`, `tracestate`), or into a new one."""
        parent = None if given is None else parent_of(*given)
        if self._is_sampled(task) and (parent is None or parent.is_sampled):
            trace_id = secrets.token_hex(16) if parent is None else parent.trace_id
            above, state = ("", "") if parent is None else (parent.span_id, parent.state)
            found = RequestTrace(trace_id, secrets.token_hex(8), above, True, state)
        elif parent is not None:
            found = RequestTrace(parent.trace_id, "", parent.span_id, parent.is_sampled, parent.state)
        else:
            return
        if len(self._open) >= OPEN_MOST:
            self._open.popitem(last=False)
        self._open[task] = found

    def enter(self, start: Start) -> Token[bytes]:
        """Use the headers of an attempt for what is sent in this context."""
        trace = self._open.get(start.task)
        if trace is None:
            return _lines.set(b"")
        flags = "01" if trace.is_sampled else "00"
        lines = f"Traceparent: 00-{trace.trace_id}-{trace.begin(start.attempt)}-{flags}\r\n"
        if trace.state:
            lines += f"Tracestate: {trace.state}\r\n"
        return _lines.set(lines.encode())

    def leave(self, token: Token[bytes]) -> None:
        """Use the headers of before `enter` again."""
        _lines.reset(token)

    def forget(self) -> None:
        """Use no headers in this context: it belongs to no request."""
        _lines.set(b"")

    def header_lines(self) -> bytes:
        """Return the headers of what is sent in this context."""
        return _lines.get()

    def end(self, start: Start, outcome: Outcome, began: Micros, ended: Micros) -> None:
        """Keep the end of an attempt."""
        trace = self._open.get(start.task)
        if trace is not None:
            trace.end(start, outcome, began, ended)

    def finish(self, record: RequestRecord, now: Micros) -> None:
        """Send a finished request."""
        trace = self._open.pop(record.id, None)
        if trace is not None:
            trace.close(now)
        self.finished.put(TracedRequest(record, trace if trace is not None and trace.span_id else None))
