"""Ask a node how it is: what it has on disk (`/api/tags`), in memory (`/api/ps`), and its version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import msgspec

from sollol.backends.ollama import decode, error_text
from sollol.backends.rows import good_rows
from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, NodeFacts, canonical_model
from sollol.transport.base import Call, Fault, Timeouts, Transport, TransportFault

# A healthy node answers these in milliseconds, also under load: they need no model.
PROBE_TIMEOUTS = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.5)
# Its lists may take longer: many models on a slow disk, or a lock that a load holds. They say what it has, not whether
# it lives.
LIST_TIMEOUTS = Timeouts(connect_s=1.5, first_byte_s=60.0, idle_s=60.0)
LIST_MOST = 8 * 2**20  # bytes of one: of some 20,000 models
VERSION_MOST = 100  # characters
PATIENCE_S = 1.0  # with the lists, before the node is asked whether it lives
TAGS, PS = "/api/tags", "/api/ps"


GATEWAY_HEADER: Final = "x-sollol-gateway"  # by which a gateway tells that it is one


class ProbeFailed(Exception):
    """`certain`: something is there and is no Ollama, or nothing listens; else it was only silent."""

    def __init__(self, why: str, certain: bool) -> None:
        self.certain = certain
        super().__init__(why)


async def probe(transport: Transport, endpoint: Endpoint, version: str = "") -> NodeFacts:
    """The facts of a node, all of them. `version`: known from before, and not asked for again. Raises ProbeFailed."""
    async with aclosing(probes(transport, endpoint, version)) as found:
        async for facts in found:
            if not facts.late:
                return facts
    raise ProbeFailed(f"{endpoint.url} is slow to say what models it has", certain=False)


async def probes(
    transport: Transport, endpoint: Endpoint, version: str = "", known: bool = False
) -> AsyncGenerator[NodeFacts, None]:
    """The facts of a node. If its lists are slow and it answers `/api/version`, first without them, `late` naming what
    is missing; then, when they come, whole. `known`: its models are known from before, so that it can be used without
    the list of them. Raises ProbeFailed."""
    asked = {path: asyncio.create_task(_get(transport, endpoint, path, LIST_TIMEOUTS)) for path in (TAGS, PS)}
    try:
        if not version:
            version = await _version(transport, endpoint)
        await asyncio.wait(asked.values(), timeout=PATIENCE_S, return_when=asyncio.FIRST_EXCEPTION)
        late = tuple(path for path, task in asked.items() if not task.done())
        if late:
            if all(not task.done() or task.exception() is None for task in asked.values()):
                version = await _version(transport, endpoint)
                if known or TAGS not in late:
                    yield _facts(endpoint, version, asked, late)
            await asyncio.wait(asked.values(), return_when=asyncio.FIRST_EXCEPTION)
        endless = [path for path, task in asked.items() if known and _is_endless(task)]
        if endless:  # what was known of it holds on
            yield _facts(endpoint, version, asked, tuple(p for p in asked if p in endless or not asked[p].done()))
            return
        yield _facts(endpoint, version, asked, ())
    finally:
        for task in asked.values():
            task.cancel()
        await asyncio.gather(*asked.values(), return_exceptions=True)


async def alive(transport: Transport, endpoint: Endpoint) -> NodeFacts:
    """That a node answers, and nothing of what it has. Raises ProbeFailed."""
    return NodeFacts(await _version(transport, endpoint), {}, {}, {}, (TAGS, PS))


async def _version(transport: Transport, endpoint: Endpoint) -> str:
    try:
        version = decode(await _get(transport, endpoint, "/api/version"))["version"]
        if not isinstance(version, str) or len(version) > VERSION_MOST:
            raise TypeError(f"version is {str(version)[:40]!r}")
        return version
    except TransportFault as fault:
        if fault.fault is Fault.LOCAL:
            raise
        raise ProbeFailed(str(fault), certain=not fault.fault.is_timeout) from None
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise _not_ollama(endpoint, error) from None


def _facts(
    endpoint: Endpoint, version: str, asked: Mapping[str, asyncio.Task[bytes]], late: tuple[str, ...]
) -> NodeFacts:
    """Of the answers that have come. Raises ProbeFailed."""
    try:
        for path, task in asked.items():
            if task.done() and path not in late:
                task.result()
        rows, odd = ([], 0) if TAGS in late else good_rows(decode(asked[TAGS].result()))
        models = {_name(row): int(row.get("size") or 0) for row in rows}
        digests = {_name(row): str(row.get("digest") or "") for row in rows}
        held, also_odd = ([], 0) if PS in late else good_rows(decode(asked[PS].result()))
        loaded = {_name(row): _loaded(row) for row in held}
    except TransportFault as fault:
        if fault.fault is Fault.LOCAL:
            raise
        raise ProbeFailed(str(fault), certain=not fault.fault.is_timeout) from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_ollama(endpoint, error) from None
    return NodeFacts(version, models, loaded, digests, late, odd + also_odd)


def _is_endless(task: asyncio.Task[bytes]) -> bool:
    """Check for a list that was given up: it is too large, or its bytes come too slowly."""
    error = task.exception() if task.done() and not task.cancelled() else None
    return isinstance(error, TransportFault) and (error.fault is Fault.TOO_LARGE or error.fault is Fault.IDLE_TIMEOUT)


def _not_ollama(endpoint: Endpoint, error: Exception) -> ProbeFailed:
    return ProbeFailed(f"{endpoint.url} answers, but not as Ollama does ({error})", certain=True)


async def _get(transport: Transport, endpoint: Endpoint, path: str, timeouts: Timeouts = PROBE_TIMEOUTS) -> bytes:
    total_s = (timeouts.connect_s or 0.0) + max(timeouts.first_byte_s or 0.0, timeouts.idle_s or 0.0)
    try:
        async with asyncio.timeout(total_s):  # however it is spread: a byte now and then is no answer
            reply = await transport.send(endpoint, Call("GET", path, timeouts=timeouts, most=LIST_MOST))
            body = await reply.read()
    except TimeoutError:
        raise TransportFault(
            Fault.IDLE_TIMEOUT, f"{endpoint.url}{path} did not come to an end within {total_s:g} s"
        ) from None
    if GATEWAY_HEADER in reply.headers and getattr(transport, "refuses_gateways", False):
        raise ProbeFailed(
            f"{endpoint.url} is a SOLLOL gateway, not a node: work sent to it could come back here in a circle; "
            "add the nodes behind it instead",
            certain=True,
        )
    if reply.status != 200:
        why = error_text(body) or "no text"
        # A server in trouble may recover in a moment; one that says 4xx is no Ollama, or does not let us in.
        raise ProbeFailed(f"{endpoint.url}{path} answers {reply.status}: {why}", certain=reply.status < 500)
    return body


def _name(row: dict[str, object]) -> str:
    return canonical_model(str(row.get("model") or row["name"]))


def _loaded(row: dict[str, object]) -> LoadedModel:
    def number(name: str) -> int:
        value = row.get(name)
        return value if isinstance(value, int) else 0

    return LoadedModel(number("size"), number("size_vram"), str(row.get("expires_at", "")), number("context_length"))
