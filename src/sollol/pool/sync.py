"""OllamaPool: the pool for programs without an event loop. One background thread runs one.

`pool.thread` has the calls across to that thread. Iterables are read in the caller's thread. Over 400 lines because
each method has the signature that users see.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
from typing import Any, Literal, Unpack, overload

from sollol.answers import Answer, ChatResponse, EmbeddingsResponse, EmbedResponse, GenerateResponse
from sollol.backends.ollama import decode
from sollol.engine.batch_job import BatchEnded, ItemsRefused, Message, TextsRequested, VectorsDelivered
from sollol.engine.engine import finish, finish_stream
from sollol.engine.inference_request import InferenceRequest
from sollol.engine.inputs import as_sequence, take_texts
from sollol.engine.jobs import STREAM_AHEAD, CallJob, StreamJob
from sollol.pool.base import configured_nodes
from sollol.pool.batch_result import BatchResult
from sollol.pool.call_types import ChatKeywords, EmbedKeywords, GenerateKeywords
from sollol.pool.progress import progress_bar
from sollol.pool.requests import BatchCall, batch_call, chat_request, embed_request, generate_request, old_embed_request
from sollol.pool.stream_rows import rows_of
from sollol.pool.streams import Stream
from sollol.pool.sync_batches import AnswerBatches


class OllamaPool(AnswerBatches):
    """All nodes as one client; thread-safe; a context manager.

    pool = OllamaPool.auto_configure()
    answer = pool.chat("llama3.2", [{"role": "user", "content": "Hello"}])
    vectors = pool.embed_batch("mxbai-embed-large", texts).vectors
    """

    @classmethod
    def auto_configure(cls, discover_all_nodes: bool = False, timeout: float = 2.0, **same: Any) -> OllamaPool:
        """Find the nodes (settings first, then this machine and its private networks) and return a pool of them."""
        from sollol.discovery import discover_ollama_nodes

        without = same.pop("exclude_localhost", False)
        found = discover_ollama_nodes(timeout, without, discover_all_nodes=discover_all_nodes)
        return cls(found, **same)

    @classmethod
    def from_settings(cls, **same: Any) -> OllamaPool:
        """Return a pool with the nodes of SOLLOL_NODES, the config file or OLLAMA_HOST, without a search."""
        return cls(configured_nodes(), **same)

    # --- inference ---

    @overload
    def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse: ...
    @overload
    def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> Generator[ChatResponse]: ...
    @overload
    def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse | Generator[ChatResponse]: ...
    def chat(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse | Generator[ChatResponse]:
        """Send a chat (`/api/chat`) to the node with the earliest predicted end.

        Fields of Ollama's API: `tools`, `think`, `format` ("json", a JSON schema or a pydantic class), `options`,
        `keep_alive`, `truncate`, `shift`, `logprobs`, `top_logprobs`.
        Keywords: `priority` 0 (last) to 10 (first), `mode` (fast, reliable, async), `timeout` in seconds, `hedge`
        (True, False or a policy), `task_type`, `node` (only this one, or one of these), `requires_gpu`.
        Returns: a ChatResponse, or with `stream` an iterator of them.
        Raises: BadInput, NoNodeAvailable, ResponseError (the node refused the request), DeadlineExceeded, QueueFull.
        """
        options, fields = self._split(priority, call)
        answer: ChatResponse | Generator[ChatResponse] = self._perform(
            chat_request(model, messages, stream, options, fields)
        )
        return answer

    @overload
    def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse: ...
    @overload
    def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> Generator[GenerateResponse]: ...
    @overload
    def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse | Generator[GenerateResponse]: ...
    def generate(
        self,
        model: str,
        prompt: str | None = None,
        stream: bool = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse | Generator[GenerateResponse]:
        """Send a prompt (`/api/generate`) to the node with the earliest predicted end.

        Fields of Ollama's API: those of `chat` without `tools`; `suffix`, `system`, `template`, `context`, `raw`,
        `images`, `width`, `height`, `steps`. Other keywords: see `chat`.
        Returns: a GenerateResponse, or with `stream` an iterator of them.
        Raises: as `chat`.
        """
        options, fields = self._split(priority, call)
        answer: GenerateResponse | Generator[GenerateResponse] = self._perform(
            generate_request(model, prompt, stream, options, fields)
        )
        return answer

    def embed(
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
        answer: EmbedResponse = self._perform(embed_request(model, input, options, fields))
        return answer

    def embeddings(
        self,
        model: str,
        prompt: str,
        priority: int = 5,
        **call: Unpack[EmbedKeywords],
    ) -> EmbeddingsResponse:
        """Send one text to the older `/api/embeddings`, which returns a vector without normalisation."""
        options, fields = self._split(priority, call, typed=False)
        answer: EmbeddingsResponse = self._perform(old_embed_request(model, prompt, options, fields))
        return answer

    def _perform(self, request: InferenceRequest) -> Any:
        engine = self._running()
        if request.stream:
            return Stream(self._stream(request), lambda: self._stream_elsewhere(request))
        waiter = threading.Lock()
        waiter.acquire()
        jobs: list[CallJob] = []
        faults: list[Exception] = []

        def submit() -> None:
            jobs.append(engine.call(request, done))

        def failed(error: Exception) -> None:
            faults.append(error)
            waiter.release()

        def done(job: CallJob) -> None:
            if not jobs:  # settled before `submit` returned
                jobs.append(job)
            waiter.release()

        self._submit(submit, failed)
        try:
            waiter.acquire()
            if faults:
                raise faults[0]
            answer = finish(jobs[0], request)
        except BaseException as error:
            if not isinstance(error, Exception):  # interrupted: the node must stop
                self._cancel(engine, jobs)
            self.count(False)
            raise
        self.count(True)
        return answer

    def _stream(self, request: InferenceRequest) -> Generator[Answer]:
        engine = self._running()
        lines: SimpleQueue[bytes | None] = SimpleQueue()
        jobs: list[StreamJob] = []
        faults: list[Exception] = []

        def push(line: bytes) -> bool:
            lines.put(line)
            return lines.qsize() < STREAM_AHEAD

        def submit() -> None:
            jobs.append(engine.stream(request, done, push))

        def failed(error: Exception) -> None:
            faults.append(error)
            lines.put(None)

        def done(job: CallJob) -> None:
            if not jobs:  # settled before `submit` returned
                assert isinstance(job, StreamJob)
                jobs.append(job)
            lines.put(None)

        self._submit(submit, failed)
        ok = behind = False
        try:
            while (line := lines.get()) is not None:
                yield finish_stream(jobs[0], request) if line is jobs[0].last else request.answer(decode(line))
                self._check_process(engine)
                if lines.qsize() >= STREAM_AHEAD // 2:
                    behind = True  # the loop may be waiting, or will be
                elif behind:
                    behind = False
                    self._post(jobs[0].drained.set)
            error = faults[0] if faults else jobs[0].error()
            if error is not None:
                raise error
            ok = True
        finally:
            self.count(ok)
            self._cancel(engine, jobs)

    @overload
    async def chat_async(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> ChatResponse: ...
    @overload
    async def chat_async(
        self,
        model: str,
        messages: Sequence[Any] | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[ChatKeywords],
    ) -> AsyncGenerator[ChatResponse]: ...
    async def chat_async(self, *args: Any, **call: Any) -> ChatResponse | AsyncGenerator[ChatResponse]:
        """Send a chat from an event loop of the caller's own; arguments and results as those of `chat`."""
        answer: ChatResponse | AsyncGenerator[ChatResponse] = await self._from_other_loop("chat", args, call)
        return answer

    @overload
    async def generate_async(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[False] = False,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> GenerateResponse: ...
    @overload
    async def generate_async(
        self,
        model: str,
        prompt: str | None = None,
        stream: Literal[True] = True,
        priority: int = 5,
        **call: Unpack[GenerateKeywords],
    ) -> AsyncGenerator[GenerateResponse]: ...
    async def generate_async(self, *args: Any, **call: Any) -> GenerateResponse | AsyncGenerator[GenerateResponse]:
        """Send a prompt from an event loop of the caller's own; arguments and results as those of `generate`."""
        answer: GenerateResponse | AsyncGenerator[GenerateResponse]
        answer = await self._from_other_loop("generate", args, call)
        return answer

    async def embed_async(
        self, model: str, input: str | Sequence[str], priority: int = 5, **call: Unpack[EmbedKeywords]
    ) -> EmbedResponse:
        """Embed texts from an event loop of the caller's own; arguments and results as those of `embed`."""
        answer: EmbedResponse = await self._from_other_loop("embed", (model, input, priority), dict(call))
        return answer

    # --- batches ---

    def embed_batch(
        self,
        model: str,
        inputs: Iterable[str],
        max_workers: int | None = None,
        priority: int = 5,
        use_adaptive: bool = True,
        *,
        on_error: str = "raise",
        progress: bool = False,
        **call: Unpack[EmbedKeywords],
    ) -> BatchResult:
        """Return one vector per input, in order, from all nodes at once.

        `use_adaptive=False, max_workers=k` keeps exactly k requests in flight. `on_error="raise"`: failed items raise
        BatchError at the end, with all results; "return": they are None. `progress` draws a bar on stderr.
        """
        options, fields = self._split(priority, call, typed=False)
        batch = batch_call(len(self._endpoints), model, options, use_adaptive, max_workers, on_error, fields)
        texts = as_sequence(inputs)
        result = BatchResult(model, len(texts) if texts is not None else 0)
        source = texts if texts is not None else iter(inputs)
        advance, finished = progress_bar(progress, "embedding", len(texts) if texts is not None else None)
        try:
            for message in self._batch(batch, source):
                if isinstance(message, VectorsDelivered):
                    result._add(message)
                    advance(message.items.total())
                elif isinstance(message, ItemsRefused):
                    result._refuse(message)
                    advance(message.items.total())
                elif isinstance(message, BatchEnded):
                    return result._finish(message, on_error)
        finally:
            finished()
        raise AssertionError("a batch ends with a message")

    def embed_stream(
        self,
        model: str,
        inputs: Iterable[str],
        *,
        priority: int = 5,
        use_adaptive: bool = True,
        max_workers: int | None = None,
        on_error: str = "raise",
        **call: Unpack[EmbedKeywords],
    ) -> Generator[tuple[int, Any]]:
        """Yield (index, vector) pairs as they finish, in any order; inputs are read on demand, so memory is limited."""
        options, fields = self._split(priority, call, typed=False)
        batch = batch_call(
            len(self._endpoints), model, options, use_adaptive, max_workers, on_error, fields, "embed_stream"
        )
        return self._rows(batch, iter(inputs))

    def _rows(self, batch: BatchCall, source: Iterator[str]) -> Generator[tuple[int, Any]]:
        with closing(self._batch(batch, source)) as messages:
            for message in messages:
                yield from rows_of(message, batch.on_error)

    def _batch(self, batch: BatchCall, inputs: Sequence[str] | Iterator[str]) -> Generator[Message]:
        engine = self._running()
        messages: SimpleQueue[Message] = SimpleQueue()

        async def submit() -> Any:
            job = engine.batch(batch.model, batch.fields, batch.call, batch.width, messages.put)
            if not isinstance(inputs, Iterator):
                engine.dispatcher.feed(job.whole(inputs))
            return job

        job = self._on_loop(lambda inner: submit())
        fed, ended = 0, False
        try:
            while True:
                message = messages.get()
                if isinstance(message, BatchEnded):
                    ended = True
                    self.count(message.error is None)
                    yield message
                    return
                if not isinstance(message, TextsRequested):
                    yield message
                    self._check_process(engine)
                elif isinstance(inputs, Iterator):
                    texts, closed = take_texts(inputs, message.items, fed)
                    self._check_process(engine)
                    fed += len(texts)
                    self._post(lambda texts=texts, closed=closed: engine.dispatcher.feed(job.more(texts, closed)))
        finally:
            if not ended:
                self.count(False)
            self._cancel(engine, [job])
