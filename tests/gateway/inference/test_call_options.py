"""What a client's headers say of a call holds on every route: whole, streamed, and as a list that is split."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import httpx
import pytest

from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster
from tests.gateway.stage import MODEL, Stage, answering, gateway_over, until

EMBED = "nomic-embed-text"
SAY = [{"role": "user", "content": "x"}]
SHORT = {"options": {"num_predict": 3}}
TEXTS = [f"text {number}" for number in range(80)]
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/api/chat", {"model": MODEL, "messages": SAY, "stream": False, **SHORT}),
    "chat, streamed": ("/api/chat", {"model": MODEL, "messages": SAY, **SHORT}),
    "generate": ("/api/generate", {"model": MODEL, "prompt": "x", "stream": False, **SHORT}),
    "generate, streamed": ("/api/generate", {"model": MODEL, "prompt": "x", **SHORT}),
    "completions": ("/v1/chat/completions", {"model": MODEL, "messages": SAY, "max_tokens": 3}),
    "completions, streamed": (
        "/v1/chat/completions",
        {"model": MODEL, "messages": SAY, "max_tokens": 3, "stream": True},
    ),
    "old completions": ("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 3}),
    "messages": ("/v1/messages", {"model": MODEL, "messages": SAY, "max_tokens": 3}),
    "messages, streamed": ("/v1/messages", {"model": MODEL, "messages": SAY, "max_tokens": 3, "stream": True}),
    "responses": ("/v1/responses", {"model": MODEL, "input": "x", "max_output_tokens": 3}),
    "responses, streamed": ("/v1/responses", {"model": MODEL, "input": "x", "max_output_tokens": 3, "stream": True}),
    "embed": ("/api/embed", {"model": EMBED, "input": "x"}),
    "embed, a short list": ("/api/embed", {"model": EMBED, "input": TEXTS[:3]}),
    "embed, split": ("/api/embed", {"model": EMBED, "input": TEXTS[:20]}),
    "embed, split long": ("/api/embed", {"model": EMBED, "input": TEXTS}),
    "old embed": ("/api/embeddings", {"model": EMBED, "prompt": "x"}),
    "embeddings": ("/v1/embeddings", {"model": EMBED, "input": "x"}),
    "embeddings, split": ("/v1/embeddings", {"model": EMBED, "input": TEXTS}),
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    models = (ModelSpec(MODEL, size_bytes=2_000_000_000, tools=True), ModelSpec(EMBED, "embed"))
    specs = [NodeSpec(models=models, loaded=(MODEL, EMBED), seed=i, embed_items_per_s=20_000.0) for i in range(2)]
    with sim_cluster(specs) as running:
        yield running


@pytest.fixture(scope="module")
def stage(nodes: Cluster) -> Iterator[Stage]:
    with gateway_over(nodes.urls) as found:
        yield found


def ask(stage: Stage, route: str, **headers: str) -> httpx.Response:
    path, body = ROUTES[route]
    named = {f"X-Sollol-{name.replace('_', '-')}": value for name, value in headers.items()}
    with stage.client() as client:
        return client.post(path, json=body, headers=named)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_goes_to_the_node_that_is_named(route: str, stage: Stage, nodes: Cluster) -> None:
    for url in nodes.urls * 2:
        key = url.removeprefix("http://")
        answer = ask(stage, route, Node=key)
        assert answer.status_code == 200
        assert answer.headers["x-sollol-node"] == key
        assert stage.last_task().only == (key,)
    assert ask(stage, route, Node="10.0.0.1").status_code == 400


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_keeps_mode_priority_time_hedge_and_app(route: str, stage: Stage) -> None:
    answer = ask(stage, route, Mode="reliable", Priority="8", Deadline_Ms="20000", Hedge="false", App="indexer")
    assert answer.status_code == 200
    task = stage.last_task()
    assert (task.mode, task.priority, task.hedge, task.app) == ("reliable", 8, False, "indexer")
    assert task.deadline_us is not None
    with stage.client() as client:
        told = client.get(f"/sollol/explain/{answer.headers['x-sollol-request-id']}").json()
    assert told["mode"] == "reliable"
    assert ask(stage, route, Mode="soon").status_code == 400


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_sets_how_long_the_model_stays(route: str, stage: Stage, nodes: Cluster) -> None:
    model = ROUTES[route][1]["model"]

    def forever() -> set[str]:
        kept = set()
        for url in nodes.urls:
            rows = httpx.get(f"{url}/api/ps", trust_env=False).json()["models"]
            kept |= {url for row in rows if row["name"] == f"{model}:latest" and row["expires_at"] > "2100"}
        return kept

    for url in nodes.urls:
        assert ask(stage, route, Node=url.removeprefix("http://"), Keep_Alive="10m").status_code == 200
    until(lambda: not forever())
    answer = ask(stage, route, Keep_Alive="-1")
    until(lambda: {f"http://{node}" for node in answer.headers["x-sollol-node"].split(",")} <= forever())


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_a_model_is_unloaded_from_the_node_that_is_named(path: str, stage: Stage, nodes: Cluster) -> None:
    first, second = nodes.urls
    for url in nodes.urls:
        ask(stage, "chat", Node=url.removeprefix("http://"), Keep_Alive="10m")

    def holding() -> list[str]:
        rows = {url: httpx.get(f"{url}/api/ps", trust_env=False).json()["models"] for url in nodes.urls}
        return [url for url, found in rows.items() if any(row["name"] == f"{MODEL}:latest" for row in found)]

    until(lambda: holding() == [first, second])
    with stage.client() as client:
        answer = client.post(
            path, json={"model": MODEL, "keep_alive": 0}, headers={"X-Sollol-Node": second.removeprefix("http://")}
        )
    assert answer.status_code == 200
    until(lambda: holding() == [first])


NATIVE = [name for name, (path, _) in ROUTES.items() if path.startswith("/api") and "split" not in name]


@pytest.mark.parametrize("route", NATIVE)
@pytest.mark.parametrize(("keep_alive", "hedge"), [(0, False), ("0s", False), ("0m0s", False), ("5m", True)])
def test_a_call_that_unloads_its_model_is_never_hedged(route: str, keep_alive: Any, hedge: bool, stage: Stage) -> None:
    path, body = ROUTES[route]
    with stage.client(headers={"X-Sollol-Hedge": "true"}) as client:
        assert client.post(path, json={**body, "keep_alive": keep_alive}).status_code == 200
    assert stage.last_task().hedge is hedge


REFUSALS: dict[str, tuple[int, bytes]] = {
    "no such model": (404, b'{"error":"model not found"}'),
    "no such route": (404, b"404 page not found"),
    "not able": (501, b'{"error":"this model does not support embeddings"}'),
    "a key": (401, b'{"error":"unauthorized"}'),
    "a fault": (500, b'{"error":"it broke"}'),
}


class Refusing(BaseHTTPRequestHandler):
    """A node that lists the model and refuses each call for it."""

    protocol_version = "HTTP/1.1"
    refusal: ClassVar[tuple[int, bytes]]
    asked: ClassVar[int]

    def log_message(self, *args: Any) -> None: ...

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        row = {"name": f"{EMBED}:latest", "model": f"{EMBED}:latest", "size": 1, "size_vram": 1}
        lists = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": [row]}, "/api/ps": {"models": [row]}}
        self._answer(200, json.dumps(lists.get(self.path, {})).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked += 1
        self._answer(*self.refusal)


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("texts", [1, 20, 80])
def test_the_node_that_is_named_is_tried_each_time(refusal: str, texts: int, nodes: Cluster) -> None:
    """Also where it is known to refuse, and another node would serve: nothing waits, and the reason is its answer."""
    node: Any = type("Here", (Refusing,), {"refusal": REFUSALS[refusal], "asked": 0})
    with answering(node) as url, gateway_over([url, *nodes.urls]) as stage, stage.client() as client:
        key = url.removeprefix("http://")
        for _ in range(3):
            before = node.asked
            body = {"model": EMBED, "input": TEXTS[:texts]}
            headers = {"X-Sollol-Node": key, "X-Sollol-Deadline-Ms": "8000"}
            answer = client.post("/api/embed", json=body, headers=headers)
            assert answer.status_code >= 400
            assert answer.status_code != 504, answer.text
            assert node.asked > before
            assert f"{key}: not tried" not in answer.text
