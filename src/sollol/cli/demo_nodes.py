"""The nodes of the demo: real ones that somebody named or that run here, else four simulated processes.

Looking for real nodes must not surprise anybody: without `--discover` only what is named and this machine's own
Ollama are asked, and no network is searched. Only simulated nodes are ever killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sollol.cli import fleet
from sollol.cli.nodes import look
from sollol.core.endpoint import Endpoint, parse_endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput
from sollol.nodes.transport import Call, TransportFault

SIMULATED_MODEL = "nomic-embed-text"
SPEEDS = (8, 4, 2, 1)
VICTIM = 1  # the second fastest: a loss that hurts
AIM_S = 7.0  # without the death, at the sum of all speeds
_ITEMS_PER_S = (16.0, 1500.0)  # the least and the most of all simulated nodes together
_ASKED_MODELS = 50


class Stage(NamedTuple):
    """Where the demo plays. `rates` (items/s by node) are known of simulated nodes only; so is `victim`."""

    endpoints: tuple[Endpoint, ...]
    model: str
    how: str
    rates: dict[str, float]
    victim: Any = None

    @property
    def simulated(self) -> bool:
        return bool(self.rates)

    @property
    def victim_key(self) -> str:
        return self.endpoints[VICTIM].key if self.victim else ""


@contextlib.contextmanager
def stage(nodes: str | None, discover: bool, model: str | None, passages: int) -> Iterator[Stage]:
    """Real nodes if there are any with an embedding model, else simulated ones, sized for so many passages."""
    found = asyncio.run(_real(*_places(nodes, discover), model))
    if found is not None:
        yield found
        return
    if nodes is not None:
        raise BadInput(f"--nodes {nodes}: none of them answers and has {model or 'an embedding model'}")
    with _simulated(model or SIMULATED_MODEL, passages) as made:
        yield made


def _places(nodes: str | None, discover: bool) -> tuple[tuple[Endpoint, ...], str]:
    if found := fleet.named(nodes):
        return found.endpoints, found.how
    if discover:
        return fleet.choose(None).endpoints, "discovery"
    return (Endpoint("127.0.0.1"),), "this machine"


async def _real(endpoints: tuple[Endpoint, ...], how: str, model: str | None) -> Stage | None:
    up = {state.endpoint: set(state.facts.models) for state in await look(endpoints) if state.facts}
    if model is None:
        model = await _embedding_model(up)
    usable = tuple(e for e, models in up.items() if model and canonical_model(model) in models)
    return Stage(usable, model, how, {}) if model and usable else None


async def _embedding_model(up: dict[Endpoint, set[str]]) -> str | None:
    """The embedding model that most nodes have; by name among equals."""
    count: dict[str, int] = {}
    where: dict[str, Endpoint] = {}
    for endpoint, models in up.items():
        for name in models:
            count[name] = count.get(name, 0) + 1
            where[name] = endpoint
    for name in sorted(count, key=lambda name: (-count[name], name))[:_ASKED_MODELS]:
        told = await post(where[name], "/api/show", {"model": name})
        if "embedding" in (told or {}).get("capabilities", ()):
            return name
    return None


async def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Ask one node directly, past the pool. None if it does not answer, or refuses."""
    from sollol.nodes.dialect import decode, encode
    from sollol.nodes.http import HttpTransport

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


@contextlib.contextmanager
def _simulated(model: str, passages: int) -> Iterator[Stage]:
    from sollol.sim import ModelSpec, NodeSpec, spawn_many

    least, most = _ITEMS_PER_S
    whole = min(max(passages / AIM_S, least), most)
    speeds = [whole * share / sum(SPEEDS) for share in SPEEDS]
    known = ModelSpec(model, "embed", 274_000_000, dim=256, context_length=2048)
    specs = [NodeSpec(models=(known,), embed_items_per_s=speed) for speed in speeds]
    with contextlib.ExitStack() as running:
        processes: Sequence[Any] = spawn_many(specs)
        for process in processes:
            running.enter_context(process)
        endpoints = tuple(parse_endpoint(process.url) for process in processes)
        rates = {endpoint.key: speed for endpoint, speed in zip(endpoints, speeds, strict=True)}
        yield Stage(endpoints, model, "simulated", rates, processes[VICTIM])
