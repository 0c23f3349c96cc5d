"""Does every request find its node? Our router beside four balancers of the field and an oracle, on the same traffic.

The fleet, the traffic and what "capacity" means: `bench.workload`. The references: `bench.balancers`. Everything from
the first request on is counted, so learning is paid for. Each row is of FLEETS fleets of 50 nodes with COUNT
requests each, pooled. Calibration is actual ÷ predicted time of the attempts that answered, without the first 500
requests of each fleet, at the load where it is worst.

Two nodes of 10:1, and options that reload models: `bench.two_nodes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

from bench import two_nodes
from bench.balancers import FIELD, balanced, oracled
from bench.rows import Row, row
from bench.workload import Ask, Site, fleet, traffic, universe
from sollol import Answer, AsyncOllamaPool
from sollol.sim import percentile
from sollol.sim import run as simulate

LOADS = (0.6, 0.8, 0.95)
FLEETS, COUNT = 2, 2500
OURS, ORACLE = "SOLLOL", "oracle"
LEARNT = 500


class Trial(NamedTuple):
    who: str
    load: float
    seed: int


class Found(NamedTuple):
    """Seconds from arrival to answer; and for ours, actual ÷ predicted, in the order of arrival."""

    seconds: list[float]
    calibration: list[float]


async def ours(sites: Sequence[Site], asks: Sequence[Ask]) -> Found:
    transport = universe(sites, asks)
    loop = asyncio.get_running_loop()
    async with AsyncOllamaPool(transport.world.endpoints, transport=transport, seed=1) as pool:
        await pool.wait_ready()
        start_s = loop.time()

        async def one(ask: Ask) -> tuple[float, float]:
            await asyncio.sleep(start_s + ask.at_s - loop.time())
            began_s = loop.time()
            answer: Answer
            if ask.is_embed:
                answer = await pool.embed(ask.model, ask.texts)
            else:
                answer = await pool.chat(ask.model, ask.messages)
            told = answer.routing
            return loop.time() - began_s, told.actual_ms / told.predicted_ms

        found = await asyncio.gather(*(one(ask) for ask in asks))
    return Found([seconds for seconds, _ in found], [ratio for _, ratio in found])


def perform(trial: Trial) -> Found:
    sites = fleet(trial.seed)
    asks = traffic(sites, trial.load, COUNT, trial.seed)
    if trial.who == OURS:
        return simulate(ours(sites, asks))
    if trial.who == ORACLE:
        return Found(simulate(oracled(sites, asks)), [])
    return Found(simulate(balanced(sites, asks, FIELD[trial.who](trial.seed))), [])


def compare() -> list[Row]:
    trials = [
        Trial(who, load, seed) for who in (OURS, ORACLE, *FIELD) for load in LOADS for seed in range(1, FLEETS + 1)
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        found = dict(zip(trials, workers.map(perform, trials), strict=True))
    rows: list[Row] = []
    for load in LOADS:
        seconds = {
            who: [s for trial, one in found.items() if (trial.who, trial.load) == (who, load) for s in one.seconds]
            for who in (OURS, ORACLE, *FIELD)
        }
        rows += _rows(load, seconds)
    return rows + calibration({trial: one for trial, one in found.items() if trial.who == OURS})


def _rows(load: float, seconds: dict[str, list[float]]) -> list[Row]:
    mean = {who: sum(values) / len(values) for who, values in seconds.items()}
    p99 = {who: percentile(values, 0.99) for who, values in seconds.items()}
    where = f"50 nodes, {load:.0%} load"
    return [
        _against_field(f"{where}: mean", mean),
        _against_field(f"{where}: p99", p99),
        row(f"{where}: mean", mean[OURS] / mean[ORACLE], "x", f"oracle: {mean[ORACLE]:.2f} s", 1.15),
    ]


def _against_field(name: str, figure: dict[str, float]) -> Row:
    best = min(FIELD, key=lambda who: figure[who])
    note = f"ours {figure[OURS]:.2f} s; " + ", ".join(f"{who} {figure[who]:.1f}" for who in FIELD)
    return row(name, figure[OURS] / figure[best], "x", f"best of 4, {best}: {figure[best]:.2f} s", 1.0, note=note)


def calibration(found: dict[Trial, Found]) -> list[Row]:
    medians, p90s = {}, {}
    for load in LOADS:
        ratios = [r for trial, one in found.items() if trial.load == load for r in one.calibration[LEARNT:]]
        medians[load], p90s[load] = percentile(ratios, 0.5), percentile(ratios, 0.9)
    off = max(abs(median - 1) for median in medians.values())
    return [
        row("actual ÷ predicted: median, off 1 by", off, "", "a perfect forecast: 0", 0.1, note=_by_load(medians)),
        row("actual ÷ predicted: p90", max(p90s.values()), "x", "known lengths: 1.1", 1.6, note=_by_load(p90s)),
    ]


def _by_load(figures: dict[float, float]) -> str:
    return ", ".join(f"{load:.0%}: {value:.2f}" for load, value in figures.items())


def run() -> list[Row]:
    return [*compare(), *two_nodes.run()]
