"""Choose the model of a command where none is named, by the nodes' lists and capabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sollol.core.endpoint import Endpoint
from sollol.transport.base import Call, TransportFault

EMBED, CHAT = "embedding", "completion"  # Ollama's names of these abilities
_ASKED_MODELS = 50

Disks = Mapping[Endpoint, Mapping[str, int]]  # by node that answers: its models and their bytes


async def embedding_model(disks: Disks) -> str | None:
    """Return the embedding model that most nodes have, by name among equals."""
    holders = _holders(disks)
    return await _first(holders, EMBED, lambda name: (-len(holders[name]), name))


async def chat_model(disks: Disks) -> str | None:
    """Return the smallest chat model that several nodes have, or else the smallest of all."""
    holders = _holders(disks)
    return await _first(holders, CHAT, lambda name: (len(holders[name]) < 2, disks[holders[name][0]][name], name))


def _holders(disks: Disks) -> dict[str, list[Endpoint]]:
    found: dict[str, list[Endpoint]] = {}
    for endpoint, models in disks.items():
        for name in models:
            found.setdefault(name, []).append(endpoint)
    return found


async def _first(holders: Mapping[str, list[Endpoint]], ability: str, order: Callable[[str], Any]) -> str | None:
    for name in sorted(holders, key=order)[:_ASKED_MODELS]:
        details = await _shown(holders[name][0], name)
        # The lists of nodes contain models in the cloud, too, which do not run there.
        if ability in (details.get("capabilities") or ()) and not details.get("remote_host"):
            return name
    return None


async def abilities(endpoint: Endpoint, model: str) -> frozenset[str]:
    """Return the capabilities of a model as its node reports them; empty if it does not."""
    return frozenset((await _shown(endpoint, model)).get("capabilities") or ())


async def _shown(endpoint: Endpoint, model: str) -> dict[str, Any]:
    return await post(endpoint, "/api/show", {"model": model}) or {}


async def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Send a request to one node without a pool; return None if it does not answer or refuses."""
    from sollol.backends.ollama import decode, encode
    from sollol.transport.http import HttpTransport

    transport = HttpTransport()
    try:
        reply = await transport.send(endpoint, Call("POST", path, encode(body)))
        answer = await reply.read()
        value = decode(answer) if reply.status == 200 else None
        return value if isinstance(value, dict) else None
    except (TransportFault, ValueError):
        return None
    finally:
        await transport.aclose()
