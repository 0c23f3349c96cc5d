"""What a failing, dying, frozen or unreachable node costs those who call: nothing but time.

In simulated time, with an ordinary balancer (`bench.stage.LeastConnections`) on the same events beside it; and once
with real processes, SIGKILL and SIGSTOP. "Back in use" counts from the node's return to the start of the first call
there that is answered, while enough calls wait to use it. Two thirds of the calls are chats, one third streams.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from bench.rows import Row, row
from bench.stage import MODEL, LeastConnections, asked, node, pool_over, question, some_at_a_time
from sollol import AsyncOllamaPool, OllamaPool
from sollol.errors import SollolError
from sollol.sim import SimNode, World, spawn, spawn_many
from sollol.sim import run as simulate

CALLS, TOKENS = 120, 30
WIDTHS = (1, 4, 8, 16)
WORKERS, BEFORE_S, AFTER_S = 8, 10.0, 30.0
OUTAGES_S = (2.0, 20.0, 120.0)
FAULTS: dict[str, tuple[Callable[[SimNode], None], Callable[[SimNode], None]]] = {
    "killed": (SimNode.die, SimNode.revive),
    "stopped": (SimNode.freeze, SimNode.thaw),
    "unreachable": (SimNode.black_hole, SimNode.reachable),
}


# --- a node that fails at once ---------------------------------------------------------------------------------------


def failing_world() -> World:
    """A node that answers every request with an error after 5 ms, beside a healthy one that needs a second."""
    world = World([node(1, 1000.0, overhead_s=0.005), node(2, 30.0)])
    world["10.0.0.1:11434"].error_rate(1.0)
    return world


async def call_failing(client: Any, width: int) -> int:
    return await some_at_a_time(
        (client.chat(MODEL, question(i), options={"num_predict": TOKENS}) for i in range(CALLS)), width
    )


async def failing(width: int) -> tuple[int, int]:
    """(calls that failed, requests the failing node was sent)."""
    world = failing_world()
    async with pool_over(world) as pool:
        return await call_failing(pool, width), asked(world["10.0.0.1:11434"])


def failing_rows() -> list[Row]:
    lost = simulate(call_failing(LeastConnections(failing_world()), 8))
    found = {width: simulate(failing(width)) for width in WIDTHS}
    failed, sent = (max(column) for column in zip(*found.values(), strict=True))
    beside = f"least connections: {lost}"
    told = ", ".join(f"{width} in flight: {count}" for width, (_, count) in found.items())
    return [
        row("a node that fails in 5 ms: failed calls", failed, f"of {CALLS}", beside, 0),
        row("  requests it was sent", sent, f"of {CALLS}", beside, 10, note=told),
    ]


# --- a node that goes and comes back ---------------------------------------------------------------------------------


class Seen(NamedTuple):
    failed: int
    calls: int
    slowest_s: float
    back_s: float


async def outage(fault: str, outage_s: float) -> Seen:
    """The fastest of three nodes is away for a while, under eight callers who never rest."""
    world = World([node(1, 90.0), node(2, 60.0), node(3, 30.0)])
    victim = world["10.0.0.1:11434"]
    loop = asyncio.get_running_loop()
    until_s = BEFORE_S + outage_s + AFTER_S
    failed, took, starts = 0, [0.0], []
    async with pool_over(world) as pool:

        async def work(worker: int) -> None:
            nonlocal failed
            turn = worker
            while loop.time() < until_s:
                began_s = loop.time()
                try:
                    told = await _one_call(pool, turn, stream=turn % 3 == 0)
                except SollolError:
                    failed += 1
                    await asyncio.sleep(0.1)
                else:
                    took.append(loop.time() - began_s)
                    if told.node == victim.spec.key:
                        starts.append(loop.time() - told.actual_ms / 1000)
                turn += WORKERS + 1

        workers = [asyncio.create_task(work(worker)) for worker in range(WORKERS)]
        await asyncio.sleep(BEFORE_S)
        go, back = FAULTS[fault]
        go(victim)
        await asyncio.sleep(outage_s)
        back(victim)
        back_s = loop.time()
        await asyncio.gather(*workers)
    first = min((start - back_s for start in starts if start >= back_s), default=math.inf)
    return Seen(failed, len(took) - 1 + failed, max(took), first)


async def _one_call(pool: AsyncOllamaPool, number: int, stream: bool) -> Any:
    """The routing record of a chat."""
    options = {"num_predict": TOKENS}
    if not stream:
        return (await pool.chat(MODEL, question(number), options=options)).routing
    words, last = 0, None
    async for last in await pool.chat(MODEL, question(number), stream=True, options=options):
        words += bool(last.message.content)
    if words != TOKENS or last is None:
        raise SollolError(f"a stream of {words} words")
    return last.routing


async def outage_reference(fault: str, outage_s: float) -> int:
    """Calls that fail, or wait for ever, behind an ordinary balancer."""
    world = World([node(1, 90.0), node(2, 60.0), node(3, 30.0)])
    client, victim = LeastConnections(world), world["10.0.0.1:11434"]
    loop = asyncio.get_running_loop()
    lost = 0

    async def work(worker: int) -> None:
        nonlocal lost
        turn = worker
        while loop.time() < BEFORE_S + outage_s + AFTER_S:
            if await some_at_a_time([client.chat(MODEL, question(turn), options={"num_predict": TOKENS})], 1):
                lost += 1
                await asyncio.sleep(0.1)
            turn += WORKERS

    workers = [asyncio.create_task(work(worker)) for worker in range(WORKERS)]
    await asyncio.sleep(BEFORE_S)
    go, back = FAULTS[fault]
    go(victim)
    await asyncio.sleep(outage_s)
    back(victim)
    await asyncio.gather(*workers)
    return lost


def outage_rows() -> list[Row]:
    rows = []
    for fault in FAULTS:
        seen = {outage_s: simulate(outage(fault, outage_s)) for outage_s in OUTAGES_S}
        away = ", ".join(f"away {outage_s:g} s: {one.back_s:.1f} s" for outage_s, one in seen.items())
        beside = f"least connections: {simulate(outage_reference(fault, OUTAGES_S[1]))}"
        rows += _rows(f"simulated: a node {fault}", list(seen.values()), beside, away)
    return rows


def _rows(name: str, seen: Sequence[Seen], beside: str, away: str) -> list[Row]:
    failed, calls = sum(one.failed for one in seen), sum(one.calls for one in seen)
    slowest = f"slowest call {max(one.slowest_s for one in seen):.1f} s"
    return [
        row(f"{name}: failed calls", failed, f"of {calls}", beside, 0, note=slowest),
        row("  back in use after", max(one.back_s for one in seen), "s", "", 10, note=away),
    ]


# --- the same with processes -----------------------------------------------------------------------------------------

REAL_BEFORE_S, REAL_OUTAGE_S, REAL_AFTER_S = 2.0, 5.0, 11.0


def real(stop: bool) -> Seen:
    """Three processes, of which the fastest is killed and started again, or stopped and continued."""
    specs = [replace(node(place, rate), host="127.0.0.1") for place, rate in enumerate((300.0, 200.0, 100.0))]
    nodes = spawn_many(specs)
    port = int(nodes[0].url.rpartition(":")[2])
    try:
        with OllamaPool([one.url for one in nodes]) as pool, ThreadPoolExecutor(WORKERS) as workers:
            callers = Callers(pool, REAL_BEFORE_S + REAL_OUTAGE_S + REAL_AFTER_S)
            done = [workers.submit(callers.work, worker) for worker in range(WORKERS)]
            time.sleep(REAL_BEFORE_S)
            nodes[0].stop() if stop else nodes[0].kill()
            time.sleep(REAL_OUTAGE_S)
            if stop:
                nodes[0].cont()
            else:
                nodes[0] = spawn(specs[0], port=port)
            back = time.perf_counter()
            for one in done:
                one.result()
    finally:
        for node_of_ours in nodes:
            node_of_ours.kill()
    starts = [start - back for key, start in callers.starts if key.endswith(f":{port}") and start >= back]
    return Seen(callers.failed, callers.failed + len(callers.took), max(callers.took), min(starts, default=math.inf))


class Callers:
    """Threads that chat without rest for so many seconds."""

    def __init__(self, pool: OllamaPool, seconds: float) -> None:
        self._pool = pool
        self._until = time.perf_counter() + seconds
        self.failed = 0
        self.took: list[float] = []
        self.starts: list[tuple[str, float]] = []  # of answered calls: the node, and when it was sent there

    def work(self, worker: int) -> None:
        turn = worker
        while (began := time.perf_counter()) < self._until:
            try:
                answer = self._pool.chat(MODEL, question(turn), options={"num_predict": TOKENS})
            except SollolError:
                self.failed += 1
                time.sleep(0.1)
                continue
            ended = time.perf_counter()
            self.took.append(ended - began)
            self.starts.append((answer.routing.node, ended - answer.routing.actual_ms / 1000))
            turn += WORKERS


def real_rows() -> list[Row]:
    """Both at the same time, to take less of it."""
    with ThreadPoolExecutor(2) as both:
        killed, stopped = both.map(real, (False, True))
    return [*_rows("processes: SIGKILL", [killed], "", ""), *_rows("processes: SIGSTOP", [stopped], "", "")]


def run() -> list[Row]:
    return [*failing_rows(), *outage_rows(), *real_rows()]
