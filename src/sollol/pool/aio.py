"""AsyncOllamaPool: the methods of the official AsyncClient over all nodes, on the loop of its first use.

Over 400 lines because each method has the signature that users see.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Literal, Unpack, overload

from sollol.answers import Answer, ChatResponse, EmbeddingsResponse, EmbedResponse, GenerateResponse
from sollol.backends.ollama import decode
from sollol.core.endpoint import DEFAULT_PORT
from sollol.engine.batch_job import (
    BatchEnded,
    ItemsRefused,
    Message,
    TextsRequested,
    VectorsDelivered,
)
from sollol.engine.engine import Engine, finish, finish_stream
from sollol.engine.inference_request import InferenceRequest
from sollol.engine.inputs import as_sequence
from sollol.engine.jobs import STREAM_AHEAD, CallJob
from sollol.errors import SollolError
from sollol.pool.async_batches import AsyncAnswerBatches
from sollol.pool.base import configured_nodes
from sollol.pool.batch_result import BatchResult
from sollol.pool.call_types import ChatKeywords, EmbedKeywords, GenerateKeywords
from sollol.pool.requests import BatchCall, batch_call, chat_request, embed_request, generate_request, old_embed_request
from sollol.pool.stream_rows import rows_of


class AsyncOllamaPool(AsyncAnswerBatches):
    """All nodes as one asynchronous client.

    async with AsyncOllamaPool(["gpu-box", "http://10.0.0.7:11434"]) as pool:
        answer = await pool.chat("llama3.2", [{"role": "user", "content": "Hello"}])
        async for part in await pool.chat("llama3.2", messages, stream=True): ...
    """

    _closer: AsyncGenerator[None] | None = None  # closes the engine at the end of its event loop

    @classmethod
    async def auto_configure(
        cls, discover_all_nodes: bool = False, timeout: float = 2.0, **same: Any
    ) -> AsyncOllamaPool:
        """Find the nodes (settings first, then this machine and its networks) and return a pool of them."""
        from sollol.discovery import discover

        without = same.pop("exclude_localhost", False)
        found = await discover(timeout, without, discover_all_nodes=discover_all_nodes)
        return cls([node.endpoint for node in found], **same)

    @classmethod
    def from_settings(cls, **same: Any) -> AsyncOllamaPool:
        """Return a pool with the nodes of SOLLOL_NODES, the config file or OLLAMA_HOST, without a search."""
        return cls(configured_nodes(), **same)

    def _running(self) -> Engine:
        if self._closed:
            raise SollolError("the pool is closed; make a new one")
        loop = asyncio.get_running_loop()
        if self._engine is not None and self._home is not loop:
            self._drop_engine()
        if self._engine is None:
            self._engine, self._home = self._make_engine(), loop
            self._closer = _closing(self._engine)
            with suppress(StopIteration):
                self._closer.__anext__().send(None)  # up to its `yield`: registers it with the loop
        return self._engine

    def _drop_engine(self) -> None:
        """Drop the engine of an event loop that has ended.

        Raises:
            SollolError: That loop still runs.
        """
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
        """Scheduler, dispatcher, transport and history, for servers on top of this pool."""
        return self._running()

    # --- inference ---

    @overload
    async def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse: ...
    @overload
    async def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> AsyncGenerator[ChatResponse]: ...
    @overload
    async def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse | AsyncGenerator[ChatResponse]: ...
    async def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse | AsyncGenerator[ChatResponse]:
        """Send a chat (`/api/chat`) to the node with the earliest predicted end.

        Fields of Ollama's API: `tools`, `think`, `format` ("json", a JSON schema or a pydantic class), `options`,
        `keep_alive`, `truncate`, `shift`, `logprobs`, `top_logprobs`.
        Keywords: `priority` 0 (last) to 10 (first), `mode` (fast, reliable, async), `timeout` in seconds, `hedge`
        (True, False or a policy), `task_type`, `node` (only this one, or one of these), `requires_gpu`.
        Returns: a ChatResponse, or with `stream` an asynchronous iterator of them.
        Raises: BadInput, NoNodeAvailable, ResponseError (the node refused the request), DeadlineExceeded, QueueFull.
        """
        options, fields = self._split(priority, call)
        answer: ChatResponse | AsyncGenerator[ChatResponse] = await self._perform(
            chat_request(model, messages, stream, options, fields)
        )
        return answer

    @overload
    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse: ...
    @overload
    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[GenerateResponse]: ...
    @overload
    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse | AsyncGenerator[GenerateResponse]: ...
    async def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse | AsyncGenerator[GenerateResponse]:
        """Send a prompt (`/api/generate`) to the node with the earliest predicted end.

        Fields of Ollama's API: those of `chat` without `tools`; `suffix`, `system`, `template`, `context`, `raw`,
        `images`, `width`, `height`, `steps`. Other keywords: see `chat`.
        Returns: a GenerateResponse, or with `stream` an asynchronous iterator of them.
        Raises: as `chat`.
        """
        options, fields = self._split(priority, call)
        answer: GenerateResponse | AsyncGenerator[GenerateResponse] = await self._perform(
            generate_request(model, prompt, stream, options, fields)
        )
        return answer

    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        priority: int = 5,
        **call: Unpack[EmbedKeywords],
    ) -> EmbedResponse:
        """Send texts (`/api/embed`) as one request to one node; `embed_batch` uses all nodes.

        Fields of Ollama's API: `options`, `keep_alive`, `truncate`, `dimensions`. Otherwise as `chat`.
        """
        options, fields = self._split(priority, call, typed=False)
        answer: EmbedResponse = await self._perform(embed_request(model, input, options, fields))
        return answer

    async def embeddings(
        self,
        model: str,
        prompt: str,
        priority: int = 5,
        **call: Unpack[EmbedKeywords],
    ) -> EmbeddingsResponse:
        """Send one text to the older `/api/embeddings`, which returns a vector without normalisation."""
        options, fields = self._split(priority, call, typed=False)
        answer: EmbeddingsResponse = await self._perform(old_embed_request(model, prompt, options, fields))
        return answer

    async def _perform(self, request: InferenceRequest) -> Any:
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

    async def _stream(self, request: InferenceRequest) -> AsyncGenerator[Answer]:
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
        max_workers: int | None = None,
        priority: int = 5,
        use_adaptive: bool = True,
        *,
        on_error: str = "raise",
        **call: Unpack[EmbedKeywords],
    ) -> BatchResult:
        """Return one vector per input, in order, from all nodes at once. See BatchResult."""
        options, fields = self._split(priority, call, typed=False)
        batch = batch_call(len(self._endpoints), model, options, use_adaptive, max_workers, on_error, fields)
        texts = None if isinstance(inputs, AsyncIterable) else as_sequence(inputs)
        result = BatchResult(model, len(texts) if texts is not None else 0)
        source = texts if texts is not None else inputs
        async for message in self._batch(batch, source):
            if isinstance(message, VectorsDelivered):
                result._add(message)
            elif isinstance(message, ItemsRefused):
                result._refuse(message)
            elif isinstance(message, BatchEnded):
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
        **call: Unpack[EmbedKeywords],
    ) -> AsyncGenerator[tuple[int, Any]]:
        """Yield (index, vector) pairs as they finish, in any order.

        Inputs are read on demand, so memory is limited. A failed item raises its error, or with `on_error="return"` the
        error takes the vector's place.
        """
        options, fields = self._split(priority, call, typed=False)
        batch = batch_call(
            len(self._endpoints), model, options, use_adaptive, max_workers, on_error, fields, "embed_stream"
        )
        source = inputs if isinstance(inputs, AsyncIterable) else iter(inputs)
        async with aclosing(self._batch(batch, source)) as messages:
            async for message in messages:
                for row in rows_of(message, on_error):
                    yield row

    async def _batch(
        self, batch: BatchCall, inputs: Sequence[str] | Iterator[str] | Iterable[str] | AsyncIterable[str]
    ) -> AsyncGenerator[Message]:
        engine = self._running()
        messages: deque[Message] = deque()
        news = asyncio.Event()

        def post(message: Message) -> None:
            messages.append(message)
            news.set()

        job = engine.batch(batch.model, batch.fields, batch.call, batch.width, post)
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
                    if isinstance(message, TextsRequested):
                        if source is not None:
                            fed += await engine.feed(job, source, message.items, fed)
                        continue
                    if isinstance(message, BatchEnded):
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

    # --- nodes and the end ---

    def add_node(self, host: Any, port: int = DEFAULT_PORT, *, api_key: str | None = None) -> bool:
        """Add a node by host or URL; return False if it is in the pool already.

        `api_key` is sent to it as a bearer token.
        """
        endpoint = self._register_node(host, port, api_key)
        if endpoint is not None and (engine := self._engine_here()) is not None:
            engine.add(endpoint)
        return endpoint is not None

    def remove_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Remove a node; its requests move to the others. Return False if it was not in the pool."""
        key = self._unregister_node(host, port)
        if key is not None and (engine := self._engine_here()) is not None:
            engine.remove(key)
        return key is not None

    async def wait_ready(self) -> None:
        """Wait for the first probe of every node, after which `nodes` has measured values."""
        engine = self._running()
        while any(node.up is None for node in engine.scheduler.view().nodes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def aclose(self) -> None:
        """Cancel all calls and close every connection."""
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
    """Close the engine when this generator is closed: by the pool, or at the end of the event loop.

    `asyncio.run` closes the asynchronous generators of its loop; there is no other hook for a loop's end.
    """
    try:
        yield
    finally:
        await engine.aclose()
