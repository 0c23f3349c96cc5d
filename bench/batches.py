"""One batch of embeddings over unequal nodes, on real sockets, against the fluid bound; and that nothing is lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np

from bench.rows import Row, median, row
from sollol import OllamaPool
from sollol.sim import ModelSpec, NodeSpec, fluid_bound, free_port, spawn, spawn_many

MODEL = "nomic-embed-text"
ROUNDS = 3


def spec(rate: float | None, **more: Any) -> NodeSpec:
    return NodeSpec(models=(ModelSpec(MODEL, "embed"),), embed_items_per_s=rate, loaded=(MODEL,), **more)


def texts(count: int) -> list[str]:
    return [f"passage {i}: a short text about nodes" for i in range(count)]


def faults_in(pool: OllamaPool, result: Any, inputs: list[str]) -> int:
    """Items lost or not failed alike, and vectors that are not those of their text, by asking one node again."""
    lost = abs(len(result) - len(inputs)) + len(result.errors)
    sample = list(range(0, len(inputs), max(1, len(inputs) // 50)))
    direct = np.asarray(pool.embed(MODEL, [inputs[i] for i in sample]).embeddings, dtype=np.float32)
    wrong = int((np.abs(result.vectors[sample] - direct).max(axis=1) > 1e-5).sum())
    return lost + wrong + int(np.isnan(result.vectors).any(axis=1).sum())


def two_nodes() -> list[Row]:
    """298 items over 100 and 18 items/s, cold and warm, and 625 warm."""
    ratios: dict[str, list[float]] = {"298 cold": [], "298 warm": [], "625 warm": []}
    lost = 0
    for _ in range(ROUNDS):
        nodes = spawn_many([spec(100.0), spec(18.0)])
        try:
            with OllamaPool([node.url for node in nodes]) as pool:
                for name in ratios:
                    inputs = texts(int(name.split()[0]))
                    began = time.perf_counter()
                    result = pool.embed_batch(MODEL, inputs)
                    ratios[name].append((time.perf_counter() - began) / (len(inputs) / 118))
                    lost += faults_in(pool, result, inputs)
        finally:
            for node in nodes:
                node.kill()
    targets = {"298 cold": 1.10, "298 warm": 1.04, "625 warm": 1.04}
    rows = [
        row(f"{name}, nodes of 100 and 18 items/s", median(ratios[name]), "x", "fluid bound", targets[name])
        for name in ratios
    ]
    return [*rows, row("  items lost, doubled or misplaced", lost, "", "", 0)]


def eight_nodes() -> list[Row]:
    """5,000 items over 1:2:4:8:16:32:64:128, one joining and one dying midway."""
    base = 2.0
    rates = [base * 2**i for i in range(8)]
    joins_s, dies_s, joining, dying = 3.0, 5.0, 5, 6
    nodes = spawn_many([spec(rate) for i, rate in enumerate(rates) if i != joining])
    late_port = free_port()
    late = spawn(spec(rates[joining]), port=late_port)
    victim = nodes[dying - 1]  # the joining one is not among them
    try:
        with OllamaPool([node.url for node in nodes]) as pool:
            pool.wait_ready()
            inputs = texts(5000)
            marks: dict[str, float] = {}
            import threading

            def mark(name: str, action: Any) -> None:
                action()
                marks[name] = time.perf_counter()

            began = time.perf_counter()
            timers = [
                threading.Timer(joins_s, mark, ("joined", lambda: pool.add_node(late.url))),
                threading.Timer(dies_s, mark, ("died", victim.kill)),
            ]
            for timer in timers:
                timer.start()
            result = pool.embed_batch(MODEL, inputs)
            seconds = time.perf_counter() - began
            lost = faults_in(pool, result, inputs)
            steady = [(rate, 0.0, 1e9) for i, rate in enumerate(rates) if i not in (joining, dying)]
            joined = (rates[joining], marks["joined"] - began, 1e9)
            died = (rates[dying], 0.0, marks["died"] - began)
            bound = fluid_bound(5000, [*steady, joined, died])
    finally:
        for node in [*nodes, late]:
            node.kill()
    return [
        row("5,000 over 8 nodes 1:2:..:128, one joins, one dies", seconds / bound, "x", "bound that knows", 1.05),
        row("  items lost, doubled or misplaced", lost, "", "", 0),
    ]


def faults() -> list[Row]:
    """What nodes do to a batch: nothing may be lost, doubled or misplaced."""
    cases: dict[str, tuple[list[NodeSpec], list[list[dict[str, Any]]]]] = {
        "30 % errors": ([spec(400.0), spec(100.0)], [[{"at_s": 0, "do": "error_rate", "share": 0.3}]] * 2),
        "503 past 5": ([spec(400.0), spec(100.0)], [[{"at_s": 0, "do": "busy_above", "n": 5}]] * 2),
        "dead node first": ([spec(400.0), spec(200.0)], [[{"at_s": 0, "do": "die"}], []]),
        "frozen node": ([spec(400.0), spec(200.0)], [[{"at_s": 0.4, "do": "freeze"}], []]),
    }
    rows: list[Row] = []
    for name, (specs, schedules) in cases.items():
        nodes = [spawn(one, schedule=schedule) for one, schedule in zip(specs, schedules, strict=True)]
        try:
            with OllamaPool([node.url for node in nodes]) as pool:
                inputs = texts(625)
                began = time.perf_counter()
                result = pool.embed_batch(MODEL, inputs)
                seconds = time.perf_counter() - began
                lost = abs(len(result) - 625) + len(result.errors)
                note = f"{seconds:.1f} s, {result.report.retries if result.report else 0} retries"
                rows.append(row(f"lost of 625: {name}", lost, "", "", 0, note=note))
        finally:
            for node in nodes:
                node.kill()
    return rows


def instant() -> list[Row]:
    """10,000 short inputs to two instant nodes, beside one raw array request to one of them."""
    nodes = spawn_many([spec(None), spec(None)])
    inputs = texts(10_000)
    ratios: list[float] = []
    try:
        with OllamaPool([node.url for node in nodes]) as pool:
            pool.embed_batch(MODEL, inputs)  # the nodes have computed every vector once
            asyncio.run(_raw(nodes[0].url, inputs))
            for _ in range(5):
                raw = asyncio.run(_raw(nodes[0].url, inputs))
                began = time.perf_counter()
                pool.embed_batch(MODEL, inputs)
                ratios.append(raw / (time.perf_counter() - began))
    finally:
        for node in nodes:
            node.kill()
    return [
        row("10,000 short inputs, two instant nodes", median(ratios), "x", "one raw array request", 0.6, at_least=True)
    ]


async def _raw(url: str, inputs: list[str]) -> float:
    """Seconds for one request with all inputs, its answer decoded to lists of floats."""
    from sollol.backends.ollama import encode
    from sollol.backends.ollama_answers import read_embed_answer
    from sollol.core.endpoint import parse_endpoint
    from sollol.transport.base import Call
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        began = time.perf_counter()
        body = encode({"model": MODEL, "input": inputs})
        reply = await transport.send(parse_endpoint(url), Call("POST", "/api/embed", body))
        read_embed_answer(await reply.read())
        return time.perf_counter() - began
    finally:
        await transport.aclose()


def answers() -> list[Row]:
    """200 prompts on nodes of speed 4:2:1, the middle one killed midway."""
    model, tokens, prompts = "llama3.2", 40, [f"question {i}: what is this?" for i in range(200)]
    specs = [
        NodeSpec(
            models=(ModelSpec(model, mean_words=float("inf")),), loaded=(model,), decode_tokens_per_s=200.0 * speed
        )
        for speed in (4, 2, 1)
    ]
    nodes = spawn_many(specs)
    try:
        rates: list[float] = []
        for node in nodes:  # alone, on as many prompts as it may get
            with OllamaPool([node.url]) as pool:
                rates.append(
                    30 / pool.batch_generate(model, prompts[:30], options={"num_predict": tokens}).report.seconds
                )
        with OllamaPool([node.url for node in nodes]) as pool:
            pool.wait_ready()
            import threading

            dies_s = 100 / sum(rates)
            timer = threading.Timer(dies_s, nodes[1].kill)
            timer.start()
            result = pool.batch_generate(model, prompts, on_error="return", options={"num_predict": tokens})
            bound = fluid_bound(200, [(rates[0], 0.0, 1e9), (rates[1], 0.0, dies_s), (rates[2], 0.0, 1e9)])
            lost = 200 - len(result) + len(result.errors)
    finally:
        for node in nodes:
            node.kill()
    return [
        row("200 prompts on 4:2:1, one dies", result.report.seconds / bound, "x", "bound that knows", 1.08),
        row("  prompts lost", lost, "", "", 0),
    ]


def run() -> list[Row]:
    return [*two_nodes(), *eight_nodes(), *faults(), *instant(), *answers()]
