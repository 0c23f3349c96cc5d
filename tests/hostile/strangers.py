"""Two hundred hostile connections of one kind beside twenty good clients: how long these wait, what memory it takes.

The gateway is a process of its own over a simulated node, as are the good clients and the hostile ones (which run at
the lowest priority: they stand for other machines). For each kind a new gateway is measured with the good clients
alone, and then with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

HOSTILE: Final = 200
GOOD: Final = 20
AGAIN_S: Final = 0.2  # until a hostile client whose connection was closed comes again, on the mean
PAUSE_S: Final = 0.05  # between the requests of a good client
TOKEN: Final = "sk-sollol-of-a-measurement-that-is-long"
KEY: Final = f"Authorization: Bearer {TOKEN}\r\n".encode()
NODE: Final = {
    "models": [{"name": "llama3.2", "size_bytes": 2_000_000_000}],
    "loaded": ["llama3.2"],
    "latency_s": 0.03,
}
ASKED: Final = b'{"model":"llama3.2","prompt":"Say hello.","stream":false,"options":{"num_predict":4}}'


def head(path: str, *lines: bytes, host: bytes = b"127.0.0.1") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (path.encode(), host, b"".join(lines))


LARGE: Final = head("/api/chat", b"Content-Length: 95000000\r\n")
CHUNKS: Final = b"Transfer-Encoding: chunked\r\n"
GETS: Final = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 3_000


class Kind(NamedTuple):
    """What hostile clients send: `first`, and then `more` again and again, every `every_s`."""

    first: bytes
    more: bytes = b""
    every_s: float = 0.0
    keys: bool = True  # the gateway asks for them


def values(key: bytes) -> bytes:
    body = b'{"model":"llama3.2","messages":[%b{}]}' % (b"{}," * 3_300_000)
    return head("/api/chat", key, b"Content-Length: %d\r\n" % len(body)) + body


KINDS: Final[dict[str, Callable[[], Kind]]] = {
    "95 MB, no key": lambda: Kind(LARGE, b"a" * 65_536),
    "95 MB, no keys asked": lambda: Kind(LARGE + b'{"model":"llama3.2","x":"', b"a" * 65_536, keys=False),
    "95 MB with a key": lambda: Kind(LARGE.replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n"), b"a" * 65_536),
    "chunks of 2 bytes, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS), b"2\r\naa\r\n" * 9_000),
    "endless trailers, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS) + b"0\r\n", b"X: y\r\n" * 10_000),
    "endless extensions, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS) + b"1;", b"y" * 65_536),
    "a byte a second, a key": lambda: Kind(LARGE.replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n"), b"a", 1.0),
    "a byte a second of a head": lambda: Kind(b"POST /api/chat HTTP/1.1\r\nX: ", b"a", 1.0),
    "silence": lambda: Kind(b""),
    "100-continue, a foreign host": lambda: Kind(
        head("/api/chat", b"Expect: 100-continue\r\nContent-Length: 1000000\r\n", host=b"evil.example")
    ),
    "10 MB of {}, no key": lambda: Kind(values(b"")),
    "10 MB of {}, a key": lambda: Kind(values(KEY)),
    "3,000 GETs at once": lambda: Kind(GETS),
}


# --- clients ---


async def _hostile(port: int, kind: Kind, until: float, seen: Counter[str]) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(max(0.1, until - time.monotonic())):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    sending = asyncio.ensure_future(_send(writer, kind))
                    while data := await reader.read(65_536):
                        if status := re.match(rb"HTTP/1\.1 (\d+)", data):
                            seen[status[1].decode()] += 1
                    sending.cancel()
                finally:
                    writer.transport.abort()
        await asyncio.sleep(random.uniform(0, 2 * AGAIN_S))


async def _send(writer: asyncio.StreamWriter, kind: Kind) -> None:
    with contextlib.suppress(OSError):
        writer.write(kind.first)
        await writer.drain()
        while kind.more:
            writer.write(kind.more)
            await writer.drain()
            await asyncio.sleep(kind.every_s)


def hostile(name: str, port: int, seconds: float, told: Any) -> None:
    """Run all hostile clients of one kind; what they were answered goes to `told`."""
    os.nice(19)
    kind, seen = KINDS[name](), Counter[str]()

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_hostile(port, kind, until, seen) for _ in range(HOSTILE)), return_exceptions=True)

    asyncio.run(run())
    told.put(dict(seen))


async def _good(port: int, until: float, took: list[float], bad: Counter[str]) -> None:
    request = head("/api/generate", KEY, b"Content-Length: %d\r\n" % len(ASKED)) + ASKED
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        began = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", answer)
        await reader.readexactly(int(length[1]) if length else 0)
        took.append(time.perf_counter() - began)
        if not answer.startswith(b"HTTP/1.1 200"):
            bad[answer[9:12].decode()] += 1
        await asyncio.sleep(PAUSE_S)
    writer.close()


def good(port: int, seconds: float, told: Any) -> None:
    """Run the good clients; their times go to `told`."""
    took: list[float] = []
    bad: Counter[str] = Counter()

    async def run() -> None:
        until = time.monotonic() + seconds
        ends = await asyncio.gather(*(_good(port, until, took, bad) for _ in range(GOOD)), return_exceptions=True)
        bad.update(type(end).__name__ for end in ends if isinstance(end, BaseException))

    asyncio.run(run())
    told.put((sorted(took), dict(bad)))


# --- the gateway ---


@contextmanager
def command(*words: str, count: int = 1, **environment: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A command of ours that prints its addresses; the process and its ports."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sollol", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    try:
        ports: list[str] = []
        while len(ports) < count:
            line = process.stdout.readline()
            assert line, f"{words} ended without an address"
            ports += re.findall(r"http://127\.0\.0\.1:(\d+)", line)
        yield process, ports
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


@contextmanager
def gateway(nodes: list[str], keys: bool) -> Iterator[tuple[int, int]]:
    """A gateway over the nodes; its process id and port."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "sollol.toml")
        config.write_text(f"[gateway]\nrequire_keys = {'true' if keys else 'false'}\ndrain_s = 0\n")
        listed = ",".join(f"127.0.0.1:{node}" for node in nodes)
        words = ("serve", "--config", str(config), "--port", "0", "--nodes", listed)
        with command(*words, SOLLOL_API_KEYS=f"good={TOKEN}") as (process, ports):
            yield process.pid, int(ports[0])


def resident_mb(process: int) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


class Row(NamedTuple):
    kind: str
    alone_ms: float
    beside_ms: float
    idle_mb: float
    most_mb: float
    answers: dict[str, int]
    bad: dict[str, int]  # of good clients: answers that are none, by status

    @property
    def holds(self) -> bool:
        return self.beside_ms <= 1.5 * self.alone_ms and self.most_mb - self.idle_mb <= 100 and not self.bad


def p99_ms(took: list[float]) -> float:
    return 1e3 * took[int(0.99 * (len(took) - 1))] if took else float("inf")


def measure(name: str, nodes: list[str], seconds: float) -> Row:
    """Measure the good clients alone, and then beside 200 hostile connections of this kind."""
    spawn = multiprocessing.get_context("spawn")
    with gateway(nodes, KINDS[name]().keys) as (process, port):
        times = []
        bad: dict[str, int] = {}
        answers: dict[str, int] = {}
        idle_mb = most_mb = 0.0
        for attacked in (False, True):
            told, seen = spawn.Queue(), spawn.Queue()
            clients = [spawn.Process(target=good, args=(port, seconds, told))]
            if attacked:
                idle_mb = most_mb = resident_mb(process)
                clients.insert(0, spawn.Process(target=hostile, args=(name, port, seconds + 2, seen)))
            for client in clients:
                client.start()
                time.sleep(1.0 if attacked else 0.0)
            while told.empty():
                most_mb = max(most_mb, resident_mb(process)) if attacked else most_mb
                time.sleep(0.02)
            took, failed = told.get()
            times.append(p99_ms(took))
            bad |= failed
            if attacked:
                answers = seen.get()
            for client in clients:
                client.join()
    return Row(name, times[0], times[1], idle_mb, most_mb, answers, bad)


def run(seconds: float, kinds: list[str]) -> bool:
    """Measure and print each kind; whether all of them hold."""
    print(f"{HOSTILE} hostile connections beside {GOOD} good clients, {seconds:g} s each")
    print(f"{'kind':<30} {'p99 alone':>10} {'beside':>10} {'times':>6} {'idle':>8} {'most':>8} {'above':>7}  answers")
    holds = True
    specs = ["--spec", json.dumps(NODE)] * GOOD
    with command("sim", "--until-stdin-ends", *specs, count=GOOD) as (_, nodes):
        for name in kinds or list(KINDS):
            row = measure(name, nodes, seconds)
            holds = holds and row.holds
            print(
                f"{row.kind:<30} {row.alone_ms:>7.1f} ms {row.beside_ms:>7.1f} ms {row.beside_ms / row.alone_ms:>6.2f}"
                f" {row.idle_mb:>5.0f} MB {row.most_mb:>5.0f} MB {row.most_mb - row.idle_mb:>4.0f} MB"
                f"  {row.answers or ''} {row.bad or ''}{'' if row.holds else '  <- does not hold'}",
                flush=True,
            )
    return holds
