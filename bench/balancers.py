"""Who could do the work of our router: the balancers of the field, and an oracle.

The four of the field assign a request the moment it comes and the node queues it, as nginx, HAProxy, Envoy,
linkerd and every proxy in front of Ollama do. Each knows which nodes have the model (without that, it would answer
404); each counts what it has in flight on every node, over all models.

- round robin: a turn for each model.
- least connections: fewest in flight; a draw among equals.
- power of two choices (Mitzenmacher 2001): two at random, the one with fewer in flight.
- peak-EWMA (finagle, linkerd, tower): two at random, least latency x (in flight + 1); the latency jumps up to a
  slower answer, follows a faster one by exp(-age/decay), and fades while nothing is heard. A node without history
  counts as idle, once. The usual decay of 10 s is for calls of milliseconds: here it is worse by half than DECAY_S,
  the best of those tried (1 s to for ever).

The oracle knows every request's work, every node's speed and what is in its memory, and binds late.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Protocol

from bench.workload import LATENCY_S, LOADS, Ask, HiddenLengths, Site, holders, size_of, universe
from sollol.core.value import replaced
from sollol.transport.base import Timeouts

FOR_EVER = Timeouts(None, None, None)
DECAY_S = 300.0


class Balancer(Protocol):
    def pick(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        """One of `sites`, which all have the model."""
        ...

    def ended(self, site: Site, seconds: float, at_s: float) -> None: ...


class _Counting:
    """Keeps what is in flight on every node."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.inflight: dict[str, int] = {}

    def pick(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        site = self.choose(ask, sites, at_s)
        self.inflight[site.spec.key] = self.load(site) + 1
        return site

    def ended(self, site: Site, seconds: float, at_s: float) -> None:
        self.inflight[site.spec.key] -= 1

    def load(self, site: Site) -> int:
        return self.inflight.get(site.spec.key, 0)

    def choose(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        raise NotImplementedError


class RoundRobin(_Counting):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._turns: dict[str, int] = {}

    def choose(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        turn = self._turns[ask.model] = self._turns.get(ask.model, -1) + 1
        return sites[turn % len(sites)]


class LeastConnections(_Counting):
    def choose(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        least = min(map(self.load, sites))
        return self.rng.choice([site for site in sites if self.load(site) == least])


class TwoChoices(_Counting):
    def choose(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        return min(self.rng.sample(sites, 2), key=self.load)


class PeakEwma(_Counting):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._latency: dict[str, tuple[float, float]] = {}  # (estimate, when)

    def choose(self, ask: Ask, sites: Sequence[Site], at_s: float) -> Site:
        return min(self.rng.sample(sites, 2), key=lambda site: self._cost(site, at_s))

    def _cost(self, site: Site, at_s: float) -> float:
        estimate, when = self._latency.get(site.spec.key, (0.0, at_s))
        latency = estimate * math.exp((when - at_s) / DECAY_S)
        if latency == 0.0 and self.load(site):
            return 1e9 + self.load(site)
        return latency * (self.load(site) + 1)

    def ended(self, site: Site, seconds: float, at_s: float) -> None:
        super().ended(site, seconds, at_s)
        estimate, when = self._latency.get(site.spec.key, (0.0, at_s))
        keep = math.exp((when - at_s) / DECAY_S)
        self._latency[site.spec.key] = (max(seconds, estimate * keep + seconds * (1 - keep)), at_s)


FIELD = {
    "round robin": RoundRobin,
    "least connections": LeastConnections,
    "power of two choices": TwoChoices,
    "peak-EWMA": PeakEwma,
}


async def balanced(sites: Sequence[Site], asks: Sequence[Ask], balancer: Balancer) -> list[float]:
    """Seconds from arrival to answer, request by request."""
    transport = universe(sites, asks)
    loop = asyncio.get_running_loop()
    having = {ask.model: holders(sites, ask.model) for ask in asks}

    async def one(ask: Ask) -> float:
        await asyncio.sleep(ask.at_s - loop.time())
        began_s = loop.time()
        site = balancer.pick(ask, having[ask.model], began_s)
        await perform(transport, site, ask)
        seconds = loop.time() - began_s
        balancer.ended(site, seconds, loop.time())
        return seconds

    return await asyncio.gather(*(one(ask) for ask in asks))


async def perform(transport: HiddenLengths, site: Site, ask: Ask) -> None:
    endpoint = transport.world.endpoints[int(site.spec.host.rpartition(".")[2]) - 1]
    reply = await transport.send(endpoint, replaced(ask.call(), timeouts=FOR_EVER))
    if reply.status != 200:
        raise RuntimeError(f"{site.spec.key} answers {reply.status}: {await reply.read()!r}")
    await reply.read()


class _Plan:
    """What the oracle has decided for one node: a line that it serves one after another."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.turn = asyncio.Lock()
        self._memory = [model.removesuffix(":latest") for model in site.spec.loaded]
        self._line: list[float] = []  # seconds that each in line will take
        self._head_since_s = 0.0

    def seconds(self, ask: Ask) -> float:
        """What the request takes here once it is its turn."""
        load_s = 0.0 if ask.model in self._memory else size_of(ask.model) / LOADS
        return LATENCY_S + load_s + ask.work_s / self.site.speed

    def finish_s(self, ask: Ask, at_s: float) -> float:
        wait_s = sum(self._line[1:]) + max(0.0, self._head_since_s + self._line[0] - at_s) if self._line else 0.0
        return wait_s + self.seconds(ask)

    def enter(self, ask: Ask, at_s: float) -> None:
        if not self._line:
            self._head_since_s = at_s
        self._line.append(self.seconds(ask))
        if ask.model in self._memory:
            self._memory.remove(ask.model)
        else:  # as the node does: the one unused for longest goes first
            while len(self._memory) >= 3 or self._held() + size_of(ask.model) > (self.site.spec.vram_bytes or 0):
                self._memory.pop(0)
        self._memory.append(ask.model)

    def _held(self) -> int:
        return sum(map(size_of, self._memory))

    def leave(self, at_s: float) -> None:
        self._line.pop(0)
        self._head_since_s = at_s


async def oracled(sites: Sequence[Site], asks: Sequence[Ask]) -> list[float]:
    """First come, first served, each where it will end first, known exactly up to the nodes' jitter.

    A node works on one request at a time: with lengths known, that is better than sharing its GPU between models.
    Serving the shortest first as well would lower the mean by a tenth at most, and double or triple the p99.
    """
    transport = universe(sites, asks)
    loop = asyncio.get_running_loop()
    all_plans = [_Plan(site) for site in sites]
    plans = {ask.model: [plan for plan in all_plans if ask.model in plan.site.models] for ask in asks}

    async def one(ask: Ask) -> float:
        await asyncio.sleep(ask.at_s - loop.time())
        began_s = loop.time()
        plan = min(plans[ask.model], key=lambda plan: plan.finish_s(ask, began_s))
        plan.enter(ask, began_s)
        async with plan.turn:
            await perform(transport, plan.site, ask)
            plan.leave(loop.time())
        return loop.time() - began_s

    return await asyncio.gather(*(one(ask) for ask in asks))
