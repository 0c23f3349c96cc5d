"""Reads over many nodes when some are dead, silent, or know less than they did; and who may change them."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.errors import ResponseError
from sollol.gateway.auth.keys import Key, Keyring, add_key
from sollol.gateway.settings import GatewaySettings, Listen
from sollol.models import operations
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import sim_cluster
from tests.gateway.stage import WAIT_S, gateway_over, until
from tests.transport.raw_server import saying, serving

LLAMA = ModelSpec("llama3.2", size_bytes=2_000)
OTHER = ModelSpec("other", size_bytes=100)
ALIASES = {"gpt-4o:latest": "llama3.2", "ghost:latest": "not-there"}


def key_of(url: str) -> str:
    return url.removeprefix("http://")


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [row["name"] for row in answer.json()["models"]]


def test_identical_reads_at_once_ask_each_node_once() -> None:
    with sim_cluster([NodeSpec(overhead_s=0.3)]) as nodes, gateway_over(nodes.urls) as stage:

        def asked() -> int:
            return nodes.nodes[0].counters.requests["GET /api/tags"]

        async def poll() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=stage.url, timeout=WAIT_S, trust_env=False) as client:
                return await asyncio.gather(*(client.get("/api/tags") for _ in range(30)))

        before = asked()
        answers = asyncio.run(poll())
        assert len({answer.text for answer in answers}) == 1
        assert asked() - before < 10  # a new one is asked when the last was answered; and the scheduler probes


def test_one_who_leaves_takes_the_answer_from_nobody() -> None:
    with sim_cluster([NodeSpec(overhead_s=0.3)]) as nodes, gateway_over(nodes.urls) as stage:

        async def poll() -> httpx.Response:
            async with httpx.AsyncClient(base_url=stage.url, timeout=WAIT_S, trust_env=False) as client:
                first = asyncio.create_task(client.get("/api/tags"))
                await asyncio.sleep(0.1)
                second = asyncio.create_task(client.get("/api/tags"))
                await asyncio.sleep(0.05)
                first.cancel()
                return await second

        assert names(asyncio.run(poll()))


def test_a_silent_node_is_left_out_in_time() -> None:
    specs = [NodeSpec(models=(LLAMA,)), NodeSpec(models=(OTHER,), loaded=("other",))]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        nodes.do(lambda found: found[1].freeze())
        assert names(client.get("/api/tags")) == ["llama3.2:latest"]
        assert names(client.get("/api/ps")) == []
        assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["llama3.2:latest"]
        assert client.get("/api/version").status_code == 200
        nodes.do(lambda found: found[1].thaw())


def test_no_node_no_version() -> None:
    with sim_cluster(1) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        nodes.do(lambda found: found[0].die())
        for _ in range(2):  # also when the gateway knows that it is down
            answer = client.get("/api/version")
            assert answer.status_code == 503
            assert key_of(nodes.urls[0]) in answer.json()["error"]
            assert answer.headers["retry-after"]
        until(lambda: client.get("/sollol/ready").status_code == 503)
        told = client.get("/sollol/ready").json()
        assert (told["status"], told["nodes_up"], told["nodes"]) == ("not ready", 0, 1)
        assert "refused" in told["why"][key_of(nodes.urls[0])]
        assert client.get("/sollol/health").status_code == 200


def test_a_model_is_shown_by_another_node_if_the_first_cannot() -> None:
    three = [NodeSpec(models=(LLAMA,)), NodeSpec(models=(LLAMA,)), NodeSpec(models=(LLAMA,))]
    with sim_cluster(three) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:

        def spoil(found: Any) -> None:  # the gateway does not know yet
            found[0].die()
            del found[1].disk["llama3.2:latest"]

        nodes.do(spoil)
        for name in ("llama3.2", "llama3.2:latest"):
            assert client.post("/api/show", json={"model": name}).json()["details"]["family"] == "llama"
        nodes.do(lambda found: found[2].die())
        answer = client.post("/api/show", json={"model": "llama3.2"})
        assert answer.status_code in (404, 502)
        assert client.post("/api/show", json={"model": "never"}).status_code in (404, 502)


def test_aliases_are_models() -> None:
    settings = GatewaySettings(aliases=ALIASES)
    with (
        sim_cluster([NodeSpec(models=(LLAMA, OTHER))]) as nodes,
        gateway_over(nodes.urls, settings) as stage,
        stage.client() as client,
    ):
        shown = client.post("/api/show", json={"model": "gpt-4o"})
        assert shown.json() == client.post("/api/show", json={"model": "llama3.2"}).json()
        ids = [row["id"] for row in client.get("/v1/models").json()["data"]]
        assert ids == ["llama3.2:latest", "other:latest", "gpt-4o:latest"]  # an alias of nothing is no model
        assert client.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
        assert client.get("/v1/models/ghost").status_code == 404
        assert client.get("/v1/models/llama3.2%3Alatest").json()["id"] == "llama3.2:latest"
        assert client.post("/api/copy", json={"source": "gpt-4o", "destination": "mine"}).status_code == 200
        assert client.request("DELETE", "/api/delete", json={"model": "gpt-4o"}).status_code == 404
        assert client.request("DELETE", "/api/delete", json={"name": "mine:latest"}).status_code == 200
        assert names(client.get("/api/tags")) == ["llama3.2:latest", "other:latest"]


def test_what_is_no_ollama_is_an_error_with_its_address() -> None:
    async def attempt_log(answer: bytes) -> None:
        async with serving(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" + answer)) as (server, transport):
            with pytest.raises(ResponseError, match=f"{server.node.key}/api/tags does not answer as Ollama") as bad:
                await operations.list_models(transport, [server.node])
            assert bad.value.status_code == 502
            progress = [line async for line in operations.progress(transport, [server.node], "/api/pull", {})]
            assert ["error" in line for line in progress] == [True]

    for answer in (b"<html>", b"[1, 2]"):
        asyncio.run(attempt_log(answer))


# --- headers, keys ---


def test_a_node_sees_its_own_host_and_no_origin() -> None:
    """A node bound to loopback answers 403 to a foreign Host or Origin (simulated as measured)."""
    settings = GatewaySettings(listen=Listen(cors_origins=("https://ui.example",)))
    host = socket.gethostname()
    headers = {"Origin": "https://ui.example", "Host": host}
    with sim_cluster(1) as nodes, gateway_over(nodes.urls, settings) as stage, stage.client(headers=headers) as client:
        direct = httpx.get(f"{nodes.urls[0]}/api/tags", headers={"Origin": "https://ui.example"}, trust_env=False)
        assert direct.status_code == 403
        foreign = httpx.get(f"{nodes.urls[0]}/api/tags", headers={"Host": "ui.example"}, trust_env=False)
        assert foreign.status_code == 403
        assert names(client.get("/api/tags"))
        assert client.post("/api/show", json={"model": "llama3.2"}).status_code == 200
        assert client.post("/api/pull", json={"model": "llama3.2"}).status_code == 200
        assert client.post("/api/me").status_code == 503  # what the node says, and not 403
        data = b"abc"
        digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        assert client.post(f"/api/blobs/{digest}", content=data).status_code == 201


CHANGES = [
    ("POST", "/api/pull", {"model": "llama3.2"}),
    ("POST", "/api/push", {"model": "llama3.2"}),
    ("POST", "/api/create", {"model": "x", "from": "llama3.2"}),
    ("POST", "/api/copy", {"source": "llama3.2", "destination": "y"}),
    ("DELETE", "/api/delete", {"model": "llama3.2"}),
    ("POST", "/api/blobs/sha256:" + "0" * 64, {}),
    ("POST", "/api/signout", {}),
]
READS = ["/api/tags", "/api/ps", "/api/version", "/api/status", "/v1/models", "/v1/models/llama3.2"]


def test_changes_need_an_admin_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    plain, boss = add_key(path, Key("plain", "")), add_key(path, Key("boss", "", admin=True))
    ring = Keyring(path=path, required=True)
    with sim_cluster(1) as nodes, gateway_over(nodes.urls, keyring=ring) as stage, stage.client() as client:

        def status(method: str, path: str, body: Any, key: str) -> int:
            answer = client.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})
            if answer.status_code == 403:
                assert "admin key" in answer.json()["error"]
                assert "'plain'" in answer.json()["error"]
            return answer.status_code

        assert {status(*change, key=plain) for change in CHANGES} == {403}
        assert {status("GET", path, None, plain) for path in READS} == {200}
        assert 403 not in {status(*change, key=boss) for change in CHANGES}
        assert client.post("/api/pull", json={"model": "x"}).status_code == 401


# --- what the scheduler knows ---


def generate(client: httpx.Client, model: str) -> int:
    return client.post("/api/generate", json={"model": model, "prompt": "x", "stream": False}).status_code


def test_the_scheduler_knows_a_change_before_its_client_does() -> None:
    specs = [NodeSpec(seed=i, models=(LLAMA,), registry=(OTHER,), overhead_s=0.02) for i in range(2)]
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls) as stage, stage.client() as client:
        for _ in range(5):
            assert client.post("/api/pull?nodes=all", json={"model": "other"}).status_code == 200
            assert generate(client, "other") == 200
            assert client.request("DELETE", "/api/delete", json={"model": "other"}).status_code == 200
            assert generate(client, "other") == 404
