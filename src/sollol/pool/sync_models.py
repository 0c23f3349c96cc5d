"""Methods of OllamaPool that manage models on the nodes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from sollol.answers import Answer
from sollol.pool.async_models import AsyncModelCalls
from sollol.pool.former_methods import FormerMethods
from sollol.pool.thread import LoopThread

P = ParamSpec("P")
T = TypeVar("T")


def on_loop(
    method: Callable[Concatenate[AsyncModelCalls, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[LoopThread, P], T]:
    """Return the same method for callers on other threads, which waits for the result."""

    @wraps(method)
    def call(pool: LoopThread, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return pool._on_loop(lambda inner: method(inner, *args, **kwargs))

    return call


class ModelCalls(FormerMethods):
    """List, load, pull, push, create, copy and delete models on the nodes, as `AsyncModelCalls` does."""

    warm_model = on_loop(AsyncModelCalls.warm_model)
    warm_models = on_loop(AsyncModelCalls.warm_models)
    unload = on_loop(AsyncModelCalls.unload)
    pin = on_loop(AsyncModelCalls.pin)
    unpin = on_loop(AsyncModelCalls.unpin)
    free_memory = on_loop(AsyncModelCalls.free_memory)
    inventory = on_loop(AsyncModelCalls.inventory)
    plan_models = on_loop(AsyncModelCalls.plan_models)
    sync_models = on_loop(AsyncModelCalls.sync_models)
    list = on_loop(AsyncModelCalls.list)
    ps = on_loop(AsyncModelCalls.ps)
    version = on_loop(AsyncModelCalls.version)
    show = on_loop(AsyncModelCalls.show)
    copy = on_loop(AsyncModelCalls.copy)
    delete = on_loop(AsyncModelCalls.delete)

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
