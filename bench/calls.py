"""One `pool.chat` to an instant node, beside the official client to the same node; and what importing costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.rows import Row, median, row, skipped
from sollol import OllamaPool
from sollol.sim import ModelSpec, NodeSpec, spawn

MODEL = "llama3.2"
MESSAGES = [{"role": "user", "content": "Say one word."}]
CALLS, ROUNDS = 400, 5


def _cost(call: Callable[[], Any]) -> tuple[float, float]:
    """(CPU, wall) microseconds a call, of this whole process."""
    for _ in range(20):
        call()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.process_time() - cpu) / CALLS * 1e6, (time.perf_counter() - wall) / CALLS * 1e6


def one_call() -> list[Row]:
    try:
        import ollama
    except ImportError:
        return [skipped("one pool.chat", "the official client is not installed")]
    node = spawn(NodeSpec(models=(ModelSpec(MODEL, mean_words=3),), loaded=(MODEL,)))
    options = {"num_predict": 1}
    ours, theirs = [], []
    try:
        client = ollama.Client(node.url)
        with OllamaPool([node.url]) as pool:
            for _ in range(ROUNDS):
                ours.append(_cost(lambda: pool.chat(MODEL, MESSAGES, options=options)))
                theirs.append(_cost(lambda: client.chat(MODEL, MESSAGES, options=options)))
    finally:
        node.kill()
    rows: list[Row] = []
    for index, what in enumerate(("CPU", "wall")):
        value, other = median([pair[index] for pair in ours]), median([pair[index] for pair in theirs])
        beside = f"official client: {other:.0f} us"
        rows.append(row(f"one pool.chat, {what}", value / other, "x", beside, 1.0, note=f"ours: {value:.0f} us"))
    return rows


def importing() -> list[Row]:
    code = "import time; t = time.perf_counter(); import sollol; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) * 1000 for _ in range(7)]
    code = "import threading, sollol; print(threading.active_count() - 1)"
    threads = int(subprocess.check_output([sys.executable, "-c", code]))
    return [row("import sollol", median(times), "ms", "", 100), row("  threads it starts", threads, "", "", 0)]


def run() -> list[Row]:
    return [*one_call(), *importing()]
