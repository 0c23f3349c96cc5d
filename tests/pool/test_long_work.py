"""Nothing is too long where no bound is set: loads, prompts, answers, and pulls that verify without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sollol.core.endpoint import Endpoint
from sollol.errors import NoNodeAvailable
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World, run
from sollol.transport.base import Call, Fault, TransportFault
from tests.pool.breaking import MESSAGES, MODEL, WORDS

SIZE = 2_000_000_000
LONG: dict[str, dict[str, Any]] = {
    "a load of 11 minutes": {"load_bytes_per_s": SIZE / 660, "loaded": ()},
    "a prompt of 15 minutes": {"prefill_tokens_per_s": 18 / 900},
    "an answer of 1000 seconds": {"decode_tokens_per_s": 1.0},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", LONG)
@pytest.mark.parametrize("nodes", [1, 2])
def test_what_is_alive_is_left_alone(what: str, stream: bool, nodes: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        model = ModelSpec(MODEL, size_bytes=SIZE, mean_words=float("inf"), words=WORDS)
        usual = {"decode_tokens_per_s": 50.0, "prefill_tokens_per_s": 1000.0, "load_bytes_per_s": 1e9}
        given: dict[str, Any] = {"models": (model,), "loaded": (MODEL,), **usual, **LONG[what]}
        world = World([NodeSpec(host=f"10.0.0.{i}", **given) for i in range(1, nodes + 1)])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            began = loop.time()
            answer: Any = await pool.chat(
                MODEL, MESSAGES, stream=stream, options={"num_predict": 1000 if "answer" in what else 20}
            )
            if stream:
                parts = [part async for part in answer]
                answer = parts[-1]
            assert answer.done
            assert loop.time() - began > 600
            assert pool.get_stats()["failed_requests"] == 0
            assert len(answer.routing.seams) == 0

    run(main())


def test_a_load_of_eleven_minutes_that_is_asked_for() -> None:
    async def main() -> None:
        spec = NodeSpec(models=(ModelSpec(MODEL, size_bytes=SIZE),), load_bytes_per_s=SIZE / 660)
        world = World([spec])
        async with AsyncOllamaPool(world.endpoints, transport=world.transport(), seed=1) as pool:
            assert (await pool.warm_model(MODEL))["status"] == "success"
            assert asyncio.get_running_loop().time() > 650

    run(main())


class _Reply:
    status = 200

    def __init__(self, pauses: dict[bytes, float]) -> None:
        self._pauses = pauses
        self.headers: dict[str, str] = {}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for line, pause_s in self._pauses.items():
            await asyncio.sleep(pause_s)
            yield line

    async def read(self) -> bytes:
        return b"".join([line async for line in self])

    async def aclose(self) -> None: ...


class Verifying:
    """A node that verifies for long what it has pulled; it answers other questions until it `dies_at` some second."""

    def __init__(self, verifies_s: float, dies_at: float = float("inf")) -> None:
        self._verifies_s = verifies_s
        self._dies_at = dies_at

    async def send(self, node: Endpoint, call: Call) -> Any:
        if call.path == "/api/pull":
            return _Reply({b'{"status":"verifying"}\n': 0.1, b'{"status":"success"}\n': self._verifies_s})
        if asyncio.get_running_loop().time() > self._dies_at:
            await asyncio.sleep(5)
            raise TransportFault(Fault.FIRST_BYTE_TIMEOUT, "did not begin to answer")
        answers = {"/api/version": b'{"version":"0.33.0"}'}
        return _Reply({answers.get(call.path, b'{"models":[]}'): 0.0})

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verifies_s", [640.0, 3000.0])
def test_a_pull_that_verifies_for_long_is_waited_for(verifies_s: float, stream: bool) -> None:
    async def main() -> None:
        async with AsyncOllamaPool(["10.0.0.1"], transport=Verifying(verifies_s), seed=1) as pool:
            told: Any = await pool.pull(MODEL, stream=stream)
            if stream:
                lines = [line async for line in told]
                told = lines[-1]
            assert told["status"] == "success"

    run(main())


def test_a_node_that_dies_in_a_pull_is_noticed() -> None:
    async def main() -> None:
        async with AsyncOllamaPool(["10.0.0.1"], transport=Verifying(3000.0, dies_at=100.0), seed=1) as pool:
            with pytest.raises(NoNodeAvailable, match="did not begin to answer"):
                await pool.pull(MODEL)
            assert asyncio.get_running_loop().time() < 200

    run(main())
