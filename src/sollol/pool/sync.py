"""OllamaPool: the same pool for programs without a loop. One background thread runs one event loop.

The crossing is cheap because it is one way each: the caller posts a function to the loop and sleeps on a lock
that the answer releases. Iterables are read in the caller's thread. The thread starts with the first call and is a
daemon: a program that forgets `close()` still ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import closing
from queue import SimpleQueue
from typing import Any, TypeVar

from sollol.core.endpoint import DEFAULT_PORT
from sollol.core.policy import Hedger
from sollol.core.types import RoutingMode, TaskType
from sollol.errors import SollolError
from sollol.nodes.dialect import decode
from sollol.pool.aio import AsyncOllamaPool
from sollol.pool.answers import Answer
from sollol.pool.base import PoolBase, configured_nodes
from sollol.pool.batch import BatchResult, Delivered, Ended, Message, Refused, Wanted, as_sequence, rows_of, take
from sollol.pool.engine import Engine, finish, finish_stream
from sollol.pool.jobs import STREAM_AHEAD, CallJob, StreamJob
from sollol.pool.requests import (
    Request,
    chat_request,
    embed_request,
    generate_request,
    old_embed_request,
)

T = TypeVar("T")
CLOSE_S = 0.8


class OllamaPool(PoolBase):
    """All nodes as one client; thread-safe; a context manager.

    pool = OllamaPool.auto_configure()
    answer = pool.chat("llama3.2", [{"role": "user", "content": "Hello"}])
    vectors = pool.embed_batch("mxbai-embed-large", texts).vectors
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inner: AsyncOllamaPool | None = None

    @classmethod
    def auto_configure(cls, discover_all_nodes: bool = False, timeout: float = 2.0, **same: Any) -> OllamaPool:
        """Find the nodes (settings first, then this machine and its private networks) and make a pool of them."""
        from sollol.discovery import discover_ollama_nodes

        return cls(discover_ollama_nodes(timeout=timeout, discover_all_nodes=discover_all_nodes), **same)

    @classmethod
    def from_settings(cls, **same: Any) -> OllamaPool:
        """The nodes of SOLLOL_NODES, the config file or OLLAMA_HOST; looks for nothing."""
        return cls(configured_nodes(), **same)

    # --- the loop ---

    def _running(self) -> Engine:
        engine = self._engine
        if engine is not None and not self._closed:
            return engine
        with self._lock:
            self._check_open()
            if self._engine is None:
                self._start()
            assert self._engine is not None
            return self._engine

    def _start(self) -> None:
        ready = threading.Event()
        self._loop = loop = _new_loop()

        def begin() -> None:
            self._engine = self._make_engine()
            # The same pool for coroutines: it shares the engine, and so queue, nodes and numbers.
            self._inner = AsyncOllamaPool()
            self._inner._engine, self._inner._endpoints = self._engine, self._endpoints
            self._inner._totals = self._totals
            ready.set()

        def main() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(begin)
            try:
                loop.run_forever()
                left = asyncio.all_tasks(loop)
                for task in left:  # somebody may wait for them
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            finally:
                loop.close()

        self._thread = threading.Thread(target=main, name="sollol", daemon=True)
        self._thread.start()
        ready.wait()

    def _on_loop(self, make: Callable[[AsyncOllamaPool], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the inner pool on the loop and wait for it."""
        self._running()
        assert self._inner is not None
        future = self._schedule(make(self._inner))
        try:
            return future.result()
        except CancelledError:
            raise SollolError("the pool was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise SollolError("the pool is closed; make a new one")

    def _schedule(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop. What comes before `close` is also handled before it."""
        assert self._loop is not None
        with self._lock:
            if self._closed:
                coroutine.close()
            self._check_open()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _submit(self, function: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Call `function` on the loop, for sure: somebody will wait for what it does. `failed` gets what it raises, as
        a caller's own hedging policy may."""

        def submit() -> None:
            try:
                function()
            except Exception as error:
                failed(error)

        assert self._loop is not None
        with self._lock:
            self._check_open()
            self._loop.call_soon_threadsafe(submit)

    def _post(self, function: Callable[..., Any], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop was closed meanwhile: nothing runs there any more
            if not self._closed:
                raise

    def _read(self, read: Callable[[], T]) -> T:
        """On the loop, which alone changes what is read."""
        if self._engine is None or self._closed or threading.current_thread() is self._thread:
            return read()

        async def now() -> T:
            return read()

        return self._on_loop(lambda inner: now())

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
        **ollama: Any,
    ) -> Any:
        """`/api/embed` as one call to one node. For many texts use `embed_batch`, which uses all nodes."""
        return self._perform(embed_request(model, input, self._wish(priority, timeout, mode), ollama))

    def embeddings(
        self,
        model: str,
        prompt: str,
        priority: int = 5,
        *,
        mode: RoutingMode | str | None = None,
        timeout: float | None = None,
        **ollama: Any,
    ) -> Any:
        """`/api/embeddings`, the older call: `.embedding`, one vector that is not normalised."""
        return self._perform(old_embed_request(model, prompt, self._wish(priority, timeout, mode), ollama))

    def _perform(self, request: Request) -> Any:
        engine = self._running()
        if request.stream:
            return self._stream(engine, request)
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
                self._post(lambda: engine.dispatcher.cancel(jobs[0].task.id) if jobs else None)
            self.count(False)
            raise
        self.count(True)
        return answer

    def _stream(self, engine: Engine, request: Request) -> Iterator[Answer]:
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
            self._post(lambda: engine.dispatcher.cancel(jobs[0].task.id) if jobs else None)

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

    def _own_wishes(self, given: dict[str, Any]) -> dict[str, Any]:
        """The keywords of a call, with this pool's mode and time where it names none: the inner pool has others."""
        own = {"mode": self.routing_mode, "timeout": self.timeout}
        return given | {name: value for name, value in own.items() if given.get(name) is None}

    async def _from_other_loop(self, make: Callable[[AsyncOllamaPool], Coroutine[Any, Any, Any]]) -> Any:
        self._running()
        assert self._inner is not None
        answer = await asyncio.wrap_future(self._schedule(make(self._inner)))
        return self._foreign_stream(answer) if isinstance(answer, AsyncIterator) else answer

    async def _foreign_stream(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """An async iterator of the pool's loop, read from the caller's loop."""
        try:
            while (item := await asyncio.wrap_future(self._schedule(_next(stream)))) is not _END:
                yield item
        finally:
            if not self._closed:
                self._schedule(_close(stream))

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
        **ollama: Any,
    ) -> BatchResult:
        """One vector per input, in order, from all nodes at once.

        `use_adaptive=False, max_workers=k` keeps exactly k requests in flight. `on_error="raise"`: failed items
        raise BatchError at the end, with every result that exists; "return": they stand as None.
        `progress` draws a bar on stderr.
        """
        fields, width = self._batch_arguments(model, priority, use_adaptive, max_workers, on_error, ollama)
        texts = as_sequence(inputs)
        result = BatchResult(model, len(texts) if texts is not None else 0)
        source = texts if texts is not None else iter(inputs)
        advance, finished = (
            _progress_bar(len(texts) if texts is not None else None) if progress else (_nothing, _nothing)
        )
        try:
            for message in self._batch(model, source, fields, priority, width, timeout):
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
        **ollama: Any,
    ) -> Iterator[tuple[int, Any]]:
        """(index, vector) as they finish, in any order, with bounded memory: inputs are read as they are needed."""
        fields, width = self._batch_arguments(model, priority, use_adaptive, max_workers, on_error, ollama)
        return self._rows(model, iter(inputs), fields, priority, width, timeout, on_error)

    def _rows(
        self,
        model: str,
        source: Iterator[str],
        fields: dict[str, Any],
        priority: int,
        width: int | None,
        timeout: float | None,
        on_error: str,
    ) -> Iterator[tuple[int, Any]]:
        with closing(self._batch(model, source, fields, priority, width, timeout)) as messages:
            for message in messages:
                yield from rows_of(message, on_error)

    def _batch(
        self,
        model: str,
        inputs: Sequence[str] | Iterator[str],
        fields: dict[str, Any],
        priority: int,
        width: int | None,
        timeout: float | None,
    ) -> Generator[Message]:
        engine = self._running()
        messages: SimpleQueue[Message] = SimpleQueue()

        async def submit() -> Any:
            job = engine.batch(model, fields, priority, width, self._bound(timeout), messages.put)
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
                elif isinstance(inputs, Iterator):
                    texts, closed = take(inputs, message.items, fed)
                    fed += len(texts)
                    self._post(lambda texts=texts, closed=closed: engine.dispatcher.feed(job.more(texts, closed)))
        finally:
            if not ended:
                self.count(False)
            self._post(engine.dispatcher.cancel, job.task.id)

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

    def _managed(self, stream: bool, make: Callable[[AsyncOllamaPool], Coroutine[Any, Any, Any]]) -> Any:
        answer = self._on_loop(make)
        return self._local_stream(answer) if stream else answer

    def _local_stream(self, stream: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while (item := self._on_loop(lambda inner: _next(stream))) is not _END:
                yield item
        finally:
            if not self._closed:
                self._on_loop(lambda inner: _close(stream))

    # --- nodes and the end ---

    def add_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Add a node (a host, or a URL). False if it is in the pool already."""
        endpoint = self._take_node(host, port)
        if endpoint is not None and self._engine is not None:
            self._post(self._engine.add, endpoint)
        return endpoint is not None

    def remove_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Take a node out; what runs there moves to the others. False if it was not in the pool."""
        key = self._drop_node(host, port)
        if key is not None and self._engine is not None:
            self._post(self._engine.remove, key)
        return key is not None

    def wait_ready(self) -> None:
        """Wait until every node was asked once (up or not): what `nodes` says is then measured."""
        self._on_loop(lambda inner: inner.wait_ready())

    def close(self) -> None:
        """Cancel what runs, close every connection, end the thread. Under a second; more than once is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            loop, thread, engine = self._loop, self._thread, self._engine
        if loop is None or thread is None or engine is None:
            return
        closing = asyncio.run_coroutine_threadsafe(engine.aclose(), loop)
        try:
            closing.result(CLOSE_S)
        except TimeoutError:
            closing.cancel()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)

    stop = close

    def __enter__(self) -> OllamaPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_END = object()


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, _END)


async def _close(stream: AsyncIterator[Any]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


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


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed: half the cost of a call."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
