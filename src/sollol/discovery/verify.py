"""Identify Ollama behind an open port.

Two queries over one connection, and both answers must have the right shape: `/api/version` a version, `/api/tags` a
list of models. Other servers answer one of them (Open WebUI the first, llama.cpp the second), none both. A server that
is silent, sends garbage or never stops is not a node: the size of bodies is limited, and the searcher cancels in time.

A SOLLOL gateway answers like a node but is no machine of its own. It has a header for that and is left out, because a
gateway that finds itself would send its work in circles.

The fingerprint distinguishes nodes (`identity.py`): a digest of the version and of the models with the times at which
they were written to disk. Those times have nanoseconds, so two machines that pulled the same models differ. The
fingerprint is `strong` only if there is such a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from sollol.core.endpoint import Endpoint
from sollol.transport.base import Call, Timeouts, Transport, TransportFault

MAX_BODY_BYTES = 4 * 1024 * 1024  # about 8,000 models
GATEWAY_HEADERS = "x-sollol"
_FRACTION = re.compile(r"\.0*[1-9]")
_T = TypeVar("_T")


class _Version(msgspec.Struct):
    version: str


class _Model(msgspec.Struct):
    name: str
    digest: str = ""
    modified_at: str = ""


class _Tags(msgspec.Struct):
    models: list[_Model] | None  # null in older versions, when there are none


class _Loaded(msgspec.Struct):
    name: str
    expires_at: str = ""


class _Ps(msgspec.Struct):
    models: list[_Loaded] | None


class NodeIdentity(NamedTuple):
    """A node's description of itself. `latency_s` is the time of its first answer, connecting included."""

    version: str
    models: tuple[str, ...]
    latency_s: float
    fingerprint: str
    strong: bool


async def identify(
    transport: Transport, endpoint: Endpoint, timeout_s: float, likely: Callable[[], None]
) -> NodeIdentity | None:
    """Return the identity of a node, None if it is not Ollama. `likely` is called after a right first answer."""
    clock = asyncio.get_running_loop().time
    start = clock()
    version = await _get(transport, endpoint, "/api/version", timeout_s, _Version)
    if version is None or not version.version:
        return None
    latency_s = clock() - start
    likely()
    tags = await _get(transport, endpoint, "/api/tags", timeout_s, _Tags)
    if tags is None:
        return None
    models = tags.models or []
    return NodeIdentity(
        version.version,
        tuple(model.name for model in models),
        latency_s,
        _fingerprint(version.version, models),
        any(_FRACTION.search(model.modified_at) for model in models),
    )


async def loaded(transport: Transport, endpoint: Endpoint, timeout_s: float) -> frozenset[tuple[str, str]] | None:
    """Return names and expiry times (with nanoseconds) of the loaded models; None without an answer."""
    ps = await _get(transport, endpoint, "/api/ps", timeout_s, _Ps)
    return None if ps is None else frozenset((model.name, model.expires_at) for model in ps.models or [])


def _fingerprint(version: str, models: list[_Model]) -> str:
    facts = sorted([model.name, model.digest, model.modified_at] for model in models)
    return hashlib.sha256(msgspec.json.encode([version, facts])).hexdigest()


async def _get(transport: Transport, endpoint: Endpoint, path: str, timeout_s: float, shape: type[_T]) -> _T | None:
    call = Call("GET", path, timeouts=Timeouts(timeout_s, timeout_s, timeout_s))
    try:
        reply = await transport.send(endpoint, call)
        if reply.status != 200 or any(name.startswith(GATEWAY_HEADERS) for name in reply.headers):
            await reply.aclose()
            return None
        return msgspec.json.decode(await reply.read(), type=shape)
    except (TransportFault, msgspec.DecodeError, RecursionError, UnicodeError, OverflowError):
        return None
