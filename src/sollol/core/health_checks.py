"""Decide when to probe a node, and when it is up or down. Recovery is noticed without traffic.

While there is work, a node is probed every EVERY; without a task for a while, every EVERY_IDLE; a node that is down,
after RETRY, then twice as long each time. A refused connection is certain. Silence is not: a machine under load answers
late, so it takes SILENCES in a row.
"""

from __future__ import annotations

from typing import Any, Final

from sollol.core.actions import Action, Probe
from sollol.core.state.attempt import Attempt
from sollol.core.state.cluster import ClusterState
from sollol.core.state.node import Node
from sollol.core.types import EMBED, MILLISECOND, NEVER, SECOND, Micros, NodeFacts

EVERY: Final[Micros] = 5 * SECOND
EVERY_IDLE: Final[Micros] = 60 * SECOND
IDLE_AFTER: Final[Micros] = 30 * SECOND
RETRY: Final[Micros] = 500 * MILLISECOND
RETRY_MAX: Final[Micros] = 5 * SECOND
SILENCES: Final = 2
TOUCH: Final[Micros] = SECOND  # to a second, it is known when the last task came
# The first call waits so long for all nodes to be known, not only the nearest.
NEWCOMERS: Final[Micros] = 250 * MILLISECOND
# A chunk is given up when it has taken so many times its prediction, but never before OVERDUE_LEAST.
OVERDUE_TIMES: Final = 8
OVERDUE_LEAST: Final[Micros] = 20 * SECOND


class HealthChecks:
    """Plan probes and record their results."""

    def __init__(self, cluster: ClusterState) -> None:
        self._cluster = cluster
        self._last_submit: Micros = 0
        self.touch_at: Micros = 0  # from then on the next task is of interest here
        self.next_at: Micros = NEVER
        self.newcomers_until: Micros = 0

    def touched(self, now: Micros, out: list[Action]) -> None:
        """Probe all nodes when a task comes after a long idle time."""
        if now - self._last_submit > IDLE_AFTER:
            for node in self._cluster.nodes.values():
                if now - node.asked_us > EVERY:
                    self.ask(node, now, out)
                self._plan(node, min(node.next_probe_us, now + EVERY))
        self._last_submit = now
        self.touch_at = now + TOUCH

    def settles_at(self, now: Micros) -> Micros | None:
        """Return until when to wait for new nodes without an answer; None if none is awaited."""
        if now >= self.newcomers_until:
            return None
        waiting = any(node.up is None for node in self._cluster.nodes.values())
        return self.newcomers_until if waiting else None

    def added(self, node: Node, now: Micros, out: list[Action]) -> None:
        """Probe a new node at once."""
        self.newcomers_until = now + NEWCOMERS
        self.ask(node, now, out)

    def ask(self, node: Node, now: Micros, out: list[Action]) -> None:
        """Probe a node, unless a probe is in flight."""
        if node.probing:
            return
        node.probing = True
        node.asked_us = now
        out.append(Probe(node.key))

    def seen(self, node: Node, facts: NodeFacts, now: Micros) -> bool:
        """Record the lists of a node. Return True if its models have changed."""
        if facts.late:  # lists that have not come are as they were
            facts = facts._replace(**{name: value for path, name, value in _known(node) if path in facts.late})
        changed = node.models != facts.models or node.digests != facts.digests
        if node.up is False:  # it was away, so its memory is empty
            for replica in node.replicas.values():
                replica.loaded_by_us = False
        if not node.up:
            node.up_since = now
        node.up, node.probing, node.stream_watch = True, False, 0
        node.version, node.models, node.loaded = facts.version, facts.models, facts.loaded
        node.digests = facts.digests
        for held in facts.loaded.values():
            if held.size_vram >= held.size > node.held_bytes:
                node.held_bytes = held.size
        for model, replica in node.replicas.items():
            if model not in facts.loaded and replica.last_end_us < node.asked_us:
                replica.loaded_by_us = False
                replica.warm.clear()
            replica.flag_off_nominal()
        node.remember(now)
        node.loaded_after()  # the list may still hold what they evicted
        node.probe_backoff_us = 0
        self._plan(node, now + self._every(now))
        return changed

    def lost(self, node: Node, why: str, certain: bool, now: Micros) -> bool:
        """Record a failed probe. Return True if the node is down now."""
        node.probing = False
        node.lost_why = why
        node.stream_watch += 1
        if not certain and node.up and node.stream_watch < SILENCES:
            self._plan(node, now + RETRY)
            return False
        if node.up is not False:
            return True
        self._back_off(node, now)
        return False

    def down(self, node: Node, why: str, now: Micros) -> None:
        """Mark a node as down."""
        node.up = False
        for replica in node.replicas.values():
            replica.flag_off_nominal()
        node.lost_why = why
        node.down_since = now
        self._back_off(node, now)

    def _back_off(self, node: Node, now: Micros) -> None:
        node.probe_backoff_us = min(max(RETRY, 2 * node.probe_backoff_us), RETRY_MAX)
        self._plan(node, now + max(node.probe_backoff_us, self._every(now) if self._idle(now) else 0))

    def _idle(self, now: Micros) -> bool:
        return now - self._last_submit > IDLE_AFTER

    def _every(self, now: Micros) -> Micros:
        return EVERY_IDLE if self._idle(now) else EVERY

    def _plan(self, node: Node, when: Micros) -> None:
        node.next_probe_us = when
        self.next_at = min(self.next_at, when)

    def tick(self, now: Micros, busy: bool, out: list[Action]) -> list[Attempt]:
        """Probe the nodes that are due. Return the chunks that took far too long."""
        if busy:
            self._last_submit = now
        if now < self.next_at:
            return []
        overdue: list[Attempt] = []
        upcoming = NEVER
        for node in self._cluster.nodes.values():
            if node.next_probe_us <= now:
                self.ask(node, now, out)
                node.next_probe_us = now + EVERY
                overdue += [a for replica in node.replicas.values() for a in replica.attempts.values() if _late(a, now)]
            upcoming = min(upcoming, node.next_probe_us)
        self.next_at = upcoming
        return overdue


def _known(node: Node) -> tuple[tuple[str, str, Any], ...]:
    """Return what is recorded of a node: the path of each list, its name in NodeFacts, and the value."""
    tags, ps = "/api/tags", "/api/ps"
    return ((tags, "models", node.models), (tags, "digests", node.digests), (ps, "loaded", node.loaded))


def _late(attempt: Attempt, now: Micros) -> bool:
    if attempt.task.kind is not EMBED or not attempt.items or not attempt.replica.work.known:
        return False
    predicted = attempt.due_us - attempt.started_us
    return now - attempt.started_us > max(OVERDUE_LEAST, OVERDUE_TIMES * predicted)
