"""Send requests on to the Ollama beside an agent, and its answers back as they arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from sollol.core.endpoint import Endpoint
from sollol.http_server.request import Request
from sollol.transport.base import Call, Timeouts, Transport

WHOLE_BYTES: Final = 8 * 1024 * 1024  # bodies up to this are read before they are sent on
BRIDGED: Final = Timeouts(connect_s=3.0, first_byte_s=None, idle_s=None)  # the caller limits its calls
DROPPED: Final = (
    "authorization", "connection", "content-length", "content-type", "cookie", "expect", "host", "keep-alive", "origin",
    "proxy-authorization", "referer", "te", "trailer", "transfer-encoding", "upgrade", "x-api-key",
)  # fmt: skip


async def send_on(transport: Transport, ollama: Endpoint, request: Request) -> None:
    """Send a request to Ollama and its answer to the client. A client that leaves ends the work there."""
    headers = tuple(
        (name.decode("latin-1"), value.decode("latin-1").strip())
        for name, value in request.headers.items()
        if name.decode("latin-1") not in DROPPED
    )
    body = await _body_of(request)
    kind = request.header(b"content-type") or "application/json"
    call = Call(request.method, request.target, body, kind, headers, stream=True, timeouts=BRIDGED)
    reply = await transport.send(ollama, call)
    try:
        length = reply.headers.get("content-length", "")
        kind = reply.headers.get("content-type", "") or "application/json"
        more = [(name, value) for name, value in reply.headers.items() if name in ("location", "allow")]
        if length.isascii() and length.isdigit():
            request.begin_sized(reply.status, kind, int(length), more)
        else:
            request.begin(reply.status, kind, more)
        if request.method != "HEAD":
            async for piece in reply:
                if not request.write(piece):
                    await request.drained()
        request.end()
    finally:
        await reply.aclose()


async def _body_of(request: Request) -> bytes | AsyncIterator[bytes]:
    if not request.uploads_body:
        return b""
    length = request.header(b"content-length")
    if not (length.isascii() and length.isdigit() and int(length) <= WHOLE_BYTES):
        return request.pieces()
    return b"".join([piece async for piece in request.pieces()])
