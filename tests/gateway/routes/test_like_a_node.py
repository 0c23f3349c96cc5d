"""Answers out of the ordinary, which must be the same through the gateway as from the node."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest

from sollol.sim import NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import MODEL, answering, gateway_over, talker

MESSAGES = [{"role": "user", "content": "Hello"}]
NAMELESS: dict[str, dict[str, Any]] = {
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "Hello"},
    "/api/embed": {"input": "Hello"},
    "/api/embeddings": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hello"},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/responses": {"input": "Hello"},
}
WHOLE_THOUGH_STREAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "load a chat model": ("/api/chat", {"messages": []}),
    "load a model": ("/api/generate", {}),
    "the rendered chat": ("/api/chat", {"messages": MESSAGES, "_debug_render_only": True}),
    "the rendered prompt": ("/api/generate", {"prompt": "Hello", "_debug_render_only": True}),
}


def told(answer: httpx.Response) -> tuple[int, str, dict[str, Any]]:
    """Status, kind and body, without the words that differ from one answer to the next."""
    body = answer.json()
    for name in ("created_at", "request_id"):
        body.pop(name, None)
    return answer.status_code, answer.headers["content-type"], body


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[str, str]]:
    """A node, and a gateway before it."""
    with sim_cluster([talker(1)]) as nodes, gateway_over(nodes.urls) as stage:
        yield nodes.urls[0], stage.url


@pytest.mark.parametrize("path", NAMELESS)
@pytest.mark.parametrize("named", [{}, {"model": ""}, {"model": None}], ids=["no model", "an empty name", "null"])
def test_a_request_that_names_no_model(both: tuple[str, str], path: str, named: dict[str, Any]) -> None:
    node, gateway = (told(httpx.post(url + path, json={**NAMELESS[path], **named})) for url in both)
    assert gateway == node
    assert node[0] in (400, 404)


@pytest.mark.parametrize("case", WHOLE_THOUGH_STREAMED)
@pytest.mark.parametrize("more", [{}, {"stream": False}], ids=["streamed", "whole"])
def test_what_a_node_says_whole(both: tuple[str, str], case: str, more: dict[str, bool]) -> None:
    path, body = WHOLE_THOUGH_STREAMED[case]
    node, gateway = (told(httpx.post(url + path, json={"model": MODEL, **body, **more})) for url in both)
    assert gateway == node
    assert node[1].startswith("application/json")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/chat/completions"])
def test_what_may_be_cached(both: tuple[str, str], path: str) -> None:
    body = {"model": MODEL, "stream": True, "max_tokens": 5, "max_output_tokens": 5, **NAMELESS[path]}
    node, gateway = (httpx.post(url + path, json=body).headers.get("cache-control") for url in both)
    assert gateway == node


@contextmanager
def unfinished(node: str) -> Iterator[str]:
    """A node that answers as `node` does, but says of every chat that it is not done, as Ollama does after too many
    repeated tokens; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass(None)

        def do_POST(self) -> None:
            self._pass(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass(self, asked: bytes | None) -> None:
            with urllib.request.urlopen(urllib.request.Request(node + self.path, asked)) as answer:
                body = answer.read()
            if self.path == "/api/chat":
                found = json.loads(body)
                body = json.dumps({name: found[name] for name in ("model", "message")} | {"done": False}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with answering(Handler) as url:
        yield url


def test_an_answer_that_ran_into_the_limit_of_repeated_tokens_is_an_answer() -> None:
    with sim_cluster([talker(1)]) as nodes, unfinished(nodes.urls[0]) as url, gateway_over([url]) as stage:
        body = {"model": MODEL, "messages": MESSAGES, "stream": False, "options": {"num_predict": 5}}
        answer = httpx.post(stage.url + "/api/chat", json=body)
        assert (answer.status_code, answer.json()["done"]) == (200, False)
        assert answer.json()["message"]["content"]
        (call,) = stage.look(lambda gateway: gateway.engine.recorder.history.recent())
        assert (call.outcome, call.attempts) == ("ok", 1)


@pytest.mark.parametrize("count", [1, 40])
def test_embeddings_of_openai_know_no_truncate(count: int) -> None:
    body = {"model": "nomic-embed-text", "input": ["word " * 9000] * count, "truncate": False}
    with sim_cluster([NodeSpec(seed=1), NodeSpec(seed=2)]) as nodes, gateway_over(nodes.urls) as stage:
        for url in (nodes.urls[0], stage.url):
            assert httpx.post(url + "/v1/embeddings", json=body, timeout=60).status_code == 200
            if count > 1:  # that the texts are too long
                assert httpx.post(url + "/api/embed", json=body, timeout=60).status_code == 400


def test_http_1_0_needs_no_host(both: tuple[str, str]) -> None:
    for url in both:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5) as sock:
            sock.sendall(b"GET /api/version HTTP/1.0\r\n\r\n")
            assert sock.recv(1000).split(b" ")[1] == b"200"
