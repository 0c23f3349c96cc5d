"""OllamaPool: the same pool for programs without a loop. One background thread runs one event loop.

How calls cross to that thread: `pool.thread`. Iterables are read in the caller's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from queue import SimpleQueue
from typing import Any

from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, TaskType
from sollol.nodes.dialect import decode
from sollol.pool.answers import Answer
from sollol.pool.base import BatchCall, configured_nodes
from sollol.pool.batch import BatchResult, Delivered, Ended, Message, Refused, Wanted
from sollol.pool.engine import finish, finish_stream
from sollol.pool.jobs import STREAM_AHEAD, CallJob, StreamJob
from sollol.pool.requests import (
    Request,
    chat_request,
    embed_request,
    generate_request,
    old_embed_request,
)
from sollol.pool.rows import rows_of
from sollol.pool.texts import as_sequence, take
from sollol.pool.thread import LoopThread


class OllamaPool(LoopThread):
    """All nodes as one client; thread-safe; a context manager.

    pool = OllamaPool.auto_configure()
    answer = pool.chat("llama3.2", [{"role": "user", "content": "Hello"}])
    vectors = pool.embed_batch("mxbai-embed-large", texts).vectors
    """

    @classmethod
    def auto_configure(cls, discover_all_nodes: bool = False, timeout: float = 2.0, **same: Any) -> OllamaPool:
        """Find the nodes (settings first, then this machine and its private networks) and make a pool of them."""
        from sollol.discovery import discover_ollama_nodes

        without = same.pop("exclude_localhost", False)
        found = discover_ollama_nodes(timeout, without, discover_all_nodes=discover_all_nodes)
        return cls(found, **same)

    @classmethod
    def from_settings(cls, **same: Any) -> OllamaPool:
        """The nodes of SOLLOL_NODES, the config file or OLLAMA_HOST; looks for nothing."""
        return cls(configured_nodes(), **same)

    # --- inference ---

    def chat(
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
        none that holds the model on its CPU. A ChatResponse, or with `stream` an iterator of them."""
        how = self._wish(priority, timeout, mode, hedge, task_type, node, requires_gpu)
        return self._perform(chat_request(model, messages, stream, how, ollama))

    def generate(
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
        """`/api/generate`. A GenerateResponse, or with `stream` an iterator of them."""
        how = self._wish(priority, timeout, mode, hedge, task_type, node, requires_gpu)
        return self._perform(generate_request(model, prompt, stream, how, ollama))

    def embed(
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
        return self._perform(embed_request(model, input, how, ollama))

    def embeddings(
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
        return self._perform(old_embed_request(model, prompt, how, ollama))

    def _perform(self, request: Request) -> Any:
        engine = self._running()
        if request.stream:
            return self._stream(request)
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
            if not jobs:  # settled at once, before `submit` could note it
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

    def _stream(self, request: Request) -> Iterator[Answer]:
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
            if not jobs:  # settled at once, before `submit` could note it
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
                    behind = True  # the loop may wait for us, or will
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

    async def chat_async(self, *args: Any, **kwargs: Any) -> Any:
        """`chat` for code that runs in an event loop of its own."""
        wishes = self._own_wishes(kwargs)
        return await self._from_other_loop(lambda inner: inner.chat(*args, **wishes))

    async def generate_async(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` for code that runs in an event loop of its own."""
        wishes = self._own_wishes(kwargs)
        return await self._from_other_loop(lambda inner: inner.generate(*args, **wishes))

    async def embed_async(self, *args: Any, **kwargs: Any) -> Any:
        """`embed` for code that runs in an event loop of its own."""
        wishes = self._own_wishes(kwargs)
        return await self._from_other_loop(lambda inner: inner.embed(*args, **wishes))

    # --- batches ---

    def embed_batch(
        self,
        model: str,
        inputs: Iterable[str],
        *,
        priority: int = 5,
        use_adaptive: bool = True,
        max_workers: int | None = None,
        on_error: str = "raise",
        progress: bool = False,
        timeout: float | None = None,
        mode: RoutingMode | str | None = None,
        hedge: bool | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> BatchResult:
        """One vector per input, in order, from all nodes at once.

        `use_adaptive=False, max_workers=k` keeps exactly k requests in flight. `on_error="raise"`: failed items
        raise BatchError at the end, with every result that exists; "return": they stand as None.
        `progress` draws a bar on stderr.
        """
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        call = self._batch_arguments(model, how, use_adaptive, max_workers, on_error, ollama)
        texts = as_sequence(inputs)
        result = BatchResult(model, len(texts) if texts is not None else 0)
        source = texts if texts is not None else iter(inputs)
        advance, finished = (
            _progress_bar(len(texts) if texts is not None else None) if progress else (_nothing, _nothing)
        )
        try:
            for message in self._batch(call, source):
                if isinstance(message, Delivered):
                    result._add(message)
                    advance(message.items.total())
                elif isinstance(message, Refused):
                    result._refuse(message)
                    advance(message.items.total())
                elif isinstance(message, Ended):
                    return result._finish(message, on_error)
        finally:
            finished(0)
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
        timeout: float | None = None,
        mode: RoutingMode | str | None = None,
        hedge: bool | None = None,
        node: Any = None,
        requires_gpu: bool = False,
        **ollama: Any,
    ) -> Iterator[tuple[int, Any]]:
        """(index, vector) as they finish, in any order, with bounded memory: inputs are read as they are needed."""
        how = self._wish(priority, timeout, mode, hedge, None, node, requires_gpu)
        call = self._batch_arguments(model, how, use_adaptive, max_workers, on_error, ollama, "embed_stream")
        return self._rows(call, iter(inputs))

    def _rows(self, call: BatchCall, source: Iterator[str]) -> Iterator[tuple[int, Any]]:
        with closing(self._batch(call, source)) as messages:
            for message in messages:
                yield from rows_of(message, call.on_error)

    def _batch(self, call: BatchCall, inputs: Sequence[str] | Iterator[str]) -> Generator[Message]:
        engine = self._running()
        messages: SimpleQueue[Message] = SimpleQueue()

        async def submit() -> Any:
            job = engine.batch(call.model, call.fields, call.how, call.width, messages.put)
            if not isinstance(inputs, Iterator):
                engine.dispatcher.feed(job.whole(inputs))
            return job

        job = self._on_loop(lambda inner: submit())
        fed, ended = 0, False
        try:
            while True:
                message = messages.get()
                if isinstance(message, Ended):
                    ended = True
                    self.count(message.error is None)
                    yield message
                    return
                if not isinstance(message, Wanted):
                    yield message
                    self._check_process(engine)
                elif isinstance(inputs, Iterator):
                    texts, closed = take(inputs, message.items, fed)
                    self._check_process(engine)
                    fed += len(texts)
                    self._post(lambda texts=texts, closed=closed: engine.dispatcher.feed(job.more(texts, closed)))
        finally:
            if not ended:
                self.count(False)
            self._cancel(engine, [job])

    # --- models ---

    def warm_model(self, model: str, *, node: str | None = None, keep_alive: float | str | None = None) -> Answer:
        """Load a model on every node that has it, or on `node`; `nodes` of the answer tells how it went on each."""
        return self._on_loop(lambda inner: inner.warm_model(model, node=node, keep_alive=keep_alive))

    def warm_models(self, models: Sequence[str]) -> dict[str, Answer]:
        """`warm_model` for each, one after another: a node loads one at a time."""
        return self._on_loop(lambda inner: inner.warm_models(models))

    def list(self) -> Answer:
        """All models on the nodes' disks, each once, with `nodes`: who has it."""
        return self._on_loop(lambda inner: inner.list())

    def ps(self) -> Answer:
        """All models in memory, a row per node and model."""
        return self._on_loop(lambda inner: inner.ps())

    def version(self) -> Answer:
        """The oldest version among the nodes, and each one's in `nodes`."""
        return self._on_loop(lambda inner: inner.version())

    def show(self, model: str) -> Answer:
        """What a node that has the model says of it."""
        return self._on_loop(lambda inner: inner.show(model))

    def pull(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Pull a model to every node, or to `node`. With `stream`, progress lines that each name their node."""
        return self._managed(stream, lambda inner: inner.pull(model, stream, node=node, **ollama))

    def push(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Push a model from one node that has it (or from `node`)."""
        return self._managed(stream, lambda inner: inner.push(model, stream, node=node, **ollama))

    def create(self, model: str, stream: bool = False, *, node: str | None = None, **ollama: Any) -> Any:
        """Create a model on every node, or on `node`."""
        return self._managed(stream, lambda inner: inner.create(model, stream, node=node, **ollama))

    def copy(self, source: str, destination: str) -> Answer:
        """Copy a model to another name, on every node that has it."""
        return self._on_loop(lambda inner: inner.copy(source, destination))

    def delete(self, model: str, *, node: str | None = None) -> Answer:
        """Delete a model from every node that has it, or from `node`."""
        return self._on_loop(lambda inner: inner.delete(model, node=node))


def _nothing(count: int) -> None:
    pass


def _progress_bar(total: int | None) -> tuple[Callable[[int], None], Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("embedding", total=total)
    bar.start()
    return (lambda count: bar.advance(task, count)), (lambda count: bar.stop())
