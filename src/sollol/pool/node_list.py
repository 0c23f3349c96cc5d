"""The nodes of a pool as a list that adds and removes nodes when it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, SupportsIndex

from sollol.core.endpoint import parse_endpoint
from sollol.errors import BadInput
from sollol.observe.snapshot import NodeView


class NodeList(list[NodeView]):
    """The nodes at the time of reading. Adding to it, or removing from it, does the same with the pool."""

    def __init__(
        self, nodes: Iterable[NodeView], add: Callable[[Any], NodeView | None], remove: Callable[[str], Any]
    ) -> None:
        super().__init__(nodes)
        self._add = add
        self._remove = remove

    def append(self, node: Any) -> None:
        """Add a node to the pool: a host, a URL, or a dict with `host` and `port`."""
        added = self._add(node)
        if added is not None:
            super().append(added)

    def extend(self, nodes: Iterable[Any]) -> None:
        """Add several nodes to the pool."""
        for node in nodes:
            self.append(node)

    def insert(self, index: SupportsIndex, node: Any) -> None:
        """Add a node to the pool; the place has no effect, since the pool keeps the order of addition."""
        self.append(node)

    def pop(self, index: SupportsIndex = -1) -> NodeView:
        """Remove a node from the pool and return it."""
        node = self[index]
        self._remove(node.url)
        super().pop(index)
        return node

    def remove(self, node: Any) -> None:
        """Remove a node from the pool."""
        self.pop(self.index(node))

    def index(self, node: Any, *bounds: SupportsIndex) -> int:
        """Return the place of a node: a node of the list, or a dict, host or URL of one."""
        keys = [each.key for each in self]
        return keys.index(key_of(node), *bounds)

    def clear(self) -> None:
        """Remove all nodes from the pool."""
        while self:
            self.pop()

    def __delitem__(self, place: Any) -> None:
        for node in self[place] if isinstance(place, slice) else [self[place]]:
            self.remove(node)

    def __iadd__(self, nodes: Iterable[Any]) -> NodeList:  # type: ignore[override,misc]
        self.extend(nodes)
        return self

    def __setitem__(self, place: Any, node: Any) -> NoReturn:
        raise BadInput("pool.nodes[...] = ...: a node cannot be replaced; use pool.remove_node() and pool.add_node()")

    def sort(self, **_: Any) -> NoReturn:
        """Raise BadInput: the pool keeps the order of addition."""
        raise BadInput("pool.nodes.sort(): the pool keeps the order of addition; use sorted(pool.nodes, ...)")

    def reverse(self) -> NoReturn:
        """Raise BadInput: the pool keeps the order of addition."""
        raise BadInput("pool.nodes.reverse(): the pool keeps the order of addition; use reversed(pool.nodes)")


def key_of(node: Any) -> str:
    """Return "host:port" of a node, a dict, a host or a URL."""
    return node.key if isinstance(node, NodeView) else parse_endpoint(node).key
