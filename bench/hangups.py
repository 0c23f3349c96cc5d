"""A thousand clients that hang up at random phases: does their work stop, and does anybody else notice?

Each client has a phase in which it leaves: before its head is whole, before its body is, soon after asking (most are
in the queue then), while the node reads the prompt, or after some parts of the answer. There are fewer nodes than
clients at a time, so that a queue exists. The nodes are known to the gateway before: it has to know how long they read
a prompt, because a real node reads it to the end even when nobody wants the answer any more.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from typing import Any

from bench import proxies
from bench.load import request_bytes
from bench.rows import Row, row
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import Cluster, sim_cluster

CLIENTS, AT_ONCE, NODES = 1000, 48, 24
MODEL = "llama3.2"
PHASES = ("in the head", "in the body", "just asked", "reading", "mid-stream")
PROMPT_WORDS = 300  # about 0.1 s to read
READING_S = 0.1
WAIT_S = 30.0


def hang_ups() -> list[Row]:
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, mean_words=math.inf)
    specs = [
        NodeSpec(models=(model,), loaded=(MODEL,), decode_tokens_per_s=200.0, prefill_tokens_per_s=4000.0, seed=seed)
        for seed in range(NODES)
    ]
    with sim_cluster(specs) as nodes:
        ports = [int(url.rpartition(":")[2]) for url in nodes.urls]
        with proxies.sollol(ports) as ours:
            asyncio.run(get_to_know(ours.port, NODES))
            before, asked = _get(ours.port, "/sollol/snapshot"), _asked(nodes)
            left_in = asyncio.run(all_leave(ours.port, CLIENTS, AT_ONCE))
            time.sleep(0.1)
            running = _running(nodes)
            after, reached = _get(ours.port, "/sollol/snapshot"), _asked(nodes) - asked
            next_ms, waited_ms = _ask(ours.port)
            direct_ms, _ = _ask(ports[0])
    told = ", ".join(f"{count} {phase}" for phase, count in left_in.items())
    answered = after["totals"]["successful_requests"] - before["totals"]["successful_requests"]
    return [
        row(f"{CLIENTS:,} clients hang up: running at the nodes 100 ms later", running, "", f"{reached} had got there",
            0, note=f"left: {told}"),
        row("  counted as answered", answered, "", "", 0),
        row("  counted as faults of nodes", _faults(after) - _faults(before), "", "", 0),
        row("  nodes no longer up", sum(node["state"] != "up" for node in after["nodes"]), "", "", 0),
        row("  waiting or running here", len(after["waiting"]) + len(after["running"]), "", "", 0),
        row("  the next request waits for", waited_ms, "ms", f"takes {next_ms:.0f} ms, directly {direct_ms:.0f} ms", 5),
    ]  # fmt: skip


def _faults(snapshot: Any) -> int:
    return sum(node["failed_requests"] for node in snapshot["nodes"])


async def get_to_know(port: int, nodes: int) -> None:
    """Some whole answers from every node."""

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_request(port, number, 3))
        await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    for start in range(4):
        await asyncio.gather(*(ask(start * nodes + number) for number in range(nodes)))


def _request(port: int, number: int, words: int) -> bytes:
    messages = [{"role": "user", "content": f"[{number}] " + "word " * PROMPT_WORDS}]
    return request_bytes(port, "/api/chat", {"model": MODEL, "messages": messages, "options": {"num_predict": words}})


async def all_leave(port: int, clients: int, at_once: int) -> Counter[str]:
    """How many left in which phase: as it was for them, which may be another than planned."""
    turn = asyncio.Semaphore(at_once)
    dice = random.Random(7)

    async def one(number: int, phase: str, share: float) -> str:
        async with turn:
            return await _leave(port, number, phase, share)

    plans = [(number, dice.choice(PHASES), dice.random()) for number in range(clients)]
    return Counter(await asyncio.gather(*(one(*plan) for plan in plans)))


async def _leave(port: int, number: int, phase: str, share: float) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = _request(port, number, 1000)
    head = request.index(b"\r\n\r\n")
    came = b""
    try:
        if phase == "in the head":
            writer.write(request[: int(share * head)])
            await asyncio.sleep(share * 0.02)
        elif phase == "in the body":
            writer.write(request[: head + 4 + int(share * (len(request) - head - 5))])
            await asyncio.sleep(share * 0.02)
        else:
            writer.write(request)
            wait_s = {"just asked": share * 0.005, "reading": 1.5 * share * READING_S}.get(phase, WAIT_S)
            parts = 1 + int(share * 8)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while came.count(b"\n{") < parts:
                        piece = await reader.read(65536)
                        if not piece:
                            raise RuntimeError(f"the gateway closed the connection after {came!r}")
                        came += piece
    finally:
        writer.transport.abort() if number % 2 else writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    return phase if phase in PHASES[:2] else "mid-stream" if came else "before an answer"


def _asked(nodes: Cluster) -> int:
    return nodes.do(lambda found: sum(node.counters.requests.get("POST /api/chat", 0) for node in found))


def _running(nodes: Cluster) -> int:
    return nodes.do(lambda found: sum(node.counters.inflight for node in found))


def _get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return json.load(answer)


def _ask(port: int) -> tuple[float, int]:
    """Milliseconds of a short request, and of them in the queue."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}
    data = json.dumps(body | {"options": {"num_predict": 1}}).encode()
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/chat", data, timeout=WAIT_S) as answer:
        answer.read()
    return (time.perf_counter() - began) * 1000, int(answer.headers.get("X-Sollol-Queue-Ms", 0))
