"""Send finished requests to an OTLP/HTTP receiver as spans and metrics, from a thread of its own.

A request pays for one entry of a bounded queue. While the receiver is slow or away, entries wait there; the oldest are
lost and counted. The packages of OpenTelemetry are imported in that thread, so that starting a pool does not wait.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sollol.config.problems import without_secrets
from sollol.core.types import EMBED, OK, Status
from sollol.duties import in_thread
from sollol.exporters import genai
from sollol.observe.request_record import RequestRecord
from sollol.observe.tracing import AttemptTrace, TracedRequest, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

log: Final = logging.getLogger("sollol")
EVERY_S: Final = 1.0
MESSAGE_MOST: Final = 500  # requests in one message
PAUSE_MOST_S: Final = 30.0
PROBLEM_MOST: Final = 300  # characters
LOGGERS: Final = "opentelemetry.exporter.otlp.proto.http."
METRICS_EVERY_S: Final = 60.0  # unless OTEL_METRIC_EXPORT_INTERVAL is set
NOT_INSTALLED: Final = "the packages of OpenTelemetry are not installed; pip install '.[otel]' in the checkout"
_GOOD: Final = (OK.value, Status.LEFT.value)  # a client that leaves is no error
Attributes = dict[str, str | bool | int | float]


class OtelExporter:
    """Export the traced requests of one engine.

    Args:
        endpoint: The base URL of the receiver; the variables of OpenTelemetry go before it.
        app: The name of the service, unless OTEL_SERVICE_NAME is set.
        version: The version of the service.
        tracing: The source of finished requests.
        on_loop: Run a function on the engine's loop, from any thread.
        notify: Show a sentence to the operator, on the engine's loop.
    """

    def __init__(
        self,
        endpoint: str | None,
        app: str,
        version: str,
        tracing: Tracing,
        on_loop: Callable[..., None],
        notify: Callable[[str], None],
    ) -> None:
        self.problem = ""
        self._endpoint = endpoint
        self._service = app or "sollol"
        self._version = version
        self._finished = tracing.finished
        self._on_loop = on_loop
        self._notify = notify
        self._failures = 0
        self._lost_before = 0
        self.error = ""  # the first message of the exporter about the present message
        self._wake = threading.Event()
        self._is_ending = False
        self._thread = in_thread("sollol-otel", self._run)

    def end(self) -> None:
        """Send the rest, without waiting for it."""
        self._is_ending = True
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)

    # --- in the thread ---

    def _run(self) -> None:
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            return
        try:
            import opentelemetry.exporter.otlp.proto.http
            import opentelemetry.sdk.trace  # noqa: F401
        except ImportError:
            self._on_loop(self._notify, NOT_INSTALLED)
            return
        quiet = _Quiet(self)
        loggers = [logging.getLogger(LOGGERS + name) for name in ("trace_exporter", "metric_exporter")]
        for logger in loggers:
            logger.addFilter(quiet)
        try:
            self._export_until_the_end()
        finally:
            for logger in loggers:
                logger.removeFilter(quiet)

    def _export_until_the_end(self) -> None:
        from opentelemetry.sdk.resources import Resource

        given = {"service.name": self._service, "service.version": self._version}
        resource = Resource.create(
            given if "OTEL_SERVICE_NAME" not in os.environ else {"service.version": self._version}
        )
        spans = _SpanSender(resource, self._endpoint) if _is_wanted("OTEL_TRACES_EXPORTER") else None
        metrics = _MetricSender(resource, self._endpoint) if _is_wanted("OTEL_METRICS_EXPORTER") else None
        self.address = without_secrets(spans.address if spans is not None else "the receiver")
        pause = EVERY_S
        while not self._is_ending:
            self._wake.wait(pause)
            self._wake.clear()
            pause = self._send(spans, metrics)
        if not self.problem:
            self._send(spans, metrics)
        if metrics is not None and not self.problem:
            metrics.send()

    def _send(self, spans: _SpanSender | None, metrics: _MetricSender | None) -> float:
        """Send what has come; return the seconds until the next time."""
        taken = self._finished.take(MESSAGE_MOST)
        if metrics is not None:
            for request in taken:
                metrics.count(request.record)
            metrics.send_if_due()
        if not taken:
            return EVERY_S
        self.error = ""
        if spans is not None and not spans.send(taken):
            return self._fail(len(taken))
        self._recover()
        return 0.0 if len(self._finished) >= MESSAGE_MOST else EVERY_S

    def _fail(self, lost: int) -> float:
        self._on_loop(self._lose, lost)
        self._failures += 1
        if not self.problem:
            self._lost_before = self._finished.lost
            self.problem = (self.error or "it refuses them")[:PROBLEM_MOST]
            self._on_loop(
                self._notify,
                f"the OTLP receiver at {self.address} does not take spans ({self.problem}); requests go on, and spans "
                "are lost until it does",
            )
        return float(min(PAUSE_MOST_S, EVERY_S * 2.0 ** min(self._failures - 1, 10)))

    def _recover(self) -> None:
        if self.problem:
            lost = self._finished.lost - self._lost_before
            self._on_loop(
                self._notify, f"the OTLP receiver at {self.address} takes spans again; lost meanwhile: {lost:,}"
            )
        self.problem, self._failures = "", 0

    def _lose(self, number: int) -> None:
        self._finished.lost += number


class _Quiet(logging.Filter):
    """Keep the exporter's own messages of one thread, because they are reported once, and not each time."""

    def __init__(self, exporter: OtelExporter) -> None:
        super().__init__()
        self._exporter = exporter
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is shown."""
        if record.thread != self._thread:
            return True
        self._exporter.error = self._exporter.error or record.getMessage()
        return False


class _SpanSender:
    """Turn traced requests into spans, and send them."""

    def __init__(self, resource: Resource, endpoint: str | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        url = _url_of(endpoint, "TRACES", "/v1/traces")
        self._exporter = OTLPSpanExporter(endpoint=url)
        self._resource = resource
        self._scope = InstrumentationScope("sollol")
        self.address = (
            url
            or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
        )

    def send(self, requests: Sequence[TracedRequest]) -> bool:
        """Send the spans of requests; return False if the receiver did not take them."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        spans = [span for request in requests for span in self._spans_of(request)]
        return not spans or self._exporter.export(spans) is SpanExportResult.SUCCESS

    def _spans_of(self, request: TracedRequest) -> list[ReadableSpan]:
        record, trace = request
        if trace is None:
            return []
        end = record.at
        is_bad = record.outcome not in _GOOD
        found = [
            self._span(
                f"{genai.OPERATIONS[record.kind]} {record.model}",
                (trace.trace_id, trace.span_id, trace.parent_id, trace.state),
                (end - record.total_s, end),
                attributes_of(record, trace.dropped),
                (record.error or record.outcome) if is_bad else "",
                remote=True,
            )
        ]
        for attempt in trace.attempts:
            is_bad = attempt.outcome.status.value not in _GOOD
            found.append(
                self._span(
                    f"attempt {attempt.cause}",
                    (trace.trace_id, attempt.span_id, trace.span_id, trace.state),
                    (end - attempt.began_s, end - attempt.ended_s),
                    attributes_of_attempt(attempt),
                    (attempt.outcome.message or attempt.outcome.status.value) if is_bad else "",
                )
            )
        return found

    def _span(
        self,
        name: str,
        place: tuple[str, str, str, str],
        times: tuple[float, float],
        attributes: Attributes,
        error: str,
        remote: bool = False,
    ) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        trace_id, span_id, parent_id, state = place
        number, flags, states = int(trace_id, 16), TraceFlags(1), TraceState.from_header([state])
        parent = SpanContext(number, int(parent_id, 16), remote, flags, states) if parent_id else None
        return ReadableSpan(
            name,
            context=SpanContext(number, int(span_id, 16), False, flags, states),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.CLIENT,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=int(times[0] * 1e9),
            end_time=int(times[1] * 1e9),
            instrumentation_scope=self._scope,
        )


class _MetricSender:
    """Count requests in the instruments of the GenAI conventions, and send them once a minute."""

    def __init__(self, resource: Resource, endpoint: str | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        self._exporter = OTLPMetricExporter(endpoint=_url_of(endpoint, "METRICS", "/v1/metrics"))
        self._reader = InMemoryMetricReader()
        self._every_s = _milliseconds("OTEL_METRIC_EXPORT_INTERVAL", METRICS_EVERY_S)
        self._due = time.monotonic() + self._every_s
        meter = MeterProvider([self._reader], resource, shutdown_on_exit=False).get_meter("sollol")

        def seconds(name: str, text: str) -> Any:
            return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=genai.BUCKETS)

        self._inference = seconds(genai.INFERENCE_DURATION, "Duration of chats and completions")
        self._embeddings = seconds(genai.EMBEDDINGS_DURATION, "Duration of embeddings")
        self._first_chunk = seconds(genai.TIME_TO_FIRST_CHUNK, "Time to the first part of a streamed answer")

    def count(self, record: RequestRecord) -> None:
        """Count a finished request."""
        attributes = _common(record)
        if record.outcome not in _GOOD:
            attributes[genai.ERROR_TYPE] = _error_type(record.outcome, record.http_status)
        (self._embeddings if record.kind == EMBED.value else self._inference).record(record.total_s, attributes)
        if record.stream and record.first_token_s is not None:
            self._first_chunk.record(record.first_token_s, attributes)

    def send_if_due(self) -> None:
        """Send all counts, if the interval is over. Counts are sums, so nothing is lost with a failed message."""
        if time.monotonic() >= self._due:
            self.send()

    def send(self) -> None:
        """Send all counts."""
        self._due = time.monotonic() + self._every_s
        data = self._reader.get_metrics_data()
        if data is not None:
            self._exporter.export(data)


def attributes_of(record: RequestRecord, dropped: int = 0) -> Attributes:
    """Return the attributes of a request's span."""
    found = _common(record)
    found |= {
        genai.REQUEST_ID: record.id,
        genai.PRIORITY: record.priority,
        genai.TASK_TYPE: record.task_type,
        genai.OUTCOME: record.outcome,
        genai.QUEUE_S: record.queue_s,
        genai.ATTEMPTS: len(record.attempts),
    }
    if record.stream:
        found[genai.REQUEST_STREAM] = True
        if record.first_token_s is not None:
            found[genai.FIRST_CHUNK] = record.first_token_s
    if record.outcome not in _GOOD:
        found[genai.ERROR_TYPE] = _error_type(record.outcome, record.http_status)
    for name, value in (
        (genai.APP, record.app),
        (genai.INPUT_TOKENS, record.tokens_in),
        (genai.OUTPUT_TOKENS, record.tokens_out),
        (genai.PREDICTED_S, record.predicted_s),
        (genai.ITEMS, record.items),
        (genai.FAILED_ITEMS, record.failed_items),
        (genai.RESUMPTIONS, record.resumptions),
        (genai.ATTEMPTS_DROPPED, dropped),
    ):
        if value:
            found[name] = value
    return found


def attributes_of_attempt(attempt: AttemptTrace) -> Attributes:
    """Return the attributes of an attempt's span."""
    outcome = attempt.outcome
    found: Attributes = {genai.CAUSE: attempt.cause, genai.OUTCOME: outcome.status.value, **_server(attempt.node)}
    for name, value in (
        (genai.HTTP_STATUS, outcome.http_status),
        (genai.PREDICTED_S, attempt.predicted_s),
        (genai.ITEMS, attempt.items),
    ):
        if value:
            found[name] = value
    if outcome.status.value not in _GOOD:
        found[genai.ERROR_TYPE] = _error_type(outcome.status.value, outcome.http_status)
    return found


def _common(record: RequestRecord) -> Attributes:
    """Return the attributes that spans and metrics share."""
    return {
        genai.OPERATION: genai.OPERATIONS[record.kind],
        genai.PROVIDER: genai.OLLAMA,
        genai.REQUEST_MODEL: record.model,
        **_server(record.node),
    }


def _server(node: str) -> Attributes:
    """Return address and port of a node; nothing without one, or for the several nodes of a batch."""
    host, colon, port = node.rpartition(":")
    if not colon or not port.isdecimal() or "," in node:
        return {}
    return {genai.SERVER_ADDRESS: host.strip("[]"), genai.SERVER_PORT: int(port)}


def _error_type(outcome: str, http_status: int) -> str:
    """Return the status that a node answered, else the way in which the request ended."""
    return str(http_status) if http_status >= 400 else outcome


def _url_of(endpoint: str | None, signal: str, path: str) -> str | None:
    """Return the URL of a signal below the endpoint of the settings, None if a variable names one."""
    variables: Mapping[str, str] = os.environ
    if endpoint is None or any(
        variables.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
    ):
        return None
    return endpoint.rstrip("/") + path


def _milliseconds(variable: str, default_s: float) -> float:
    """Return a variable's milliseconds in seconds."""
    text = os.environ.get(variable, "").strip()
    return max(0.1, int(text) / 1000) if text.isdecimal() else default_s


def _is_wanted(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() != "none"
