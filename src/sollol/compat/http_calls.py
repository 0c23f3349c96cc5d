"""Send single HTTP requests from programs without an event loop, and from coroutines."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from sollol.backends.ollama import decode, encode
from sollol.compat.background import submit, wait_for
from sollol.core.endpoint import parse_endpoint
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.transport.base import Call, Timeouts, TransportFault
from sollol.transport.http import HttpTransport

CONNECT_S = 3.0
_transports: dict[int, HttpTransport] = {}  # by process


def call(
    url: Any,
    path: str,
    body: dict[str, Any] | None = None,
    timeout_s: float = 30.0,
    headers: tuple[tuple[str, str], ...] = (),
) -> Any:
    """Send a GET, or with a body a POST, and return the decoded JSON of the answer.

    Raises:
        NoNodeAvailable: The server did not answer in time.
        ResponseError: It refused, or its answer is no JSON.
    """
    return wait_for(_call(url, path, body, timeout_s, headers))


async def call_async(
    url: Any,
    path: str,
    body: dict[str, Any] | None = None,
    timeout_s: float = 30.0,
    headers: tuple[tuple[str, str], ...] = (),
) -> Any:
    """Do the same on the running event loop."""
    return await asyncio.wrap_future(submit(_call(url, path, body, timeout_s, headers)))


async def _call(
    url: Any, path: str, body: dict[str, Any] | None, timeout_s: float, headers: tuple[tuple[str, str], ...]
) -> Any:
    transport = _transports.get(os.getpid())
    if transport is None:
        transport = _transports[os.getpid()] = HttpTransport()
    node = parse_endpoint(url)
    timeouts = Timeouts(min(CONNECT_S, timeout_s), timeout_s, timeout_s)
    request = Call(
        "GET" if body is None else "POST",
        path,
        b"" if body is None else encode(body),
        headers=headers,
        timeouts=timeouts,
    )
    try:
        async with asyncio.timeout(timeout_s):
            reply = await transport.send(node, request)
            found = await reply.read()
    except (TransportFault, TimeoutError) as fault:
        why = str(fault) or f"no answer in {timeout_s:g} s"
        raise NoNodeAvailable(f"{node.url}{path}: {why}", [(node.key, why)]) from None
    try:
        value = decode(found) if found else None
    except ValueError:
        value = None
    if reply.status >= 400:
        error = value.get("error") if isinstance(value, dict) else None
        raise ResponseError(
            error if isinstance(error, str) else f"{node.url}{path} answered {reply.status}", reply.status
        )
    if value is None:
        raise ResponseError(f"{node.url}{path}: the answer is not JSON", 502)
    return value
