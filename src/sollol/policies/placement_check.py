"""Try a placement on paper before it is carried out: the same demand over both, request by request.

A model of a cluster as simple as it can be: a node does one thing at a time, a load evicts what was used longest ago,
and each request goes where it ends first, counting the time that others lose.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sollol.policies.placement import ModelNeed, NodeRoom

USED_S: Final = 600.0  # a model used within this time will be used again
DISPLACED: Final = 3.0  # loads that follow from evicting it


class Trial(NamedTuple):
    """The mean seconds of a request, and the number of loads."""

    mean_s: float
    loads: int


class PaperNode:
    """A node on paper: its warm models, and until when it is at work."""

    def __init__(self, room: NodeRoom, warm: Mapping[str, int]) -> None:
        self.room = room
        self.free_at = 0.0
        self.last_use: dict[str, float] = dict.fromkeys(warm, 0.0)
        self.sizes = dict(warm)

    def _by_use(self) -> list[str]:
        """Return the warm models, the one unused for longest first, by name where that is equal."""
        return sorted(self.sizes, key=lambda name: (self.last_use[name], name))

    def cost_s(self, model: str, size: int, at_s: float) -> float:
        """Return the seconds until a request would end here, and those that others pay for what it evicts."""
        seconds = max(at_s, self.free_at) - at_s + self.room.service_s[model]
        if model in self.sizes:
            return seconds
        seconds += self.room.load_s[model]
        taken, count = sum(self.sizes.values()), len(self.sizes)
        for gone in self._by_use():
            if taken + size <= self.room.room and count < self.room.most:
                break
            taken, count = taken - self.sizes[gone], count - 1
            if at_s - self.last_use[gone] < USED_S:
                seconds += DISPLACED * self.room.load_s[gone]
        return seconds

    def put(self, model: str, size: int, at_s: float) -> bool:
        """Load a model and evict what it needs. Return whether it needed a load."""
        is_new = model not in self.sizes
        if is_new:
            for gone in self._by_use():
                if sum(self.sizes.values()) + size <= self.room.room and len(self.sizes) < self.room.most:
                    break
                del self.sizes[gone]
            self.sizes[model] = size
        self.last_use[model] = at_s
        return is_new

    def serve(self, model: str, size: int, at_s: float) -> tuple[float, bool]:
        """Serve a request. Return when it ends, and whether it needed a load."""
        began = max(at_s, self.free_at)
        load_s = 0.0 if model in self.sizes else self.room.load_s[model]
        loaded = self.put(model, size, began)
        self.free_at = began + load_s + self.room.service_s[model]
        self.last_use[model] = self.free_at
        return self.free_at, loaded


def arrivals(needs: Sequence[ModelNeed], span_s: float, rng: random.Random) -> list[tuple[float, ModelNeed]]:
    """Return the requests of a span, each with its time."""
    total = sum(need.per_s for need in needs)
    found, at_s = list[tuple[float, ModelNeed]](), 0.0
    weights = [need.per_s for need in needs]
    while total > 0:
        at_s += rng.expovariate(total)
        if at_s > span_s:
            break
        found.append((at_s, rng.choices(needs, weights)[0]))
    return found


def try_placement(
    needs: Sequence[ModelNeed],
    nodes: Sequence[NodeRoom],
    warm: Mapping[str, frozenset[str]],
    requests: Sequence[tuple[float, ModelNeed]],
) -> Trial:
    """Return how long these requests take where these models are warm at the beginning."""
    sizes = {need.model: need.size for need in needs}
    paper = [
        PaperNode(node, {model: sizes.get(model, node.held.get(model, 0)) for model in warm[node.node]})
        for node in nodes
    ]
    took_s, loads = 0.0, 0
    for at_s, need in requests:
        able = [node for node in paper if need.model in node.room.service_s and need.size <= node.room.room]
        if not able:
            continue
        best = min(able, key=lambda node: node.cost_s(need.model, need.size, at_s))
        ended, loaded = best.serve(need.model, need.size, at_s)
        took_s += ended - at_s
        loads += loaded
    return Trial(took_s / len(requests) if requests else 0.0, loads)
