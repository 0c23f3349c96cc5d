"""One model of 1 GB from one node to four others, and through the cache from outside to five.

Nodes are simulated ones in processes of their own, which push and pull as Ollama's client does; each has a link of
LINK bytes/s, the sender has none. The registry runs in a further process, whose memory is measured. One transfer to one
node in the same run is the reference of times.

    python -m bench distribution
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.rows import Row, row, skipped
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.spawn import SpawnedNode, spawn, spawn_many

SIZE = 1_000_000_000
LINK = 50e6
MODEL = ModelSpec("llama3.2", size_bytes=SIZE)
KEY = "the-key-of-the-bench-agents"
ROOM = 14 * SIZE
BRING = """
import asyncio, json, resource, sys, time
from pathlib import Path
from sollol.core.endpoint import parse_endpoint
from sollol.models.distribution import Distribution
from sollol.registry.seeders import Seeder
from sollol.registry.server import Registry
from sollol.transport.event_loop import new_loop
from sollol.transport.http import HttpTransport

job = json.loads(sys.argv[1])

async def main():
    transport = HttpTransport()
    registry = Registry(Path(job["folder"]), 10**13, transport, print, upstream=job.get("upstream", ""))
    await registry.start("127.0.0.1", 0)
    nodes = [parse_endpoint(url) for url in job["nodes"]]
    seeders = {nodes[0].key: Seeder(job["agent"], job["key"])} if job.get("agent") else {}
    outcomes, began = {}, time.perf_counter()
    async for line in Distribution(transport, registry, "llama3.2", seeders).run(nodes, nodes):
        if line.get("completed") and line.get("phase") != "push":
            print(json.dumps({"node": line["node"], "completed": line["completed"]}), flush=True)
        if "error" in line or line.get("status") == "success":
            outcomes[line["node"]] = line.get("error") or "success"
    service = registry.service
    print(json.dumps({
        "outcomes": outcomes, "seconds": time.perf_counter() - began, "sent": service.sent_bytes,
        "received": service.received_bytes, "fetched": service.fetches.fetched_bytes if service.fetches else 0,
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }), flush=True)
    await registry.aclose()
    await transport.aclose()

with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(main())
"""


def run() -> list[Row]:
    name = "1 GB from one node to 4 others"
    if shutil.disk_usage(tempfile.gettempdir()).free < ROOM:
        return [skipped(name, f"{ROOM / 1e9:.0f} GB of room are needed in {tempfile.gettempdir()}")]
    with tempfile.TemporaryDirectory() as folder:
        direct, spread = _with_agent(Path(folder))
        pushed = _pushed(Path(folder))
        cached = _cached(Path(folder))
    link = f"links of {LINK / 1e6:.0f} MB/s"
    return [
        row(f"{name}, from its agent: time", spread["seconds"] / direct["seconds"], "times",
            f"one direct transfer: {direct['seconds']:.1f} s", 1.3, note=link),
        row(f"{name}, pushed first: time", pushed["seconds"] / direct["seconds"], "times", "the same",
            note="the push and the pulls follow each other, and one node is restarted"),
        row(f"{name}, one cut, one killed: bytes over the LAN", pushed["lan_share"], "times", "what each lacked", 1.05,
            note=pushed["words"]),
        row(f"{name}: memory of the registry", pushed["memory_mb"], "MB", "of its process", 100.0),
        row("the same model to 5 nodes by the cache", cached["fetched"] / SIZE, "transfers", "from outside", 1.001),
    ]  # fmt: skip


def _nodes(folder: Path, count: int, holders: int = 1) -> list[SpawnedNode]:
    return spawn_many(
        NodeSpec(
            models=(MODEL,) if i < holders else (),
            models_dir=str(folder / f"node{i}"),
            pull_bytes_per_s=None if i < holders else LINK,
        )
        for i in range(count)
    )


def _bring(job: dict[str, Any], seen: Callable[[dict[str, Any]], None] = lambda line: None) -> dict[str, Any]:
    process = subprocess.Popen([sys.executable, "-c", BRING, json.dumps(job)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found: dict[str, Any] = {}
    for text in process.stdout:
        found = json.loads(text)
        seen(found)
    if process.wait():
        raise RuntimeError(f"the registry ended with {process.returncode}")
    return found


def _with_agent(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """One node, then four others, from the agent of the node that has the model."""
    nodes = _nodes(folder / "a", 6)
    environment = {**os.environ, "SOLLOL_AGENT_KEY": KEY}
    command = [sys.executable, "-m", "sollol", "agent", "--port", "0", "--ollama", nodes[0].url]
    agent = subprocess.Popen(
        [*command, "--models", str(folder / "a" / "node0")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env=environment,
    )  # fmt: skip
    try:
        assert agent.stdout is not None
        job = {"folder": str(folder / "a-registry"), "agent": agent.stdout.readline().strip(), "key": KEY}
        direct = _bring({**job, "nodes": [nodes[0].url, nodes[1].url]})
        shutil.rmtree(folder / "a" / "node1")
        spread = _bring({**job, "nodes": [nodes[0].url, *(node.url for node in nodes[2:])]})
    finally:
        agent.terminate()
        agent.wait()
        _end(nodes, folder / "a")
    _check(direct, 2)
    _check(spread, 5)
    return direct, spread


def _pushed(folder: Path) -> dict[str, Any]:
    """Without an agent; node 2 is ended and started again midway, node 3 is killed for good."""
    nodes = _nodes(folder / "b", 5)
    started: list[SpawnedNode] = []
    hit: dict[int, int] = {}  # place -> bytes that had arrived

    def again(node: SpawnedNode) -> None:
        os.kill(node.pid, signal.SIGTERM)  # its service is restarted; the client records how far it was
        while node.alive:
            time.sleep(0.01)
        spec = NodeSpec(models=(), models_dir=str(folder / "b" / "node2"), pull_bytes_per_s=LINK)
        started.append(spawn(spec, port=int(node.url.rpartition(":")[2])))

    def disturb(line: dict[str, Any]) -> None:
        for place in {2, 3} - hit.keys():
            node = nodes[place]
            if line.get("node") == node.url.removeprefix("http://") and line["completed"] > SIZE / 3:
                hit[place] = line["completed"]
                if place == 2:
                    threading.Thread(target=again, args=(node,)).start()
                else:
                    node.kill()

    try:
        found = _bring({"folder": str(folder / "b-registry"), "nodes": [node.url for node in nodes]}, disturb)
        outcomes = [found["outcomes"][node.url.removeprefix("http://")] for node in nodes]
    finally:
        _end([*nodes, *started], folder / "b")
    if [outcome == "success" for outcome in outcomes] != [True, True, True, False, True] or len(hit) != 2:
        raise RuntimeError(f"outcomes {outcomes}, disturbed {hit}")
    lacked = SIZE + 3 * SIZE + hit[3]  # the registry lacked it, too
    share = (found["sent"] + found["received"]) / lacked
    words = (
        f"{found['received'] / 1e9:.3f} GB pushed, {found['sent'] / 1e9:.3f} GB pulled; {outcomes[3][:60]!r} is told"
    )
    return {**found, "lan_share": share, "words": words}


def _cached(folder: Path) -> dict[str, Any]:
    """Five nodes pull a model that none has; the registry of another process is the upstream one."""
    from sollol.sim.ollama_store import OllamaStore

    source = folder / "c" / "up"
    OllamaStore(source).make(MODEL)
    upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM, str(source)], stdout=subprocess.PIPE, text=True)
    nodes = _nodes(folder / "c", 5, holders=0)
    try:
        assert upstream.stdout is not None
        url = upstream.stdout.readline().strip()
        job = {"folder": str(folder / "c-registry"), "nodes": [node.url for node in nodes], "upstream": url}
        found = _bring(job)
    finally:
        upstream.terminate()
        upstream.wait()
        _end(nodes, folder / "c")
    _check(found, 5)
    return found


UPSTREAM = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

root = Path(sys.argv[1])

class Files(BaseHTTPRequestHandler):
    def do_GET(self):
        what = self.path.split("/")
        manifest = root / "manifests/registry.ollama.ai" / what[2] / what[3] / what[5]
        file = manifest if what[4] == "manifests" else root / "blobs" / what[5].replace(":", "-")
        self.send_response(200)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        with open(file, "rb") as source:
            while piece := source.read(1 << 20):
                self.wfile.write(piece)

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def _check(found: dict[str, Any], nodes: int) -> None:
    good = sum(outcome == "success" for outcome in found["outcomes"].values())
    if good != nodes:
        raise RuntimeError(f"{good} of {nodes} nodes have it: {found['outcomes']}")


def _end(nodes: list[SpawnedNode], folder: Path) -> None:
    for node in nodes:
        node.kill()
    time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
