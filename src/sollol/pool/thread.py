"""Thread of an OllamaPool: one event loop, and calls across to it.

The crossing is cheap because it has one step each way: the caller posts a function to the loop and sleeps on a lock
that the answer releases. The thread starts with the first call and is a daemon, so a program without `close()` ends,
too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Self, TypeVar

from sollol.core.endpoint import DEFAULT_PORT
from sollol.engine.batch_job import BatchJob
from sollol.engine.engine import Engine
from sollol.engine.inference_request import InferenceRequest
from sollol.engine.jobs import CallJob
from sollol.errors import SollolError
from sollol.pool.aio import AsyncOllamaPool
from sollol.pool.base import PoolBase
from sollol.transport.event_loop import new_loop

T = TypeVar("T")
CLOSE_S = 0.8


class LoopThread(PoolBase):
    """A pool whose event loop runs in a thread of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inner: AsyncOllamaPool | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        used = state.pop("used")
        LoopThread.__init__(self, **state)
        self._used_digests.update(used)

    def _leave_process(self) -> Any:
        left = (super()._leave_process(), self._lock, self._loop, self._thread, self._inner)
        self._lock = threading.Lock()  # a thread that does not exist in the child may hold the old one
        self._loop = self._thread = self._inner = None
        return left

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
        self._loop = loop = new_loop()
        failed: list[BaseException] = []

        def begin() -> None:
            try:
                make()
            except BaseException as error:  # raised at the first use of the pool
                failed.append(error)
                loop.stop()
            ready.set()

        def make() -> None:
            engine = self._make_engine()
            # The same pool for coroutines: it shares the engine, and so queue, nodes and totals.
            self._inner = inner = AsyncOllamaPool()
            inner._engine, inner._endpoints, inner.totals = engine, self._endpoints, self.totals
            inner._home = loop
            self._engine = engine  # last: other threads read it without the lock

        def main() -> None:
            asyncio.set_event_loop(loop)
            loop.call_soon(begin)
            try:
                loop.run_forever()
                left = asyncio.all_tasks(loop)
                for task in left:  # callers may wait for them
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            finally:
                loop.close()

        self._thread = threading.Thread(target=main, name="sollol", daemon=True)
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]

    def _on_loop(self, make: Callable[[AsyncOllamaPool], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the inner pool on the loop; return its result."""
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
        """Start a coroutine on the loop. Coroutines before `close` also start before it."""
        assert self._loop is not None
        with self._lock:
            if self._closed:
                coroutine.close()
            self._check_open()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _submit(self, function: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Call `function` on the loop, or raise, since the caller will wait for its result.

        `failed` receives its exceptions, which a caller's own hedging policy may raise.
        """

        def submit() -> None:
            try:
                function()
            except Exception as error:
                failed(error)

        assert self._loop is not None
        with self._lock:
            self._check_open()
            self._loop.call_soon_threadsafe(submit)

    def _check_process(self, engine: Engine) -> None:
        """Raise SollolError if the answer of `engine` arrives in another process, after a fork."""
        if self._engine is not engine:
            raise SollolError("this answer arrives in the process that made the call; make the call again in this one")

    def _cancel(self, engine: Engine, jobs: Sequence[CallJob | BatchJob]) -> None:
        """Cancel the call of `jobs` if it exists and runs in this process."""
        if self._engine is engine:
            self._post(lambda: engine.dispatcher.cancel(jobs[0].task.id) if jobs else None)

    def _post(self, function: Callable[..., Any], *args: Any) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop was closed meanwhile, so nothing runs there
            if not self._closed:
                raise

    def read_state(self, read: Callable[[], T]) -> T:
        """Run `read` on the loop, the only thread that changes the state; return its result."""
        if self._engine is None or self._closed or threading.current_thread() is self._thread:
            return read()

        async def now() -> T:
            return read()

        return self._on_loop(lambda inner: now())

    # --- from another loop, and streams ---

    async def _from_other_loop(self, verb: str, args: tuple[Any, ...], call: dict[str, Any]) -> Any:
        """Run a method of the inner pool, and return its result to the caller's event loop.

        The inner pool has no mode and no timeout of its own: those of this pool are filled in.
        """
        own = {"mode": self.routing_mode, "timeout": self.timeout}
        call = call | {name: value for name, value in own.items() if call.get(name) is None}
        self._running()
        answer = await asyncio.wrap_future(self._schedule(getattr(self._inner, verb)(*args, **call)))
        return self._foreign_stream(answer) if isinstance(answer, AsyncIterator) else answer

    async def _foreign_stream(self, stream: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the items of an iterator of the pool's loop on the caller's loop."""
        try:
            while (item := await asyncio.wrap_future(self._schedule(_next(stream)))) is not _END:
                yield item
        finally:
            if not self._closed:
                self._schedule(_close(stream))

    async def _stream_elsewhere(self, request: InferenceRequest) -> AsyncIterator[Any]:
        """Yield the parts of a streamed request on the caller's event loop."""
        self._running()
        assert self._inner is not None
        parts = await asyncio.wrap_future(self._schedule(self._inner._perform(request)))
        async for part in self._foreign_stream(parts):
            yield part

    def _managed(self, stream: bool, make: Callable[[AsyncOllamaPool], Coroutine[Any, Any, Any]]) -> Any:
        answer = self._on_loop(make)
        return self._local_stream(answer) if stream else answer

    def _local_stream(self, stream: AsyncIterator[Any]) -> Iterator[Any]:
        engine = self._engine
        assert engine is not None
        try:
            while (item := self._on_loop(lambda inner: _next(stream))) is not _END:
                yield item
                self._check_process(engine)
        finally:
            if not self._closed and self._engine is engine:
                self._on_loop(lambda inner: _close(stream))

    # --- nodes and the end ---

    def add_node(self, host: Any, port: int = DEFAULT_PORT, *, api_key: str | None = None) -> bool:
        """Add a node by host or URL; return False if it is in the pool already.

        `api_key` is sent to it as a bearer token.
        """
        endpoint = self._register_node(host, port, api_key)
        if endpoint is not None and self._engine is not None:
            self._post(self._engine.add, endpoint)
        return endpoint is not None

    def remove_node(self, host: Any, port: int = DEFAULT_PORT) -> bool:
        """Remove a node; its requests move to the others. Return False if it was not in the pool."""
        key = self._unregister_node(host, port)
        if key is not None and self._engine is not None:
            self._post(self._engine.remove, key)
        return key is not None

    def wait_ready(self) -> None:
        """Wait for the first probe of every node, after which `nodes` has measured values."""
        self._on_loop(lambda inner: inner.wait_ready())

    def close(self) -> None:
        """Cancel all calls, close every connection, end the thread, in under a second. Idempotent."""
        self._close()
        return DONE  # type: ignore[return-value]  # programs of SOLLOL's fork for Hydra await it

    def _close(self) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Done:
    """The result of a method that has ended, for programs that await it."""

    def __await__(self) -> Iterator[None]:
        return iter(())


_END = object()
DONE = _Done()


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, _END)


async def _close(stream: AsyncIterator[Any]) -> None:
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()
