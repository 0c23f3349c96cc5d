"""The gateway's own routes about models: the inventory, pins, room in memory, and the tables of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.gateway.auth.keys import Key, Keyring, hash_of
from sollol.gateway.model_sync import HOLD_S, ModelSync
from sollol.gateway.settings import GatewaySettings
from sollol.models.desired import Change, DesiredModel
from sollol.registry.server import Registry
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from tests.gateway.stage import Stage, gateway_over

MODELS = (ModelSpec("a", size_bytes=2_000_000), ModelSpec("b", size_bytes=1_000_000))
TABLES = {"a": DesiredModel(replicas=2), "b": DesiredModel(pin=True)}


@pytest.fixture
def stage() -> Iterator[Stage]:
    far = NodeSpec(models=MODELS[1:], registry=MODELS)
    with (
        sim_cluster([NodeSpec(models=MODELS), far]) as nodes,
        gateway_over(nodes.urls, GatewaySettings(models=TABLES)) as running,
    ):
        running.nodes = nodes
        yield running


def post(stage: Stage, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
    return httpx.post(f"{stage.url}/sollol/models/{path}", json=body, trust_env=False, timeout=20, **more)


def rows(stage: Stage) -> dict[tuple[str, str], dict[str, Any]]:
    found = httpx.get(f"{stage.url}/sollol/models", trust_env=False, timeout=20).json()
    return {(row["model"], row["node"]): row for row in found["models"]}


def test_pins_show_in_the_inventory_and_so_does_the_last_use(stage: Stage) -> None:
    first, second = (url.removeprefix("http://") for url in stage.nodes.urls)
    before = rows(stage)
    assert set(before) == {("a:latest", first), ("b:latest", first), ("b:latest", second)}
    assert not any(row["pinned"] or row["processor"] or row["last_used"] for row in before.values())
    assert set(post(stage, "pin", {"model": "b"}).json()["nodes"]) == {first, second}
    assert post(stage, "unpin", {"model": "b", "node": second}).status_code == 200
    body = {"model": "b", "prompt": "x", "stream": False}
    node = httpx.post(f"{stage.url}/api/generate", json=body, trust_env=False, timeout=20).headers["x-sollol-node"]
    after = rows(stage)
    assert [after["b:latest", key]["pinned"] for key in (first, second)] == [True, False]
    assert after["b:latest", first]["gpu_share"] == 1.0
    assert after["b:latest", node]["last_used"] is not None
    freed = post(stage, "free", {"node": second, "bytes": 1}).json()
    assert (freed["unloaded"], freed["status"]) == (["b:latest"], "success")
    assert "is pinned" in post(stage, "free", {"node": first, "bytes": 1}).json()["kept"]["b:latest"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("pin", {}, 400),
        ("pin", {"model": "absent"}, 404),
        ("warm", {"model": "a", "node": "nowhere:1"}, 404),
        ("unpin", {"model": "a"}, 404),
        ("free", {"bytes": 1}, 400),
        ("free", {"node": "nowhere:1", "bytes": 1}, 404),
    ],
)
def test_what_cannot_be_done_is_refused(stage: Stage, path: str, body: dict[str, Any], status: int) -> None:
    answer = post(stage, path, body)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_only_admins_see_and_change_models() -> None:
    keys = Keyring([Key("guest", hash_of("guest-key-0000"))], required=True)
    with sim_cluster([NodeSpec(models=MODELS)]) as nodes, gateway_over(nodes.urls, keyring=keys) as running:
        headers = {"Authorization": "Bearer guest-key-0000"}
        assert post(running, "pin", {"model": "a"}, headers=headers).status_code == 403
        assert post(running, "sync", {}, headers=headers).status_code == 403
        assert httpx.get(f"{running.url}/sollol/models", headers=headers, trust_env=False).status_code == 403


def test_the_file_is_carried_out_after_a_dry_run(stage: Stage) -> None:
    planned = post(stage, "sync", {"dry_run": True}).json()
    assert [(change["verb"], change["model"]) for change in planned["changes"]] == [
        ("pull", "a:latest"),
        ("warm", "b:latest"),
    ]
    assert len(rows(stage)) == 3
    done = post(stage, "sync", {}).json()
    assert [change["outcome"] for change in done["changes"]] == ["success", "success"]
    assert len(rows(stage)) == 4
    assert post(stage, "sync", {"dry_run": True}).json() == {"changes": [], "unmet": []}


def test_in_the_background_memory_follows_at_once_and_the_notice_comes_once(stage: Stage) -> None:
    async def look(gateway: Any) -> ModelSync:
        made = ModelSync(lambda: gateway.context)
        await made.look()
        await made.look()
        return made

    stage.on_loop(look)
    assert sum(row["pinned"] for row in rows(stage).values()) == 1
    assert len(rows(stage)) == 3, "a pull waits"
    notices = stage.look(lambda gateway: list(gateway.engine.dispatcher.notices))
    assert sum("b:latest is pinned on" in notice for notice in notices) == 1


def test_a_pull_waits_until_it_has_been_in_the_plan_for_long(stage: Stage) -> None:
    made = ModelSync(lambda: stage.gateway.context)
    pull, warm = Change("pull", "a", "n", "0 of 1"), Change("warm", "a", "m", "pin")
    assert made.due((pull, warm), 0.0) == [warm]
    assert made.due((pull._replace(reason="other"),), HOLD_S - 1) == []
    assert made.due((pull,), HOLD_S) == [pull]
    assert made.due((), HOLD_S + 1) == []  # the node is back
    assert made.due((pull,), HOLD_S + 2) == []


def test_an_unknown_model_comes_with_the_command_that_brings_it(stage: Stage) -> None:
    for path, body in (("chat", {"messages": []}), ("embed", {"input": "x"})):
        answer = httpx.post(f"{stage.url}/api/{path}", json={"model": "c", **body}, trust_env=False, timeout=20)
        assert answer.status_code == 404
        assert answer.headers["x-sollol-hint"] == "no node has c; sollol models pull c"
    odd = httpx.post(f"{stage.url}/api/embed", json={"model": "ü\n: x", "input": "x"}, trust_env=False, timeout=20)
    assert odd.status_code == 404
    assert "x-sollol-hint" not in odd.headers


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_pull_has_lines_and_outcomes(stage: Stage) -> None:
    second = stage.nodes.urls[1].removeprefix("http://")
    found = lines_of(post(stage, "pull", {"model": "a", "nodes": [second]}))
    assert found[-1] == {"status": "success", "nodes": {second: "success"}}
    assert any(line.get("completed") for line in found)
    mixed = lines_of(post(stage, "pull", {"model": "b"}))
    assert mixed[-1]["status"] == "success"
    assert lines_of(post(stage, "pull", {"model": "absent"}))[-1]["status"] == "failed"
    assert post(stage, "pull", {"model": "a", "nodes": "x"}).status_code == 400
    assert post(stage, "pull", {"model": "a", "nodes": ["x"]}).status_code == 404


def test_with_a_registry_models_go_from_node_to_node(tmp_path: Path) -> None:
    specs = [NodeSpec(models=MODELS[:1] * (i == 0), models_dir=str(tmp_path / f"node{i}")) for i in range(3)]
    tables = {"a": DesiredModel(replicas=2)}
    with sim_cluster(specs) as nodes, gateway_over(nodes.urls, GatewaySettings(models=tables)) as running:

        async def open_registry(gateway: Any) -> Registry:
            made = Registry(tmp_path / "registry", 10**9, gateway.transport, gateway.engine.dispatcher.fault)
            await made.start("127.0.0.1", 0)
            gateway.registry = made
            gateway.apply(gateway.settings)
            return made

        registry = running.on_loop(open_registry)
        done = post(running, "sync", {}).json()
        assert [change["outcome"] for change in done["changes"]] == ["success"]
        assert registry.service.received_bytes > 2_000_000
        keys = [url.removeprefix("http://") for url in nodes.urls]
        assert lines_of(post(running, "pull", {"model": "a"}))[-1]["nodes"] == dict.fromkeys(keys, "success")
        assert registry.service.received_bytes < 2_100_000
        running.on_loop(lambda gateway: registry.aclose())
