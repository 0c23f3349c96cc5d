"""A registry on loopback, and clients that do what Ollama's client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sollol.registry.grants import Grant
from sollol.registry.server import Registry
from sollol.sim.models import ModelSpec
from sollol.sim.ollama_store import OllamaStore, RegistryName, parse_name
from sollol.sim.registry_client import RegistryClient
from sollol.sim.serve import new_loop
from sollol.transport.http import HttpTransport

T = TypeVar("T")
WAIT_S = 10.0
SIZE = 3_000_000
MODEL = ModelSpec("llama3.2", size_bytes=SIZE)
NAME = "llama3.2:latest"


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(WAIT_S):
            return await main()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(bounded())


class Faults:
    """Defects that a registry reported; a test that expects none looks at the end."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Exception]] = []

    def add(self, where: str, error: Exception) -> None:
        self.found.append((where, error))


@asynccontextmanager
async def registry(folder: Path, most: int = 10**9, **more: Any) -> AsyncIterator[Registry]:
    transport, faults = HttpTransport(), Faults()
    made = Registry(folder / "registry", most, transport, faults.add, **more)
    await made.start("127.0.0.1", 0)
    try:
        yield made
    finally:
        await made.aclose()
        await transport.aclose()
    assert not faults.found


def grant_of(made: Registry, **more: Any) -> Grant:
    now = asyncio.get_running_loop().time()
    return made.service.grants.issue(NAME, now, **{"pushes": True, "size_most": 10 * SIZE, **more})


def name_at(made: Registry, grant: Grant, model: str = NAME) -> RegistryName:
    return parse_name(f"127.0.0.1:{made.port}/{grant.namespace}/{model}")


def client_in(folder: Path, part: int = 400_000) -> RegistryClient:
    """A client with small parts and short pauses."""
    found = RegistryClient(OllamaStore(folder))
    found.part_least, found.second_s = part, 0.005
    return found


def with_model(client: RegistryClient, name: RegistryName) -> str:
    """Give a client the model, under its short and its long name; the digest of its manifest."""
    made = client.store.make(MODEL)
    client.store.copy(parse_name(MODEL.name), name)
    return made.digest


async def until(true: Callable[[], object]) -> None:
    """Wait for something to become true; `run` bounds the wait."""
    while not true():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.01)


def silent(line: dict[str, Any]) -> None: ...
