"""Load for proxies: wrk for requests a second, a plain socket for the time of one, asyncio for streams."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench.proxies import LOAD_CORE, Running, pinned


class Rate(NamedTuple):
    per_s: float
    cpu_us: float  # of the proxy, a request
    failed: int  # not 200, broken off, or late


def request_bytes(port: int, path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def wrk(proxy: Running, path: str, body: Any, *, connections: int = 64, seconds: int = 3) -> Rate:
    """As many requests as go through."""
    with tempfile.TemporaryDirectory() as home:
        script = Path(home) / "post.lua"
        script.write_text(
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            f"wrk.body = [==[{json.dumps(body)}]==]\n"
        )
        url = f"http://127.0.0.1:{proxy.port}{path}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
        before = proxy.cpu_s()
        told = subprocess.run(pinned(LOAD_CORE, command), capture_output=True, text=True, check=True).stdout
        used = proxy.cpu_s() - before
    count = re.search(r"(\d+) requests in", told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert count
    assert rate
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    lost = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    failed = (int(bad[1]) if bad else 0) + sum(int(number) for number in (lost.groups() if lost else ()))
    return Rate(float(rate[1]), used / max(1, int(count[1])) * 1e6, failed)


class Line:
    """Requests one after another on one kept connection."""

    def __init__(self, port: int, path: str, body: Any) -> None:
        self._asked = request_bytes(port, path, body)
        self._sock = socket.create_connection(("127.0.0.1", port), 10.0)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, count: int) -> list[float]:
        """The time of each, in microseconds."""
        times = []
        for _ in range(count):
            began = time.perf_counter_ns()
            self._sock.sendall(self._asked)
            _read_answer(self._sock)
            times.append((time.perf_counter_ns() - began) / 1000)
        return times

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def _read_answer(sock: socket.socket) -> None:
    came = b""
    while b"\r\n\r\n" not in came:
        came += _some(sock)
    head, _, rest = came.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    if length:
        missing = int(length[1]) - len(rest)
        while missing > 0:
            missing -= len(_some(sock))
        return
    while not rest.endswith(b"0\r\n\r\n"):
        rest += _some(sock)


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise RuntimeError("the proxy closed the connection")
    return data


class Streams(NamedTuple):
    chunks: int
    broken: int  # not whole, or not in order
    cpu_us: float  # of the proxy, a chunk
    seconds: float


def streams(proxy: Running, path: str, body: Any, count: int) -> Streams:
    """So many streams at once, each read to its end; every part carries its number."""
    before, began = proxy.cpu_s(), time.perf_counter()
    found = asyncio.run(_all_streams(proxy.port, path, body, count))
    chunks = sum(found_one for found_one in found if found_one >= 0)
    used = proxy.cpu_s() - before
    return Streams(chunks, sum(one < 0 for one in found), used / max(1, chunks) * 1e6, time.perf_counter() - began)


async def _all_streams(port: int, path: str, body: Any, count: int) -> list[int]:
    return await asyncio.gather(*(_one_stream(port, path, body) for _ in range(count)))


async def _one_stream(port: int, path: str, body: Any) -> int:
    """The number of parts, or -1 if they were not whole and in order."""
    data = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request_bytes(port, path, body))
            while not data.endswith(b"0\r\n\r\n"):
                piece = await reader.read(65536)
                if not piece:
                    return -1
                data += piece
        finally:
            writer.close()
    except OSError:
        return -1
    numbers = [int(number) for number in re.findall(rb"#(\d+)#", data)]
    whole = b'"done":true' in data or b"[DONE]" in data
    return len(numbers) if whole and numbers == list(range(len(numbers))) else -1
