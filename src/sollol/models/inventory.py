"""Read which models the nodes have: on disk, in memory, and with what share on the GPU.

The lists of `/api/tags` and `/api/ps` are joined to one value a node. Ollama's API does not report the room on a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.core.types import LoadedModel, canonical_model
from sollol.models import operations
from sollol.transport.base import Transport

FOREVER_YEAR: Final = 2200  # Ollama writes "never" as a date three centuries ahead


class StoredModel(NamedTuple):
    """A model on the disk of a node. `format`: "gguf" or "safetensors", "" if unknown."""

    size: int
    digest: str = ""
    format: str = ""


class NodeInventory(NamedTuple):
    """The models of one node, by canonical name.

    Attributes:
        why: The reason why its lists are missing; "" for a node that answered. A node that sleeps has its last lists.
        free_bytes: The room on its disk, None if no agent reports it.
    """

    node: Endpoint
    stored: Mapping[str, StoredModel] = {}
    loaded: Mapping[str, LoadedModel] = {}
    why: str = ""
    free_bytes: int | None = None

    @property
    def key(self) -> str:
        """The name of the node, `host:port`."""
        return self.node.key

    @property
    def is_up(self) -> bool:
        """True if the node sent its lists."""
        return not self.why


def is_pinned(loaded: LoadedModel | None) -> bool:
    """Check that a model stays in memory until it is unloaded."""
    year = loaded.expires_at[:4] if loaded is not None else ""
    return year.isascii() and year.isdigit() and int(year) >= FOREVER_YEAR


async def read_inventory(transport: Transport, nodes: Sequence[Endpoint]) -> list[NodeInventory]:
    """Read the lists of all nodes at the same time, in the order of the nodes."""
    stored, loaded = await asyncio.gather(
        *(
            operations.fetch_from_all(transport, nodes, "GET", path, timeouts=operations.LISTING)
            for path in ("/api/tags", "/api/ps")
        )
    )
    return [_joined(node, stored[node.key], loaded[node.key]) for node in nodes]


def with_rooms(inventory: Sequence[NodeInventory], rooms: Mapping[str, int]) -> list[NodeInventory]:
    """Return the inventory with the free bytes that agents report: node -> bytes."""
    return [node._replace(free_bytes=rooms.get(node.key, node.free_bytes)) for node in inventory]


def _joined(node: Endpoint, stored: Any, loaded: Any) -> NodeInventory:
    for answer in (stored, loaded):
        if isinstance(answer, Exception):
            return NodeInventory(node, why=operations.error_message(answer))
    return NodeInventory(
        node,
        {_name(row): _stored(row) for row in stored.get("models") or ()},
        {_name(row): _loaded(row) for row in loaded.get("models") or ()},
    )


def _name(row: Mapping[str, Any]) -> str:
    return canonical_model(str(row.get("model") or row.get("name")))


def _stored(row: Mapping[str, Any]) -> StoredModel:
    form = (row.get("details") or {}).get("format")
    return StoredModel(row.get("size") or 0, row.get("digest") or "", form if isinstance(form, str) else "")


def _loaded(row: Mapping[str, Any]) -> LoadedModel:
    return LoadedModel(
        row.get("size") or 0, row.get("size_vram") or 0, row.get("expires_at") or "", row.get("context_length") or 0
    )
