"""A thousand clients that hang up at random phases: does their work stop, and does anybody else notice?"""

from __future__ import annotations

import json
import random
import socket
import time
import urllib.request
from typing import Any

from bench import proxies
from bench.load import request_bytes
from bench.rows import Row, row
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster

CLIENTS, AT_ONCE, NODES = 1000, 50, 4
MODEL = "llama3.2"


def hang_ups() -> list[Row]:
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, mean_words=200.0)
    specs = [
        NodeSpec(models=(model,), loaded=(MODEL,), decode_tokens_per_s=200.0, prefill_tokens_per_s=4000.0, seed=seed)
        for seed in range(NODES)
    ]
    with sim_cluster(specs) as nodes:
        ports = [int(url.rpartition(":")[2]) for url in nodes.urls]
        with proxies.sollol(ports) as ours:
            _leave(ours.port)
            left = time.monotonic()
            time.sleep(0.1)
            running = _running(nodes)
            waited = time.monotonic() - left
            told = _get(ours.port, "/sollol/snapshot")
            began = time.perf_counter()
            _ask(ours.port)
            next_ms = (time.perf_counter() - began) * 1000
    failed = sum(node["failed_requests"] for node in told["nodes"])
    return [
        row(f"{CLIENTS:,} clients hang up: running at the nodes {waited * 1000:.0f} ms later", running, "", "", 0),
        row("  counted as answered", told["totals"]["successful_requests"], "", "", 0),
        row("  counted as faults of nodes", failed, "", "", 0),
        row("  waiting or running here", len(told["waiting"]) + len(told["running"]), "", "", 0),
        row("  the next request takes", next_ms, "ms", "one word"),
    ]


def _leave(port: int) -> None:
    dice = random.Random(7)
    held: list[tuple[float, socket.socket]] = []
    for number in range(CLIENTS):
        sock = socket.create_connection(("127.0.0.1", port))
        messages = [{"role": "user", "content": f"[{number}] " + "word " * 200}]
        data = request_bytes(port, "/api/chat", {"model": MODEL, "messages": messages})
        sock.sendall(data if dice.random() < 0.9 else data[: dice.randrange(len(data))])
        held.append((time.monotonic() + dice.choice([0.0, 0.005, 0.02, 0.1, 0.3]), sock))
        while len(held) > AT_ONCE:
            _close_due(held)
    while held:
        _close_due(held)


def _close_due(held: list[tuple[float, socket.socket]]) -> None:
    now = time.monotonic()
    for entry in [entry for entry in held if entry[0] <= now]:
        entry[1].close()
        held.remove(entry)
    time.sleep(0.0005)


def _running(nodes: Cluster) -> int:
    return nodes.do(lambda found: sum(node.counters.inflight for node in found))


def _get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


def _ask(port: int) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}
    data = json.dumps(body | {"options": {"num_predict": 1}}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/chat", data, timeout=10) as answer:
        answer.read()
