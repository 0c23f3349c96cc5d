"""Clients with other contexts over HTTP: each format, counted in loads of the simulated nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.config import load_settings
from sollol.gateway.settings import Routing, gateway_settings
from sollol.sim import Cluster, ModelSpec, sim_cluster
from tests.gateway.stage import MODEL, Stage, gateway_over, talker

HELLO = [{"role": "user", "content": "Hello"}]
EMBED = "nomic-embed-text"
MODELS = (
    ModelSpec(MODEL, size_bytes=200_000_000, context_length=32_768, mean_words=5),
    ModelSpec(EMBED, "embed", 100_000_000, context_length=8_192),
)
BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"model": MODEL, "messages": HELLO},
    "/api/generate": {"model": MODEL, "prompt": "Hello", "stream": False},
    "/api/embed": {"model": EMBED, "input": "Hello"},
    "/api/embed list": {"model": EMBED, "input": [f"Hello {number}" for number in range(70)]},
    "/api/embeddings": {"model": EMBED, "prompt": "Hello"},
}


def ask(stage: Stage, name: str, options: dict[str, Any], **headers: str) -> httpx.Response:
    path = name.split()[0]
    body = BODIES[name] | ({"options": options} if options else {})
    answer = httpx.post(f"{stage.url}{path}", json=body, timeout=30, trust_env=False, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def loads(nodes: Cluster, model: str) -> list[int]:
    return nodes.do(lambda running: [node.runners.loads.get(f"{model}:latest", 0) for node in running])


def cluster(count: int) -> Any:
    return sim_cluster([talker(n, 2_000.0, models=MODELS, loaded=(), load_bytes_per_s=2e9) for n in range(count)])


def test_two_clients_over_two_nodes_load_a_model_at_most_four_times_in_200_calls() -> None:
    with cluster(2) as nodes, gateway_over(nodes.urls) as stage:
        for turn in range(200):
            ask(stage, "/api/chat", {"num_ctx": (2048, 8192)[turn % 2], "num_predict": 2})
        assert sum(loads(nodes, MODEL)) <= 4


TWO_CLIENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shift": ({"shift": True}, {"shift": False}),
    "num_batch": ({"options": {"num_batch": 128}}, {"options": {"num_batch": 256}}),
    "num_gpu": ({"options": {"num_gpu": 1}}, {"options": {"num_gpu": 99}}),
}


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("fields", TWO_CLIENTS)
def test_two_clients_whose_options_no_runner_serves_together_keep_a_node_each(path: str, fields: str) -> None:
    with cluster(2) as nodes, gateway_over(nodes.urls) as stage:
        for turn in range(40):
            body = BODIES[path] | TWO_CLIENTS[fields][turn % 2]
            httpx.post(f"{stage.url}{path}", json=body, timeout=30, trust_env=False).raise_for_status()
        assert sum(loads(nodes, MODEL)) <= 4


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("contexts", [(2048, 8192), (0, 8192), (1024, 0)])
def test_each_format_shares_the_larger_context(name: str, contexts: tuple[int, int]) -> None:
    with cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        for turn in range(12):
            context = contexts[turn % 2]
            ask(stage, name, {"num_ctx": context} if context else {})
        assert max(loads(nodes, BODIES[name]["model"])) <= 2


def test_v1_uses_the_default_and_a_smaller_context_follows_it() -> None:
    with cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        for _ in range(6):
            body = {"model": MODEL, "messages": HELLO, "max_tokens": 2}
            httpx.post(f"{stage.url}/v1/chat/completions", json=body, timeout=30, trust_env=False).raise_for_status()
            ask(stage, "/api/chat", {"num_ctx": 2048})
        assert loads(nodes, MODEL) == [1]


def test_a_keep_alive_in_a_header_does_not_load_the_model_again() -> None:
    with cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        ask(stage, "/api/chat", {"num_ctx": 8192})
        for _ in range(4):
            ask(stage, "/api/chat", {"num_ctx": 2048}, **{"X-Sollol-Keep-Alive": "10m"})
            ask(stage, "/api/chat", {"num_ctx": 8192})
        assert loads(nodes, MODEL) == [1]


def test_explain_names_the_context() -> None:
    with cluster(1) as nodes, gateway_over(nodes.urls) as stage:
        ask(stage, "/api/chat", {"num_ctx": 8192})
        answer = ask(stage, "/api/chat", {"num_ctx": 2048})
        found = httpx.get(f"{stage.url}/sollol/explain/{answer.headers['x-sollol-request-id']}", trust_env=False).json()
        assert "num_ctx 8192 is sent" in found["reason"]


def test_a_gateway_can_leave_each_caller_its_own_context(tmp_path: Path) -> None:
    file = tmp_path / "sollol.toml"
    file.write_text("[routing]\nshare_contexts = false\n")
    settings = gateway_settings(load_settings(config=file))
    assert settings.routing == Routing(share_contexts=False)
    with cluster(1) as nodes, gateway_over(nodes.urls, settings) as stage:
        for turn in range(6):
            ask(stage, "/api/chat", {"num_ctx": (2048, 8192)[turn % 2]})
        assert loads(nodes, MODEL) == [6]
