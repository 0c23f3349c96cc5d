"""Events of the cluster in words: nodes that come and go, loads, evictions, a model on the CPU, open breakers.

They are found by comparing the state with that of the last look, once a second, so that no request pays for them.
"""

from __future__ import annotations

import msgspec

from sollol.core.state.replica import Node
from sollol.core.types import LoadedModel
from sollol.core.view import SchedulerView
from sollol.observe.findings import ERROR, INFO, WARNING


class ClusterEvent(msgspec.Struct, frozen=True):
    """Report a change of the cluster; `at` in seconds since 1970."""

    at: float
    kind: str
    severity: str
    node: str
    model: str
    text: str


class _Seen:
    """Hold the state of one node at the last look."""

    __slots__ = ("breakers", "drained", "loaded", "up", "version")

    def __init__(self, node: Node) -> None:
        self.up = node.up
        self.drained = node.drained
        self.version = node.version
        self.loaded: dict[str, LoadedModel] = dict(node.loaded)
        self.breakers = {model for model, replica in node.replicas.items() if not replica.breaker.closed}


class EventDetector:
    """Compare the cluster with its state at the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def look(self, view: SchedulerView, at: float) -> list[ClusterEvent]:
        """Return the changes since the last look."""
        found: list[ClusterEvent] = []
        nodes, is_first = view.nodes, not self._seen
        for key in [key for key in self._seen if key not in nodes]:
            del self._seen[key]
            found.append(ClusterEvent(at, "node-removed", INFO, key, "", f"{key} was taken out"))
        for key, node in nodes.items():
            now, before = _Seen(node), self._seen.get(key)
            self._seen[key] = now
            if before is None:
                if not is_first:
                    found.append(ClusterEvent(at, "node-added", INFO, key, "", f"{key} was added"))
                if now.up is not None:
                    found.append(_up_or_down(at, node))
            else:
                found += _changes(at, node, before, now)
        return found


def _up_or_down(at: float, node: Node) -> ClusterEvent:
    if node.up:
        version = f" ({node.version})" if node.version else ""
        return ClusterEvent(at, "node-up", INFO, node.key, "", f"{node.key} is up{version}")
    return ClusterEvent(at, "node-down", ERROR, node.key, "", f"{node.key} is down: {node.lost_why}")


def _changes(at: float, node: Node, before: _Seen, now: _Seen) -> list[ClusterEvent]:
    key = node.key
    found = [_up_or_down(at, node)] if now.up is not None and now.up is not before.up else []
    if now.version and before.version and now.version != before.version:
        text = f"{key} changed its version from {before.version} to {now.version}"
        found.append(ClusterEvent(at, "version", INFO, key, "", text))
    if now.up and before.up:
        found += _changes_in_memory(at, key, before.loaded, now.loaded)
    if now.drained is not before.drained:
        why = f"{key} is drained, and gets no new work: {', '.join(node.drained_for)}"
        text = why if now.drained else f"{key} gets work again"
        found.append(ClusterEvent(at, "drained" if now.drained else "resumed", INFO, key, "", text))
    for model in now.breakers - before.breakers:
        text = f"{key} gets no more requests for {model}: they failed in a row"
        found.append(ClusterEvent(at, "breaker-open", WARNING, key, model, text))
    for model in before.breakers - now.breakers:
        found.append(ClusterEvent(at, "breaker-closed", INFO, key, model, f"{key} gets requests for {model} again"))
    return found


def _changes_in_memory(
    at: float, key: str, before: dict[str, LoadedModel], now: dict[str, LoadedModel]
) -> list[ClusterEvent]:
    found = [
        ClusterEvent(at, "unloaded", INFO, key, model, f"{model} left the memory of {key}")
        for model in before.keys() - now.keys()
    ]
    for model, held in now.items():
        share, old = held.gpu_share, before.get(model)
        if old is None and share is None:
            found.append(ClusterEvent(at, "loading", INFO, key, model, f"{key} loads {model}"))
        elif share is not None and (old is None or old.gpu_share is None):
            text = f"{model} is in the memory of {key}, {held.processor}"
            found.append(ClusterEvent(at, "loaded", INFO, key, model, text))
        elif share is not None and old is not None and old.gpu_share is not None and share < old.gpu_share:
            text = f"{model} on {key} fell from {old.processor} to {held.processor}"
            found.append(ClusterEvent(at, "cpu-fallback", WARNING, key, model, text))
    return found
