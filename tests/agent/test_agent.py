"""The agent over HTTP: its key, its report, its blobs, the way to Ollama, a restart; and what is wrong with one."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from sollol.agent import bridge, restart
from sollol.agent.app import Agent
from sollol.agent.client import AgentState, agent_of, read_agent
from sollol.agent.findings import agent_findings
from sollol.agent.machine import ollama_settings
from sollol.agent.report import AgentReport, BadReport, GpuReport, OllamaReport, parse_report
from sollol.backends.agent_proof import has_key
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import LoadedModel
from sollol.models.distribution import Distribution
from sollol.registry.seeders import Seeder
from sollol.registry.server import Registry
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster
from sollol.transport.http import HttpTransport
from tests.registry.stage import run

KEY = "the-key-of-the-test-agents"
AUTH = {"Authorization": f"Bearer {KEY}"}
SIZE = 1_500_000
MODEL = ModelSpec("llama3.2", size_bytes=SIZE)
GPU = GpuReport("RTX 3060", "nvidia", 12_000_000_000, 5_000_000_000, 0.5, 61.0, 120.5)


class FakeDriver:
    def read(self) -> list[GpuReport]:
        return [GPU]


def web() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=20)


@asynccontextmanager
async def agent_beside(url: str, folder: Path | None = None, **more: Any) -> AsyncIterator[tuple[str, HttpTransport]]:
    transport = HttpTransport()
    faults: list[Any] = []
    made = Agent(
        more.pop("key", KEY),
        parse_endpoint(url),
        folder,
        [FakeDriver()],
        transport,
        fault=lambda *f: faults.append(f),
        **more,
    )
    port = await made.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}", transport
    finally:
        await made.aclose()
        await transport.aclose()
    assert not faults


def with_files(folder: Path, count: int = 1, **more: Any) -> Any:
    specs = [NodeSpec(models=(MODEL,) * (i == 0), models_dir=str(folder / f"node{i}"), **more) for i in range(count)]
    return sim_cluster(specs)


def quick(cluster: Cluster) -> None:
    for node in cluster.nodes:
        assert node.registry_client is not None
        node.registry_client.part_least, node.registry_client.second_s = 300_000, 0.005


# --- requests ---


def test_only_with_the_key(tmp_path: Path) -> None:
    with with_files(tmp_path) as cluster:

        async def main() -> None:
            async with agent_beside(cluster[0], tmp_path / "node0") as (url, _), web() as client:
                for method, path in (
                    ("GET", "/agent/report"), ("POST", "/agent/restart"), ("GET", "/agent/manifest?model=llama3.2"),
                    ("GET", "/api/tags"), ("POST", "/api/generate"), ("DELETE", "/api/delete"),
                    ("POST", "/api/version"),
                ):  # fmt: skip
                    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": KEY + "x"}):
                        answer = await client.request(method, url + path, headers=headers)
                        assert answer.status_code == 401, path
                        assert KEY not in answer.text
                in_address = await client.get(url.replace("http://", f"http://any:{KEY}@") + "/api/tags")
                assert in_address.status_code == 200
                wrong = await client.get(url.replace("http://", f"http://{KEY}:wrong@") + "/api/tags")
                assert wrong.status_code == 401
                version = await client.get(f"{url}/api/version")
                assert version.json() == {"version": "0.33.0"}
                assert version.headers["server"].startswith("sollol-agent/")
                assert not any(name.startswith("x-sollol") for name in version.headers)
                assert (await client.get(f"{url}/agent/nothing", headers=AUTH)).status_code == 404

        run(main)


@pytest.mark.parametrize(
    ("hosts", "port", "wanted"),
    [
        (["127.0.0.1:21434", "0.0.0.0:11500"], 11500, "1"),
        (["127.0.0.1:21434", None], 11434, "1"),
        (["0.0.0.0:11434"], 21434, "0"),  # of a container with another port outside
        (["127.0.0.1:21434", "127.0.0.1:21435"], 11434, None),
        ([], 11434, "own"),
    ],
)
def test_the_settings_are_those_of_the_ollama_at_the_port(
    monkeypatch: pytest.MonkeyPatch, hosts: list[str | None], port: int, wanted: str | None
) -> None:
    def process(number: int, host: str | None) -> Any:
        named = {"OLLAMA_HOST": host} if host else {}
        environment = {"OLLAMA_MAX_QUEUE": str(number), "SECRET": "not shown", **named}
        return SimpleNamespace(
            info={"name": "ollama"}, cmdline=lambda: ["ollama", "serve"], environ=lambda: environment
        )

    found = [process(number, host) for number, host in enumerate(hosts)]
    monkeypatch.setattr("psutil.process_iter", lambda attributes: found)
    monkeypatch.setenv("OLLAMA_MAX_QUEUE", "own")
    settings = ollama_settings(port)
    assert settings.get("OLLAMA_MAX_QUEUE") == wanted
    assert "SECRET" not in settings


def test_a_report_of_this_machine(tmp_path: Path) -> None:
    with with_files(tmp_path) as cluster:

        async def main() -> None:
            async with agent_beside(cluster[0], tmp_path / "node0") as (url, transport):
                node = parse_endpoint(url)
                state = await read_agent(transport, agent_of(node, node.port, KEY), {})
                report = state.report
                assert report is not None
                assert report.gpus == (GPU,)
                assert report.memory_bytes > report.available_bytes > 0
                assert report.disk_bytes is not None
                assert report.disk_free_bytes is not None
                assert report.ollama == OllamaReport("0.33.0", report.ollama.settings)
                assert report.can_restart is False
            async with agent_beside("http://127.0.0.1:9") as (url, transport):
                node = parse_endpoint(url)
                state = await read_agent(transport, agent_of(node, node.port, KEY), {})
                assert state.report is not None
                assert "refused the connection" in state.report.ollama.why
                assert state.report.disk_bytes is None
                (finding,) = agent_findings({"gpu-1:11434": state})
                assert finding.summary.startswith("The agent of gpu-1:11434 runs, and its Ollama does not: ")

        run(main)


def test_the_way_to_an_ollama_on_loopback(tmp_path: Path) -> None:
    spec = NodeSpec(models=(MODEL,), decode_tokens_per_s=200.0)
    with sim_cluster([spec]) as cluster:

        async def main() -> None:
            async with agent_beside(cluster[0]) as (url, _), web() as client:
                tags = await client.get(f"{url}/api/tags", headers={**AUTH, "Origin": "http://evil.example"})
                assert tags.json()["models"][0]["name"] == "llama3.2:latest"
                body = {"model": "llama3.2", "prompt": "a", "options": {"num_predict": 5}}
                lines = []
                async with client.stream("POST", f"{url}/api/generate", json=body, headers=AUTH) as answer:
                    assert answer.headers["content-type"] == "application/x-ndjson"
                    lines = [json.loads(line) async for line in answer.aiter_lines()]
                assert lines[-1]["done"] is True
                assert len(lines) == 6
                missing = await client.post(f"{url}/api/show", json={"model": "absent"}, headers=AUTH)
                assert missing.status_code == 404
                big = "x" * (bridge.WHOLE_BYTES + 10)
                embedded = await client.post(
                    f"{url}/api/generate", json={"model": "llama3.2", "prompt": big, "stream": False}, headers=AUTH
                )
                assert embedded.status_code == 200, "a body that is sent on as it arrives"
                head = await client.head(f"{url}/", headers=AUTH)
                assert head.status_code == 200
                # Who leaves cancels the work behind.
                endless = {"model": "llama3.2", "prompt": "a", "options": {"num_predict": 100_000}}
                async with client.stream("POST", f"{url}/api/generate", json=endless, headers=AUTH) as answer:
                    await anext(answer.aiter_bytes())
                while cluster.nodes[0].counters.inflight:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        run(main)


def test_blobs_only_by_signed_links(tmp_path: Path) -> None:
    with with_files(tmp_path) as cluster:

        async def main() -> None:
            async with agent_beside(cluster[0], tmp_path / "node0") as (url, _), web() as client:
                manifest = await client.get(f"{url}/agent/manifest?model=llama3.2", headers=AUTH)
                assert manifest.status_code == 200
                digest = manifest.json()["layers"][0]["digest"]
                link = Seeder(url, KEY).link(digest, time.time())
                whole = await client.get(link)
                assert (whole.status_code, len(whole.content)) == (200, SIZE)
                assert whole.headers["location"]
                part = await client.get(link, headers={"Range": "bytes=5-9"})
                assert (part.status_code, part.content) == (206, whole.content[5:10])
                assert (await client.get(link, headers={"Range": "bytes=0-1,3-4"})).status_code == 416
                assert (await client.head(link)).headers["content-length"] == str(SIZE)
                for bad in (
                    link.replace("signature=", "signature=0"),
                    Seeder(url, "other").link(digest, time.time()),
                    Seeder(url, KEY).link(digest, 0),
                    f"{url}/blobs/{digest}",
                ):
                    answer = await client.get(bad, headers=AUTH)
                    assert answer.status_code == 403
                other = Seeder(url, KEY).link("sha256:" + "0" * 64, time.time())
                assert (await client.get(other)).status_code == 404
                for name in ("absent", "../../x", "a/b/c", "", "llama3.2:../x", "%00"):
                    answer = await client.get(f"{url}/agent/manifest?model={name}", headers=AUTH)
                    assert answer.status_code == 404

        run(main)


def test_a_restart_is_the_owners_command_and_at_most_one_a_minute(tmp_path: Path, monkeypatch: Any) -> None:
    mark = tmp_path / "restarted"
    command = (sys.executable, "-c", f"import sys; open({str(mark)!r}, 'a').write('x'); print(len(sys.argv))")

    async def main() -> None:
        async with agent_beside("http://127.0.0.1:9", restart=command) as (url, _), web() as client:
            done = await client.post(f"{url}/agent/restart?x=$(id)", content=b"; rm -rf /", headers=AUTH)
            assert done.json() == {"exit_code": 0, "output": "1\n"}
            assert mark.read_text() == "x"
            again = await client.post(f"{url}/agent/restart", headers=AUTH)
            assert again.status_code == 429
            assert mark.read_text() == "x"
        async with agent_beside("http://127.0.0.1:9") as (url, _), web() as client:
            refused = await client.post(f"{url}/agent/restart", headers=AUTH)
            assert refused.status_code == 403
            assert "--restart COMMAND" in refused.json()["error"]
        failing = (sys.executable, "-c", "raise SystemExit(3)")
        async with agent_beside("http://127.0.0.1:9", restart=failing) as (url, _), web() as client:
            failed = await client.post(f"{url}/agent/restart", headers=AUTH)
            assert (failed.status_code, failed.json()["exit_code"]) == (502, 3)
        monkeypatch.setattr(restart, "COMMAND_S", 0.05)
        hanging = (sys.executable, "-c", "import time; time.sleep(60)")
        async with agent_beside("http://127.0.0.1:9", restart=hanging) as (url, _), web() as client:
            failed = await client.post(f"{url}/agent/restart", headers=AUTH)
            assert "did not end within" in failed.json()["output"]

    run(main)


# --- killed, lying, or with another key ---


AT = 1_800_000_000.0


def report(**more: Any) -> AgentReport:
    return msgspec.structs.replace(AgentReport("a", AT, (GPU,), 100, 50, 100, 50), **more)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (b"", "cannot be used"),
        (b"[" * 10_000, "cannot be used"),
        (msgspec.json.encode({"agent": "a", "at": "x"}), "cannot be used"),
        (report(at=AT - 4_000), "away from the time here"),
        (report(available_bytes=101), "more free memory than there is"),
        (report(disk_free_bytes=101), "more room on the disk than there is"),
        (report(gpus=(msgspec.structs.replace(GPU, used_bytes=13_000_000_000),)), "more memory in use on RTX 3060"),
        (report(memory_bytes=2**60), "cannot be used"),
        (report(gpus=(msgspec.structs.replace(GPU, temperature_c=-300.0),)), "cannot be used"),
        (report(gpus=(GPU,) * 65), "cannot be used"),
        (report(agent="x" * 301), "cannot be used"),
        (msgspec.json.encode(report()).replace(b"0.5", b"7.5"), "cannot be used"),
    ],
)
def test_reports_that_cannot_be(made: Any, words: str) -> None:
    raw = made if isinstance(made, bytes) else msgspec.json.encode(made)
    with pytest.raises(BadReport, match=words):
        parse_report(raw, AT)


def test_a_good_report_stays_what_it_was() -> None:
    made = report()
    assert parse_report(msgspec.json.encode(made), made.at + 10) == made


class Impostor:
    """A server at the port of agents, that records what it gets."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.answer) + self.answer)
        await writer.drain()
        writer.close()


def test_another_server_never_sees_the_key() -> None:
    async def main() -> None:
        for answer in (b"{}", b'{"proof": "0000"}', b"\xff", b'{"proof": "\xc3\xa9"}'):
            impostor = Impostor(answer)
            server = await asyncio.start_server(impostor.serve, "127.0.0.1", 0)
            node = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            transport = HttpTransport()
            assert not await has_key(transport, node, KEY, 1.0)
            assert (await read_agent(transport, agent_of(node, node.port, KEY), {})).report is None
            assert impostor.heads
            assert not any(KEY in head or "authorization" in head.lower() for head in impostor.heads)
            await transport.aclose()
            server.close()

    run(main)


def test_killed_lying_or_with_another_key_is_a_finding_and_no_more(tmp_path: Path) -> None:
    with with_files(tmp_path) as cluster:

        async def main() -> None:
            async with agent_beside(cluster[0], key="another-key-of-an-agent") as (url, transport):
                node = parse_endpoint(url)
                state = await read_agent(transport, agent_of(node, node.port, KEY), {})
                assert state == AgentState(problem="it has another key than [agents] in the settings")
            # It has ended: no finding if it never ran, one if it did.
            transport = HttpTransport()
            gone = agent_of(node, node.port, KEY)
            assert await read_agent(transport, gone, {}) == AgentState()
            killed = await read_agent(transport, gone, {}, ran=True)
            assert killed.problem.startswith("it does not answer: ")
            await transport.aclose()
            # It reports less in use than Ollama lists on the GPU.
            async with agent_beside(cluster[0]) as (url, transport):
                node = parse_endpoint(url)
                loaded = {"big:latest": LoadedModel(40_000_000_000, 40_000_000_000)}
                lying = await read_agent(transport, agent_of(node, node.port, KEY), loaded)
                assert "while Ollama lists 40,000,000,000 there" in lying.problem
                assert lying.report is None
            for bad in (killed, lying):
                (finding,) = agent_findings({"gpu-1:11434": bad})
                assert finding.severity == "warning"
                assert finding.cost.startswith("The node goes on as one without an agent")

        run(main)


# --- as a seeder ---


def test_with_an_agent_nothing_is_pushed_and_the_parts_come_from_the_node(tmp_path: Path) -> None:
    with with_files(tmp_path, 4) as cluster:
        quick(cluster)

        async def main() -> None:
            nodes = [parse_endpoint(url) for url in cluster.urls]
            async with agent_beside(cluster[0], tmp_path / "node0") as (url, transport):
                registry = Registry(tmp_path / "registry", 10**9, transport, lambda *fault: None)
                await registry.start("127.0.0.1", 0)
                seeders = {nodes[0].key: Seeder(url, KEY)}
                lines = [
                    line async for line in Distribution(transport, registry, "llama3.2", seeders).run(nodes, nodes)
                ]
                outcomes = {line["node"]: line for line in lines if line.get("status") == "success" or "error" in line}
                assert [outcomes[node.key].get("error") for node in nodes] == [None] * 4
                assert not any(line.get("phase") == "push" for line in lines)
                assert registry.service.received_bytes == registry.service.sent_bytes == 0
                assert {node.disk["llama3.2:latest"].digest for node in cluster.nodes} == {
                    cluster.nodes[0].disk["llama3.2:latest"].digest
                }
                await registry.aclose()

        run(main)


def test_a_broken_agent_is_passed_by(tmp_path: Path) -> None:
    with with_files(tmp_path, 2) as cluster:
        quick(cluster)

        async def main() -> None:
            nodes = [parse_endpoint(url) for url in cluster.urls]
            async with agent_beside(cluster[0], tmp_path / "node0", key="another-key-of-an-agent") as (url, transport):
                registry = Registry(tmp_path / "registry", 10**9, transport, lambda *fault: None)
                await registry.start("127.0.0.1", 0)
                for seeder in (Seeder(url, KEY), Seeder("http://127.0.0.1:9", KEY)):
                    spread = Distribution(transport, registry, "llama3.2", {nodes[0].key: seeder})
                    lines = [line async for line in spread.run(nodes, nodes)]
                    assert not any("error" in line for line in lines)
                await registry.aclose()

        run(main)
