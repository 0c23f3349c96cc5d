"""Measure the way to a node: connecting, HTTP, clock difference, first token, and the speed of the network."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple

from sollol.transport.base import Call, Timeouts, TransportFault

if TYPE_CHECKING:
    from sollol.core.endpoint import Endpoint
    from sollol.transport.base import Transport

TIMEOUTS = Timeouts(connect_s=3.0, first_byte_s=10.0, idle_s=10.0)
LINK_BYTES = 4_000_000  # sent to a node to measure the network; Ollama reads a body before it refuses it
TRIES = 5


class Link(NamedTuple):
    """Hold the measurements of the way to one node; times in seconds, None where nothing was measured.

    Attributes:
        skew_s: Clock of the node minus our own.
        upload_mb_s: Speed of sending to the node, in MB/s.
        error: The failure, "" if the node answers.
    """

    connect_s: float | None = None
    http_s: float | None = None
    skew_s: float | None = None
    upload_mb_s: float | None = None
    first_token_s: float | None = None
    error: str = ""


async def connect_s(node: Endpoint) -> float:
    """Return the seconds that a TCP connection to a node takes.

    Raises:
        OSError: There is no connection.
    """
    import asyncio

    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUTS.connect_s):
        _, writer = await asyncio.open_connection(node.host, node.port)
    took_s = time.perf_counter() - began
    writer.close()
    return took_s


async def measure_link(transport: Transport, node: Endpoint, *, upload: bool = False) -> Link:
    """Measure connecting, the fastest of some requests, and the clock; with `upload`, also the network."""
    try:
        connected_s = min([await connect_s(node) for _ in range(TRIES)])
    except (OSError, TimeoutError) as error:
        reason = (
            os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error) or "it timed out"
        )
        return Link(error=f"no connection: {reason}")
    found = Link(connect_s=connected_s)
    try:
        times = []
        for _ in range(TRIES):
            began = time.perf_counter()
            reply = await transport.send(node, Call("GET", "/api/version", timeouts=TIMEOUTS))
            await reply.read()
            times.append(time.perf_counter() - began)
        found = found._replace(http_s=min(times), skew_s=_skew_s(reply.headers.get("date")))
        if upload:
            found = found._replace(upload_mb_s=await _upload_mb_s(transport, node, min(times)))
    except TransportFault as fault:
        return found._replace(error=str(fault))
    return found


async def first_token_s(transport: Transport, node: Endpoint, model: str) -> float:
    """Return the seconds from a short request to the first part of its answer.

    Raises:
        TransportFault: The node did not answer.
        BadInput: It refused the request.
    """
    import msgspec

    from sollol.backends.refusals import error_text
    from sollol.errors import BadInput

    fields = {"model": model, "prompt": "Hi", "stream": True, "options": {"num_predict": 1}}
    call = Call("POST", "/api/generate", msgspec.json.encode(fields), timeouts=Timeouts(3.0, 300.0, 60.0), stream=True)
    began = time.perf_counter()
    reply = await transport.send(node, call)
    if reply.status != 200:
        raise BadInput(f"{node.key} refused {model}: {error_text(await reply.read())}")
    async for _ in reply:
        break
    took_s = time.perf_counter() - began
    await reply.aclose()
    return took_s


async def _upload_mb_s(transport: Transport, node: Endpoint, round_s: float) -> float | None:
    """Return the MB/s of a body that the node reads and refuses, since it names no model."""
    body = b'{"model":"","x":"' + b"a" * LINK_BYTES + b'"}'
    began = time.perf_counter()
    reply = await transport.send(node, Call("POST", "/api/show", body, timeouts=TIMEOUTS))
    await reply.read()
    took_s = time.perf_counter() - began - round_s
    return len(body) / 1e6 / took_s if took_s > 0 else None


def _skew_s(date: str | None) -> float | None:
    """Return how far the clock of a node is ahead; within a second it counts as equal."""
    if not date:
        return None
    try:
        skew_s = parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return 0.0 if abs(skew_s) <= 1.0 else skew_s
