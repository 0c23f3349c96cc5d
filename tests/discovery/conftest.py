"""Servers on loopback, and settings that no test inherits from the machine."""

import asyncio
import os
import socket
import threading
from typing import Any

import pytest
from bench.fake_ollama import start


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name == "OLLAMA_HOST" or name.startswith("SOLLOL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def port() -> Any:
    """A port that is free on every loopback address."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve() -> Any:
    """serve("127.0.0.2:4000=ollama:red", ...) starts servers in a thread; they end with the test."""
    loop = asyncio.new_event_loop()
    servers: list[Any] = []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def go(*specs: Any) -> None:
        servers.extend(asyncio.run_coroutine_threadsafe(start(spec), loop).result(5) for spec in specs)

    yield go

    async def stop() -> None:
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)

    asyncio.run_coroutine_threadsafe(stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
