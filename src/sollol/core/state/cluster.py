"""The nodes by key, the replicas by model, and the usual length of answers."""

from __future__ import annotations

from sollol.core.state.model_settings import ModelSettings
from sollol.core.state.replica import ModelReplicas, Node
from sollol.core.types import Micros, Outcome, Task


class ClusterState(ModelSettings):
    """Hold the nodes, the replicas of each model, and what embeddings use."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.groups: dict[str, ModelReplicas] = {}
        self.incapable: dict[str, Node] = {}  # nodes that cannot do something

    def learn_unable(self, node: Node, task: Task, outcome: Outcome, now: Micros) -> None:
        """Record what a node cannot do."""
        if node.incapable.learn(task, outcome, now):
            self.incapable[node.key] = node

    def learn_too_large(self, node: Node, model: str, outcome: Outcome, now: Micros) -> None:
        """Record that a model does not fit into the memory of a node."""
        node.incapable.learn_too_large(model, outcome, now)
        self.incapable[node.key] = node

    def served(self, node: Node, task: Task) -> None:
        """Record that a node with a known incapability has answered."""
        node.incapable.served(task)
        if node.incapable.is_empty:
            self.incapable.pop(node.key, None)

    def excluded_for(self, task: Task, now: Micros) -> set[str]:
        """Return the nodes that are not tried with this task, even if no other is left."""
        found = set()
        for key, node in self.incapable.items():
            incapable = node.incapable.of(task, now)
            if incapable is not None and incapable.is_final:
                found.add(key)
        return found

    def unable_for(self, task: Task, now: Micros) -> set[str]:
        """Return the nodes that cannot serve this task."""
        return {key for key, node in self.incapable.items() if node.incapable.stops(task, now)}
