"""Make the models of the nodes as the tables [models] name them, in the background of `sollol serve`.

A pull moves gigabytes, so it is made only after it has been in the plan for HOLD_S seconds: a node that restarts has
its copy back by then. The other changes are made at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from sollol.answers import Answer
from sollol.core.endpoint import Endpoint
from sollol.duties import Duties
from sollol.gateway.context import Context
from sollol.gateway.node_queries import up_nodes
from sollol.models.changes import Pull, carry_out, plain_pull
from sollol.models.desired import Change, ModelPlan, plan
from sollol.models.distribution import Distribution
from sollol.models.inventory import with_rooms

EVERY_S: Final = 60.0
HOLD_S: Final = 300.0
WORDS: Final = {"pull": "pulled", "warm": "pinned", "unpin": "unpinned", "unload": "unloaded"}


def pull_of(context: Context) -> Pull:
    """Return the way in which the gateway pulls: over its registry where it has one."""
    registry, transport = context.registry, context.engine.transport
    if registry is None:
        return plain_pull(transport)

    def pull(model: str, nodes: Sequence[Endpoint]) -> AsyncGenerator[Answer, None]:
        agents = context.agents
        known = (agents.seeders(), agents.rooms()) if agents is not None else ()
        return Distribution(transport, registry, model, *known).run(nodes, up_nodes(context))

    return pull


async def plan_of(context: Context) -> ModelPlan:
    """Return the changes after which the nodes have the models of the file."""
    inventory = await context.pool.inventory()
    if context.agents is not None:
        inventory = with_rooms(inventory, context.agents.rooms())
    return plan(context.settings.models, inventory)


class ModelSync:
    """Compare the nodes with the tables, and make the changes that are due."""

    def __init__(self, context: Callable[[], Context]) -> None:
        self._context = context  # the present one: new settings replace it
        self._since: dict[Change, float] = {}  # pulls in the plan -> when they appeared
        self._failed: dict[Change, str] = {}

    def start(self, duties: Duties) -> None:
        """Compare now, and every minute from now on."""
        duties.keep("the models of the file", self.look, EVERY_S)

    async def look(self) -> None:
        """Compare once."""
        context = self._context()
        if not context.settings.models:
            return
        found = await plan_of(context)
        due = self.due(found.changes, asyncio.get_running_loop().time())
        nodes = {node.key: node.endpoint for node in context.pool.nodes}
        engine = context.engine
        async with aclosing(carry_out(engine.transport, nodes, due, pull_of(context))) as lines:
            async for line in lines:
                change = next(each for each in due if each[:3] == (line["verb"], line["model"], line["node"]))
                if "error" in line:
                    self._report(change, f"is not {WORDS[change.verb]} on {change.node}: {line['error']}")
                elif line.get("status") == "success":
                    self._report(change, f"is {WORDS[change.verb]} on {change.node}: {change.reason}")
        if due:
            engine.refresh()

    def due(self, changes: tuple[Change, ...], now_s: float) -> list[Change]:
        """Return the changes that are made now."""
        pulls = {Change(c.verb, c.model, c.node, ""): c for c in changes if c.verb == "pull"}
        self._since = {key: self._since.get(key, now_s) for key in pulls}
        return [
            change
            for change in changes
            if change.verb != "pull" or now_s - self._since[Change(*change[:3], "")] >= HOLD_S
        ]

    def _report(self, change: Change, text: str) -> None:
        """Notify the operator of an outcome; of a failure that repeats only once."""
        key = Change(*change[:3], "")
        if self._failed.get(key) != text:
            self._failed[key] = text
            self._context().engine.dispatcher.notify_operator(f"{change.model} {text}")
