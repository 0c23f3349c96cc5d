"""A node of which little is known is tried: a new one, one that only failed and has healed, one without a GPU."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sollol.sim import ModelSpec, NodeSpec, run
from tests.pool.universe import universe

MODEL = ModelSpec("m", size_bytes=10**9, mean_words=float("inf"))
HELLO = [{"role": "user", "content": "Hello"}]
FAST = "10.0.0.2:11434"
SPECS: dict[str, dict[str, Any]] = {"GPU": {}, "CPU": {"vram_bytes": 0, "cpu_slowdown": 1.0}}


@pytest.mark.parametrize("place", SPECS)
@pytest.mark.parametrize("healed", [False, True])
def test_the_faster_node_is_found_by_calls_one_at_a_time(place: str, healed: bool) -> None:
    async def main() -> None:
        specs = [
            NodeSpec(
                host=f"10.0.0.{number}",
                models=(MODEL,),
                loaded=("m",),
                latency_s=0.001,
                decode_tokens_per_s=rate,
                prefill_tokens_per_s=10_000.0,
                **SPECS[place],
            )
            for number, rate in ((1, 435.0), (2, 645.0))
        ]
        async with universe(specs) as here:
            if healed:
                here.world[FAST].error_rate(1.0)
                for _ in range(40):
                    await here.pool.chat("m", HELLO, options={"num_predict": 20})
                here.world[FAST].heal()
                await asyncio.sleep(40)
            shares: Counter[str] = Counter()
            for _ in range(100):
                answer = await here.pool.chat("m", HELLO, options={"num_predict": 20})
                shares[answer.routing.node] += 1
            assert shares[FAST] >= 90

    run(main())
