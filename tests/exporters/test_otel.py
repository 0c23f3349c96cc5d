"""OpenTelemetry against a real receiver: spans, their links over processes, and no request that waits for it."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from sollol import OllamaPool
from sollol.config import OtelSettings, load_settings
from sollol.errors import BadInput, ConfigError
from sollol.exporters import genai, otel
from sollol.gateway.settings import GatewaySettings
from sollol.observe import tracing
from sollol.observe.tracing import parent_of
from sollol.pool.callers_trace import current_trace
from sollol.sim import NodeSpec, free_port
from sollol.sim.serve import Cluster, sim_cluster
from sollol.transport.base import Call
from tests.exporters.otlp import Receiver, receiver
from tests.gateway.stage import MODEL, Stage, gateway_over, talker, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HELLO = [{"role": "user", "content": "a secret prompt"}]
SHORT = {"num_predict": 3}
CLIENT, ERROR = 3, 2  # SpanKind and StatusCode in the protocol


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "EVERY_S", 0.05)
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "METRICS_ENDPOINT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


@pytest.fixture
def sink() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with sim_cluster([talker(1, 5_000.0), talker(2, 5_000.0)]) as nodes:
        yield nodes


class Sent:
    """The requests that arrive at the nodes."""

    def __init__(self, cluster: Cluster) -> None:
        self.calls: list[Call] = []
        for node in cluster.nodes:
            node.handle = self._watched(node.handle)  # type: ignore[method-assign]

    def _watched(self, handle: Any) -> Any:
        async def watched(call: Call) -> Any:
            self.calls.append(call)
            return await handle(call)

        return watched

    def headers(self, path: str, name: str = "traceparent") -> list[str]:
        return [
            {key.lower(): value for key, value in call.headers}.get(name, "")
            for call in self.calls
            if call.path == path
        ]


@contextlib.contextmanager
def traced(cluster: Cluster, sink: Receiver, **more: Any) -> Iterator[OllamaPool]:
    with OllamaPool(list(cluster), app_name="trial", **more) as pool:
        pool.use_otel(sink.url)
        yield pool


@contextlib.contextmanager
def traced_gateway(
    cluster: Cluster, sink: Receiver, monkeypatch: pytest.MonkeyPatch, settings: GatewaySettings | None = None
) -> Iterator[Stage]:
    monkeypatch.setenv("SOLLOL_OTEL", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.url)
    with gateway_over(cluster.urls, settings) as stage:
        yield stage


# --- spans ---


def test_a_request_is_a_span_and_each_attempt_a_child(cluster: Cluster, sink: Receiver) -> None:
    began = time.time()
    with traced(cluster, sink) as pool:
        answer = pool.chat(MODEL, HELLO, options=SHORT)
        sink.until(lambda: len(sink.spans) == 2)
    ((request, (attempt,)),) = sink.trees()
    host, port = answer.routing.node.split(":")
    assert (request.name, request.kind, request.parent_id) == (f"chat {MODEL}:latest", CLIENT, "")
    assert attempt.name == "attempt first"
    assert attempt.trace_id == request.trace_id
    assert (
        request.attributes.items()
        >= {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "ollama",
            "gen_ai.request.model": f"{MODEL}:latest",
            "gen_ai.usage.output_tokens": 3,
            "server.address": host,
            "server.port": int(port),
            "sollol.request.id": answer.routing.id,
            "sollol.app": "trial",
            "sollol.outcome": "ok",
            "sollol.attempts": 1,
        }.items()
    )
    assert attempt.attributes.items() >= {"server.port": int(port), "http.response.status_code": 200}.items()
    assert began <= request.start <= attempt.start <= attempt.end <= request.end + 1e-6
    assert request.resource.items() >= {"service.name": "trial"}.items()
    assert request.status != ERROR
    assert not any(b"secret" in raw for raw in sink.raw)


def test_a_stream_has_the_time_of_its_first_chunk(cluster: Cluster, sink: Receiver) -> None:
    with traced(cluster, sink) as pool:
        for _ in pool.chat(MODEL, HELLO, stream=True, options=SHORT):
            pass
        sink.until(lambda: len(sink.spans) == 2)
    ((request, _),) = sink.trees()
    assert request.attributes["gen_ai.request.stream"] is True
    assert 0 < request.attributes["gen_ai.response.time_to_first_chunk"] <= request.end - request.start


def test_a_retry_is_a_second_child(cluster: Cluster, sink: Receiver) -> None:
    sent = Sent(cluster)
    cluster.do(lambda nodes: nodes[0].error_rate(1.0, status=500))
    with traced(cluster, sink) as pool:
        pool.wait_ready()
        asked = 1
        while pool.chat(MODEL, HELLO, options=SHORT).routing.attempts == 1:
            asked += 1
        sink.until(lambda: len(sink.trees()) == asked)
        sink.until(lambda: sum(len(attempts) for _, attempts in sink.trees()) == len(sent.headers("/api/chat")))
    retried = next(tree for tree in sink.trees() if len(tree[1]) > 1)
    first, second = retried[1][:2]
    assert (first.attributes["sollol.attempt.cause"], first.status, first.attributes["error.type"]) == (
        "first",
        ERROR,
        "500",
    )
    assert second.attributes["sollol.attempt.cause"] == "retry"
    assert retried[0].status != ERROR
    assert retried[0].attributes["sollol.attempts"] == len(retried[1])


def test_a_failed_request_is_an_error(cluster: Cluster, sink: Receiver) -> None:
    from sollol.errors import SollolError

    with traced(cluster, sink) as pool:
        pool.wait_ready()
        with pytest.raises(SollolError):
            pool.chat("no-such-model", HELLO)
        sink.until(lambda: sink.spans)
    request = sink.spans[0]
    assert request.status == ERROR
    assert request.attributes["error.type"]
    assert "server.address" not in request.attributes


def test_chunks_of_a_batch_are_children(sink: Receiver) -> None:
    from sollol.sim import ModelSpec

    spec = NodeSpec(models=(ModelSpec("embedder", "embed", 300_000_000, dim=8),), embed_items_per_s=5_000.0)
    with sim_cluster([spec, spec]) as nodes, traced(nodes, sink) as pool:
        sent = Sent(nodes)
        pool.embed_batch("embedder", [f"text {number}" for number in range(300)])
        sink.until(lambda: sink.trees())
    ((request, chunks),) = sink.trees()
    assert request.name == "embeddings embedder:latest"
    assert request.attributes["sollol.items"] == 300
    assert len(chunks) == len(sent.headers("/api/embed")) > 1
    assert sum(chunk.attributes["sollol.items"] for chunk in chunks) >= 300
    assert {header.split("-")[2] for header in sent.headers("/api/embed")} == {chunk.span_id for chunk in chunks}


# --- links ---


def test_from_the_client_over_the_gateway_to_the_node(
    cluster: Cluster, sink: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(cluster)
    with traced_gateway(cluster, sink, monkeypatch) as stage, stage.client() as client:
        for stream in (False, True):
            body = {"model": MODEL, "messages": HELLO, "stream": stream, "options": SHORT}
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1,other=2"}
            assert client.post("/api/chat", json=body, headers=headers).status_code == 200
        sink.until(lambda: len(sink.spans) == 4)
        assert not any(call.method == "GET" and "traceparent" in str(call.headers).lower() for call in sent.calls)
    for request, (attempt,) in sink.trees():
        assert (request.trace_id, request.parent_id, request.state) == (TRACE, SPAN, "vendor=1,other=2")
        assert f"00-{TRACE}-{attempt.span_id}-01" in sent.headers("/api/chat")
    assert [state for state in sent.headers("/api/chat", "tracestate") if state] == ["vendor=1,other=2"] * 2


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", f"chat {MODEL}"),
        ("/v1/messages", f"chat {MODEL}"),
        ("/v1/completions", f"text_completion {MODEL}"),
        ("/api/embed", "embeddings embedder"),
        ("/v1/embeddings", "embeddings embedder"),
    ],
)
def test_each_api_of_the_gateway_takes_the_context(
    path: str, name: str, sink: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sollol.sim import ModelSpec

    embedder = ModelSpec("embedder", "embed", 300_000_000, dim=8)
    spec = talker(1, 5_000.0)
    with sim_cluster([replace(spec, models=(*spec.models, embedder))]) as nodes:
        sent = Sent(nodes)
        with traced_gateway(nodes, sink, monkeypatch) as stage, stage.client() as client:
            body: dict[str, Any] = {"model": MODEL, "messages": HELLO, "prompt": "x", "max_tokens": 3}
            if name.startswith("embeddings"):
                body = {"model": "embedder", "input": [f"text {number}" for number in range(100)]}
            answer = client.post(path, json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
            assert answer.status_code == 200, answer.text
            sink.until(lambda: sink.trees())
    ((request, attempts),) = sink.trees()
    assert (request.trace_id, request.parent_id, request.name) == (TRACE, SPAN, f"{name}:latest")
    assert attempts
    headers = {header for call in sent.calls for key, header in call.headers if key.lower() == "traceparent"}
    assert {f"00-{TRACE}-{attempt.span_id}-01" for attempt in attempts} == headers


def test_from_the_span_of_a_program_through_a_pool(cluster: Cluster, sink: Receiver) -> None:
    sent = Sent(cluster)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("program")
    with traced(cluster, sink) as pool, tracer.start_as_current_span("work") as span:
        pool.chat(MODEL, HELLO, options=SHORT)
        pool.batch_chat(MODEL, [HELLO, HELLO], options=SHORT)
        sink.until(lambda: len(sink.trees()) == 3 and len(sink.spans) == 6)
    context = span.get_span_context()
    for request, (attempt,) in sink.trees():
        assert request.trace_id == f"{context.trace_id:032x}"
        assert request.parent_id == f"{context.span_id:016x}"
        assert f"00-{request.trace_id}-{attempt.span_id}-01" in sent.headers("/api/chat")


def test_a_call_while_another_thread_imports_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", ModuleType("opentelemetry.trace"))
    assert current_trace() is None


def test_a_trace_that_is_not_recorded_is_passed_on(
    cluster: Cluster, sink: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's decision not to sample, and our share: no span, and the caller's own header at the node."""
    sent = Sent(cluster)
    settings = GatewaySettings(observer_sampling=0.0)
    with traced_gateway(cluster, sink, monkeypatch) as stage, stage.client() as client:
        body = {"model": MODEL, "messages": HELLO, "stream": False, "options": SHORT}
        client.post("/api/chat", json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    with traced_gateway(cluster, sink, monkeypatch, settings) as stage, stage.client() as client:
        client.post("/api/chat", json=body, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
        client.post("/api/chat", json=body)
    assert sent.headers("/api/chat") == [f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-01", ""]
    assert not sink.spans


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\r\nX: y",
    ],
)
def test_a_parent_that_cannot_be_used_begins_a_new_trace(header: str) -> None:
    assert parent_of(header) is None


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("rojo=00f067aa0ba902b7, congo=t61", "rojo=00f067aa0ba902b7,congo=t61"),
        ("tenant@sys=x", "tenant@sys=x"),
        ("=,novalue", ""),
        ("a=1,a=2", ""),
        ("A=1", ""),
        ("a=b=c", ""),
        ("a=" + "x" * 300, ""),
        (",".join(f"a{number}=1" for number in range(33)), ""),
        ("a-" * 200 + "=", ""),
    ],
)
def test_a_state_that_is_not_valid_is_left_out(given: str, used: str) -> None:
    found = parent_of(f"00-{TRACE}-{SPAN}-01", given)
    assert found is not None
    assert found.state == used


def test_a_parent_of_a_later_version_is_used() -> None:
    found = parent_of(f"01-{TRACE}-{SPAN}-01-more", "a=1\nb")
    assert found == (TRACE, SPAN, True, "")
    assert parent_of(f"00-{TRACE}-{SPAN}-01", "a" * 513) == (TRACE, SPAN, True, "")


# --- receivers that do not take them ---


def test_a_receiver_that_is_down_refuses_or_is_slow_delays_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    port = free_port()
    with caplog.at_level(logging.INFO), OllamaPool(list(cluster)) as pool:
        pool.use_otel(f"http://127.0.0.1:{port}")
        pool.chat(MODEL, HELLO, options=SHORT)  # down
        assert pool._engine is not None
        engine, exporter = pool._engine, pool._engine.otel
        assert exporter is not None
        until(lambda: exporter.problem)
        with receiver(port) as sink:
            sink.status = 400
            pool.chat(MODEL, HELLO, options=SHORT)
            until(lambda: engine.recorder.lost()["otel"] == 2)
            sink.status = 200
            pool.chat(MODEL, HELLO, options=SHORT)
            sink.until(lambda: len(sink.spans) == 2)
            until(lambda: not exporter.problem)
            sink.delay.clear()  # it takes the message, and does not answer
            messages = sink.messages
            pool.chat(MODEL, HELLO, options=SHORT)
            sink.until(lambda: sink.messages > messages)
            for _ in range(20):
                pool.chat(MODEL, HELLO, options=SHORT)
            assert sink.messages >= messages + 1
            until(lambda: exporter.problem)
            sink.delay.set()
            until(lambda: not exporter.problem)
        metrics = engine.metrics("1").decode()
    told = [record.getMessage() for record in caplog.records if "OTLP" in record.getMessage()]
    assert re.search(r"does not take spans \(.+\); requests go on", told[0])
    assert "takes spans again; lost meanwhile: " in told[1]
    assert len(told) == 4  # not one for each message
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert re.search(r'sollol_records_lost_total\{subscriber="otel"\} [1-9]', metrics)


def test_the_queue_is_bounded_and_the_gap_is_counted() -> None:
    follower = tracing.Tracing(lambda task: True)
    for task in range(tracing.OPEN_MOST + 10):
        follower.begin(task, None)
    assert len(follower._open) == tracing.OPEN_MOST


# --- metrics ---


def test_metrics_of_the_conventions(cluster: Cluster, sink: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.setenv("SOLLOL_OBSERVER_SAMPLING", "false")  # of spans; metrics count all
    with traced(cluster, sink) as pool:
        for _ in range(3):
            pool.chat(MODEL, HELLO, options=SHORT)
        for _ in pool.chat(MODEL, HELLO, stream=True, options=SHORT):
            pass
        counted: Callable[[str], int] = lambda name: sum(point.count for point in sink.metrics.get(name, ()))  # noqa: E731
        sink.until(lambda: counted(genai.INFERENCE_DURATION) == 4)
        sink.until(lambda: counted(genai.TIME_TO_FIRST_CHUNK) == 1)
    assert not sink.spans
    point = sink.metrics[genai.INFERENCE_DURATION][0]
    assert tuple(point.explicit_bounds) == genai.BUCKETS
    assert point.sum > 0


# --- settings ---


def test_off_imports_nothing_and_sends_no_header(cluster: Cluster) -> None:
    program = (
        "import sys\nfrom sollol import OllamaPool\n"
        f"with OllamaPool({list(cluster)!r}) as pool:\n"
        f"    pool.chat({MODEL!r}, {HELLO!r}, options={SHORT!r})\n"
        "print(sorted(name for name in sys.modules if name.startswith(('opentelemetry', 'sollol.exporters.otel'))))"
    )
    sent = Sent(cluster)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert sent.headers("/api/chat") == [""]


@pytest.mark.parametrize(
    ("env", "file", "found"),
    [
        ({}, "", None),
        ({"SOLLOL_OTEL": "true"}, "", OtelSettings()),
        ({}, "[otel]\nenabled = true\n", OtelSettings()),
        ({}, '[otel]\nendpoint = "http://a:4318/"\n', None),
        ({}, '[otel]\nenabled = true\nendpoint = "http://a:4318/"\n', OtelSettings("http://a:4318")),
        ({"SOLLOL_OTEL": "off"}, "[otel]\nenabled = true\n", None),
    ],
)
def test_it_is_on_where_the_settings_say_so(
    env: dict[str, str], file: str, found: OtelSettings | None, tmp_path: Path
) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text(file)
    assert load_settings(env, config=path).otel == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[otel]\nenabled = "perhaps"\n', "expected true or false"),
        ('[otel]\nendpoint = "a:4318"\n', "expected the URL of a receiver"),
        ("[otel]\nenable = true\n", "otel.enable is not a setting; expected enabled and endpoint"),
    ],
)
def test_wrong_settings_are_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "sollol.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_settings({}, config=path)


def test_the_variables_of_opentelemetry_go_first(
    cluster: Cluster, sink: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{sink.url}/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=ours")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with OllamaPool(list(cluster)) as pool:
        pool.use_otel("http://127.0.0.1:9")
        pool.chat(MODEL, HELLO, options=SHORT)
        sink.until(lambda: len(sink.spans) == 2)
    assert sink.spans[0].resource["service.name"] == "other"
    assert sink.headers[0]["x-team"] == "ours"
    assert not sink.metrics


def test_it_is_chosen_before_the_first_call(cluster: Cluster) -> None:
    with OllamaPool(list(cluster)) as pool:
        pool.wait_ready()
        with pytest.raises(BadInput, match="use_otel"):
            pool.use_otel()


def test_the_table_of_the_docs_is_complete() -> None:
    text = (Path(__file__).parents[2] / "docs" / "opentelemetry.md").read_text()
    listed = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.M))
    names = {value for name, value in vars(genai).items() if name.isupper() and isinstance(value, str)}
    assert names - {genai.OLLAMA} == {name for name in listed if "." in name}
