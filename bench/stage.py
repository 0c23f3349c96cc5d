"""What the benchmarks of scheduling stand on: chat nodes of one slot, a pool over them, and an ordinary balancer."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

from sollol import AsyncOllamaPool
from sollol.backends.ollama import encode
from sollol.errors import SollolError
from sollol.sim import ModelSpec, NodeSpec, SimNode, World
from sollol.transport.base import Call, TransportFault

MODEL = "llama3.2"
PROMPT_WORDS = 20


def node(number: int, decode_tokens_per_s: float, **more: Any) -> NodeSpec:
    """A node with MODEL in memory that reads twenty times as fast as it writes, a millisecond away."""
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, mean_words=math.inf)
    given: dict[str, Any] = {
        "models": (model,),
        "loaded": (MODEL,),
        "latency_s": 0.001,
        "load_bytes_per_s": 1e9,
        "prefill_tokens_per_s": 20 * decode_tokens_per_s,
    }
    return NodeSpec(host=f"10.0.0.{number}", decode_tokens_per_s=decode_tokens_per_s, **{**given, **more})


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"[{number}] " + "word " * PROMPT_WORDS}]


@asynccontextmanager
async def pool_over(world: World, seed: int = 1) -> AsyncIterator[AsyncOllamaPool]:
    async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=seed) as pool:
        yield pool


class LeastConnections:
    """What stands in front of Ollama today: the node with the fewest requests in flight, a draw among equals.

    It assigns at once, knows nothing of health, and tries nothing again."""

    def __init__(self, world: World, seed: int = 1) -> None:
        self._transport = world.transport()
        self._inflight = dict.fromkeys(world.endpoints, 0)
        self._rng = random.Random(seed)

    async def chat(self, model: str, messages: list[dict[str, str]], **ollama: Any) -> bytes:
        least = min(self._inflight.values())
        chosen = self._rng.choice([endpoint for endpoint, count in self._inflight.items() if count == least])
        self._inflight[chosen] += 1
        body = encode({"model": model, "messages": messages, "stream": False, **ollama})
        try:
            reply = await self._transport.send(chosen, Call("POST", "/api/chat", body))
            answer = await reply.read()
        finally:
            self._inflight[chosen] -= 1
        if reply.status != 200:
            raise RuntimeError(f"status {reply.status}")
        return answer


async def some_at_a_time(calls: Iterable[Coroutine[Any, Any, Any]], width: int) -> int:
    """Carry out all, at most `width` at a time; how many failed."""
    turn = asyncio.Semaphore(width)

    async def failed(call: Coroutine[Any, Any, Any]) -> bool:
        async with turn:
            try:
                await call
            except (SollolError, TransportFault, RuntimeError):
                return True
            return False

    return sum(await asyncio.gather(*(failed(call) for call in calls)))


def asked(served: SimNode, route: str = "/api/chat") -> int:
    """How many requests of a route a node was sent."""
    return served.counters.requests.get(f"POST {route}", 0)
