"""Placement of 12 models on 6 nodes, with a demand that shifts, on paper: against least connections and an oracle.

Every hour another order of popularity (zipf) holds. Least connections is what a proxy in front of plain Ollama does:
the node with the fewest requests in flight, which loads what it lacks and evicts what was used longest ago. The oracle
knows the demand of each hour and changes the memory of all nodes at its beginning, at no cost. Ours measures the demand
and pays for its loads.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench import placement_hours
from bench.rows import Row, row
from sollol.policies.placement import GreedyPlacement, ModelNeed, NodeRoom
from sollol.policies.placement_check import PaperNode, arrivals

GB = 10**9
SIZES = (2, 2, 4, 4, 5, 5, 8, 8, 13, 13, 20, 40)
ROOMS = ((8, 0.5), (12, 0.5), (16, 0.8), (24, 1.0), (24, 1.0), (48, 1.6))  # GB, and speed
HOURS, SEEDS = 6, 3
PER_S = 0.25
PLAN_EVERY_S, MEMORY_S = 30.0, 900.0
LOAD_PER_S = 0.5 * GB


class Result(NamedTuple):
    mean_s: float
    loads_per_h: float


def world() -> list[NodeRoom]:
    """Return the nodes. A request takes as long as its model is large."""
    models = {f"m{number}": size * GB for number, size in enumerate(SIZES)}
    nodes = []
    for number, (room, speed) in enumerate(ROOMS):
        fitting = {model: size for model, size in models.items() if size <= room * GB}
        service = {model: (0.5 + size / GB * 0.15) / speed for model, size in fitting.items()}
        load = {model: 0.5 + size / LOAD_PER_S for model, size in fitting.items()}
        nodes.append(NodeRoom(f"n{number}", room * GB, service, load, {}))
    return nodes


def demand(rng: random.Random) -> list[ModelNeed]:
    """Return a zipf demand in a random order of popularity."""
    order = list(range(len(SIZES)))
    rng.shuffle(order)
    weights = [1 / (rank + 1) for rank in range(len(SIZES))]
    total = sum(weights)
    return [
        ModelNeed(f"m{model}", SIZES[model] * GB, PER_S * weight / total)
        for model, weight in zip(order, weights, strict=True)
    ]


Look = Callable[[float, Sequence[PaperNode]], object]


def unseen(at_s: float, nodes: Sequence[PaperNode]) -> None:
    """Look at nothing; tools/models_picture.py draws what it sees."""


def least_connections(
    nodes: Sequence[NodeRoom], hours: Sequence[list[tuple[float, ModelNeed]]], look: Look = unseen
) -> Result:
    paper = [PaperNode(node, {}) for node in nodes]
    flying: dict[str, deque[float]] = {node.node: deque() for node in nodes}
    took, count, loads = 0.0, 0, 0
    for requests in hours:
        for at_s, need in requests:
            for ends in flying.values():
                while ends and ends[0] <= at_s:
                    ends.popleft()
            able = [node for node in paper if need.model in node.room.service_s]
            look(at_s, paper)
            best = min(able, key=lambda node: len(flying[node.room.node]))
            ended, loaded = best.serve(need.model, need.size, at_s)
            flying[best.room.node].append(ended)
            took, count, loads = took + ended - at_s, count + 1, loads + loaded
    return Result(took / count, loads / len(hours))


def planned(
    nodes: Sequence[NodeRoom],
    hours: Sequence[list[tuple[float, ModelNeed]]],
    known: Sequence[list[ModelNeed]] | None,
    look: Look = unseen,
) -> Result:
    """Serve with a placement: of the known demand of each hour, or of the measured one."""
    paper = {node.node: PaperNode(node, {}) for node in nodes}
    sizes = {f"m{number}": size * GB for number, size in enumerate(SIZES)}
    policy, seen = GreedyPlacement(), deque[tuple[float, str]]()
    took, count, loads, next_plan = 0.0, 0, 0, 0.0
    for hour, requests in enumerate(hours):
        if known is not None:
            plan = policy.plan(known[hour], nodes)
            for node in paper.values():
                warm = plan.warm[node.room.node]
                node.sizes = {model: sizes[model] for model in warm}
                node.last_use = {model: node.last_use.get(model, 0.0) for model in warm}
        for at_s, need in requests:
            while known is None and next_plan <= at_s:
                next_plan += PLAN_EVERY_S
                loads += replan(policy, paper, sizes, seen, next_plan)
            look(at_s, list(paper.values()))
            seen.append((at_s, need.model))
            able = [node for node in paper.values() if need.model in node.room.service_s]
            best = min(able, key=lambda node: node.cost_s(need.model, need.size, at_s))
            ended, loaded = best.serve(need.model, need.size, at_s)
            took, count, loads = took + ended - at_s, count + 1, loads + loaded
    return Result(took / count, loads / len(hours))


def replan(
    policy: GreedyPlacement,
    paper: dict[str, PaperNode],
    sizes: dict[str, int],
    seen: deque[tuple[float, str]],
    now: float,
) -> int:
    """Plan by the requests of the last minutes, and carry the loads out on idle nodes. Return their number."""
    while seen and seen[0][0] < now - MEMORY_S:
        seen.popleft()
    span = min(max(now, PLAN_EVERY_S), MEMORY_S)
    needs = [ModelNeed(model, size, sum(name == model for _, name in seen) / span) for model, size in sizes.items()]
    rooms = [
        node.room._replace(held=dict(node.sizes), kept=frozenset(node.sizes) if node.free_at > now else frozenset())
        for node in paper.values()
    ]
    loads = 0
    for step in policy.plan(needs, rooms).steps:
        node = paper[step.node]
        if not step.load:
            node.sizes.pop(step.model, None)
        elif sum(node.sizes.values()) + sizes[step.model] <= node.room.room:
            node.put(step.model, sizes[step.model], now)
            node.free_at = max(node.free_at, now) + node.room.load_s[step.model]
            loads += 1
    return loads


def run() -> list[Row]:
    nodes, found = world(), list[tuple[Result, Result, Result]]()
    for seed in range(1, SEEDS + 1):
        rng = random.Random(seed)
        known = [demand(rng) for _ in range(HOURS)]
        hours = [
            [(at_s + 3_600 * hour, need) for at_s, need in arrivals(needs, 3_600.0, rng)]
            for hour, needs in enumerate(known)
        ]
        found.append((planned(nodes, hours, None), least_connections(nodes, hours), planned(nodes, hours, known)))
    ours, proxy, oracle = (sum(each[place].mean_s for each in found) / SEEDS for place in range(3))
    loads = [sum(each[place].loads_per_h for each in found) / SEEDS for place in range(3)]
    note = f"loads/h: ours {loads[0]:.0f}, least connections {loads[1]:.0f}, oracle {loads[2]:.0f} and its free ones"
    return [
        row("12 models, 6 nodes, shifting demand: mean s", ours / proxy, "x", f"least connections: {proxy:.1f} s", 0.5,
            note=f"ours: {ours:.1f} s; {note}"),
        row("  beside an oracle", ours / oracle, "x", f"oracle: {oracle:.1f} s", 1.3),
        *placement_hours.run(),
    ]  # fmt: skip
