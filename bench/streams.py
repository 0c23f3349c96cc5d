"""Streams that their node cuts: is every answer complete, and each word there once?

A node that cuts every stream after 7 of 30 words, and a healthy one beside it, slower, so that streams begin on the
bad one. Both kinds of template: one that goes on with an open assistant message, and the usual one that does not.
The right answer is the healthy node's own, asked alone; a simulated model says the same thing on every node.
ROUNDS new pools, because one that knows the bad node avoids it. The reference is the bad node alone.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from bench.rows import Row, row
from bench.stage import MODEL, node, pool_over, question, some_at_a_time
from sollol import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec, World
from sollol.sim import run as simulate

ROUNDS, STREAMS, WIDTH, WORDS, CUT_AFTER = 10, 6, 3, 30, 7


class Seen(NamedTuple):
    broken: int  # ended in an error
    wrong: int  # ended well, but not with each word of the right answer once
    moved: int  # were begun by one node and ended by another


def nodes(continues: bool) -> list[NodeSpec]:
    """The one that will cut, and the healthy one."""
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, mean_words=math.inf, continues=continues)
    return [node(1, 100.0, models=(model,)), node(2, 50.0, models=(model,))]


async def said(pool: AsyncOllamaPool, number: int, verb: str) -> tuple[list[str], Any]:
    """The parts of an answer, and the last one."""
    options = {"num_predict": WORDS}
    stream: AsyncIterator[Any]
    if verb == "chat":
        stream = await pool.chat(MODEL, question(number), stream=True, options=options)
    else:
        stream = await pool.generate(MODEL, question(number)[0]["content"], stream=True, options=options)
    parts: list[str] = []
    last: Any = None
    async for last in stream:
        text = last.message.content if verb == "chat" else last.response
        if text:
            parts.append(text)
    return parts, last


async def streams(specs: list[NodeSpec], verb: str) -> Seen:
    """All streams over `specs`, of which the first cuts, beside what the last one says by itself."""
    async with pool_over(World(specs[-1:])) as pool:
        right = [(await said(pool, number, verb))[0] for number in range(ROUNDS * STREAMS)]
    broken = wrong = moved = 0

    async def one(pool: AsyncOllamaPool, number: int) -> None:
        nonlocal wrong, moved
        parts, last = await said(pool, number, verb)
        wrong += parts != right[number] or not last.done or last.eval_count != WORDS
        moved += bool(last.routing.seams)

    for first in range(0, ROUNDS * STREAMS, STREAMS):
        world = World(specs)
        world[specs[0].key].cut_after(CUT_AFTER)
        async with pool_over(world, seed=first) as pool:
            broken += await some_at_a_time((one(pool, first + i) for i in range(STREAMS)), WIDTH)
    return Seen(broken, wrong, moved)


def run() -> list[Row]:
    rows = []
    for continues, template in ((True, "goes on"), (False, "opens a turn")):
        for verb in ("chat", "generate"):
            specs = nodes(continues)
            seen = simulate(streams(specs, verb))
            alone = simulate(streams(specs[:1], verb))
            name = f"streams cut after {CUT_AFTER} of {WORDS} words, {verb}, template {template}: not exact"
            beside = f"cutting node alone: {alone.broken + alone.wrong}"
            told = f"{seen.moved} began on the node that cuts and ended on the other"
            rows.append(row(name, seen.broken + seen.wrong, f"of {ROUNDS * STREAMS}", beside, 0, note=told))
    return rows
