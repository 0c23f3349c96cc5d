"""Detect a node that is in the pool under two names, since it would get twice the work.

Two nodes are one if their connections lead to the same address and port, they list the same models, and those in memory
expire at the same nanosecond. The address alone is not enough: behind one proxy, two names may be two nodes. A node
with no model in memory is recognised later. The name that was added later is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sollol.core.state.replica import Node
from sollol.core.types import NodeFacts
from sollol.transport.base import Transport


class Aliases:
    """Detection of nodes with two names. `notify` reports to the operator."""

    def __init__(self, transport: Transport, notify: Callable[[str], None]) -> None:
        self._peer: Callable[[Any], Any] = getattr(transport, "peer", _unknown)  # simulated nodes have no addresses
        self._notify = notify
        self._facts: dict[str, NodeFacts] = {}
        self._found: dict[str, str] = {}  # name set aside -> name in use

    def detect(self, key: str, facts: NodeFacts, nodes: Mapping[str, Node]) -> dict[str, str]:
        """Store the facts of a node; return the names to set aside, each with the name in use."""
        if facts.late:
            return {key: self._found[key]} if key in self._found else {}
        self._facts[key] = facts
        place = self._place(nodes[key])
        before = self._found.pop(key, "")
        if before in nodes and self._place(nodes[before]) == place:
            self._found[key] = before
            return {key: before}
        names = list(nodes)
        aside: dict[str, str] = {}
        for name in names:
            if name == key or name in self._found or place is None or self._place(nodes[name]) != place:
                continue
            if self._same(self._facts.get(name), facts):
                first, later = (name, key) if names.index(name) < names.index(key) else (key, name)
                self._found[later] = aside[later] = first
                self._notify(
                    f"{later} is {first} under another name and is not used; remove one of the two from the nodes"
                )
                if later == key:
                    break
        return aside

    def _place(self, node: Node) -> Any:
        endpoint = node.endpoint
        peer = self._peer(endpoint)
        return None if peer is None else (endpoint.scheme, endpoint.prefix, *peer)

    @staticmethod
    def _same(one: NodeFacts | None, other: NodeFacts) -> bool:
        if one is None or not other.loaded:
            return False
        return (one.models, one.digests, one.loaded) == (other.models, other.digests, other.loaded)


def _unknown(endpoint: Any) -> Any:
    return None
