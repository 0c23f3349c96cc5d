"""Methods of AsyncOllamaPool that manage models on the nodes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal, overload

from sollol.answers import Answer
from sollol.core.endpoint import Endpoint
from sollol.models import operations
from sollol.pool.base import PoolBase
from sollol.pool.requests import encode_body
from sollol.workload.validation import check_model


class AsyncModelCalls(PoolBase):
    """List, load, pull, push, create, copy and delete models on the nodes."""

    async def warm_model(self, model: str, *, node: str | None = None, keep_alive: float | str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`; `nodes` has the results."""
        engine = self._running()
        nodes = await operations.holders(engine.transport, self._find_node(node), check_model(model))
        body = {"model": model} if keep_alive is None else {"model": model, "keep_alive": keep_alive}
        return self._changed(await operations.load(engine.transport, nodes, body))

    async def warm_models(self, models: Sequence[str]) -> dict[str, Answer]:
        """Run `warm_model` for each model in turn: a node loads one at a time."""
        return {model: await self.warm_model(model) for model in models}

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
