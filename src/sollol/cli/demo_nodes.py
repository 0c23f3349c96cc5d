"""Choose the nodes of the demo: named ones, this machine's own, or else four simulated processes.

Without `--discover`, only named nodes and this machine's own Ollama are probed, and no network is searched. Only
simulated nodes are killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from sollol.cli import fleet
from sollol.cli.model_choice import embedding_model
from sollol.cli.nodes import look
from sollol.cli.simulated import running, unequal
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput

SIMULATED_MODEL = "nomic-embed-text"
VICTIM = 1  # the second fastest, whose loss matters
AIM_S = 7.0  # duration without the loss, at the sum of all speeds
_ITEMS_PER_S = (16.0, 1500.0)  # the least and the most of all simulated nodes together


class Stage(NamedTuple):
    """Hold the nodes of the demo; `rates` (items/s by node) and `victim` are set for simulated nodes only."""

    endpoints: tuple[Endpoint, ...]
    model: str
    how: str
    rates: dict[str, float]
    victim: Any = None

    @property
    def simulated(self) -> bool:
        """Check whether the nodes are simulated."""
        return bool(self.rates)

    @property
    def victim_key(self) -> str:
        """Return the address of the node to kill, "" for none."""
        return self.endpoints[VICTIM].key if self.victim else ""


@contextlib.contextmanager
def stage(nodes: str | None, discover: bool, model: str | None, passages: int) -> Iterator[Stage]:
    """Yield the real nodes with an embedding model, or else simulated nodes with speeds for `passages`."""
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
    up = {state.endpoint: state.facts.models for state in await look(endpoints) if state.facts}
    if model is None:
        model = await embedding_model(up)
    usable = tuple(e for e, models in up.items() if model and canonical_model(model) in models)
    return Stage(usable, model, how, {}) if model and usable else None


@contextlib.contextmanager
def _simulated(model: str, passages: int) -> Iterator[Stage]:
    from sollol.sim import ModelSpec, NodeSpec

    least, most = _ITEMS_PER_S
    speeds = unequal(min(max(passages / AIM_S, least), most))
    known = ModelSpec(model, "embed", 274_000_000, dim=256, context_length=2048)
    with running([NodeSpec(models=(known,), embed_items_per_s=speed) for speed in speeds]) as nodes:
        rates = {endpoint.key: speed for endpoint, speed in zip(nodes, speeds, strict=True)}
        yield Stage(tuple(nodes), model, "simulated", rates, list(nodes.values())[VICTIM])
