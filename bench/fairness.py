"""Who is served next: applications that share one queue, priorities, and the patience of those with a low one.

Nodes of one slot, in simulated time. An application's share is the tokens of its answers and prompts (Jain's index:
1 is equal, 0.5 is all for one of two). Two pools have two queues and cannot be fair to each other; one queue serves
several applications behind the gateway, so the calls here are handed to a pool's engine under their names (`call`).
The reference is the same line without the property: first come, first served.
"""

from __future__ import annotations

import asyncio
import random
from typing import NamedTuple

from bench.rows import Row, row
from bench.stage import MODEL, PROMPT_WORDS, node, question
from bench.workload import Ask, HiddenLengths, lognormal
from sollol import AsyncOllamaPool
from sollol.core.types import TaskPriority
from sollol.core.value import replaced
from sollol.engine.engine import TIMEOUTS, finish
from sollol.engine.jobs import CallJob
from sollol.pool.requests import chat_request
from sollol.sim import SimNode, World
from sollol.sim import run as simulate
from sollol.workload.call_options import CallOptions

LOUD, QUIET = "loud", "quiet"
QUIET_CALLS, TIMES = 60, 10
TOKENS = {LOUD: 60.0, QUIET: 30.0}  # the loud one also has the longer answers
WRITES = 100.0


class Served(NamedTuple):
    app: str
    began_s: float  # at a node
    ended_s: float
    tokens: int


async def call(pool: AsyncOllamaPool, number: int, app: str = "", priority: int = 5) -> Served:
    """One chat under an application's name."""
    engine, loop = pool._running(), asyncio.get_running_loop()
    request = chat_request(MODEL, question(number), False, CallOptions(priority), {})
    done: asyncio.Future[None] = loop.create_future()
    job = CallJob(
        replaced(engine._task(request), app=app), request.path, request.body, TIMEOUTS, lambda _: done.set_result(None)
    )
    engine.submit(job)
    await done
    answer = finish(job, request)
    began_s = loop.time() - answer.routing.actual_ms / 1000
    return Served(app, began_s, loop.time(), answer.eval_count + answer.prompt_eval_count)


def universe(nodes: int, tokens: list[int]) -> HiddenLengths:
    """Nodes of one slot; the answer to question n has `tokens[n]` tokens, which only they know."""
    asks = [Ask(i, 0.0, MODEL, "chat", PROMPT_WORDS, count, 0.0) for i, count in enumerate(tokens)]
    return HiddenLengths(World([SimNode(node(i + 1, WRITES)) for i in range(nodes)]), asks)


# --- applications ----------------------------------------------------------------------------------------------------


async def shares(named: bool) -> dict[str, int]:
    """Tokens each application was served while both waited. Not `named`: both are one to the pool."""
    rng = random.Random(1)
    apps = [app for _ in range(QUIET_CALLS) for app in (*[LOUD] * TIMES, QUIET)]
    tokens = [max(1, round(lognormal(TOKENS[app], 0.4, rng))) for app in apps]
    transport = universe(2, tokens)
    async with AsyncOllamaPool(transport.world.endpoints, transport=transport, seed=1) as pool:
        await pool.wait_ready()

        async def one(number: int, app: str) -> Served:
            served = await call(pool, number, app if named else "")
            return served._replace(app=app)

        served = await asyncio.gather(*(one(number, app) for number, app in enumerate(apps)))
    both_wait_s = min(max(one.began_s for one in served if one.app == app) for app in (LOUD, QUIET))
    return {app: sum(one.tokens for one in served if one.app == app and one.ended_s <= both_wait_s) for app in TOKENS}


def jain(shares: dict[str, int]) -> float:
    total = sum(shares.values())
    return total * total / (len(shares) * sum(share * share for share in shares.values()))


def application_rows() -> list[Row]:
    ours, reference = simulate(shares(True)), simulate(shares(False))
    told = ", ".join(f"{app} {tokens} tokens" for app, tokens in ours.items())
    beside = f"first come, first served: {jain(reference):.2f}"
    name = f"Jain index of two applications, one sends {TIMES} x"
    return [row(name, jain(ours), "", beside, 0.98, at_least=True, note=told)]


# --- priorities ------------------------------------------------------------------------------------------------------


async def urgent(priority: int) -> int:
    """How many of 20 waiting LOW calls go before one that comes last, with that priority."""
    transport = universe(1, [30] * 30)
    async with AsyncOllamaPool(transport.world.endpoints, transport=transport, seed=1) as pool:
        low = [asyncio.create_task(call(pool, number, priority=int(TaskPriority.LOW))) for number in range(21)]
        await asyncio.sleep(0.1)  # one runs, 20 wait
        came_s = asyncio.get_running_loop().time()
        last = await call(pool, 21, priority=priority)
        served = await asyncio.gather(*low)
    return sum(came_s < one.began_s < last.began_s for one in served)


async def flooded(seconds: float, priority: int) -> float:
    """How long a call waits to be answered under twice as many HIGH ones as the node can serve."""
    service_s = 0.35
    count = round(2 * seconds / service_s)
    transport = universe(1, [30] * (count + 1))
    async with AsyncOllamaPool(transport.world.endpoints, transport=transport, seed=1) as pool:
        loop = asyncio.get_running_loop()

        async def flood() -> None:
            calls = []
            for number in range(count):
                calls.append(asyncio.create_task(call(pool, number, priority=int(TaskPriority.HIGH))))
                await asyncio.sleep(service_s / 2)
            await asyncio.gather(*calls)

        flooding = asyncio.create_task(flood())
        await asyncio.sleep(10.0)
        began_s = loop.time()
        await call(pool, count, priority=priority)
        took_s = loop.time() - began_s
        await flooding
    return took_s


def priority_rows() -> list[Row]:
    critical, equal = simulate(urgent(int(TaskPriority.CRITICAL))), simulate(urgent(int(TaskPriority.LOW)))
    low, high = simulate(flooded(300.0, int(TaskPriority.LOW))), simulate(flooded(300.0, int(TaskPriority.HIGH)))
    return [
        row("a CRITICAL call behind 20 waiting LOW ones: served before it", critical, "", f"as LOW: {equal}", 0),
        row(
            "a LOW call under a flood of HIGH ones waits",
            low,
            "s",
            f"as HIGH: {high:.1f} s; never by priority alone",
            60,
        ),
    ]


def run() -> list[Row]:
    return [*application_rows(), *priority_rows()]
