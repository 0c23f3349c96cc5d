"""Ask a node how it is: what it has on disk (`/api/tags`), in memory (`/api/ps`), and its version."""

from __future__ import annotations

import msgspec

from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, NodeFacts, canonical_model
from sollol.nodes.dialect import decode, error_text, iter_models
from sollol.nodes.transport import Call, Timeouts, Transport, TransportFault

# A healthy node answers these in milliseconds, also under load: they need no model.
PROBE_TIMEOUTS = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.5)


class ProbeFailed(Exception):
    """`certain`: something is there and is no Ollama, or nothing listens; else it was only silent."""

    def __init__(self, why: str, certain: bool) -> None:
        self.certain = certain
        super().__init__(why)


async def probe(transport: Transport, endpoint: Endpoint, version: str = "") -> NodeFacts:
    """The facts of a node. `version`: known from before, and not asked for again."""
    try:
        if not version:
            version = str(decode(await _get(transport, endpoint, "/api/version"))["version"])
        rows = list(iter_models(await _get(transport, endpoint, "/api/tags")))
        models = {_name(row): int(row.get("size") or 0) for row in rows}
        digests = {_name(row): str(row.get("digest") or "") for row in rows}
        loaded = {_name(row): _loaded(row) for row in iter_models(await _get(transport, endpoint, "/api/ps"))}
    except TransportFault as fault:
        raise ProbeFailed(str(fault), certain=not fault.fault.is_timeout) from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProbeFailed(f"{endpoint.url} answers, but not as Ollama does ({error})", certain=True) from None
    return NodeFacts(version, models, loaded, digests)


async def _get(transport: Transport, endpoint: Endpoint, path: str) -> bytes:
    reply = await transport.send(endpoint, Call("GET", path, timeouts=PROBE_TIMEOUTS))
    body = await reply.read()
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
