"""Loads that hang, and models that fit nowhere, over HTTP and for each kind of request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest

from sollol.sim import Cluster, ModelSpec, sim_cluster
from tests.gateway.stage import Stage, gateway_over, talker, until

GB = 10**9
HELLO = [{"role": "user", "content": "Hello"}]
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "chat": ("/api/chat", {"messages": HELLO, "stream": False}, {}),
    "stream": ("/api/chat", {"messages": HELLO}, {}),
    "hedged": ("/api/generate", {"prompt": "Hello", "stream": False}, {"X-Sollol-Mode": "fast"}),
    "another context": ("/api/chat", {"messages": HELLO, "stream": False, "options": {"num_ctx": 2_048}}, {}),
    "v1": ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2}, {}),
    "embedding": ("/api/embed", {"input": "Hello"}, {}),
    "list": ("/api/embed", {"input": [f"text {n}" for n in range(6)]}, {}),
    "batch": ("/api/embed", {"input": [f"text {n}" for n in range(120)]}, {}),
}


def ask(stage: Stage, kind: str, model: str, **more: Any) -> httpx.Response:
    path, body, headers = KINDS[kind]
    return httpx.post(
        f"{stage.url}{path}", json={"model": model, **body, **more}, headers=headers, timeout=60, trust_env=False
    )


def kind_of(kind: str) -> Literal["chat", "embed"]:
    return "embed" if kind in ("embedding", "list", "batch") else "chat"


def tries(nodes: Cluster) -> list[int]:
    """Return the inferences that each node was sent."""
    return nodes.do(
        lambda running: [
            sum(count for route, count in node.counters.requests.items() if route.startswith("POST"))
            for node in running
        ]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_fits_nowhere_is_tried_once_on_each_node(kind: str) -> None:
    big = ModelSpec("big", kind_of(kind), 40 * GB)
    rooms = (8, 16, 12)
    specs = [talker(n, models=(big,), loaded=(), ram_bytes=room * GB, vram_bytes=0) for n, room in enumerate(rooms)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage:
        for _ in range(125):  # 1,000 over all kinds
            answer = ask(stage, kind, "big")
            assert answer.status_code >= 400
            assert "37.3 GiB" in answer.text
            assert "14.9 GiB" in answer.text, "the largest place is named"
        assert max(tries(nodes)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_that_hangs_stops_neither_other_nodes_nor_its_own_loaded_models(kind: str) -> None:
    models = (ModelSpec("a", kind_of(kind), 400_000_000), ModelSpec("b", kind_of(kind), 400_000_000))
    specs = [talker(n, 500.0, models=models, loaded=("a",), load_bytes_per_s=4e9) for n in range(3)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, ThreadPoolExecutor(8) as clients:
        for _ in range(3):
            assert ask(stage, kind, "a").status_code == 200
        nodes.do(lambda running: running[0].hang_loads())
        cold = [clients.submit(ask, stage, kind, "b") for _ in range(4)]
        warm = [clients.submit(ask, stage, kind, "a") for _ in range(20)]
        victim = nodes.urls[0].removeprefix("http://")
        for answer in (call.result() for call in cold):
            assert answer.status_code == 200, answer.text
            assert victim not in answer.headers["x-sollol-node"]
        assert [call.result().status_code for call in warm] == [200] * 20
        assert nodes.do(lambda running: "a:latest" in running[0].runners.look()), "nothing was unloaded there"
        nodes.do(lambda running: running[0].go_on_loading())
        until(lambda: nodes.do(lambda running: running[0].counters.inflight) == 0)
