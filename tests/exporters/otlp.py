"""A receiver of OTLP over HTTP: it decodes what arrives with the official protobuf classes."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_S = 20.0


class Span:
    """One span as a test compares it."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.kind: int = span.kind
        self.trace_id, self.span_id = span.trace_id.hex(), span.span_id.hex()
        self.parent_id, self.state = span.parent_span_id.hex(), span.trace_state
        self.start, self.end = span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9
        self.attributes = values_of(span.attributes)
        self.status, self.message = span.status.code, span.status.message
        self.resource = resource


def values_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Receiver:
    """What has arrived. `delay_s` and `status` change how it answers."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.raw: list[bytes] = []
        self.messages = 0
        self.delay = threading.Event()
        self.delay.set()
        self.status = 200

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < end, [span.name for span in self.spans]
            time.sleep(0.02)

    def take(self, path: str, body: bytes) -> None:
        self.raw.append(body)
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                named = values_of(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans += [Span(span, named) for span in scope.spans]
        else:
            assert path == "/v1/metrics", path
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scope in resource.scope_metrics:
                    self.metrics |= {metric.name: list(metric.histogram.data_points) for metric in scope.metrics}

    def trees(self) -> list[tuple[Span, list[Span]]]:
        """The spans of requests, each with those of its attempts in their order."""
        requests = [span for span in self.spans if not span.name.startswith("attempt ")]
        return [
            (one, sorted((span for span in self.spans if span.parent_id == one.span_id), key=lambda span: span.start))
            for one in requests
        ]


@contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            found.headers.append(dict(self.headers))
            found.messages += 1
            found.delay.wait(WAIT_S)
            if found.status == 200:
                found.take(self.path, body)
            self.send_response(found.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    found = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.delay.set()
        server.shutdown()
        server.server_close()
        thread.join()
