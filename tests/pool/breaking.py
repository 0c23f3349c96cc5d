"""Streams that are made to break: nodes whose faults follow the order in which they are asked, and what was heard."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

from sollol.core.actions import Complete, Start
from sollol.core.endpoint import Endpoint
from sollol.core.events import Cancelled, Finished, Submitted
from sollol.core.types import Status
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World
from sollol.transport.base import Call, Fault, TransportFault

MODEL = "llama3.2"
MESSAGES = [{"role": "user", "content": "the small node sends the ready model and waits for it"}]
RATE = 50.0  # tokens a second
# Characters of one to four bytes: a stream cut between bytes has to be put together again.
WORDS = (" der", " Ärger", " naïve", " 東京", " 😀", " мир", ' "so"', "\n", " a\\b", " <|x|>", " \u2028")


def talker(number: int, *, continues: bool = False, words: float = math.inf, **more: Any) -> NodeSpec:
    """A node with MODEL in memory that says RATE tokens a second."""
    about: dict[str, Any] = more.pop("model", {})
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, continues=continues, mean_words=words, words=WORDS, **about)
    given: dict[str, Any] = {"models": (model,), "loaded": (MODEL,), "latency_s": 0.001} | more
    return NodeSpec(
        host=f"10.0.0.{number}", decode_tokens_per_s=RATE, prefill_tokens_per_s=1000.0, load_bytes_per_s=1e9, **given
    )


Break = tuple[str, int]  # what happens, after how many tokens


class Sent(NamedTuple):
    """A request for a text, as a node received it."""

    node: str
    path: str
    body: dict[str, Any]


class Breaking:
    """The transport of a world in which the n-th text that is asked for suffers the n-th of `breaks`, on whichever
    node; later ones none. `chop` cuts the bytes of every stream into other pieces."""

    def __init__(self, world: World, breaks: Sequence[Break], chop: Sequence[int] = ()) -> None:
        self.world = world
        self.sent: list[Sent] = []
        self._breaks = iter(breaks)
        self._inner = world.transport()
        self._chop = chop

    async def send(self, node: Endpoint, call: Call) -> Any:
        if call.method != "POST" or call.path not in ("/api/chat", "/api/generate"):
            return await self._inner.send(node, call)
        body = msgspec.json.decode(call.body)  # type: ignore[arg-type]
        if body.get("_debug_render_only"):
            return await self._inner.send(node, call)
        self.sent.append(Sent(node.key, call.path, body))
        fault, after = next(self._breaks, ("", 0))
        target = self.world[node.key]
        if fault == "bytes":
            return _CutReply(await self._inner.send(node, call), after)
        if fault in ("cut_after", "stall_after", "late_error_after"):
            getattr(target, fault)(after)
        elif fault:  # at a moment, between two tokens
            delay_s = (after + 0.5) / RATE + 0.02
            asyncio.get_running_loop().call_later(delay_s, getattr(target, fault))
        reply = await self._inner.send(node, call)
        return _Chopped(reply, self._chop) if self._chop else reply

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Chopped:
    def __init__(self, reply: Any, sizes: Sequence[int]) -> None:
        self._reply = reply
        self._sizes = sizes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reply, name)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held, turn = b"", 0
        async for piece in self._reply:
            held += piece
            while len(held) >= (size := self._sizes[turn % len(self._sizes)]):
                yield held[:size]
                held, turn = held[size:], turn + 1
        if held:
            yield held


class _CutReply:
    """The connection ends after so many bytes of the body."""

    def __init__(self, reply: Any, after: int) -> None:
        self._reply = reply
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reply, name)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._reply:
            if len(piece) > self._left:
                if self._left:
                    yield piece[: self._left]
                await self._reply.aclose()
                raise TransportFault(Fault.CUT, "the connection was closed inside the answer")
            self._left -= len(piece)
            yield piece


class Heard:
    """What the caller of a stream got."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.last: Any = None
        self.error: Exception | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    async def listen(self, stream: AsyncIterator[Any]) -> Heard:
        try:
            async for part in stream:
                assert self.last is None, "nothing comes after the last part"
                said = part.message.content if "message" in part else part.response
                if part.done:
                    self.last = part
                if said:
                    self.parts.append(said)
        except Exception as error:
            self.error = error
        return self


class Ledger:
    """A journal's listener that keeps what a task went through."""

    def __init__(self) -> None:
        self.starts: list[Start] = []
        self.settled: list[Complete] = []
        self.finished: list[Finished] = []
        self.submitted = self.cancelled = 0

    def __call__(self, entry: Any) -> None:
        self.submitted += isinstance(entry.event, Submitted)
        self.cancelled += isinstance(entry.event, Cancelled)
        if isinstance(entry.event, Finished):
            self.finished.append(entry.event)
        self.starts += [action for action in entry.actions if isinstance(action, Start)]
        self.settled += [action for action in entry.actions if isinstance(action, Complete)]

    def check(self) -> None:
        """Every task is settled once, and none goes back to a node that failed it."""
        tasks = [settle.task for settle in self.settled]
        assert len(tasks) == len(set(tasks)) == self.submitted
        failed: set[tuple[int, str]] = set()
        ends = {event.attempt: event.outcome.status for event in self.finished}
        for start in self.starts:
            assert (start.task, start.node) not in failed, f"task {start.task} went back to {start.node}"
            if ends.get(start.attempt) not in (None, Status.OK, Status.BUSY):
                failed.add((start.task, start.node))


class Stage(NamedTuple):
    world: World
    pool: AsyncOllamaPool
    transport: Breaking
    ledger: Ledger


@asynccontextmanager
async def staged(
    specs: Sequence[NodeSpec], breaks: Sequence[Break] = (), chop: Sequence[int] = (), **more: Any
) -> AsyncIterator[Stage]:
    """A pool over nodes of which the n-th text breaks as told; its invariants are checked after every event."""
    world = World(specs)
    transport = Breaking(world, breaks, chop)
    async with AsyncOllamaPool(world.endpoints, transport=transport, seed=1, **more) as pool:
        engine, ledger = pool.engine, Ledger()
        engine.journal.subscribe(ledger)
        engine.journal.subscribe(lambda entry: engine.scheduler.invariants())
        await pool.wait_ready()
        yield Stage(world, pool, transport, ledger)
    ledger.check()


def start_of(kind: str, pool: AsyncOllamaPool, **more: Any) -> Any:
    """The coroutine that begins a stream of this kind."""
    if kind == "chat":
        return pool.chat(MODEL, more.pop("messages", MESSAGES), stream=True, **more)
    return pool.generate(MODEL, more.pop("prompt", MESSAGES[0]["content"]), stream=True, **more)


def positions(tokens: int) -> Iterator[int]:
    """Before the first byte, after each token, and between the last one and the line that ends the answer."""
    yield from range(tokens + 1)
