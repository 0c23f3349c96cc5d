"""Merge the progress of several nodes into one sum that never goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MergedProgress:
    """Sum the bytes of all layers over all nodes.

    A layer counts for every node as soon as one node reports it, so that the total is right early.
    """

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._sizes: dict[str, int] = {}
        self._completed: dict[tuple[str, str], int] = {}
        self.outcomes: dict[str, str] = {}  # node -> "success", or its error

    def add(self, line: Mapping[str, Any]) -> None:
        """Record one line of progress, with its `node`."""
        node, digest, total = str(line.get("node")), line.get("digest"), line.get("total")
        if "error" in line:
            self.outcomes[node] = str(line["error"])
        elif line.get("status") == "success":
            self.outcomes[node] = "success"
        elif isinstance(digest, str) and type(total) is int and total > 0:
            self._sizes[digest] = max(self._sizes.get(digest, 0), total)
            done = line.get("completed")
            if type(done) is int:
                self._completed[node, digest] = max(self._completed.get((node, digest), 0), min(done, total))

    @property
    def total(self) -> int:
        """The bytes of all layers on all nodes that have not failed."""
        failed = sum(outcome != "success" for outcome in self.outcomes.values())
        return sum(self._sizes.values()) * (self._nodes - failed)

    @property
    def completed(self) -> int:
        """The bytes that have arrived; all of a node that has succeeded."""
        done = sum(outcome == "success" for outcome in self.outcomes.values()) * sum(self._sizes.values())
        return done + sum(size for (node, _), size in self._completed.items() if node not in self.outcomes)
