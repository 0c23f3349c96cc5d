"""Methods of OllamaPool that manage models on the nodes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal, overload

from sollol.answers import Answer
from sollol.models.desired import DesiredModel, ModelPlan
from sollol.models.inventory import NodeInventory
from sollol.pool.call_types import Node
from sollol.pool.former_methods import FormerMethods


class ModelCalls(FormerMethods):
    """List, load, pull, push, create, copy and delete models on the nodes."""

    def warm_model(self, model: str, node: Node | None = None, *, keep_alive: float | str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`; `nodes` has the results."""
        return self._on_loop(lambda inner: inner.warm_model(model, node=node, keep_alive=keep_alive))

    def warm_models(self, models: Sequence[str], parallel: bool = False) -> dict[str, Answer]:
        """Run `warm_model` for each model in turn, since a node loads one at a time; with `parallel` at once."""
        return self._on_loop(lambda inner: inner.warm_models(models, parallel))

    def unload(self, model: str, *, node: str | None = None) -> Answer:
        """Unload a model from the memory of every node that holds it, or of `node`. Running calls end first.

        Raises:
            ResponseError: 404: none of these nodes holds it in memory.
        """
        return self._on_loop(lambda inner: inner.unload(model, node=node))

    def pin(self, model: str, *, node: str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`, and keep it in memory."""
        return self._on_loop(lambda inner: inner.pin(model, node=node))

    def unpin(self, model: str, *, node: str | None = None, keep_alive: float | str = "5m") -> Answer:
        """Let a model in memory go once it is unused for `keep_alive`."""
        return self._on_loop(lambda inner: inner.unpin(model, node=node, keep_alive=keep_alive))

    def free_memory(self, node: str, size_bytes: int) -> Answer:
        """Unload models of a node until so many bytes are free, the one unused for longest first.

        Models at work and pinned ones stay. Returns: `freed` (bytes), `unloaded`, `kept` (model -> reason), and
        `status`, "partial" if less was freed than needed.
        """
        return self._on_loop(lambda inner: inner.free_memory(node, size_bytes))

    def inventory(self) -> Sequence[NodeInventory]:
        """Return the models of each node: on disk, and in memory. A node that sleeps is not woken for it."""
        return self._on_loop(lambda inner: inner.inventory())

    def plan_models(self, desired: Mapping[str, DesiredModel | Mapping[str, Any]]) -> ModelPlan:
        """Return the changes after which the nodes have the desired models, without making them."""
        return self._on_loop(lambda inner: inner.plan_models(desired))

    def sync_models(self, desired: Mapping[str, DesiredModel | Mapping[str, Any]]) -> Answer:
        """Make the changes of `plan_models`, and return their outcomes and what no change can reach."""
        return self._on_loop(lambda inner: inner.sync_models(desired))

    def list(self) -> Answer:
        """Return all models on the nodes' disks, each once, with `nodes`: the nodes that have it."""
        return self._on_loop(lambda inner: inner.list())

    def ps(self) -> Answer:
        """Return all models in memory, one row per node and model."""
        return self._on_loop(lambda inner: inner.ps())

    def version(self) -> Answer:
        """Return the oldest version of the nodes, and each node's in `nodes`."""
        return self._on_loop(lambda inner: inner.version())

    def show(self, model: str) -> Answer:
        """Return the details of a model from a node that has it."""
        return self._on_loop(lambda inner: inner.show(model))

    @overload
    def pull(self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any) -> Answer: ...
    @overload
    def pull(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> Generator[Answer]: ...
    @overload
    def pull(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]: ...
    def pull(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]:
        """Pull a model to every node, or to `node`. With `stream`, yield progress lines with their node."""
        answer: Answer | Generator[Answer] = self._managed(
            stream, lambda inner: inner.pull(model, stream, node=node, **ollama)
        )
        return answer

    @overload
    def push(self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any) -> Answer: ...
    @overload
    def push(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> Generator[Answer]: ...
    @overload
    def push(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]: ...
    def push(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]:
        """Push a model from one node that has it (or from `node`)."""
        answer: Answer | Generator[Answer] = self._managed(
            stream, lambda inner: inner.push(model, stream, node=node, **ollama)
        )
        return answer

    @overload
    def create(
        self, model: str, stream: Literal[False] = False, *, node: str | None = None, **ollama: Any
    ) -> Answer: ...
    @overload
    def create(
        self, model: str, stream: Literal[True], *, node: str | None = None, **ollama: Any
    ) -> Generator[Answer]: ...
    @overload
    def create(
        self, model: str, stream: bool, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]: ...
    def create(
        self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any
    ) -> Answer | Generator[Answer]:
        """Create a model on every node, or on `node`."""
        answer: Answer | Generator[Answer] = self._managed(
            stream, lambda inner: inner.create(model, stream, node=node, **ollama)
        )
        return answer

    def copy(self, source: str, destination: str) -> Answer:
        """Copy a model to another name, on every node that has it."""
        return self._on_loop(lambda inner: inner.copy(source, destination))

    def delete(self, model: str, *, node: str | None = None) -> Answer:
        """Delete a model from every node that has it, or from `node`."""
        return self._on_loop(lambda inner: inner.delete(model, node=node))
