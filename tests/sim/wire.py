"""A client that hides nothing: bytes out, status line, headers and chunks in."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What came back. `ended` is "complete" or "cut", as the transcripts say it."""

    status: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    ended: str = "complete"

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)


def request_bytes(method: str, path: str, headers: dict[str, str], body: bytes | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def ask(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    """One request on a connection of its own; `body` is JSON unless it is bytes."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request_bytes(method, path, {"Host": f"127.0.0.1:{port}"} | (headers or {}), data))
        return await asyncio.wait_for(read_answer(reader, method), 20)
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    answer = Answer()
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        answer.status = head[0]
        answer.headers = dict(line.split(": ", 1) for line in head[1:] if line)
        if method == "HEAD":
            return answer
        if answer.headers.get("Transfer-Encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                answer.chunks.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
        elif length := int(answer.headers.get("Content-Length", 0)):
            answer.chunks.append(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        answer.ended = "cut"
    return answer
