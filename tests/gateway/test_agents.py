"""The gateway looks at agents: their reports are used, and what is wrong with them is a finding."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sollol.agent.app import Agent
from sollol.agent.report import CALL, FULL_SCREEN
from sollol.core.endpoint import parse_endpoint
from sollol.core.events import NodeDrained
from sollol.discovery import discover
from sollol.gateway.app import Gateway
from sollol.gateway.settings import GatewaySettings
from sollol.models.desired import DesiredModel
from sollol.registry.server import Registry
from sollol.sim import ModelSpec, NodeSpec, sim_cluster
from sollol.transport.http import HttpTransport
from tests.agent.test_agent import GPU, KEY, FakeDriver
from tests.gateway.stage import Stage, gateway_over

MODEL = ModelSpec("llama3.2", size_bytes=1_000_000)


@contextmanager
def agent_at(url: str, folder: Path, key: str = KEY, **more: Any) -> Iterator[int]:
    """An agent in a thread of its own; its port."""
    ports: queue.Queue[int] = queue.Queue()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        transport, end = HttpTransport(), asyncio.Event()
        made = Agent(key, parse_endpoint(url), folder, [FakeDriver()], transport, **more)
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        ports.put(await made.start("127.0.0.1", 0))
        await end.wait()
        await made.aclose()
        await transport.aclose()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield ports.get(timeout=10)
    finally:
        ends[0]()
        thread.join(10)


def look(stage: Stage) -> None:
    async def once(gateway: Gateway) -> None:
        assert gateway.context.agents is not None
        await gateway.context.agents.look()

    stage.on_loop(once)


def gpu_of(stage: Stage, node: str) -> int | None:
    """Return what the scheduler has of the memory of a node's GPUs."""
    return stage.look(lambda gateway: gateway.engine.scheduler.view().nodes[node].gpu_total)


def findings(stage: Stage) -> list[dict[str, Any]]:
    found = httpx.get(f"{stage.url}/sollol/snapshot", trust_env=False, timeout=20).json()
    return [row for row in found["findings"] if row["id"].startswith("agent")]


def test_reports_are_used_and_the_end_of_an_agent_is_a_finding(tmp_path: Path) -> None:
    spec = NodeSpec(models=(MODEL,), models_dir=str(tmp_path / "node"))
    with sim_cluster([spec]) as nodes:
        node = nodes[0].removeprefix("http://")
        with agent_at(nodes[0], tmp_path / "node", restart=("true",)) as port:
            settings = GatewaySettings(agents_key=KEY, agents_port=port)
            with gateway_over(nodes.urls, settings) as stage:
                look(stage)
                shown = httpx.get(f"{stage.url}/sollol/snapshot", trust_env=False, timeout=20).json()["agents"]
                assert shown[node]["report"]["gpus"][0]["name"] == "RTX 3060"
                assert gpu_of(stage, node) == GPU.memory_bytes
                assert [row["id"] for row in findings(stage) if row["id"] != "agent-disk"] == []
                done = httpx.post(f"{stage.url}/sollol/nodes/{node}/restart", trust_env=False, timeout=20)
                assert done.json()["exit_code"] == 0
                assert KEY not in httpx.get(f"{stage.url}/sollol/snapshot", trust_env=False).text

        with gateway_over(nodes.urls, GatewaySettings(agents_key=KEY, agents_port=port)) as stage:
            look(stage)
            assert findings(stage) == [], "an agent that never ran is none"
            assert gpu_of(stage, node) is None
            refused = httpx.post(f"{stage.url}/sollol/nodes/{node}/restart", trust_env=False, timeout=20)
            assert refused.status_code == 409
        with (
            agent_at(nodes[0], tmp_path / "node") as port,
            gateway_over(
                nodes.urls, GatewaySettings(agents_key="another-key-of-the-gateway", agents_port=port)
            ) as stage,
        ):
            look(stage)
            (finding,) = findings(stage)
            assert "has another key than [agents]" in finding["summary"]
            body = {"model": "llama3.2", "prompt": "a", "stream": False}
            assert httpx.post(f"{stage.url}/api/generate", json=body, trust_env=False, timeout=20).status_code == 200


def test_a_killed_agent_is_a_finding(tmp_path: Path) -> None:
    with sim_cluster([NodeSpec(models=(MODEL,))]) as nodes:
        with agent_at(nodes[0], tmp_path) as port:
            running = gateway_over(nodes.urls, GatewaySettings(agents_key=KEY, agents_port=port))
            stage = running.__enter__()
            look(stage)
            assert [row["id"] for row in findings(stage) if row["id"] == "agent"] == []
        try:
            for _ in range(2):  # as long as it is away
                look(stage)
                assert "does not answer" in findings(stage)[0]["summary"]
        finally:
            running.__exit__(None, None, None)


def test_a_busy_owner_gets_no_new_work_until_the_call_ends(tmp_path: Path) -> None:
    doing: list[bool] = [False]
    looks: dict[Any, Any] = {CALL: (lambda: doing[-1],), FULL_SCREEN: (lambda: False,)}
    body = {"model": "llama3.2", "prompt": "a", "stream": False}
    with sim_cluster([NodeSpec(models=(MODEL,)), NodeSpec(models=(MODEL,))]) as nodes:
        mine = nodes[0].removeprefix("http://")
        with (
            agent_at(nodes[0], tmp_path, looks=looks) as port,
            gateway_over([nodes[0]], GatewaySettings(agents_key=KEY, agents_port=port)) as stage,
        ):
            events: list[Any] = []
            stage.look(lambda gateway: gateway.engine.journal.subscribe(lambda entry: events.append(entry.event)))

            def ask() -> httpx.Response:
                headers = {"X-Sollol-Node": mine}
                return httpx.post(f"{stage.url}/api/generate", json=body, headers=headers, trust_env=False, timeout=20)

            look(stage)
            assert ask().status_code == 200
            doing.append(True)
            look(stage)
            look(stage)
            why = "its owner is busy: a call runs there"
            refused = ask()
            assert refused.status_code == 502
            assert f"is drained: {why}" in refused.json()["error"]
            (finding,) = [row for row in findings(stage) if row["id"] == "agent-owner"]
            assert finding["summary"] == f"{mine} gets no new work: {why}."
            doing.append(False)
            look(stage)
            assert ask().status_code == 200
            changes = [event for event in events if isinstance(event, NodeDrained)]
            assert changes == [NodeDrained(mine, True, why), NodeDrained(mine, False, why)], "replays need no agent"


def test_an_agent_that_dies_while_its_owner_is_busy_is_no_agent(tmp_path: Path) -> None:
    looks: dict[Any, Any] = {FULL_SCREEN: (lambda: True,)}
    with sim_cluster([NodeSpec(models=(MODEL,))]) as nodes:
        with agent_at(nodes[0], tmp_path, looks=looks) as port:
            running = gateway_over(nodes.urls, GatewaySettings(agents_key=KEY, agents_port=port))
            stage = running.__enter__()
            look(stage)
            assert stage.look(lambda gateway: gateway.pool.snapshot())["nodes"][0]["drained_for"]
        try:
            look(stage)
            assert not stage.look(lambda gateway: gateway.pool.snapshot())["nodes"][0]["drained"]
        finally:
            running.__exit__(None, None, None)


def test_a_pull_of_the_gateway_takes_blobs_from_the_agent(tmp_path: Path) -> None:
    specs = [NodeSpec(models=(MODEL,) * (i == 0), models_dir=str(tmp_path / f"node{i}")) for i in range(2)]
    tables = {"llama3.2": DesiredModel(replicas=2)}
    with (
        sim_cluster(specs) as nodes,
        agent_at(nodes[0], tmp_path / "node0") as port,
        gateway_over(nodes.urls, GatewaySettings(models=tables, agents_key=KEY, agents_port=port)) as stage,
    ):

        async def open_registry(gateway: Any) -> Registry:
            made = Registry(tmp_path / "registry", 10**9, gateway.transport, gateway.engine.dispatcher.fault)
            await made.start("127.0.0.1", 0)
            gateway.registry = made
            gateway.apply(gateway.settings)
            await gateway.context.agents.look()
            return made

        registry = stage.on_loop(open_registry)
        answer = httpx.post(f"{stage.url}/sollol/models/sync", json={}, trust_env=False, timeout=20)
        (change,) = answer.json()["changes"]
        assert change["outcome"] == "success"
        assert "unknown" not in change["reason"], "the room on the disk is known"
        assert registry.service.received_bytes == 0, "nothing was pushed"
        stage.on_loop(lambda gateway: registry.aclose())


@pytest.mark.parametrize("key", [KEY, "another-key-of-somebody"])
def test_discovery_finds_a_node_behind_an_agent_with_our_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    with sim_cluster([NodeSpec(models=(MODEL,))]) as nodes, agent_at(nodes[0], tmp_path) as port:
        monkeypatch.setenv("SOLLOL_AGENTS_KEY", key)
        monkeypatch.setenv("SOLLOL_AGENTS_PORT", str(port))
        monkeypatch.setenv("SOLLOL_DISCOVERY_PORTS", "1")
        for name in ("SOLLOL_NODES", "SOLLOL_CONFIG", "OLLAMA_HOST"):
            monkeypatch.delenv(name, raising=False)
        found = asyncio.run(discover(0.5, subnets=["127.0.0.1/32"]))
        mine = [node.endpoint for node in found if node.endpoint.port == port]
        assert [endpoint.api_key for endpoint in mine] == ([KEY] if key == KEY else [])
