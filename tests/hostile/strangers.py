"""Measure 20 good clients alone and beside 200 hostile connections: the p99 of their answers, the gateway's memory.

The gateway is a process of its own over simulated nodes, as are the good clients and the hostile ones. The hostile
clients stand for other machines: they run at the lowest priority, and together they send no faster than a link of
1 Gbit/s. All processes share the cores of one machine, so a third condition shows what the load itself costs: the
same clients send the same bytes to a server that discards them, while the good ones call the gateway. The three
conditions take turns in several rounds, because other work on the machine comes and goes; the p99 is that of all
rounds together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

HOSTILE: Final = 200
GOOD: Final = 20
ROUND_S: Final = 3.0  # at most, of each condition, in turns
LINK_BYTES_PER_S: Final = 125_000_000  # of all hostile clients together
PIECE: Final = 65_536  # bytes sent at once
AGAIN_S: Final = 0.2  # until a hostile client whose connection was closed comes again, on the mean
LEAD_S: Final = 0.7  # of the hostile clients, before the good ones begin
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
    keys: bool = True  # the gateway requires them
    is_refused: bool = False  # by its head: the connection is closed at once


def values(key: bytes) -> bytes:
    body = b'{"model":"llama3.2","messages":[%b{}]}' % (b"{}," * 3_300_000)
    return head("/api/chat", key, b"Content-Length: %d\r\n" % len(body)) + body


KINDS: Final[dict[str, Callable[[], Kind]]] = {
    "95 MB, no key": lambda: Kind(LARGE, b"a" * PIECE, is_refused=True),
    "95 MB, no keys asked": lambda: Kind(LARGE + b'{"model":"llama3.2","x":"', b"a" * PIECE, keys=False),
    "95 MB with a key": lambda: Kind(LARGE.replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n"), b"a" * PIECE),
    "chunks of 2 bytes, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS), b"2\r\naa\r\n" * 9_000),
    "endless trailers, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS) + b"0\r\n", b"X: y\r\n" * 10_000),
    "endless extensions, a key": lambda: Kind(head("/api/chat", KEY, CHUNKS) + b"1;", b"y" * PIECE),
    "a byte a second, a key": lambda: Kind(LARGE.replace(b"\r\n\r\n", b"\r\n" + KEY + b"\r\n"), b"a", 1.0),
    "a byte a second of a head": lambda: Kind(b"POST /api/chat HTTP/1.1\r\nX: ", b"a", 1.0),
    "silence": lambda: Kind(b""),
    "100-continue, a foreign host": lambda: Kind(
        head("/api/chat", b"Expect: 100-continue\r\nContent-Length: 1000000\r\n", host=b"evil.example"),
        is_refused=True,
    ),
    "10 MB of {}, no key": lambda: Kind(values(b""), is_refused=True),
    "10 MB of {}, a key": lambda: Kind(values(KEY)),
    "3,000 GETs at once": lambda: Kind(GETS),
}


# --- clients ---


class Link:
    """Share the bytes that one link carries in a second."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def carry(self, size: int) -> None:
        """Wait until `size` bytes are on the way."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / LINK_BYTES_PER_S
        await asyncio.sleep(self._free_at - now)


async def _hostile(port: int, kind: Kind, until: float, link: Link, seen: Counter[str]) -> None:
    await asyncio.sleep(random.uniform(0, 2 * AGAIN_S))
    while time.monotonic() < until:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(max(0.1, until - time.monotonic())):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)  # what waits here is not on the link
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
                reader, writer = await asyncio.open_connection(sock=sock)
                sending = asyncio.ensure_future(_send(writer, kind, link))
                try:
                    while data := await reader.read(PIECE):
                        if status := re.match(rb"HTTP/1\.1 (\d+)", data):
                            seen[status[1].decode()] += 1
                finally:
                    sending.cancel()
                    writer.transport.abort()
        await asyncio.sleep(random.uniform(0, 2 * AGAIN_S))


async def _send(writer: asyncio.StreamWriter, kind: Kind, link: Link) -> None:
    async def send(data: bytes) -> None:
        for place in range(0, len(data), PIECE):
            piece = data[place : place + PIECE]
            await link.carry(len(piece))
            writer.write(piece)
            await writer.drain()

    with contextlib.suppress(OSError):
        await send(kind.first)
        while kind.more:
            await send(kind.more)
            await asyncio.sleep(kind.every_s)


async def _attack(port: int, kind: Kind, seconds: float) -> dict[str, int]:
    """Run all hostile clients of one kind, and return the answers by their status."""
    until, link, seen = time.monotonic() + seconds, Link(), Counter[str]()
    clients = (_hostile(port, kind, until, link, seen) for _ in range(HOSTILE))
    await asyncio.gather(*clients, return_exceptions=True)
    return dict(seen)


def hostile(name: str, orders: Any) -> None:
    """Attack a port for some seconds at each order, and send the answers back."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    kind = KINDS[name]()
    orders.send(None)
    while order := orders.recv():
        port, seconds = order
        orders.send(asyncio.run(_attack(port, kind, seconds)))


class Discarding(asyncio.BufferedProtocol):
    """Discard what comes, and close at once if this kind is refused by its head."""

    def __init__(self, is_refused: bool) -> None:
        self._is_refused = is_refused
        self._buffer = bytearray(PIECE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if self._is_refused:
            self._transport.close()


def discard(is_refused: bool, orders: Any) -> None:
    """Serve connections that cost the gateway nothing; the port goes to `orders`."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Discarding(is_refused), "127.0.0.1", 0, backlog=HOSTILE)
        orders.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def _good(port: int, until: float, took: list[float], bad: Counter[str]) -> None:
    request = head("/api/generate", KEY, b"Content-Length: %d\r\n" % len(ASKED)) + ASKED
    await asyncio.sleep(random.uniform(0, PAUSE_S))
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


async def _call(port: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Run the good clients, and return the seconds of their calls and what went wrong."""
    until = time.monotonic() + seconds
    took: list[float] = []
    bad: Counter[str] = Counter()
    ends = await asyncio.gather(*(_good(port, until, took, bad) for _ in range(GOOD)), return_exceptions=True)
    bad.update(type(end).__name__ for end in ends if isinstance(end, BaseException))
    return took, bad


def good(port: int, orders: Any) -> None:
    """Call the gateway for some seconds at each order, and send the times back."""
    orders.send(None)
    while seconds := orders.recv():
        orders.send(asyncio.run(_call(port, seconds)))


@contextmanager
def apart(target: Callable[..., None], *given: Any) -> Iterator[Any]:
    """Run a function in a process of its own; yield the end of its pipe."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=target, args=(*given, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()
        ours.close()


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


def processor_s(process: int) -> float:
    """Return the processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Row(NamedTuple):
    kind: str
    alone_ms: float
    load_ms: float  # while the same load goes to a server that discards it
    beside_ms: float
    alone_cpu: float  # of the gateway, in cores
    beside_cpu: float
    idle_mb: float
    most_mb: float
    answers: dict[str, int]
    bad: dict[str, int]  # of good clients: other answers than 200, by status

    @property
    def holds(self) -> bool:
        return self.beside_ms <= 1.5 * self.alone_ms and self.most_mb - self.idle_mb <= 100 and not self.bad


def p99_ms(took: list[float]) -> float:
    return 1e3 * sorted(took)[int(0.99 * (len(took) - 1))] if took else float("inf")


def measure(name: str, nodes: list[str], seconds: float) -> Row:
    """Measure the good clients alone, beside the load alone, and beside 200 hostile connections of this kind."""
    kind = KINDS[name]()
    took: dict[str, list[float]] = {"alone": [], "load": [], "beside": []}
    bad: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    cpu: defaultdict[str, float] = defaultdict(float)
    with (
        gateway(nodes, kind.keys) as (process, port),
        apart(good, port) as callers,
        apart(hostile, name) as attackers,
        apart(discard, kind.is_refused) as discarding,
    ):
        targets = {"load": discarding.recv(), "beside": port}
        callers.recv(), attackers.recv()
        idle_mb = most_mb = 0.0
        rounds = math.ceil(seconds / ROUND_S)
        each_s = seconds / rounds
        for condition in list(took) * rounds:
            if condition in targets:
                attackers.send((targets[condition], each_s + 1.5 * LEAD_S))
                time.sleep(LEAD_S)
            callers.send(each_s)
            used_s = processor_s(process)
            idle_mb = idle_mb or resident_mb(process)
            while not callers.poll(0.02):
                most_mb = max(most_mb, resident_mb(process))
            times, failed = callers.recv()
            cpu[condition] += (processor_s(process) - used_s) / seconds
            took[condition] += times
            bad += failed
            if condition in targets:
                seen = attackers.recv()
                answers += Counter(seen) if condition == "beside" else Counter()
    alone_ms, load_ms, beside_ms = map(p99_ms, took.values())
    used = cpu["alone"], cpu["beside"]
    return Row(name, alone_ms, load_ms, beside_ms, *used, idle_mb, most_mb, dict(answers), dict(bad))


def run(seconds: float, kinds: list[str]) -> bool:
    """Measure and print each kind; whether all of them hold."""
    print(f"{HOSTILE} hostile connections beside {GOOD} good clients, {seconds:g} s of each condition")
    columns = f"{'p99 alone':>10} {'load':>6} {'beside':>7} {'':>9} {'cpu':>6} {'cpu':>6} {'idle':>8} {'most':>8}"
    print(f"{'kind':<30} {columns} {'above':>7}")
    holds = True
    specs = ["--spec", json.dumps(NODE)] * GOOD
    with command("sim", "--until-stdin-ends", *specs, count=GOOD) as (_, nodes):
        for name in kinds or list(KINDS):
            row = measure(name, nodes, seconds)
            holds = holds and row.holds
            print(
                f"{row.kind:<30} {row.alone_ms:>7.1f} ms {row.load_ms / row.alone_ms:>6.2f}"
                f" {row.beside_ms / row.alone_ms:>7.2f} {row.beside_ms:>6.1f} ms"
                f" {100 * row.alone_cpu:>4.0f} % {100 * row.beside_cpu:>4.0f} %"
                f" {row.idle_mb:>5.0f} MB {row.most_mb:>5.0f} MB {row.most_mb - row.idle_mb:>4.0f} MB"
                f"  {row.answers or ''} {row.bad or ''}{'' if row.holds else '  <- does not hold'}",
                flush=True,
            )
    return holds
