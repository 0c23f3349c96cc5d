"""Serve a gateway from within a program. The command `sollol serve` has keys, reload and a log besides."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

from sollol.core.endpoint import parse_endpoint
from sollol.duties import in_thread
from sollol.errors import SollolError
from sollol.gateway.app import Gateway
from sollol.gateway.settings import GatewaySettings, Listen
from sollol.pool.aio import AsyncOllamaPool
from sollol.pool.keywords import accept_old
from sollol.transport.event_loop import new_loop
from sollol.transport.http import HttpTransport

STOP_S = 5.0
UNUSED = frozenset(["ray_workers", "dask_workers", "enable_batch_processing", "autobatch_interval"])


class GatewayThread:
    """A gateway in a thread, on this machine only. `port` 0: any free one."""

    def __init__(self, nodes: Sequence[Any] | None, port: int, host: str = "127.0.0.1", **pool: Any) -> None:
        self.port = port
        self._nodes = nodes
        self._host = host
        self._pool = pool
        self._ready = threading.Event()
        self._failed: list[BaseException] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Serve in the background; return the URL.

        Raises:
            AddressUnavailable: The address cannot be bound.
        """
        self._thread = in_thread("sollol-gateway", self._run)
        self._ready.wait()
        if self._failed:
            raise self._failed[0]
        return self.url

    @property
    def url(self) -> str:
        """The URL of the gateway."""
        return f"http://{self._host}:{self.port}"

    @property
    def running(self) -> bool:
        """Check whether the gateway is being served."""
        return self._ready.is_set() and self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the gateway has ended."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)  # bounded, because Windows delivers Ctrl-C only in between

    def stop(self) -> None:
        """End it; running requests may finish for a moment. It may be called more than once."""
        if self.running and self._thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:  # which cancels what is left
                self._loop = runner.get_loop()
                runner.run(self._serve())
        except BaseException as error:
            self._failed.append(error)
            if self._ready.is_set():
                raise
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        transport = HttpTransport()
        if self._nodes is None:
            from sollol.discovery import discover

            nodes: Sequence[Any] = [found.endpoint for found in await discover(2.0)]
        else:
            nodes = self._nodes
        endpoints = tuple(parse_endpoint(node) for node in nodes)
        settings = GatewaySettings(listen=Listen(host=self._host, port=self.port), nodes=endpoints)
        async with AsyncOllamaPool(endpoints, transport=transport, **self._pool) as pool:
            gateway = Gateway(pool, settings, transport=transport)
            self.port = await gateway.start()
            self._ready.set()
            await self._end.wait()
            await gateway.aclose()


def start_api(
    port: int = 11434,
    rpc_backends: Sequence[Any] | None = None,
    ollama_nodes: Sequence[Any] | None = None,
    **old: Any,
) -> None:
    """Serve a gateway on this machine until Ctrl-C. Without nodes, these are searched for.

    Raises:
        AddressUnavailable: The port is taken.
    """
    accept_old("start_api", old | ({"rpc_backends": rpc_backends} if rpc_backends else {}), UNUSED | {"rpc_backends"})
    serving = GatewayThread(ollama_nodes, port)
    serving.start()
    try:
        serving.wait()
    except KeyboardInterrupt:
        serving.stop()
    if serving._failed:
        raise SollolError(f"the gateway has ended: {serving._failed[0]}")
