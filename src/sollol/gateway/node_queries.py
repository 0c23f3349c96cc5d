"""Find the nodes that a request concerns, and read lists from all of them at once.

The scheduler has the names and sizes of models, but not the details that interfaces show, so the lists are read from
the nodes each time. Nodes that are down are left out, and so are those that do not answer in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from sollol.backends.probe import probe_all
from sollol.core.endpoint import Endpoint
from sollol.core.state.replica import Node
from sollol.core.types import NodeFacts, canonical_model
from sollol.engine.engine import Engine
from sollol.errors import NoNodeAvailable, ResponseError
from sollol.gateway.context import Context
from sollol.models import operations
from sollol.transport.base import Timeouts, TransportFault

READING: Final = Timeouts(connect_s=1.5, first_byte_s=2.5, idle_s=2.5)  # as of probes: usually milliseconds
PROBED_S: Final = 2.5  # longest wait for probes of nodes
_CHECK_S: Final = 0.01


def nodes_of(context: Context) -> list[Node]:
    """Return the scheduler's state of all nodes."""
    return list(context.engine.scheduler.view().nodes.values())


def up_nodes(context: Context) -> list[Endpoint]:
    """Return the nodes that are not down, or all if none is left, because one may be back."""
    nodes = nodes_of(context)
    return [node.endpoint for node in nodes if node.up is not False] or [node.endpoint for node in nodes]


def is_missing(engine: Engine, model: str) -> bool:
    """Check that nodes are up and none of them has the model."""
    nodes = [node for node in engine.scheduler.view().nodes.values() if node.usable]
    return bool(nodes) and not any(canonical_model(model) in node.models for node in nodes)


def is_listed(engine: Engine, model: str) -> bool:
    """Check whether a node, up or down, has the model on its list."""
    name = canonical_model(model)
    return any(name in node.models for node in engine.scheduler.view().nodes.values())


async def holders(context: Context, model: str, missing: str, *, fresh: bool = True) -> list[Endpoint]:
    """Return the nodes that have a model, by their present lists.

    Args:
        context: The gateway.
        model: The name of the model.
        missing: The message of the error where no node has it.
        fresh: If false, the lists of the last probes suffice where one has the model.

    Raises:
        ResponseError: 404: no node has it.
        NoNodeAvailable: No node answered.
    """
    name = canonical_model(model)
    nodes = nodes_of(context)
    probed = [node.endpoint for node in nodes if node.usable and name in node.models]
    if probed and not fresh:
        return probed
    answers = await read_all(context, "/api/tags")
    have = {key for key, answer in answers.items() if name in _names(answer)}
    found = [node.endpoint for node in nodes if node.key in have]
    if not found:
        raise ResponseError(missing, 404)
    return found


def _names(answer: dict[str, Any]) -> set[str]:
    return {canonical_model(str(row.get("model"))) for row in answer.get("models") or ()}


async def read_shared(context: Context, path: str) -> dict[str, dict[str, Any]]:
    """Return the answers of `read_all`; requests at the same time share them."""
    return await context.queries.run(path, lambda: read_all(context, path))


async def read_all(context: Context, path: str) -> dict[str, dict[str, Any]]:
    """Read a list from all nodes, and return the answers by node.

    Raises:
        ResponseError: All nodes refused.
        NoNodeAvailable: No node answered.
    """
    nodes = up_nodes(context)
    if not any(node.up is not False for node in nodes_of(context)):
        nodes = await _returned(context, nodes)
    answers = await operations.fetch_from_all(context.engine.transport, nodes, "GET", path, None, READING)
    if any(isinstance(answer, TransportFault) for answer in answers.values()):
        context.engine.refresh()  # without work, a node that was up is probed only once a minute
    answers = context.queries.with_last_lists(path, answers)
    try:
        return operations.require_answer(path, answers)
    except NoNodeAvailable as error:
        down = [(node.key, node.lost_why) for node in nodes_of(context) if node.key not in answers]
        raise NoNodeAvailable(f"{path}: no node answered", [*error.tried, *down]) from None


async def _returned(context: Context, nodes: list[Endpoint]) -> list[Endpoint]:
    """Return the nodes that answer as Ollama again, because another server may have an address now."""
    found = await probe_all(context.engine.transport, nodes, PROBED_S)
    return [node for node, facts in found.items() if isinstance(facts, NodeFacts)]


async def wait_until_probed(context: Context, keys: Iterable[str]) -> None:
    """Wait until the nodes have been probed since now, at most PROBED_S seconds.

    A client that has changed models can then use them at once.
    """
    engine, names = context.engine, set(keys)
    since = engine.dispatcher.now()
    changed = [node for node in nodes_of(context) if node.key in names]
    engine.refresh()
    try:
        async with asyncio.timeout(PROBED_S):
            while late := [node for node in changed if node.probing or node.asked_us < since]:
                if not all(node.probing for node in late):  # a probe from before the change has just ended
                    engine.refresh()
                await asyncio.sleep(_CHECK_S)
    except TimeoutError:
        pass  # a silent node, which the scheduler probes again
