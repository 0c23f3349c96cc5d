"""Clients of 0.9: `SOLLOLClient` calls a gateway (`sollol serve`), `Ollama` the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sollol.answers import Answer
from sollol.compat.http_calls import call, call_async
from sollol.errors import NotSupported, SollolError
from sollol.pool.keywords import warn_once
from sollol.pool.sync import OllamaPool
from sollol.workload.validation import check_priority

LATENCIES = ("latency_ms", "success_rate", "total_requests", "available", "state")


@dataclass
class SOLLOLConfig:
    """Settings of a SOLLOLClient. `base_url`: the address of `sollol serve`; `timeout` in seconds."""

    base_url: str = "http://localhost:8000"
    timeout: float = 300
    default_model: str = "llama3.2"
    default_priority: int = 5


class SOLLOLClient:
    """A client of a gateway. A context manager; can be shared by threads."""

    def __init__(self, config: SOLLOLConfig | None = None) -> None:
        self.config = config or SOLLOLConfig()

    def chat(
        self,
        message: str,
        model: str | None = None,
        priority: int | None = None,
        system_prompt: str | None = None,
        conversation_history: Sequence[dict[str, Any]] | None = None,
    ) -> Answer:
        """Send a message after a system prompt and a conversation; return the answer of `/api/chat`.

        Raises:
            NoNodeAvailable: The gateway cannot be reached.
            ResponseError: It refused.
        """
        return Answer(call(*self._chat(message, model, priority, system_prompt, conversation_history)))

    async def chat_async(
        self,
        message: str,
        model: str | None = None,
        priority: int | None = None,
        system_prompt: str | None = None,
        conversation_history: Sequence[dict[str, Any]] | None = None,
    ) -> Answer:
        """Send `chat` on the running event loop."""
        return Answer(await call_async(*self._chat(message, model, priority, system_prompt, conversation_history)))

    def _chat(
        self,
        message: str,
        model: str | None,
        priority: int | None,
        system: str | None,
        before: Sequence[dict[str, Any]] | None,
    ) -> tuple[Any, ...]:
        first = [{"role": "system", "content": system}] if system else []
        messages = [*first, *(before or ()), {"role": "user", "content": message}]
        level = check_priority(self.config.default_priority if priority is None else priority)
        body = {"model": model or self.config.default_model, "messages": messages, "stream": False}
        headers = (("X-Sollol-Priority", str(level)),)
        return self.config.base_url, "/api/chat", body, self.config.timeout, headers

    def embed(self, text: str, model: str = "nomic-embed-text") -> list[float]:
        """Return the vector of a text."""
        vector: list[float] = self._embed([text], model)[0]
        return vector

    def batch_embed(self, documents: Sequence[str], model: str = "nomic-embed-text") -> dict[str, Any]:
        """Embed documents on all nodes; return `count`, and `embeddings` in order. It waits for them."""
        vectors = self._embed(list(documents), model)
        return {"status": "completed", "count": len(vectors), "embeddings": vectors}

    def _embed(self, texts: list[str], model: str) -> list[Any]:
        found = call(self.config.base_url, "/api/embed", {"model": model, "input": texts}, self.config.timeout)
        vectors: list[Any] = found["embeddings"]
        return vectors

    def health(self) -> dict[str, Any]:
        """Return `status` ("ok"), the version, and `hosts`: the nodes with their state."""
        return {**self._get("/sollol/health"), "hosts": self._hosts()}

    def stats(self) -> dict[str, Any]:
        """Return `hosts`, a row for each node, and the gateway's snapshot as `snapshot`."""
        return {"hosts": self._hosts(), "snapshot": self.dashboard()}

    def dashboard(self) -> dict[str, Any]:
        """Return the snapshot that the gateway's dashboard shows."""
        return self._get("/sollol/snapshot")

    def _hosts(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.dashboard()["nodes"]
        return [{"host": row["host"], "url": row["url"], **{n: row.get(n) for n in LATENCIES}} for row in rows]

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = call(self.config.base_url, path, timeout_s=min(10.0, self.config.timeout))
        return found

    def close(self) -> None:
        """Do nothing: connections are shared, and closed when they are idle."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(base_url: str = "http://localhost:8000", **kwargs: Any) -> SOLLOLClient:
    """Return a client of a gateway; further keywords are those of SOLLOLConfig."""
    return SOLLOLClient(SOLLOLConfig(base_url=base_url, **kwargs))


class Ollama:
    """A pool whose `chat` and `generate` return texts. Without nodes, these are searched for."""

    hybrid_router = None

    def __init__(
        self,
        nodes: Sequence[Any] | None = None,
        host: str | None = None,
        port: int | None = None,
        enable_distributed: bool = False,
        rpc_nodes: Sequence[Any] | None = None,
    ) -> None:
        if enable_distributed or rpc_nodes:
            warn_once("Ollama(enable_distributed=, rpc_nodes=): models over several machines are not supported yet")
        given = [*(nodes or ()), *([{"host": host, "port": port or 11434}] if host else [])]
        self.pool = OllamaPool(given) if given else OllamaPool.auto_configure()

    def chat(self, model: str, messages: Any, **kwargs: Any) -> str:
        """Return the text of an answer. `messages`: a text, or a list of messages."""
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if kwargs.get("stream"):
            raise NotSupported("Ollama.chat(stream=True): it returns a text; use OllamaPool.chat(stream=True)")
        text: str = self.pool.chat(model, given, **kwargs).message.content
        return text

    def generate(self, model: str, prompt: str, **kwargs: Any) -> str:
        """Return the text of an answer to a prompt."""
        if kwargs.get("stream"):
            raise NotSupported("Ollama.generate(stream=True): it returns a text; use OllamaPool.generate(stream=True)")
        text: str = self.pool.generate(model, prompt, **kwargs).response
        return text

    def embed(self, model: str, text: str, **kwargs: Any) -> list[float]:
        """Return the vector of a text."""
        vectors = self.pool.embed(model, text, **kwargs).embeddings
        if not vectors:
            raise SollolError(f"{model} has returned no vector")
        return vectors[0]

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics of the pool."""
        return self.pool.get_stats()

    def close(self) -> None:
        """Close the pool."""
        self.pool.close()
