"""Loads in progress: their progress and end where one was measured, and those that hang, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from sollol.sim import ModelSpec, NodeSpec, run
from tests.pool.universe import Universe, universe

FIRST, SECOND = ModelSpec("a", size_bytes=2 * 10**9), ModelSpec("b", size_bytes=4 * 10**9)
HELLO = [{"role": "user", "content": "Hello"}]


def loading(here: Universe) -> list[dict[str, Any]]:
    (node,) = here.pool.snapshot()["nodes"]
    found: list[dict[str, Any]] = node["loading"]
    return found


def replicas(here: Universe) -> dict[str, tuple[str, str]]:
    (node,) = here.pool.snapshot()["nodes"]
    return {row["model"]: (row["state"], row["source"]) for row in node["replicas"]}


def test_the_first_load_has_no_end_the_second_has_and_one_that_hangs_is_stuck() -> None:
    async def main() -> None:
        spec = NodeSpec(host="10.0.0.1", models=(FIRST, SECOND), load_bytes_per_s=1e9, latency_s=0.001)
        async with universe([spec]) as here:
            await here.pool.wait_ready()
            first = asyncio.create_task(here.pool.chat("a", HELLO))
            await asyncio.sleep(1)
            (row,) = loading(here)
            assert (row["model"], row["state"], row["progress"], row["eta_ms"]) == ("a:latest", "loading", None, None)
            assert here.pool.snapshot()["nodes"][0]["loaded"] == []
            assert 900 < row["elapsed_ms"] < 1100
            await first
            assert loading(here) == []

            second = asyncio.create_task(here.pool.chat("b", HELLO))
            await asyncio.sleep(2)
            (row,) = loading(here)
            assert 0.4 < row["progress"] < 0.6
            assert 1_500 < row["eta_ms"] < 2_500
            assert replicas(here)["b:latest"] == ("loading", "our loads")
            await second

            await here.pool.unload("b")
            here.pool.engine.refresh()
            await asyncio.sleep(1)
            here.world.nodes["10.0.0.1:11434"].hang_loads()
            third = asyncio.create_task(here.pool.chat("b", HELLO))
            await asyncio.sleep(5)
            (row,) = loading(here)
            assert (row["state"], row["progress"], row["eta_ms"]) == ("loading", None, None)
            await asyncio.sleep(25)
            (row,) = loading(here)
            assert (row["state"], row["elapsed_ms"] > 4 * row["predicted_ms"]) == ("stuck", True)
            assert replicas(here)["b:latest"] == ("stuck", "our loads")
            third.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await third

    run(main())
