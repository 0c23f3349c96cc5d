"""What a second copy of late requests saves, and what it costs: the same traffic with and without `hedge=True`.

Two equal nodes; 2 % of the requests take 20 times as long on a node, prefill and answer alike. Answers are
lognormal around 30 tokens (sigma LENGTHS), which nobody is told. Poisson arrivals; "load" counts the stragglers'
time, so 90 % is what two nodes can just bear. RUNS seeds with COUNT calls each, pooled; every call from the first
on counts, those before the hedger has learnt what is late too. At 90 % load a p99 is that of the longest one or two
queues of a seed, and differs by several times from seed to seed: hence many seeds, and a row for their spread.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from multiprocessing import get_context
from typing import NamedTuple

from bench.rows import Row, row
from bench.stage import MODEL, PROMPT_WORDS, asked, node
from bench.workload import Ask, HiddenLengths, lognormal, number_of
from sollol import AsyncOllamaPool
from sollol.backends.ollama import decode
from sollol.core.actions import Abort
from sollol.core.endpoint import Endpoint
from sollol.observe.journal import Entry
from sollol.sim import SimNode, World, percentile
from sollol.sim import run as simulate
from sollol.sim.reply import SimReply
from sollol.transport.base import Call

SHARE, FACTOR = 0.02, 20.0
WRITES, READS, TOKENS, LENGTHS = 100.0, 2000.0, 30.0, 0.3
LOADS, RUNS, COUNT = (0.3, 0.9), 24, 1500


COPY: ContextVar[tuple[int, int]] = ContextVar(
    "copy"
)  # on its way to a node: which request, and how often it came there


class Straggling(SimNode):
    """Bad luck follows from the request and the node, so that it is the same with and without second copies; who comes
    again to the same node tries anew."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__(node(number, WRITES, prefill_tokens_per_s=READS))
        self._seed = seed

    def duration_factor(self) -> float:
        rng = random.Random(f"{self._seed} {self.spec.key} {COPY.get()}")
        return rng.uniform(0.9, 1.1) * (FACTOR if rng.random() < SHARE else 1.0)


class Numbering(HiddenLengths):
    def __init__(self, world: World, asks: list[Ask]) -> None:
        super().__init__(world, asks)
        self._copies: Counter[tuple[str, int]] = Counter()

    async def send(self, node: Endpoint, call: Call) -> SimReply:
        if call.path == "/api/chat" and isinstance(call.body, bytes):
            number = number_of(decode(call.body))
            COPY.set((number, self._copies[node.key, number]))
            self._copies[node.key, number] += 1
        return await super().send(node, call)


class Trial(NamedTuple):
    load: float
    hedge: bool
    seed: int


class Found(NamedTuple):
    seconds: list[float]
    sent: int


async def calls(trial: Trial) -> Found:
    rng = random.Random(f"{trial.load} {trial.seed}")
    tokens = [max(1, round(lognormal(TOKENS, LENGTHS, rng))) for _ in range(COUNT)]
    read_s = (PROMPT_WORDS + 30) / READS
    mean_s = (sum(tokens) / COUNT / WRITES + read_s) * (1 + SHARE * (FACTOR - 1))
    gaps = [rng.expovariate(2 * trial.load / mean_s) for _ in range(COUNT)]
    asks = [Ask(i, 0.0, MODEL, "chat", PROMPT_WORDS, tokens[i], 0.0) for i in range(COUNT)]
    world = World([Straggling(1, trial.seed), Straggling(2, trial.seed)])
    loop = asyncio.get_running_loop()
    withdrawn = 0

    def taken_back(entry: Entry) -> None:
        """Calls that only waited in a node's own queue were no work for it."""
        nonlocal withdrawn
        withdrawn += sum(isinstance(action, Abort) and action.withdrawn for action in entry.actions)

    async with AsyncOllamaPool(world.endpoints, transport=Numbering(world, asks), seed=trial.seed) as pool:
        pool.engine.journal.subscribe(taken_back)

        async def one(ask: Ask) -> float:
            began_s = loop.time()
            await pool.chat(MODEL, ask.messages, hedge=trial.hedge)
            return loop.time() - began_s

        under_way = []
        for ask, gap_s in zip(asks, gaps, strict=True):
            await asyncio.sleep(gap_s)
            under_way.append(asyncio.create_task(one(ask)))
        seconds = await asyncio.gather(*under_way)
    return Found(seconds, sum(asked(one) for one in world.nodes.values()) - withdrawn)


def perform(trial: Trial) -> Found:
    return simulate(calls(trial))


def run() -> list[Row]:
    trials = [Trial(load, hedge, seed) for load in LOADS for hedge in (False, True) for seed in range(1, RUNS + 1)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        found = dict(zip(trials, workers.map(perform, trials), strict=True))
    rows = []
    for load, target in zip(LOADS, (0.35, 1.0), strict=True):
        mean, p99, extra = {}, {}, {}
        for hedge in (False, True):
            some = [one for trial, one in found.items() if (trial.load, trial.hedge) == (load, hedge)]
            seconds = [s for one in some for s in one.seconds]
            mean[hedge], p99[hedge] = sum(seconds) / len(seconds), percentile(seconds, 0.99)
            extra[hedge] = sum(one.sent for one in some) / len(seconds) - 1
        beside = f"without: {p99[False] * 1000:.0f} ms"
        told = f"with: {p99[True] * 1000:.0f} ms; mean {mean[False] * 1000:.0f} -> {mean[True] * 1000:.0f} ms"
        rows.append(
            row(f"2 % stragglers of 20 x, {load:.0%} load: p99", p99[True] / p99[False], "x", beside, target, note=told)
        )
        rows.append(_spread(load, found))
        rows.append(row("  requests sent besides", 100 * extra[True], "%", f"without: {100 * extra[False]:.1f} %", 5.0))
    return rows


def _spread(load: float, found: dict[Trial, Found]) -> Row:
    """The same ratio for each seed by itself."""
    p99 = {trial: percentile(one.seconds, 0.99) for trial, one in found.items() if trial.load == load}
    ratios = sorted(p99[trial] / p99[trial._replace(hedge=False)] for trial in p99 if trial.hedge)
    worse = sum(ratio > 1 for ratio in ratios)
    told = f"{ratios[0]:.2f} to {ratios[-1]:.2f}; worse with copies in {worse} of {len(ratios)}"
    return row("  the median seed", percentile(ratios, 0.5), "x", "the same traffic without", note=told)
