"""Nodes of which one refuses what the other serves, through the gateway: its word is not final, and is remembered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import httpx
import pytest

from sollol.printable import printable
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import MODEL, answering, gateway_over, talker

EMBED = "nomic-embed-text"
PAGE = b"<html>something stands before the node</html>"


class Fake(BaseHTTPRequestHandler):
    """A node that says what it has, and to all work the same. `asked` counts the work by its path."""

    protocol_version = "HTTP/1.1"
    status = 404
    body = b"404 page not found"
    kind = "text/plain"
    headers_told: ClassVar[dict[str, str]] = {}
    asked: list[str]

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        models = [
            {"name": f"{name}:latest", "model": f"{name}:latest", "size": 1000, "digest": ""} for name in (MODEL, EMBED)
        ]
        told: dict[str, Any] = {"version": "0.5.4"} if self.path == "/api/version" else {"models": models}
        self._say(200, json.dumps(told).encode(), "application/json", {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.asked.append(self.path)
        self._say(self.status, self.body, self.kind, self.headers_told)

    def _say(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def fake(**about: Any) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with answering(type("Node", (Fake,), {"asked": asked, **about})) as url:
        yield url, asked


@contextmanager
def beside(**about: Any) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A client of a gateway over a fake node and one that is well."""
    models = (*talker(1).models, ModelSpec(EMBED, "embed"))
    spec: NodeSpec = talker(1, 1000.0, models=models, loaded=(MODEL, EMBED))
    with (
        sim_cluster([spec]) as cluster,
        fake(**about) as (url, asked),
        gateway_over([url, *cluster.urls]) as stage,
        stage.client() as client,
    ):
        yield client, asked


CALLS: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "options": {"num_predict": 3}},
    "/api/generate": {"model": MODEL, "prompt": "x", "options": {"num_predict": 3}},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/messages": {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
    "/v1/responses": {"model": MODEL, "input": "x", "max_output_tokens": 3},
    "/v1/embeddings": {"model": EMBED, "input": "x"},
    "/api/embed": {"model": EMBED, "input": "x"},
}


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_older_node_that_lacks_the_route(path: str, stream: bool) -> None:
    with beside() as (client, asked):
        for _ in range(12):
            answer = client.post(path, json=CALLS[path] | {"stream": stream})
            assert answer.status_code == 200, answer.text
        assert asked.count(path) <= 1


@pytest.mark.parametrize("status", [401, 402, 403, 405, 407, 408, 413, 421, 426, 499, 501, 302])
def test_another_status_of_one_node(status: int) -> None:
    with beside(status=status, body=PAGE, kind="text/html") as (client, _):
        for stream in (False, True) * 3:
            answer = client.post("/api/chat", json=CALLS["/api/chat"] | {"stream": stream})
            assert answer.status_code == 200, answer.text
        texts = [f"text {i}" for i in range(100)]
        for path in ("/api/embed", "/v1/embeddings"):
            answer = client.post(path, json={"model": EMBED, "input": texts})
            assert answer.status_code == 200, answer.text
            assert len(answer.json().get("embeddings") or answer.json()["data"]) == 100


def test_a_list_over_a_node_that_lacks_the_route() -> None:
    with beside() as (client, asked):
        for _ in range(8):
            answer = client.post("/api/embed", json={"model": EMBED, "input": [f"text {i}" for i in range(100)]})
            assert answer.status_code == 200
        assert asked.count("/api/embed") < 8  # not once for each list; a few while it is learned
        rows = client.get("/sollol/snapshot").json()["nodes"]
        assert [bool(row["unable"]) for row in rows] == [True, False]


def test_what_every_node_refuses_is_passed_on() -> None:
    with fake() as (one, _), fake() as (two, _), gateway_over([one, two]) as stage, stage.client() as client:
        answer = client.post("/v1/messages", json=CALLS["/v1/messages"])
        assert answer.status_code == 404
        assert answer.json()["type"] == "error"


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on_when_nobody_can_serve(status: int) -> None:
    about = {"status": status, "body": b'{"error":"later"}', "headers_told": {"Retry-After": "40"}}
    with fake(**about) as (url, _), gateway_over([url]) as stage, stage.client() as client:
        for path in ("/api/chat", "/v1/chat/completions"):
            for stream in (False, True):
                answer = client.post(
                    path, json=CALLS[path] | {"stream": stream}, headers={"X-Sollol-Deadline-Ms": "3000"}
                )
                assert answer.status_code == 503, answer.text
                assert 30 <= int(answer.headers["retry-after"]) <= 40


FAILED = (
    b'event: response.failed\ndata: {"response":{"error":{"code":"api_error","message":"registry.ollama.ai/library/'
    b'tiny:latest does not support tools"},"status":"failed"},"sequence_number":2,"type":"response.failed"}\n\n'
)
CREATED = (
    b'event: response.created\ndata: {"response":{"id":"resp_1","status":"in_progress"},"sequence_number":0,'
    b'"type":"response.created"}\n\n'
)


@pytest.mark.parametrize("begun", [False, True])
def test_a_callers_mistake_inside_a_stream_of_responses(begun: bool) -> None:
    about = {"status": 200, "body": (CREATED if begun else b"") + FAILED, "kind": "text/event-stream"}
    with fake(**about) as (url, asked), gateway_over([url]) as stage, stage.client() as client:
        for _ in range(6):
            answer = client.post("/v1/responses", json=CALLS["/v1/responses"] | {"stream": True})
            if begun:
                assert answer.status_code == 200
                assert answer.content == CREATED + FAILED
            else:
                assert answer.status_code == 400
                assert answer.json()["error"]["type"] == "invalid_request_error"
                assert "does not support tools" in answer.json()["error"]["message"]
        assert len(asked) == 6
        row = client.get("/sollol/snapshot").json()["nodes"][0]
        assert row["failed_requests"] == 0


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions", "/api/embed", "/v1/new"])
@pytest.mark.parametrize(
    "body", [b'{"error":"a\xc2\x9bb"}', b'{"error":"a\xe2\x80\xaeb\x1b[2J"}', b"\x1b]52;c;eA==\x07"]
)
def test_no_refusal_of_a_node_commands_a_terminal(path: str, body: bytes) -> None:
    with fake(status=400, body=body) as (url, _), gateway_over([url]) as stage, stage.client() as client:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"}
        for stream in (True, False):
            answer = client.post(path, json={**asked, "stream": stream})
            assert answer.status_code >= 400
            assert answer.text == printable(answer.text)
