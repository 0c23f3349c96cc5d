"""AsyncOllamaPool: the verbs of the official AsyncClient over all nodes. Lives on the loop that first uses it.

Over 400 lines because it is one class of many verbs, each with the signature that users see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from sollol.core.endpoint import DEFAULT_PORT, Endpoint
from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, TaskType
from sollol.errors import SollolError
from sollol.nodes.dialect import decode
from sollol.pool import manage
from sollol.pool.answers import Answer
from sollol.pool.base import BatchCall, PoolBase, configured_nodes
from sollol.pool.batch import (
    BatchResult,
    Delivered,
    Ended,
    Message,
    Refused,
    Wanted,
)
from sollol.pool.engine import Engine, finish, finish_stream
from sollol.pool.jobs import STREAM_AHEAD, CallJob
from sollol.pool.requests import (
    Request,
    chat_request,
    embed_request,
    generate_request,
    old_embed_request,
)
from sollol.pool.rows import rows_of
from sollol.pool.texts import as_sequence


class AsyncOllamaPool(PoolBase):
    """All nodes as one asynchronous client.

    async with AsyncOllamaPool(["gpu-box", "http://10.0.0.7:11434"]) as pool:
        answer = await pool.chat("llama3.2", [{"role": "user", "content": "Hello"}])
        async for part in await pool.chat("llama3.2", messages, stream=True): ...
    """

    _closer: AsyncGenerator[None] | None = None  # ends the engine with its event loop

    @classmethod
    async def auto_configure(
        cls, discover_all_nodes: bool = False, timeout: float = 2.0, **same: Any
    ) -> AsyncOllamaPool:
        """Find the nodes (settings first, then this machine and its networks) and make a pool of them."""
        from sollol.discovery import discover

        without = same.pop("exclude_localhost", False)
        found = await discover(timeout, without, discover_all_nodes=discover_all_nodes)
        return cls([node.endpoint for node in found], **same)

    @classmethod
    def from_settings(cls, **same: Any) -> AsyncOllamaPool:
        """The nodes of SOLLOL_NODES, the config file or OLLAMA_HOST; looks for nothing."""
        return cls(configured_nodes(), **same)

    def _running(self) -> Engine:
        if self._closed:
            raise SollolError("the pool is closed; make a new one")
        loop = asyncio.get_running_loop()
        if self._engine is not None and self._home is not loop:
            self._leave_home()
        if self._engine is None:
            self._engine, self._home = self._make_engine(), loop
            self._closer = _closing(self._engine)
            with suppress(StopIteration):
                self._closer.__anext__().send(None)  # up to its `yield`: the loop now knows it
        return self._engine

    def _leave_home(self) -> None:
        """Drop the engine of an event loop that is over. Raises SollolError if that loop still runs."""
        assert self._engine is not None
        if self._home is not None and self._home.is_running():
            raise SollolError(
                "this AsyncOllamaPool is in use on another event loop, which still runs; make a pool for each loop, "
                "or use OllamaPool, whose chat_async, generate_async and embed_async work on any loop"
            )
        self._engine.abandon()
        self._engine = self._home = None

    def _leave_process(self) -> Any:
        left = (super()._leave_process(), self._closer)
        self._closer = None
        return left

    def _engine_here(self) -> Engine | None:
        """Return the engine if its event loop can still run it."""
        return None if self._home is None or self._home.is_closed() else self._engine

    @property
    def engine(self) -> Engine:
        """Scheduler, dispatcher, transport and history: what a face that serves others builds on."""
        return self._running()

    # --- inference ---

    async def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: bool = False,
        priority: int = 5,
        *,
        mode: RoutingMode | str | None = None,
        timeout: float | None = None,
        hedge: bool | Hedger | None = None,
        task_type: TaskType | str | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> Any:
        """`/api/chat` on the node that would finish first. `node`: only on this one, or on these; `requires_gpu`: on
        none that holds the model on its CPU. A ChatResponse, or with `stream` an async iterator."""
        how = self._wish(priority, timeout, mode, hedge, task_type, node, requires_gpu)
        return await self._perform(chat_request(model, messages, stream, how, ollama))

    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 5,
        *,
        mode: RoutingMode | str | None = None,
        timeout: float | None = None,
        hedge: bool | Hedger | None = None,
        task_type: TaskType | str | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> Any:
        """`/api/generate`. A GenerateResponse, or with `stream` an async iterator of them."""
        how = self._wish(priority, timeout, mode, hedge, task_type, node, requires_gpu)
        return await self._perform(generate_request(model, prompt, stream, how, ollama))

    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        priority: int = 5,
        *,
        mode: RoutingMode | str | None = None,
        timeout: float | None = None,
        hedge: bool | Hedger | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> Any:
        """`/api/embed` as one call to one node. For many texts use `embed_batch`, which uses all nodes."""
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        return await self._perform(embed_request(model, input, how, ollama))

    async def embeddings(
        self,
        model: str,
        prompt: str,
        priority: int = 5,
        *,
        mode: RoutingMode | str | None = None,
        timeout: float | None = None,
        hedge: bool | Hedger | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> Any:
        """`/api/embeddings`, the older call: `.embedding`, one vector that is not normalised."""
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        return await self._perform(old_embed_request(model, prompt, how, ollama))

    async def _perform(self, request: Request) -> Any:
        engine = self._running()
        if request.stream:
            return self._stream(request)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(job: CallJob) -> None:
            if not waiter.done():
                waiter.set_result(None)

        job = engine.call(request, done)
        try:
            await waiter
            answer = finish(job, request)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                engine.dispatcher.cancel(job.task.id)
            self.count(False)
            raise
        self.count(True)
        return answer

    async def _stream(self, request: Request) -> AsyncIterator[Answer]:
        engine = self._running()
        lines: deque[bytes] = deque()
        news = asyncio.Event()

        def push(line: bytes) -> bool:
            lines.append(line)
            news.set()
            return len(lines) < STREAM_AHEAD

        job = engine.stream(request, lambda job: news.set(), push)
        ok = False
        try:
            while True:
                while lines:
                    line = lines.popleft()
                    yield finish_stream(job, request) if line is job.last else request.answer(decode(line))
                job.drained.set()
                if job.settled is not None and not lines:
                    break
                news.clear()
                await news.wait()
            error = job.error()
            if error is not None:
                raise error
            ok = True
        finally:
            self.count(ok)
            engine.dispatcher.cancel(job.task.id)

    # --- batches ---

    async def embed_batch(
        self,
        model: str,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        priority: int = 5,
        use_adaptive: bool = True,
        max_workers: int | None = None,
        on_error: str = "raise",
        timeout: float | None = None,
        mode: RoutingMode | str | None = None,
        hedge: bool | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> BatchResult:
        """One vector per input, in order, from all nodes at once. See BatchResult."""
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        call = self._batch_arguments(model, how, use_adaptive, max_workers, on_error, ollama)
        texts = None if isinstance(inputs, AsyncIterable) else as_sequence(inputs)
        result = BatchResult(model, len(texts) if texts is not None else 0)
        source = texts if texts is not None else inputs
        async for message in self._batch(call, source):
            if isinstance(message, Delivered):
                result._add(message)
            elif isinstance(message, Refused):
                result._refuse(message)
            elif isinstance(message, Ended):
                return result._finish(message, on_error)
        raise AssertionError("a batch ends with a message")

    async def embed_stream(
        self,
        model: str,
        inputs: Iterable[str] | AsyncIterable[str],
        *,
        priority: int = 5,
        use_adaptive: bool = True,
        max_workers: int | None = None,
        on_error: str = "raise",
        timeout: float | None = None,
        mode: RoutingMode | str | None = None,
        hedge: bool | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> AsyncIterator[tuple[int, Any]]:
        """(index, vector) as they finish, in any order, with bounded memory: inputs are read as they are needed.

        A refused item raises its error, or with `on_error="return"` stands in the vector's place.
        """
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        call = self._batch_arguments(model, how, use_adaptive, max_workers, on_error, ollama, "embed_stream")
        source = inputs if isinstance(inputs, AsyncIterable) else iter(inputs)
        async with aclosing(self._batch(call, source)) as messages:
            async for message in messages:
                for row in rows_of(message, on_error):
                    yield row

    async def _batch(
        self, call: BatchCall, inputs: Sequence[str] | Iterator[str] | Iterable[str] | AsyncIterable[str]
    ) -> AsyncGenerator[Message]:
        engine = self._running()
        messages: deque[Message] = deque()
        news = asyncio.Event()

        def post(message: Message) -> None:
            messages.append(message)
            news.set()

        job = engine.batch(call.model, call.fields, call.how, call.width, post)
        ended = False
        try:
            if isinstance(inputs, (list, tuple)):
                engine.dispatcher.feed(job.whole(inputs))
                source = None
            else:
                source = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
            fed = 0
            while True:
                while messages:
                    message = messages.popleft()
                    if isinstance(message, Wanted):
                        if source is not None:
                            fed += await engine.feed(job, source, message.items, fed)
                        continue
                    if isinstance(message, Ended):
                        ended = True
                        self.count(message.error is None)
                        yield message
                        return
                    yield message
                news.clear()
                await news.wait()
        finally:
            if not ended:
                self.count(False)
            engine.dispatcher.cancel(job.task.id)

    # --- models ---

    async def warm_model(self, model: str, *, node: str | None = None, keep_alive: float | str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`; `nodes` of the answer tells how it went on each."""
        engine = self._running()
        nodes = await manage.holders(engine.transport, self._find_node(node), model)
        body = {"model": model} if keep_alive is None else {"model": model, "keep_alive": keep_alive}
        return self._changed(await manage.load(engine.transport, nodes, body))

    async def warm_models(self, models: Sequence[str]) -> dict[str, Answer]:
        """`warm_model` for each, one after another: a node loads one at a time."""
        return {model: await self.warm_model(model) for model in models}

    def _there(self) -> list[Endpoint]:
        """The nodes to ask what they have: not those known to be down, whose answer would be waited for in vain."""
        known = self._running().scheduler.fleet.nodes
        nodes = self._find_node(None)
        return [node for node in nodes if node.key not in known or known[node.key].up is not False] or nodes

    async def list(self) -> Answer:
        """All models on the nodes' disks, each once, with `nodes`: who has it."""
        return await manage.list_models(self._running().transport, self._there())

    async def ps(self) -> Answer:
        """All models in memory, a row per node and model."""
        return await manage.running_models(self._running().transport, self._there())

    async def version(self) -> Answer:
        """The oldest version among the nodes, and each one's in `nodes`."""
        return await manage.version(self._running().transport, self._there())

    async def show(self, model: str) -> Answer:
        """What a node that has the model says of it."""
        return await manage.show(self._running().transport, self._there(), model)

    async def pull(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Pull a model to every node, or to `node`. With `stream`, progress lines that each name their node."""
        return await self._manage("/api/pull", {"model": model, **ollama}, stream, self._find_node(node))

    async def push(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Push a model from one node that has it (or from `node`)."""
        holders = await manage.holders(self._running().transport, self._find_node(node), model)
        return await self._manage("/api/push", {"model": model, **ollama}, stream, holders[:1])

    async def create(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Create a model on every node, or on `node`."""
        if "from_" in ollama:
            ollama["from"] = ollama.pop("from_")
        return await self._manage("/api/create", {"model": model, **ollama}, stream, self._find_node(node))

    async def copy(self, source: str, destination: str) -> Answer:
        """Copy a model to another name, on every node that has it."""
        engine = self._running()
        nodes = await manage.holders(engine.transport, self._find_node(None), source)
        body = {"source": source, "destination": destination}
        return self._changed(await manage.everywhere(engine.transport, nodes, "POST", "/api/copy", body))

    async def delete(self, model: str, *, node: str | None = None) -> Answer:
        """Delete a model from every node that has it, or from `node`."""
        engine = self._running()
        nodes = await manage.holders(engine.transport, self._find_node(node), model)
        return self._changed(
            await manage.everywhere(engine.transport, nodes, "DELETE", "/api/delete", {"model": model})
        )

    async def _manage(self, path: str, body: dict[str, Any], stream: bool, nodes: Sequence[Any]) -> Any:
        engine = self._running()
        if stream:
            return manage.progress(engine.transport, nodes, path, body)
        return self._changed(await manage.complete(engine.transport, nodes, path, body))

    def _changed(self, answer: Answer) -> Answer:
        """The nodes have other models now: ask them."""
        self._running().refresh()
        return answer

    # --- nodes and the end ---

    def add_node(self, host: Any, port: int = DEFAULT_PORT, *, api_key: str | None = None) -> bool:
        """Add a node (a host, or a URL), called with a bearer token if there is an `api_key`. False if it is in the
        pool already."""
        endpoint = self._take_node(host, port, api_key)
        if endpoint is not None and (engine := self._engine_here()) is not None:
            engine.add(endpoint)
        return endpoint is not None

    def remove_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Take a node out; what runs there moves to the others. False if it was not in the pool."""
        key = self._drop_node(host, port)
        if key is not None and (engine := self._engine_here()) is not None:
            engine.remove(key)
        return key is not None

    async def wait_ready(self) -> None:
        """Wait until every node was asked once (up or not): what `nodes` says is then measured."""
        engine = self._running()
        while any(node.up is None for node in engine.scheduler.fleet.nodes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def aclose(self) -> None:
        """Cancel what runs and close every connection."""
        self._closed = True
        if self._engine is None:
            return
        if self._home is not asyncio.get_running_loop():
            self._engine.abandon()
            return
        await self._engine.aclose()
        if self._closer is not None:
            await self._closer.aclose()

    async def __aenter__(self) -> AsyncOllamaPool:
        self._running()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _closing(engine: Engine) -> AsyncGenerator[None]:
    """Close the engine when this generator is closed: by the pool, or by the end of the event loop.

    `asyncio.run` closes the asynchronous generators that its loop knows; nothing else tells of a loop's end.
    """
    try:
        yield
    finally:
        await engine.aclose()
