"""Methods of OllamaPool that programs for older versions call, in the words of today."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self

from sollol.pool.displays import NO_CACHE
from sollol.pool.keywords import warn_once
from sollol.pool.thread import LoopThread


class FormerMethods(LoopThread):
    """Names of SOLLOL 0.9 and of its fork for Hydra."""

    chat: Any
    generate: Any
    embed_batch: Any

    @property
    def router(self) -> Self:
        """The pool, which routes its calls itself."""
        return self

    def chat_stream(self, model: str, messages: Any = None, **call: Any) -> Generator[Any]:
        """Return `chat(..., stream=True)`."""
        warn_once("pool.chat_stream(...) is pool.chat(..., stream=True) today")
        parts: Generator[Any] = self.chat(model, messages, stream=True, **call)
        return parts

    def generate_stream(self, model: str, prompt: str | None = None, **call: Any) -> Generator[Any]:
        """Return `generate(..., stream=True)`."""
        warn_once("pool.generate_stream(...) is pool.generate(..., stream=True) today")
        parts: Generator[Any] = self.generate(model, prompt, stream=True, **call)
        return parts

    def batch_embed(self, model: str, inputs: Any, **call: Any) -> Any:
        """Return `embed_batch(...)`."""
        warn_once("pool.batch_embed(...) is pool.embed_batch(...) today")
        return self.embed_batch(model, inputs, **call)

    def discover_nodes(self, timeout: float = 2.0) -> list[Any]:
        """Search the network and add the nodes that are found; return them."""
        from sollol.discovery import discover_ollama_nodes

        found = discover_ollama_nodes(timeout)
        for node in found:
            self.add_node(node.get("url", node["host"]), node["port"])
        return Awaited(found)

    def start_health_monitoring(self) -> Any:
        """Start the pool, whose probes run by themselves."""
        self._running()
        return Awaited()

    def clear_cache(self) -> None:
        """Do nothing: answers are not cached."""

    def invalidate_cache_by_model(self, model: str) -> int:
        """Return 0: answers are not cached."""
        return 0

    def get_cache_stats(self) -> dict[str, Any]:
        """Return the numbers of a cache that is off: answers are not cached, since they differ."""
        return dict(NO_CACHE)


class Awaited(list[Any]):
    """A list that can be awaited, for programs that await methods of a synchronous pool."""

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        yield from ()
        return self
