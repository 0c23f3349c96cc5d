"""Plan which models stay in the memory of which nodes, from demand, sizes, room and load times.

Greedy: the replica that saves most time for each byte comes first (AlpaServe, Li et al. 2023). A model that is nowhere
warm costs a load for each request, and two if no node has room to spare, since then it evicts another. A load is paid
by what it saves over the horizon, so that a plan does not change with every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

HORIZON_S: Final = 1_800.0  # over which a load must pay
LEAST_GAIN: Final = 0.005  # share of the present cost that a step must save
BUSY_MOST: Final = 0.95  # share of a node's time above which waiting is extrapolated
PAIRS_MOST: Final = 400  # replicas compared in one round


class ModelNeed(NamedTuple):
    """Describe the demand for one model.

    Attributes:
        size: Bytes in memory.
        per_s: Expected requests per second.
        least: Least number of replicas, whatever the demand.
    """

    model: str
    size: int
    per_s: float
    least: int = 0


class NodeRoom(NamedTuple):
    """Describe one node.

    Attributes:
        room: Bytes of memory for models.
        service_s: Seconds of a usual request by model; models on its disk only.
        load_s: Seconds of a load by model.
        held: Models in memory and their bytes.
        kept: Models that must stay: in use, or pinned.
        most: Most models at once.
    """

    node: str
    room: int
    service_s: Mapping[str, float]
    load_s: Mapping[str, float]
    held: Mapping[str, int]
    kept: frozenset[str] = frozenset()
    most: int = 1_000


class PlacementStep(NamedTuple):
    """One step of a plan: load or unload a model. `gain_s`: seconds saved for each second of demand."""

    load: bool
    node: str
    model: str
    reason: str
    gain_s: float = 0.0


class PlacementPlan(NamedTuple):
    """The steps of a plan, and the mean seconds of a request before and after."""

    steps: tuple[PlacementStep, ...]
    before_s: float
    after_s: float
    warm: Mapping[str, frozenset[str]]  # node -> models after the plan


Warm = dict[str, set[str]]


class GreedyPlacement:
    """Choose warm replicas by the time that each saves.

    Args:
        horizon_s: Time over which a load must pay.
        least_gain: Share of the present cost that a step must save.
    """

    def __init__(self, *, horizon_s: float = HORIZON_S, least_gain: float = LEAST_GAIN) -> None:
        self._horizon_s = horizon_s
        self._least_gain = least_gain

    def plan(self, needs: Sequence[ModelNeed], nodes: Sequence[NodeRoom]) -> PlacementPlan:
        """Return the loads and unloads that lead to a better placement, the best first; unloads before their loads."""
        cost = _Cost(needs, nodes)
        before: Warm = {node.node: set(node.held) for node in nodes}
        chosen = self._choose(cost, nodes)
        before_s, after_s = cost.of(before), cost.of(chosen)
        demand = sum(need.per_s for need in needs) or 1.0
        wanted = any(need.least for need in needs)
        if not wanted and after_s > before_s * (1 - self._least_gain):
            return PlacementPlan((), before_s / demand, before_s / demand, _frozen(before))
        steps = self._steps(cost, nodes, before, chosen)
        return PlacementPlan(tuple(steps), before_s / demand, after_s / demand, _frozen(chosen))

    def _choose(self, cost: _Cost, nodes: Sequence[NodeRoom]) -> Warm:
        warm: Warm = {node.node: {model for model in node.kept if model in node.held} for node in nodes}
        for need in cost.needs.values():
            for _ in range(need.least - sum(need.model in models for models in warm.values())):
                pairs = [(node, need) for node in nodes if _fits(node, need, warm, cost)]
                if not pairs:
                    break
                node, _ = min(pairs, key=lambda pair: (need.model not in pair[0].held, cost.load_s(*pair)))
                warm[node.node].add(need.model)
        present = cost.of(warm)
        while True:
            pairs = [
                (node, need)
                for need in cost.needs.values()
                if need.per_s > 0
                for node in nodes
                if _fits(node, need, warm, cost)
            ]
            pairs.sort(key=lambda pair: -pair[1].per_s)
            best: tuple[float, float, NodeRoom, ModelNeed] | None = None
            for node, need in pairs[:PAIRS_MOST]:
                warm[node.node].add(need.model)
                after = cost.of(warm)
                warm[node.node].discard(need.model)
                # A load stops the node, and delays what is sent there meanwhile.
                price = 0.0 if need.model in node.held else cost.load_s(node, need) / self._horizon_s
                gain = present - after - price
                if gain > self._least_gain * present and (best is None or gain / need.size > best[0]):
                    best = gain / need.size, after, node, need
            if best is None:
                return warm
            present = best[1]
            warm[best[2].node].add(best[3].model)

    def _steps(self, cost: _Cost, nodes: Sequence[NodeRoom], before: Warm, chosen: Warm) -> list[PlacementStep]:
        steps: list[PlacementStep] = []
        total = cost.of(before)
        for node in nodes:
            new = sorted(chosen[node.node] - before[node.node], key=lambda model: (-cost.needs[model].per_s, model))
            taken = sum(node.held.values())
            leaving = sorted(before[node.node] - chosen[node.node], key=lambda model: (cost.per_s(model), model))
            for model in new:
                need = cost.needs[model]
                while leaving and (taken + need.size > node.room or len(before[node.node]) >= node.most):
                    gone = leaving.pop(0)
                    taken -= node.held[gone]
                    before[node.node].discard(gone)
                    reason = f"makes room for {model}; {cost.per_s(gone) * 60:.2g} requests/min use it"
                    steps.append(PlacementStep(False, node.node, gone, reason))
                if taken + need.size > node.room:
                    continue
                before[node.node].add(model)
                taken += need.size
                after = cost.of(before)
                others = sum(model in models for models in before.values()) - 1
                wanted = f"{need.per_s * 60:.3g} requests/min use it" if need.per_s else "it is to be always warm"
                reason = f"{wanted}, and it is warm on {others} other nodes"
                steps.append(PlacementStep(True, node.node, model, reason, total - after))
                total = after
        return steps


class _Cost:
    """Predict the seconds that all requests of one second take, for a set of warm replicas."""

    def __init__(self, needs: Sequence[ModelNeed], nodes: Sequence[NodeRoom]) -> None:
        self.needs = {need.model: need for need in needs}
        self._nodes = {node.node: node for node in nodes}

    def per_s(self, model: str) -> float:
        """Return the demand for a model."""
        need = self.needs.get(model)
        return 0.0 if need is None else need.per_s

    def load_s(self, node: NodeRoom, need: ModelNeed) -> float:
        """Return the seconds of a load."""
        return node.load_s.get(need.model, 0.0)

    def of(self, warm: Mapping[str, set[str]]) -> float:
        """Return the seconds."""
        spare = {
            key: node.room - sum(self._size(node, model) for model in warm[key]) for key, node in self._nodes.items()
        }
        busy = dict.fromkeys(self._nodes, 0.0)
        shares: dict[str, list[tuple[NodeRoom, float, float]]] = {}  # node, share of the requests, seconds of one
        for need in self.needs.values():
            if need.per_s <= 0:
                continue
            places = [node for key, node in self._nodes.items() if need.model in warm[key]]
            if places:
                rates = [1 / node.service_s.get(need.model, 1.0) for node in places]
                total = sum(rates)
                rows = [(node, rate / total, 1 / rate) for node, rate in zip(places, rates, strict=True)]
            else:
                rows = self._cold(need, spare)
            shares[need.model] = rows
            for node, share, seconds in rows:
                busy[node.node] += need.per_s * share * seconds
        cost = 0.0
        for model, rows in shares.items():
            for node, share, seconds in rows:
                cost += self.needs[model].per_s * share * seconds * _waiting(busy[node.node])
        return cost

    def _cold(self, need: ModelNeed, spare: Mapping[str, float]) -> list[tuple[NodeRoom, float, float]]:
        """Return the best node for a model that is nowhere warm, where each request needs a load."""
        best: tuple[NodeRoom, float, float] | None = None
        for node in self._nodes.values():
            service_s = node.service_s.get(need.model)
            if service_s is None or need.size > node.room:
                continue
            loads = 1 if spare[node.node] >= need.size else 2
            seconds = service_s + loads * self.load_s(node, need)
            if best is None or seconds < best[2]:
                best = node, 1.0, seconds
        return [best] if best is not None else []

    def _size(self, node: NodeRoom, model: str) -> int:
        need = self.needs.get(model)
        return node.held.get(model, 0) if need is None else need.size


def _waiting(busy: float) -> float:
    """Return how many times its own duration a request takes on a node that works this share of the time."""
    if busy < BUSY_MOST:
        return 1 / (1 - busy)
    return (1 + (busy - BUSY_MOST) / (1 - BUSY_MOST)) / (1 - BUSY_MOST)


def _fits(node: NodeRoom, need: ModelNeed, warm: Warm, cost: _Cost) -> bool:
    models = warm[node.node]
    if need.model in models or need.model not in node.service_s or len(models) >= node.most:
        return False
    return sum(cost._size(node, model) for model in models) + need.size <= node.room


def _frozen(warm: Warm) -> dict[str, frozenset[str]]:
    return {node: frozenset(models) for node, models in warm.items()}
