"""Probe a node: its models on disk (`/api/tags`), in memory (`/api/ps`), and its version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Final

import msgspec

from sollol.backends.model_lists import valid_rows
from sollol.backends.ollama import decode
from sollol.backends.refusals import error_text
from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, NodeFacts, canonical_model
from sollol.transport.base import Call, Fault, Timeouts, Transport, TransportFault

# A healthy node answers these in milliseconds, also under load: they need no model.
PROBE_TIMEOUTS = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.5)
# Lists may take longer: many models on a slow disk, or a lock that a load holds. They do not decide whether the node
# is up.
LIST_TIMEOUTS = Timeouts(connect_s=1.5, first_byte_s=60.0, idle_s=60.0)
LIST_MOST = 8 * 2**20  # bytes of a list: some 20,000 models
VERSION_MOST = 100  # characters
PROBE_ALL_S = 65.0  # total time of the probes of all nodes for a person who waits
LISTS_WAIT_S = 1.0  # wait for the lists before the version is requested to check that the node is up
TAGS, PS = "/api/tags", "/api/ps"


GATEWAY_HEADER: Final = "x-sollol-gateway"  # header of all gateways


class ProbeFailed(Exception):
    """A probe failed. `certain`: no Ollama is there; otherwise the node was only silent."""

    def __init__(self, why: str, certain: bool) -> None:
        self.certain = certain
        super().__init__(why)


async def probe(transport: Transport, endpoint: Endpoint, version: str = "") -> NodeFacts:
    """Return all facts of a node. `version`: its known version, which is not requested again.

    Raises:
        ProbeFailed: The node did not answer, or it is no Ollama.
    """
    async with aclosing(probes(transport, endpoint, version)) as found:
        async for facts in found:
            if not facts.late:
                return facts
    raise ProbeFailed(f"{endpoint.url} did not send the lists of its models in time", certain=False)


async def probe_all(
    transport: Transport, endpoints: Iterable[Endpoint], total_s: float = PROBE_ALL_S
) -> dict[Endpoint, NodeFacts | ProbeFailed]:
    """Probe all nodes at once; return the facts or the failure of each, after at most `total_s` seconds."""
    chosen = list(endpoints)

    async def one(endpoint: Endpoint) -> NodeFacts | ProbeFailed:
        try:
            async with asyncio.timeout(total_s):
                return await probe(transport, endpoint)
        except ProbeFailed as failed:
            return failed
        except TransportFault as fault:
            return ProbeFailed(str(fault), certain=False)
        except TimeoutError:
            return ProbeFailed(f"{endpoint.url} did not send its lists in {total_s:g} s", certain=False)

    return dict(zip(chosen, await asyncio.gather(*map(one, chosen)), strict=True))


async def probes(
    transport: Transport, endpoint: Endpoint, version: str = "", known: bool = False
) -> AsyncGenerator[NodeFacts, None]:
    """Yield the facts of a node.

    If its lists are slow and it answers `/api/version`, the first facts lack them and name them in `late`; the complete
    facts follow. `known`: its models are known from before, so that it is usable without their list.

    Raises:
        ProbeFailed: The node did not answer, or it is no Ollama.
    """
    tasks = {path: asyncio.create_task(_get(transport, endpoint, path, LIST_TIMEOUTS)) for path in (TAGS, PS)}
    try:
        if not version:
            version = await _version(transport, endpoint)
        await asyncio.wait(tasks.values(), timeout=LISTS_WAIT_S, return_when=asyncio.FIRST_EXCEPTION)
        late = tuple(path for path, task in tasks.items() if not task.done())
        if late:
            if all(not task.done() or task.exception() is None for task in tasks.values()):
                version = await _version(transport, endpoint)
                if known or TAGS not in late:
                    yield _facts(endpoint, version, tasks, late)
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
        endless = [path for path, task in tasks.items() if known and _is_endless(task)]
        if endless:  # earlier facts stay valid
            yield _facts(endpoint, version, tasks, tuple(p for p in tasks if p in endless or not tasks[p].done()))
            return
        yield _facts(endpoint, version, tasks, ())
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


async def probe_version(transport: Transport, endpoint: Endpoint) -> NodeFacts:
    """Return the facts of a node without its lists.

    Raises:
        ProbeFailed: The node did not answer, or it is no Ollama.
    """
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
    endpoint: Endpoint, version: str, tasks: Mapping[str, asyncio.Task[bytes]], late: tuple[str, ...]
) -> NodeFacts:
    """Return the facts of the answers so far.

    Raises:
        ProbeFailed: An answer failed, or it is none of Ollama's.
    """
    try:
        for path, task in tasks.items():
            if task.done() and path not in late:
                task.result()
        rows, odd = ([], 0) if TAGS in late else valid_rows(decode(tasks[TAGS].result()))
        models = {_name(row): int(row.get("size") or 0) for row in rows}
        digests = {_name(row): str(row.get("digest") or "") for row in rows}
        held, also_odd = ([], 0) if PS in late else valid_rows(decode(tasks[PS].result()))
        loaded: dict[str, LoadedModel] = {}
        for row in held:
            _add_loaded(loaded, _name(row), _loaded(row))
    except TransportFault as fault:
        if fault.fault is Fault.LOCAL:
            raise
        raise ProbeFailed(str(fault), certain=not fault.fault.is_timeout) from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_ollama(endpoint, error) from None
    return NodeFacts(version, models, loaded, digests, late, odd + also_odd)


def _is_endless(task: asyncio.Task[bytes]) -> bool:
    """Check for a list that was given up, because it is too large or too slow."""
    error = task.exception() if task.done() and not task.cancelled() else None
    return isinstance(error, TransportFault) and (error.fault is Fault.TOO_LARGE or error.fault is Fault.IDLE_TIMEOUT)


def _not_ollama(endpoint: Endpoint, error: Exception) -> ProbeFailed:
    return ProbeFailed(f"{endpoint.url} answers, but not as Ollama does ({error})", certain=True)


async def _get(transport: Transport, endpoint: Endpoint, path: str, timeouts: Timeouts = PROBE_TIMEOUTS) -> bytes:
    total_s = (timeouts.connect_s or 0.0) + max(timeouts.first_byte_s or 0.0, timeouts.idle_s or 0.0)
    try:
        async with asyncio.timeout(total_s):  # limits also a node that sends a byte now and then
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
        # A failing server may recover in a moment; a status of 4xx means that it is no Ollama, or that we are refused.
        raise ProbeFailed(f"{endpoint.url}{path} answers {reply.status}: {why}", certain=reply.status < 500)
    return body


def _name(row: dict[str, object]) -> str:
    return canonical_model(str(row.get("model") or row["name"]))


def _add_loaded(loaded: dict[str, LoadedModel], name: str, row: LoadedModel) -> None:
    """Add a row of /api/ps; rows of the same name are one model with several runners and their sizes together."""
    before = loaded.get(name)
    if before is not None:
        size, size_vram = before.size + row.size, before.size_vram + row.size_vram
        row = row._replace(size=size, size_vram=size_vram, runners=before.runners + 1)
    loaded[name] = row


def _loaded(row: dict[str, object]) -> LoadedModel:
    def number(name: str) -> int:
        value = row.get(name)
        return value if isinstance(value, int) else 0

    return LoadedModel(number("size"), number("size_vram"), str(row.get("expires_at", "")), number("context_length"))
