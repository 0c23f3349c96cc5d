"""Methods of AsyncOllamaPool that manage models on the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal, overload

import msgspec

from sollol.answers import Answer
from sollol.core.endpoint import Endpoint
from sollol.core.types import canonical_model
from sollol.errors import BadInput, ResponseError
from sollol.models import changes, operations
from sollol.models.desired import DesiredModel, ModelPlan, plan
from sollol.models.inventory import NodeInventory, StoredModel, read_inventory
from sollol.pool.base import PoolBase
from sollol.pool.call_types import Node
from sollol.pool.requests import encode_body
from sollol.workload.validation import check_count, check_model


class AsyncModelCalls(PoolBase):
    """List, load, pull, push, create, copy and delete models on the nodes."""

    async def warm_model(
        self, model: str, node: Node | None = None, *, keep_alive: float | str | None = None
    ) -> Answer:
        """Load a model on every node that has it, or on `node`; `nodes` has the results."""
        engine = self._running()
        nodes = await operations.holders(engine.transport, self._find_node(node), check_model(model))
        body = {"model": model} if keep_alive is None else {"model": model, "keep_alive": keep_alive}
        return self._changed(await operations.load(engine.transport, nodes, body))

    async def warm_models(self, models: Sequence[str], parallel: bool = False) -> dict[str, Answer]:
        """Run `warm_model` for each model in turn, since a node loads one at a time; with `parallel` at once."""
        if parallel:
            return dict(zip(models, await asyncio.gather(*map(self.warm_model, models)), strict=True))
        return {model: await self.warm_model(model) for model in models}

    async def unload(self, model: str, *, node: str | None = None) -> Answer:
        """Unload a model from the memory of every node that holds it, or of `node`. Running calls end first.

        Raises:
            ResponseError: 404: none of these nodes holds it in memory.
        """
        return await self._keep(model, node, 0)

    async def pin(self, model: str, *, node: str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`, and keep it in memory."""
        return await self.warm_model(model, node=node, keep_alive=changes.FOREVER)

    async def unpin(self, model: str, *, node: str | None = None, keep_alive: float | str = changes.USUAL) -> Answer:
        """Let a model in memory go once it is unused for `keep_alive`."""
        return await self._keep(model, node, keep_alive)

    async def _keep(self, model: str, node: str | None, keep_alive: float | str) -> Answer:
        name, engine = canonical_model(check_model(model)), self._running()
        found = await read_inventory(engine.transport, self._find_node(node))
        holding = [each.node for each in found if name in each.loaded]
        if not holding:
            where = node or "any node"
            raise ResponseError(f"{name} is not in the memory of {where}; `sollol ps` lists what is", 404)
        body = {"model": model, "keep_alive": keep_alive}
        return self._changed(await operations.load(engine.transport, holding, body))

    async def free_memory(self, node: str, size_bytes: int) -> Answer:
        """Unload models of a node until so many bytes are free, the one unused for longest first.

        Models at work and pinned ones stay. Returns: `freed` (bytes), `unloaded`, `kept` (model -> reason), and
        `status`, "partial" if less was freed than needed.
        """
        (endpoint,) = self._find_node(node)
        needed, engine = check_count("size_bytes", size_bytes), self._running()
        (found,) = await read_inventory(engine.transport, [endpoint])
        if found.why:
            raise ResponseError(f"{endpoint.key} did not send its lists: {found.why}", 502)
        state = engine.scheduler.view().nodes.get(endpoint.key)
        held = []
        for name, loaded in found.loaded.items():
            replica = state.replicas.get(name) if state else None
            last_use = state.last_use(name) if state else 0
            held.append(changes.HeldModel(name, loaded, last_use, bool(replica and replica.attempts)))
        chosen = changes.choose_unloads(held, needed)
        for name in chosen.models:
            await operations.load(engine.transport, [endpoint], {"model": name, "keep_alive": 0})
        return self._changed(
            Answer(
                status="success" if chosen.freed_bytes >= needed else "partial",
                freed=chosen.freed_bytes,
                unloaded=list(chosen.models),
                kept=dict(chosen.kept),
            )
        )

    async def inventory(self) -> Sequence[NodeInventory]:
        """Return the models of each node: on disk, and in memory. A node that sleeps is not woken for it."""
        engine = self._running()
        known = engine.scheduler.view().nodes
        asleep = {
            key: NodeInventory(
                node.endpoint,
                {name: StoredModel(size, node.digests.get(name, "")) for name, size in node.models.items()},
                why="it sleeps",
            )
            for key, node in known.items()
            if node.asleep
        }
        nodes = self._find_node(None)
        found = await read_inventory(engine.transport, [node for node in nodes if node.key not in asleep])
        by_key = {each.key: each for each in found} | asleep
        return [by_key[node.key] for node in nodes]

    async def plan_models(self, desired: Mapping[str, DesiredModel | Mapping[str, Any]]) -> ModelPlan:
        """Return the changes after which the nodes have the desired models, without making them."""
        tables = check_desired(desired)
        return plan(tables, await self.inventory())

    async def sync_models(self, desired: Mapping[str, DesiredModel | Mapping[str, Any]]) -> Answer:
        """Make the changes of `plan_models`, and return their outcomes and the wishes that no change can reach."""
        found = await self.plan_models(desired)
        nodes = {endpoint.key: endpoint for endpoint in self._find_node(None)}
        outcomes = await changes.outcomes_of(changes.carry_out(self._running().transport, nodes, found.changes))
        rows = [{**change._asdict(), "outcome": outcomes.get(change[:3], "no outcome")} for change in found.changes]
        return self._changed(Answer(changes=rows, unmet=list(found.unmet)))

    def _reachable(self) -> list[Endpoint]:
        """Return the nodes that are not known to be down, all if there is none."""
        known = self._running().scheduler.view().nodes
        nodes = self._find_node(None)
        return [node for node in nodes if node.key not in known or known[node.key].up is not False] or nodes

    async def list(self) -> Answer:
        """Return all models on the nodes' disks, each once, with `nodes`: the nodes that have it."""
        return await operations.list_models(self._running().transport, self._reachable())

    async def ps(self) -> Answer:
        """Return all models in memory, one row per node and model."""
        return await operations.running_models(self._running().transport, self._reachable())

    async def version(self) -> Answer:
        """Return the oldest version of the nodes, and each node's in `nodes`."""
        return await operations.version(self._running().transport, self._reachable())

    async def show(self, model: str) -> Answer:
        """Return the details of a model from a node that has it."""
        return await operations.show(self._running().transport, self._reachable(), check_model(model))

    @overload
    async def pull(
        self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any
    ) -> Answer: ...
    @overload
    async def pull(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> AsyncGenerator[Answer]: ...
    @overload
    async def pull(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]: ...
    async def pull(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]:
        """Pull a model to every node, or to `node`. With `stream`, yield progress lines with their node."""
        answer: Answer | AsyncGenerator[Answer] = await self._manage(
            "/api/pull", {"model": check_model(model), **ollama}, stream, self._find_node(node)
        )
        return answer

    @overload
    async def push(
        self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any
    ) -> Answer: ...
    @overload
    async def push(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> AsyncGenerator[Answer]: ...
    @overload
    async def push(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]: ...
    async def push(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]:
        """Push a model from one node that has it (or from `node`)."""
        holders = await operations.holders(self._running().transport, self._find_node(node), check_model(model))
        answer: Answer | AsyncGenerator[Answer] = await self._manage(
            "/api/push", {"model": check_model(model), **ollama}, stream, holders[:1]
        )
        return answer

    @overload
    async def create(
        self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any
    ) -> Answer: ...
    @overload
    async def create(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> AsyncGenerator[Answer]: ...
    @overload
    async def create(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]: ...
    async def create(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | AsyncGenerator[Answer]:
        """Create a model on every node, or on `node`."""
        if "from_" in ollama:
            ollama["from"] = ollama.pop("from_")
        answer: Answer | AsyncGenerator[Answer] = await self._manage(
            "/api/create", {"model": check_model(model), **ollama}, stream, self._find_node(node)
        )
        return answer

    async def copy(self, source: str, destination: str) -> Answer:
        """Copy a model to another name, on every node that has it."""
        engine = self._running()
        nodes = await operations.holders(engine.transport, self._find_node(None), check_model(source))
        body = {"source": source, "destination": check_model(destination)}
        return self._changed(await operations.call_all(engine.transport, nodes, "POST", "/api/copy", body))

    async def delete(self, model: str, *, node: str | None = None) -> Answer:
        """Delete a model from every node that has it, or from `node`."""
        engine = self._running()
        nodes = await operations.holders(engine.transport, self._find_node(node), check_model(model))
        return self._changed(
            await operations.call_all(engine.transport, nodes, "DELETE", "/api/delete", {"model": model})
        )

    async def _manage(self, path: str, body: dict[str, Any], stream: bool, nodes: Sequence[Any]) -> Any:
        encode_body(path, body)  # so that bad input is refused before anything is sent
        engine = self._running()
        if stream:
            return operations.progress(engine.transport, nodes, path, body)
        return self._changed(await operations.complete(engine.transport, nodes, path, body))

    def _changed(self, answer: Answer) -> Answer:
        """Probe the nodes, which have other models now."""
        self._running().refresh()
        return answer


def check_desired(desired: Mapping[str, DesiredModel | Mapping[str, Any]]) -> dict[str, DesiredModel]:
    """Return the tables of models with their fields checked.

    Raises:
        BadInput: A field is unknown, or its value cannot be used.
    """
    found = {}
    for name, table in desired.items():
        try:
            found[check_model(name)] = (
                table if isinstance(table, DesiredModel) else msgspec.convert(table, DesiredModel)
            )
        except msgspec.ValidationError as problem:
            raise BadInput(f"models.{name}: {table!r} cannot be used; {problem}") from None
    return found
