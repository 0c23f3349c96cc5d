"""The routes of many nodes: merged, fanned out, told for each node; and the gateway's own."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.models import operations
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.models import DEFAULT_MODELS
from sollol.sim.serve import sim_cluster
from sollol.transport.base import Timeouts
from tests.gateway.stage import Stage, gateway_over, talker

TRANSCRIPTS = Path(__file__).parents[2] / "fixtures" / "ollama-transcripts"
OTHER = ModelSpec("other", size_bytes=100)
REGISTRY = (ModelSpec("gemma3:1b", size_bytes=800), ModelSpec("qwen3:4b", size_bytes=2_000))


@pytest.fixture(scope="module")
def stage() -> Any:
    specs = [
        NodeSpec(seed=1, registry=REGISTRY),
        NodeSpec(seed=2, models=(*DEFAULT_MODELS, OTHER), version="0.32.1", registry=REGISTRY),
    ]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as found:
        found.nodes = nodes
        yield found


def test_reads_are_merged(stage: Stage) -> None:
    with stage.client() as client:
        tags = client.get("/api/tags").json()["models"]
        assert [row["name"] for row in tags] == ["llama3.2:latest", "nomic-embed-text:latest", "other:latest"]
        assert [len(row["nodes"]) for row in tags] == [2, 2, 1]
        assert client.get("/api/version").json() == {"version": "0.32.1"}
        assert client.get("/").text == "Ollama is running"
        assert client.head("/api/tags").status_code == 200
        assert client.head("/").content == b""
        models = client.get("/v1/models").json()
        assert models["object"] == "list"
        assert {row["id"] for row in models["data"]} == {row["name"] for row in tags}
        assert client.get("/v1/models/other").json()["id"] == "other"
        assert client.post("/api/show", json={"model": "other"}).json()["details"]["family"]
        assert client.post("/api/show", json={"model": "other:latest"}).status_code == 200
        client.post("/api/generate", json={"model": "other", "prompt": "x", "stream": False})
        assert [row["name"] for row in client.get("/api/ps").json()["models"]] == ["other:latest"]


def test_a_dead_node_is_left_out() -> None:
    with sim_cluster([NodeSpec(seed=1), NodeSpec(seed=2, models=(OTHER,))]) as nodes, gateway_over(nodes.urls) as stage:
        nodes.do(lambda found: found[0].die())
        with stage.client() as client:
            assert [row["name"] for row in client.get("/api/tags").json()["models"]] == ["other:latest"]
        nodes.do(lambda found: found[1].die())
        with stage.client() as client:
            answer = client.get("/api/tags")
        assert answer.status_code == 502
        assert all(url.removeprefix("http://") in answer.json()["error"] for url in nodes.urls)


CASES = [
    "copy-missing", "create-bad", "delete-missing", "embed-chat-model", "embed-empty-list", "embed-no-input",
    "me", "root", "root-head", "show-empty", "show-missing", "status", "tags-head", "unknown-route", "v1-model-missing",
    "v1-chat-missing", "v1-messages-missing", "version-head", "wrong-method", "chat-missing-model", "chat-no-body",
    "chat-empty-model", "blob-bad-name", "blob-head-missing",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_status_and_shape_are_those_of_a_node(stage: Stage, case: str) -> None:
    """Where the words name what only that node knew, the keys; otherwise the whole body."""
    found = json.loads((TRANSCRIPTS / f"{case}.json").read_text())
    asked = found["request"]
    body = asked["body"]
    rename = {"tiny-chat": "llama3.2", "tiny-embed": "nomic-embed-text"}
    if isinstance(body, dict):
        body = {key: rename.get(value, value) if isinstance(value, str) else value for key, value in body.items()}
    with stage.client() as client:
        answer = client.request(asked["method"], asked["path"], json=body if body is not None else None)
    assert answer.status_code == int(found["status"].split()[1])
    said = "".join(text for _, text in found["chunks"])
    if answer.request.method != "HEAD" and said.startswith("{"):
        assert shape(answer.json()) == shape(json.loads(said))
    elif answer.request.method != "HEAD":
        assert answer.text == said


def shape(value: Any) -> Any:
    return {key: shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value).__name__


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_copy_and_delete_go_to_every_node_that_has_the_model(stage: Stage) -> None:
    with stage.client() as client:
        copied = client.post("/api/copy", json={"source": "llama3.2", "destination": "mine"})
        assert set(copied.json()["nodes"].values()) == {"success"}
        assert len(copied.json()["nodes"]) == 2
        tags = client.get("/api/tags").json()["models"]
        assert next(row for row in tags if row["name"] == "mine:latest")["nodes"] == list(copied.json()["nodes"])
        answer = client.post("/api/chat", json={"model": "mine", "messages": [{"role": "user", "content": "x"}]})
        assert answer.status_code == 200  # the scheduler knows it at once
        deleted = client.request("DELETE", "/api/delete", json={"model": "mine"})
        assert len(deleted.json()["nodes"]) == 2
        assert client.post("/api/show", json={"model": "mine"}).status_code == 404


def test_pull_goes_where_it_is_told_and_tells_each_node(stage: Stage) -> None:
    with stage.client() as client:
        told = lines(client.post("/api/pull?nodes=all", json={"model": "gemma3:1b"}))
        assert told[-1]["status"] == "success"
        assert set(told[-1]["nodes"].values()) == {"success"}
        assert [line.get("status") for line in told].count("success") == 1
        layers = [line for line in told if line.get("completed")]
        for digest in {line["digest"] for line in layers}:
            done = [line["completed"] for line in layers if line["digest"] == digest]
            assert done == sorted(done)
            assert done[-1] <= next(line["total"] for line in layers if line["digest"] == digest)
        key = stage.nodes[1].removeprefix("http://")
        told = lines(client.post(f"/api/pull?node={key}", json={"model": "qwen3:4b"}))
        assert list(told[-1]["nodes"]) == [key]
        tags = client.get("/api/tags").json()["models"]
        assert next(row for row in tags if row["name"] == "qwen3:4b")["nodes"] == [key]
        told = lines(client.post("/api/pull?nodes=all", json={"model": "nothing"}))
        assert "no such host" in told[-1]["error"]
        assert len(told[-1]["nodes"]) == 2
        assert client.post("/api/pull?node=nowhere", json={"model": "x"}).status_code == 400
        whole = client.post("/api/pull", json={"model": "qwen3:4b", "stream": False}).json()
        assert whole == {"status": "success", "nodes": {key: "success"}}  # who has it is asked again


def test_a_partial_failure_is_told() -> None:
    with sim_cluster([NodeSpec(seed=1), NodeSpec(seed=2)]) as nodes, gateway_over(nodes.urls) as stage:
        key = nodes.urls[1].removeprefix("http://")
        both = ",".join(url.removeprefix("http://") for url in nodes.urls)
        nodes.do(lambda found: found[1].die())
        with stage.client() as client:
            answer = client.post(f"/api/copy?node={both}", json={"source": "llama3.2", "destination": "mine"})
        assert answer.status_code == 200
        assert answer.json()["status"] == "partial"
        assert answer.json()["nodes"][key] != "success"


def test_create_is_where_its_base_is(stage: Stage) -> None:
    with stage.client() as client:
        told = lines(client.post("/api/create", json={"model": "derived", "from": "other", "system": "x"}))
        assert list(told[-1]["nodes"]) == [stage.nodes[1].removeprefix("http://")]


def test_create_from_a_base_that_no_node_has_is_left_to_a_node_which_pulls_it() -> None:
    specs = [NodeSpec(seed=seed, models=(OTHER,), registry=REGISTRY) for seed in (1, 2)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        made = client.post("/api/create", json={"model": "derived", "from": "qwen3:4b", "stream": False})
        assert (made.status_code, made.json()["status"]) == (200, "success")
        having = nodes.do(lambda found: [sorted(node.disk) for node in found])
        assert sorted(having) == [["derived:latest", "other:latest", "qwen3:4b"], ["other:latest"]]
        missing = client.post("/api/create", json={"model": "derived", "from": "nowhere", "stream": False})
        assert missing.status_code == 404


def test_a_blob_goes_to_every_node(stage: Stage) -> None:
    import hashlib

    data = b"x" * 3_000_000
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    with stage.client() as client:
        assert client.head(f"/api/blobs/{digest}").status_code == 404
        sent = client.post(f"/api/blobs/{digest}", content=(data[i : i + 65536] for i in range(0, len(data), 65536)))
        assert sent.status_code == 201, sent.text
        assert client.head(f"/api/blobs/{digest}").status_code == 200
        bad = client.post("/api/blobs/sha256:" + "0" * 64, content=b"abc")
        assert bad.status_code == 400
        assert "digest mismatch" in bad.json()["error"]
    for url in stage.nodes.urls:
        assert httpx.head(f"{url}/api/blobs/{digest}", trust_env=False).status_code == 200


def test_unloading_goes_to_every_node_that_holds_the_model() -> None:
    with sim_cluster([talker(1), talker(2)]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        assert len(client.get("/api/ps").json()["models"]) == 2
        answer = client.post("/api/generate", json={"model": "llama3.2", "keep_alive": 0})
        assert answer.json()["done_reason"] == "unload"
        assert client.get("/api/ps").json()["models"] == []


def test_own_routes(stage: Stage) -> None:
    with stage.client() as client:
        assert client.get("/sollol/health").json()["status"] == "ok"
        assert client.get("/sollol/ready").json()["nodes_up"] == 2
        assert len(client.get("/sollol/nodes").json()["nodes"]) == 2
        answer = client.post(
            "/api/chat",
            json={"model": "llama3.2", "messages": [{"role": "user", "content": "x"}], "stream": False},
            headers={"X-Sollol-Request-Id": "my-own.id"},
        )
        number = answer.headers["x-sollol-request-id"]
        for name in ("my-own.id", number):
            assert client.get(f"/sollol/queue/{name}").json()["state"] == "done"
            assert client.get(f"/sollol/explain/{name}").json()["node"] == answer.headers["x-sollol-node"]
        assert client.get("/sollol/queue/unknown").status_code == 404
        assert client.get("/sollol/snapshot").json()["recent"]


def test_a_waiting_request_can_ask_for_its_place() -> None:
    import threading
    import time

    with sim_cluster([talker(1, 20.0)]) as nodes, gateway_over(nodes.urls) as stage:

        def ask(name: str) -> None:
            with stage.client() as client:
                body = {"model": "llama3.2", "messages": [{"role": "user", "content": "x"}], "stream": False}
                body["options"] = {"num_predict": 20}
                client.post("/api/chat", json=body, headers={"X-Sollol-Request-Id": name})

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        with stage.client() as client:
            told = client.get("/sollol/queue/second").json()
        assert (told["state"], told["position"]) == ("waiting", 1)
        assert told["eta_ms"] > 0
        for thread in threads:
            thread.join()


def test_a_pull_without_progress_reaches_the_node_as_it_was_written_and_may_take_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operations, "WATCH_S", 0.05)
    slow = NodeSpec(seed=1, registry=REGISTRY, pull_bytes_per_s=1_000.0)  # 0.8 s
    with sim_cluster([slow]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        asked = nodes.do(lambda found: found[0].counters.requests.get("GET /api/version", 0))
        assert client.post("/api/pull", json={"model": "gemma3:1b", "stream": False}).json()["status"] == "success"
        assert nodes.do(lambda found: found[0].counters.requests["GET /api/version"]) > asked + 5


def test_a_node_that_dies_silently_in_a_pull_without_progress_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "WATCH_S", 0.05)
    monkeypatch.setattr(operations, "WATCHING", Timeouts(0.1, 0.1, 0.1))
    slow = NodeSpec(seed=1, registry=REGISTRY, pull_bytes_per_s=1.0)
    with sim_cluster([slow]) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        timer = threading.Timer(0.3, lambda: nodes.do(lambda found: found[0].black_hole()))
        timer.start()
        answer = client.post("/api/pull", json={"model": "gemma3:1b", "stream": False})
        timer.join()
        assert answer.status_code == 502
