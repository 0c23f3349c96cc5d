"""Read the models of all nodes, and make the rows of the table of `sollol models list`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sollol.cli.console import seconds
from sollol.core.endpoint import Endpoint

if TYPE_CHECKING:
    from sollol.models.inventory import NodeInventory
    from sollol.transport.base import Transport


async def look(
    transport: Transport, endpoints: Sequence[Endpoint]
) -> tuple[list[NodeInventory], dict[tuple[str, str], float]]:
    """Return the models of the nodes, and when a gateway on this machine used them last."""
    import asyncio

    from sollol.cli.attach import NoAnswer, attach
    from sollol.models.inventory import read_inventory

    async def used() -> dict[tuple[str, str], float]:
        with contextlib.suppress(NoAnswer):
            remote = await attach(transport, None, None)
            if remote is not None and remote.is_gateway:
                rows = (await remote.models())["models"]
                return {(row["model"], row["node"]): row["last_used"] for row in rows if row["last_used"]}
        return {}

    return await asyncio.gather(read_inventory(transport, endpoints), used())


def rows_of(found: Sequence[NodeInventory], used: Mapping[tuple[str, str], float]) -> list[dict[str, Any]]:
    """Return one row for each model on each node, by model and node."""
    from sollol.models.inventory import is_pinned

    digests: dict[str, set[str]] = {}
    for node in found:
        for name, stored in node.stored.items():
            digests.setdefault(name, set()).add(stored.digest)
    rows = []
    for node in found:
        for name, stored in node.stored.items():
            loaded = node.loaded.get(name)
            rows.append(
                {
                    "model": name,
                    "node": node.key,
                    **stored._asdict(),
                    "differs": len(digests[name]) > 1,
                    "processor": loaded.processor if loaded else None,
                    "gpu_share": loaded.gpu_share if loaded else None,
                    "pinned": is_pinned(loaded),
                    "last_used": used.get((name, node.key)),
                }
            )
    return sorted(rows, key=lambda row: (row["model"], row["node"]))


def memory_of(row: Mapping[str, Any]) -> str:
    """Return the place of a model in memory, as text."""
    if row["processor"] is None:
        return "-"
    return f"{row['processor']}, pinned" if row["pinned"] else str(row["processor"])


def ago(at: float | None) -> str:
    """Return the time since a moment in seconds since 1970, as text."""
    return "-" if at is None else f"{seconds(max(0.0, datetime.now(UTC).timestamp() - at))} ago"
