"""One download, then from node to node: simulated nodes that keep files, over real HTTP."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sollol.agent.app import Agent
from sollol.answers import Answer
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.models import distribution
from sollol.models.distribution import Distribution
from sollol.models.inventory import read_inventory
from sollol.registry.seeders import Seeder
from sollol.registry.server import Registry
from sollol.registry.store import BlobStore
from sollol.sim import Cluster, ModelSpec, NodeSpec, sim_cluster
from sollol.transport.http import HttpTransport
from tests.registry.stage import run
from tests.registry.stage import until as until_true

SIZE = 2_000_000
MODEL = ModelSpec("llama3.2", size_bytes=SIZE)
KEY = "the-key-of-the-test-agents"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "PAUSE_S", 0.01)


@contextmanager
def nodes_in(folder: Path, count: int, holders: int = 1, **more: Any) -> Iterator[Cluster]:
    specs = [
        NodeSpec(models=(MODEL,) if i < holders else (), models_dir=str(folder / f"node{i}"), **more)
        for i in range(count)
    ]
    with sim_cluster(specs) as cluster:
        for node in cluster.nodes:
            assert node.registry_client is not None
            node.registry_client.part_least, node.registry_client.second_s = 500_000, 0.005
        yield cluster


@asynccontextmanager
async def opened(folder: Path, most: int = 10**9, **more: Any) -> AsyncIterator[tuple[HttpTransport, Registry]]:
    transport = HttpTransport()
    faults: list[Any] = []
    registry = Registry(folder / "registry", most, transport, lambda *fault: faults.append(fault), **more)
    await registry.start("127.0.0.1", 0)
    try:
        yield transport, registry
    finally:
        await registry.aclose()
        await transport.aclose()
    assert not faults


def endpoints(cluster: Cluster) -> list[Endpoint]:
    return [parse_endpoint(url) for url in cluster.urls]


async def bring(
    transport: HttpTransport, registry: Registry, nodes: list[Endpoint], on_line: Callable[[Answer], None] | None = None
) -> dict[str, str]:
    """Bring the model to all nodes; the outcome of each."""
    outcomes = {}
    async for line in Distribution(transport, registry, "llama3.2").run(nodes, nodes):
        if on_line is not None:
            on_line(line)
        if "error" in line or line.get("status") == "success":
            assert line["node"] not in outcomes, "one last line a node"
            outcomes[line["node"]] = line.get("error") or "success"
    return outcomes


async def digests(transport: HttpTransport, nodes: list[Endpoint]) -> list[dict[str, str]]:
    found = await read_inventory(transport, nodes)
    return [{name: stored.digest for name, stored in node.stored.items()} for node in found]


def test_every_node_has_it_under_its_short_name_with_one_digest(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 4) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                assert set((await bring(transport, registry, nodes)).values()) == {"success"}
                found = await digests(transport, nodes)
                assert found == [{"llama3.2:latest": cluster.nodes[0].disk["llama3.2:latest"].digest}] * 4
                assert registry.service.grants.all() == [], "the path has ended"
                assert registry.service.received_bytes < SIZE * 1.01
                assert registry.service.sent_bytes < 3 * SIZE * 1.05
                # Once more costs nothing, and from the registry's own copy no push.
                sent = registry.service.sent_bytes
                assert set((await bring(transport, registry, nodes)).values()) == {"success"}
                assert registry.service.sent_bytes == sent
                await transport.send(nodes[1], _delete("llama3.2"))
                assert (await bring(transport, registry, nodes))[nodes[1].key] == "success"
                assert registry.service.received_bytes < SIZE * 1.01

        run(main)


def _delete(name: str) -> Any:
    from sollol.backends.ollama import encode
    from sollol.transport.base import Call

    return Call("DELETE", "/api/delete", encode({"model": name}))


def test_a_cut_node_resumes_and_a_killed_one_is_told(tmp_path: Path) -> None:
    """From one node to four others: nothing from outside, and over the LAN what each lacked."""
    with nodes_in(tmp_path, 5, pull_bytes_per_s=4_000_000.0) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            clients = [node.registry_client for node in cluster.nodes]
            _, cut, killed, *whole = [client for client in clients if client is not None]
            async with opened(tmp_path) as (transport, registry):
                bringing = asyncio.create_task(bring(transport, registry, nodes))
                await until_true(lambda: cut.received > SIZE / 4 and killed.received > 0)
                cluster.do(lambda sims: sims[2].die())
                cluster.do(lambda sims: sims[1].machine.cut())  # its requests end; it goes on
                outcomes = await bringing
                assert "refused the connection" in outcomes.pop(nodes[2].key)
                assert set(outcomes.values()) == {"success"}
                assert all(client.received <= SIZE * 1.05 for client in (cut, *whole))
                assert registry.service.received_bytes < SIZE * 1.01, "it was pushed once"
                assert registry.service.fetches is None, "nothing is read from outside"
                good = [nodes[0], nodes[1], *nodes[3:]]
                expected = {"llama3.2:latest": cluster.nodes[0].disk["llama3.2:latest"].digest}
                assert await digests(transport, good) == [expected] * 4

        run(main)


def test_a_gateway_that_restarts_goes_on_with_what_there_is(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 3, pull_bytes_per_s=4_000_000.0) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            clients = [node.registry_client for node in cluster.nodes[1:]]
            async with opened(tmp_path) as (transport, registry):
                bringing = asyncio.create_task(bring(transport, registry, nodes))
                await until_true(lambda: all(client and client.received > SIZE / 4 for client in clients))
                bringing.cancel()
                with suppress(asyncio.CancelledError):
                    await bringing
                assert registry.service.grants.all() == []
            async with opened(tmp_path) as (transport, registry):
                assert set((await bring(transport, registry, nodes)).values()) == {"success"}
                assert registry.service.received_bytes == 0, "the blobs are on its disk, and nothing is pushed"
                found = await digests(transport, nodes)
                assert found == [{"llama3.2:latest": cluster.nodes[0].disk["llama3.2:latest"].digest}] * 3
            assert all(client is not None and client.received <= SIZE * 1.05 for client in clients)

        run(main)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of its own with so many bytes."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a disk of its own needs Linux and root")
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no disk can be made here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_of_a_node_is_told_with_the_next_step_and_the_others_have_it(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node1", SIZE // 2), nodes_in(tmp_path, 3) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                outcomes = await bring(transport, registry, nodes)
                assert outcomes[nodes[0].key] == outcomes[nodes[2].key] == "success"
                assert "No space left on device" in outcomes[nodes[1].key]
                assert f"`sollol models rm MODEL --on {nodes[1].key}` makes room there" in outcomes[nodes[1].key]
                assert [name for found in await digests(transport, [nodes[1]]) for name in found] == []
                assert registry.service.grants.all() == []

        run(main)


@pytest.mark.root
def test_a_disk_that_fills_under_the_registry_ends_the_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlobStore, "make_room", lambda *_: None)  # another program fills it after the look at it
    with small_disk(tmp_path / "registry", SIZE // 2), nodes_in(tmp_path, 3) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                outcomes = await bring(transport, registry, nodes)
                for node in nodes[1:]:
                    assert "No space left on device" in outcomes[node.key]
                assert registry.service.grants.all() == []
                assert not list((tmp_path / "registry").glob("sha256-*")), "no part has the name of a blob"

        run(main)


def test_an_agent_with_spoiled_bytes_is_passed_by(tmp_path: Path) -> None:
    """It sends bytes of another digest; each node notices, and gets the model from its node's own push."""
    with nodes_in(tmp_path, 3) as cluster:
        shutil.copytree(tmp_path / "node0", tmp_path / "spoiled")
        blob = max((tmp_path / "spoiled" / "blobs").iterdir(), key=lambda file: file.stat().st_size)
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 1
        blob.write_bytes(data)

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                agent = Agent(KEY, nodes[0], tmp_path / "spoiled", [], transport)
                port = await agent.start("127.0.0.1", 0)
                try:
                    seeders = {nodes[0].key: Seeder(f"http://127.0.0.1:{port}", KEY)}
                    spread = Distribution(transport, registry, "llama3.2", seeders)
                    lines = [line async for line in spread.run(nodes, nodes)]
                finally:
                    await agent.aclose()
                ends = {
                    line["node"]: line.get("error")
                    for line in lines
                    if "error" in line or line.get("status") == "success"
                }
                assert ends == {node.key: None for node in nodes}
                assert len([line for line in lines if line.get("status") == "success"]) == 3, "one last line a node"
                assert SIZE < registry.service.received_bytes < SIZE * 1.01, "it was pushed"
                expected = {"llama3.2:latest": cluster.nodes[0].disk["llama3.2:latest"].digest}
                assert await digests(transport, nodes) == [expected] * 3
                assert registry.service.grants.all() == []

        run(main)


def test_without_a_holder_one_node_pulls_and_the_others_follow(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 3, holders=0, registry=(MODEL,)) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                assert set((await bring(transport, registry, nodes)).values()) == {"success"}
                assert registry.service.received_bytes > SIZE
                (one,) = {found["llama3.2:latest"] for found in await digests(transport, nodes)}
                assert one

        run(main)


def test_without_a_holder_the_cache_fetches_it_once(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 5) as cluster, nodes_in(tmp_path / "far", 1) as far:

        async def main() -> None:
            nodes = endpoints(cluster)[1:]
            async with opened(tmp_path / "up") as (_, upstream):
                grant = upstream.service.grants.issue(
                    "llama3.2:latest", asyncio.get_running_loop().time(), pushes=True, size_most=10 * SIZE
                )
                grant.namespace = "library"
                store = far.nodes[0].store
                assert store is not None
                from sollol.sim.ollama_store import parse_name

                name = parse_name(f"127.0.0.1:{upstream.port}/library/llama3.2")
                store.copy(parse_name("llama3.2"), name)
                assert far.nodes[0].registry_client is not None
                await far.nodes[0].registry_client.push(name, lambda line: None)
                url = f"http://127.0.0.1:{upstream.port}"
                async with opened(tmp_path, upstream=url) as (own, registry):
                    assert set((await bring(own, registry, nodes)).values()) == {"success"}
                    assert registry.service.fetches is not None
                    assert SIZE < registry.service.fetches.fetched_bytes < SIZE * 1.01
                    assert len({found["llama3.2:latest"] for found in await digests(own, nodes)}) == 1

        run(main)


def test_a_node_that_cannot_call_the_registry_pulls_as_usual(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 3, registry=(MODEL,)) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                lines: list[Answer] = []

                def close_the_way(line: Answer) -> None:
                    lines.append(line)
                    if line.get("phase") == "push" and line.get("status") == "pushing manifest":
                        registry.port = 1  # nothing listens there

                outcomes = await bring(transport, registry, nodes, close_the_way)
                assert set(outcomes.values()) == {"success"}

        run(main)


def test_a_holder_that_cannot_push_is_followed_by_another(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 3, holders=2) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            store = cluster.nodes[0].store
            assert store is not None
            for blob in (store.folder / "blobs").iterdir():
                blob.unlink()
            async with opened(tmp_path) as (transport, registry):
                assert (await bring(transport, registry, nodes))[nodes[2].key] == "success"

        run(main)


def test_no_room_here_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 2) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path, most=SIZE // 2) as (transport, registry):
                outcomes = await bring(transport, registry, nodes)
                assert "raise max_gb in [registry]" in outcomes[nodes[1].key]
                assert registry.service.received_bytes == 0

        run(main)


def test_a_node_whose_agent_reports_a_full_disk_is_left_out(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 3) as cluster:

        async def main() -> None:
            nodes = endpoints(cluster)
            async with opened(tmp_path) as (transport, registry):
                rooms = {nodes[1].key: SIZE // 2, nodes[2].key: 2 * SIZE}
                spread = Distribution(transport, registry, "llama3.2", rooms=rooms)
                errors = {line["node"]: line["error"] async for line in spread.run(nodes, nodes) if "error" in line}
                assert list(errors) == [nodes[1].key]
                assert "1,000,000 are free on its disk" in errors[nodes[1].key]

        run(main)


def test_an_absent_model_and_a_node_that_is_down(tmp_path: Path) -> None:
    with nodes_in(tmp_path, 1, holders=0) as cluster:

        async def main() -> None:
            nodes = [*endpoints(cluster), parse_endpoint("127.0.0.1:9")]
            async with opened(tmp_path) as (transport, registry):
                outcomes = await bring(transport, registry, nodes)
                assert "no such host" in outcomes[nodes[0].key]
                assert "refused the connection" in outcomes["127.0.0.1:9"]

        run(main)
