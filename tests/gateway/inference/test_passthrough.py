"""Routes that only nodes have: they go to a node that has them, in the queue if they name a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx

from tests.gateway.stage import MODEL, answering, gateway_over

OTHER = "other-model"


class Node(BaseHTTPRequestHandler):
    """A node with `models` and, besides Ollama's lists, the routes in `routes`."""

    protocol_version = "HTTP/1.1"
    models: ClassVar[tuple[str, ...]] = (MODEL,)
    routes: ClassVar[tuple[str, ...]] = ()
    asked: list[tuple[str, bytes]]

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        rows = [{"name": f"{m}:latest", "model": f"{m}:latest", "size": 1000, "digest": ""} for m in self.models]
        if self.path == "/api/version":
            self._say(200, {"version": "0.33.0"})
        elif self.path in ("/api/tags", "/api/ps"):
            self._say(200, {"models": rows})
        else:
            self._other(b"")

    def do_POST(self) -> None:
        self._other(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _other(self, body: bytes) -> None:
        self.asked.append((self.path, body))
        if urlsplit(self.path).path in self.routes:
            self._say(200, {"path": self.path, "size": len(body)})
        else:
            self._say(404, None)

    def _say(self, status: int, fields: Any) -> None:
        body = json.dumps(fields).encode() if fields is not None else b"404 page not found"
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if fields is not None else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def node(**about: Any) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    asked: list[tuple[str, bytes]] = []
    with answering(type("OneNode", (Node,), {"asked": asked, **about})) as url:
        yield url, asked


def test_a_get_goes_to_the_node_that_has_the_route() -> None:
    with node() as (old, _), node(routes=("/api/new",)) as (new, _), gateway_over([old, new]) as stage:
        for _ in range(3):
            answer = httpx.get(f"{stage.url}/api/new?x=1")
            assert answer.json()["path"] == "/api/new?x=1"
            assert answer.headers["x-sollol-node"] == urlsplit(new).netloc


def test_a_post_that_names_a_model_is_queued_and_the_lack_is_remembered() -> None:
    with node() as (old, lacking), node(routes=("/v1/new",)) as (new, having), gateway_over([old, new]) as stage:
        for _ in range(10):
            answer = httpx.post(f"{stage.url}/v1/new", json={"model": MODEL, "x": 1})
            assert (answer.status_code, answer.json()["path"]) == (200, "/v1/new")
    assert len(lacking) <= 1
    assert len(having) == 10


def test_large_bodies_arrive_whole() -> None:
    """Their pieces are joined in a thread: JSON, which is read, and anything else."""
    text = "word " * 400_000
    with node(routes=("/v1/new",)) as (url, asked), gateway_over([url]) as stage:
        sent = httpx.post(f"{stage.url}/v1/new", json={"model": MODEL, "x": text}).request.content
        httpx.post(f"{stage.url}/v1/new", content=text)
        httpx.post(f"{stage.url}/v1/new", data={"model": MODEL}, files={"file": ("a.wav", text.encode())})
    bodies = [body for path, body in asked if path == "/v1/new"]
    assert bodies[:2] == [sent, text.encode()]
    assert text.encode() in bodies[2]


def test_it_goes_to_a_node_with_the_model() -> None:
    has = {"routes": ("/v1/new",)}
    with node(**has) as (one, first), node(**has, models=(OTHER,)) as (two, second), gateway_over([one, two]) as stage:
        for _ in range(4):
            httpx.post(f"{stage.url}/v1/new", json={"model": OTHER})
            httpx.post(f"{stage.url}/v1/new", data={"model": OTHER}, files={"file": ("a.wav", b"RIFF")})
    assert not first
    assert len(second) == 8


def test_where_no_node_has_it_a_node_says_so() -> None:
    with node() as (one, first), node() as (two, second), gateway_over([one, two]) as stage:
        for answer in (
            httpx.get(f"{stage.url}/api/none"),
            httpx.post(f"{stage.url}/api/none", json={"model": MODEL}),
            httpx.post(f"{stage.url}/api/none", content=b"not JSON"),
        ):
            assert (answer.status_code, answer.text) == (404, "404 page not found")
            assert answer.headers["content-type"].startswith("text/plain")
    assert first
    assert second


def test_our_own_paths_stay_ours() -> None:
    with node(routes=("/sollol/none",)) as (url, asked), gateway_over([url]) as stage:
        assert httpx.get(f"{stage.url}/sollol/none").status_code == 404
    assert not asked
