"""A bench for the physics: nodes in simulated time, and short ways to ask them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sollol.core.endpoint import Endpoint
from sollol.sim import ModelSpec, NodeSpec, SimNode, World, run
from sollol.sim.reply import SimReply
from sollol.transport.base import Call, Timeouts

GB = 1_000_000_000
CHAT = ModelSpec("chat", size_bytes=2 * GB, mean_words=float("inf"))
OTHER = ModelSpec("other", size_bytes=2 * GB, mean_words=float("inf"))
EMBED = ModelSpec("embed", "embed", size_bytes=GB, dim=16, context_length=512)


def spec(**fields: Any) -> NodeSpec:
    """Round speeds: 10 items/s, 100 prompt tokens/s, 10 words/s, a gigabyte loaded a second."""
    given: dict[str, Any] = {
        "models": (CHAT, OTHER, EMBED),
        "embed_items_per_s": 10.0,
        "prefill_tokens_per_s": 100.0,
        "decode_tokens_per_s": 10.0,
        "load_bytes_per_s": 1e9,
    }
    return NodeSpec(**(given | fields))


def now() -> float:
    return asyncio.get_running_loop().time()


class Lab:
    """One node (or more), asked through the transport."""

    def __init__(self, *specs: NodeSpec, schedule: Sequence[Any] = ()) -> None:
        self.world = World(specs or [spec()], schedule)
        self.transport = self.world.transport()
        self.node: SimNode = next(iter(self.world.nodes.values()))

    @property
    def endpoint(self) -> Endpoint:
        return self.world.endpoints[0]

    async def open(
        self, path: str, body: Any, *, to: Endpoint | None = None, timeouts: Timeouts | None = None
    ) -> SimReply:
        """A streaming call."""
        call = Call("POST", path, json.dumps(body).encode(), stream=True, timeouts=timeouts or Timeouts())
        return await self.transport.send(to or self.endpoint, call)

    async def post(
        self, path: str, *, to: Endpoint | None = None, timeouts: Timeouts | None = None, **body: Any
    ) -> tuple[int, Any]:
        call = Call("POST", path, json.dumps(body).encode(), timeouts=timeouts or Timeouts())
        reply = await self.transport.send(to or self.endpoint, call)
        data = await reply.read()
        return reply.status, json.loads(data) if data else None

    async def get(self, path: str) -> Any:
        reply = await self.transport.send(self.endpoint, Call("GET", path))
        return json.loads(await reply.read())

    async def chat(self, words: int = 10, text: str = "hi", model: str = "chat", **more: Any) -> tuple[int, Any]:
        options = {"num_predict": words} | more.pop("options", {})
        messages = [{"role": "user", "content": text}]
        return await self.post("/api/chat", model=model, messages=messages, stream=False, options=options, **more)

    async def raw(self, words: int, text: str = "x", model: str = "chat", **more: Any) -> tuple[int, Any]:
        """A prompt of (1 + its words) tokens and no template."""
        options = {"num_predict": words} | more.pop("options", {})
        return await self.post(
            "/api/generate", model=model, prompt=text, raw=True, stream=False, options=options, **more
        )

    async def stream(self, words: int, text: str = "x", **more: Any) -> SimReply:
        body = {"model": "chat", "prompt": text, "raw": True, "options": {"num_predict": words}, **more}
        return await self.open("/api/generate", body)

    async def embed(self, *texts: str, model: str = "embed", **more: Any) -> tuple[int, Any]:
        return await self.post("/api/embed", model=model, input=list(texts), **more)

    async def loaded(self) -> list[str]:
        return [model["name"] for model in (await self.get("/api/ps"))["models"]]


def in_lab(
    story: Callable[[Lab], Awaitable[None]], *specs: NodeSpec, schedule: Sequence[Any] = (), seed: int | None = None
) -> None:
    """Run a story in simulated time."""

    async def main() -> None:
        await story(Lab(*specs, schedule=schedule))

    run(main(), seed=seed)


async def lines(reply: SimReply) -> list[Any]:
    return [json.loads(line) for line in (await reply.read()).splitlines()]


async def ends(*calls: Awaitable[Any]) -> list[float]:
    """When each of them ended."""

    async def one(call: Awaitable[Any]) -> float:
        await call
        return round(now(), 6)

    return await asyncio.gather(*(one(call) for call in calls))
