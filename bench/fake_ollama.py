"""Servers for trials of discovery: nodes that answer like Ollama, and things on its port that are not Ollama.

Only the three routes that discovery asks. Needs nothing but Python, so it starts fast inside a network namespace:

    python bench/fake_ollama.py 10.77.0.21:11434=ollama:red 10.77.0.99:11434=html

Kinds: `ollama:SEED` (models and times follow from the seed; without a seed no models), `running:SEED` (the same, with
a model loaded until a time of its own for each process), `shared:SEED` (does not answer /api/ps), and those that are
no node: `html`, `silent`, `garbage`, `endless`, `gateway`, `version-only`, `closing`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from typing import Any

VERSION = "0.33.0"


def tags(seed: str) -> dict[str, Any]:
    """What /api/tags says on a node with this seed."""
    digest = hashlib.sha256(seed.encode()).hexdigest()
    nanoseconds = f"{int(digest[:8], 16) % 1_000_000_000:09d}"
    model = {"name": "llama3.2:latest", "model": "llama3.2:latest", "size": 2_000_000_000}
    model |= {"digest": "a" * 64, "modified_at": f"2026-11-23T22:09:22.{nanoseconds}Z"}
    return {"models": [model] if seed else []}


def ps(kind: str) -> dict[str, Any]:
    if kind != "running":
        return {"models": []}
    until = f"2026-11-23T22:13:18.{os.getpid():09d}Z"
    return {"models": [{"name": "llama3.2:latest", "size": 1, "size_vram": 1, "expires_at": until}]}


def respond(kind: str, seed: str, path: str) -> bytes:
    """The whole reply, head and body."""
    if kind == "garbage":
        return b"\x00\xff SSH-2.0-not-http\r\n\r\n" * 10
    if kind == "endless":
        return b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"version": "'
    body: Any = None
    if path == "/api/version":
        body = {"version": VERSION}
    elif path == "/api/tags" and kind != "version-only":
        body = tags(seed)
    elif path == "/api/ps" and kind != "shared":
        body = ps(kind)
    extra = "x-sollol-node: elsewhere\r\n" if kind == "gateway" else ""
    if kind == "html":
        return head("200 OK", "text/html", 15) + b"<html>hi</html>"
    if body is None:
        return head("404 Not Found", "text/plain", 0)
    text = json.dumps(body).encode()
    return head("200 OK", "application/json; charset=utf-8", len(text), extra) + text


def head(status: str, kind: str, length: int, extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{extra}Content-Length: {length}\r\n\r\n".encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, seed: str) -> None:
    try:
        if kind == "closing":
            return
        while request := await reader.readuntil(b"\r\n\r\n"):
            if kind == "silent":
                await asyncio.sleep(60)
            writer.write(respond(kind, seed, request.split(b" ", 2)[1].decode()))
            await writer.drain()
            while kind == "endless":
                writer.write(b"0" * 65536)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def start(spec: str) -> asyncio.Server:
    """`host:port=kind[:seed]`; host may be an IPv6 literal in brackets."""
    address, _, what = spec.partition("=")
    host, _, port = address.rpartition(":")
    kind, _, seed = what.partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer, kind, seed)

    return await asyncio.start_server(serve, host.strip("[]"), int(port), backlog=512)


async def main(specs: list[str]) -> None:
    servers = [await start(spec) for spec in specs]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
