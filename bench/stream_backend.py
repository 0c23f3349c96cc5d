"""A node that streams numbered parts at a steady pace: `python -m bench.stream_backend PORT PORTS PARTS PAUSE_MS`.

Listens on PORTS ports from PORT on: so many nodes in one process, cheap enough to stand behind a proxy that is being
measured. /api/chat is NDJSON, /v1/chat/completions server-sent events, one part a chunk, as Ollama sends them.
A request's `num_predict` may ask for other than PARTS parts.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import httptools

from bench.proxies import MODEL, PS, TAGS

_FIXED = {b"/api/version": '{"version":"0.33.0"}', b"/api/tags": TAGS, b"/api/ps": PS}


def _line(number: int) -> bytes:
    content = {"role": "assistant", "content": f" #{number}#"}
    return (json.dumps({"model": MODEL, "created_at": "2026-11-25T19:47:11.9Z", "message": content, "done": False},
                       separators=(",", ":")) + "\n").encode()  # fmt: skip


def _event(number: int) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": f" #{number}#"}, "finish_reason": None}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(head, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Node(asyncio.Protocol):
    def __init__(self, parts: int, pause_s: float) -> None:
        self._usual, self._parts, self._pause_s = parts, parts, pause_s
        self._body = b""
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_message_complete(self) -> None:
        fixed = _FIXED.get(self._url)
        if fixed is not None or self._url in (b"/api/show", b"/api/generate"):
            body = (fixed or '{"error":"not here"}').encode()
            status = b"200 OK" if fixed else b"404 Not Found"
            head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            self._transport.write(head + body)
            return
        asked = re.search(rb'"num_predict": ?(\d+)', self._body)
        self._parts = int(asked[1]) if asked else self._usual
        self._events = self._url.startswith(b"/v1")
        kind = b"text/event-stream" if self._events else b"application/x-ndjson"
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        self._say(0)

    def _say(self, number: int) -> None:
        if number < self._parts:
            self._transport.write(_chunk(_event(number) if self._events else _line(number)))
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._say, number + 1)
            return
        if self._events:
            last = _event(0).replace(b'" #0#"', b'""').replace(b":null", b':"stop"') + b"data: [DONE]\n\n"
        else:
            last = json.dumps({"model": MODEL, "message": {"role": "assistant", "content": ""}, "done": True,
                               "done_reason": "stop", "eval_count": self._parts, "eval_duration": 10**9},
                              separators=(",", ":")).encode() + b"\n"  # fmt: skip
        self._transport.write(_chunk(last) + b"0\r\n\r\n")


async def main(port: int, ports: int, parts: int, pause_s: float) -> None:
    loop = asyncio.get_running_loop()
    for place in range(ports):
        await loop.create_server(lambda: Node(parts, pause_s), "127.0.0.1", port + place, backlog=4096)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    first, count, parts, pause_ms = map(int, sys.argv[1:5])
    uvloop.run(main(first, count, parts, pause_ms / 1000))
