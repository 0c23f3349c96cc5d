"""The cluster: nodes by key, replicas by model, and how long answers usually are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sollol.core.state.estimators import Lengths
from sollol.core.state.node import Node
from sollol.core.types import Micros, Outcome, Task

if TYPE_CHECKING:
    from sollol.core.state.model_replicas import ModelReplicas


class ClusterState:
    """Nodes by key, markets by model, and how long answers usually are."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.groups: dict[str, ModelReplicas] = {}
        self.lengths = Lengths()
        self.incapable: dict[str, Node] = {}  # nodes that cannot do something
        self.pinned: Mapping[str, str] = {}  # model -> the digest, or the beginning of one, that embeddings use
        self.used: dict[str, str] = {}  # model -> the digest that embeddings have used, also before this fleet
        self.one_digest = False  # chats use one digest, too

    def learn_unable(self, node: Node, task: Task, outcome: Outcome, now: Micros) -> None:
        """Remember what a node cannot do."""
        if node.incapable.learn(task, outcome, now):
            self.incapable[node.key] = node

    def served(self, node: Node, task: Task) -> None:
        """A node that could not do something has answered."""
        node.incapable.served(task)
        if node.incapable.is_empty:
            self.incapable.pop(node.key, None)

    def unable_for(self, task: Task, now: Micros) -> set[str]:
        """Return the nodes that are known to be unable to serve this task."""
        return {key for key, node in self.incapable.items() if node.incapable.stops(task, now)}
