"""Probe nodes, and record whether they are up. Recovery is noticed without traffic.

`policies.probing` sets the intervals and how many silent probes make a node down.
"""

from __future__ import annotations

from typing import Any, Final

from sollol.core.actions import Action, Probe
from sollol.core.policy import LatenessPolicy, ProbePolicy
from sollol.core.state import memory
from sollol.core.state.cluster import ClusterState
from sollol.core.state.replica import Attempt, Node
from sollol.core.types import EMBED, NEVER, SECOND, Micros, NodeFacts

RECORD_EVERY: Final[Micros] = SECOND  # the arrival of the last task is recorded to a second


class HealthChecks:
    """Plan probes and record their results."""

    def __init__(self, cluster: ClusterState, probing: ProbePolicy, lateness: LatenessPolicy) -> None:
        self._cluster = cluster
        self._probing = probing
        self._lateness = lateness
        self._last_submit: Micros = 0
        self.record_from: Micros = 0  # the next task from then on is to be recorded
        self.next_at: Micros = NEVER
        self.newcomers_until: Micros = 0

    def record_submit(self, now: Micros, out: list[Action]) -> None:
        """Record the arrival of a task, and probe all nodes if it comes after a long idle time."""
        if self._idle(now):
            every_us = self._probing.every_us(False)
            for node in self._cluster.nodes.values():
                if now - node.asked_us > every_us:
                    self.ask(node, now, out)
                if not node.asleep:
                    self._plan(node, min(node.next_probe_us, now + every_us))
        self._last_submit = now
        self.record_from = now + RECORD_EVERY

    def settles_at(self, now: Micros) -> Micros | None:
        """Return until when to wait for new nodes without an answer; None if none is awaited."""
        if now >= self.newcomers_until:
            return None
        waiting = any(node.up is None for node in self._cluster.nodes.values())
        return self.newcomers_until if waiting else None

    def added(self, node: Node, now: Micros, out: list[Action]) -> None:
        """Probe a new node at once."""
        self.newcomers_until = now + self._probing.newcomers_us
        self.ask(node, now, out)

    def ask(self, node: Node, now: Micros, out: list[Action]) -> None:
        """Probe a node, unless a probe is in flight."""
        if node.probing or node.asleep:
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
                replica.gone()
        if not node.up:
            node.up_since = now
        node.up, node.probing, node.silences = True, False, 0
        node.version, node.models, node.loaded = facts.version, facts.models, facts.loaded
        node.digests = facts.digests
        for held in facts.loaded.values():
            node.gpu_seen = node.gpu_seen or held.size_vram > 0
            if held.size_vram >= held.size > node.held_bytes:
                node.held_bytes = held.size
        for model, replica in node.replicas.items():
            held_now = facts.loaded.get(model)
            if held_now is not None:
                replica.see_context(held_now.context_length, node.asked_us)
            elif replica.last_end_us < node.asked_us:
                replica.gone()
                replica.warm.clear()
            replica.flag_off_nominal()
        memory.remember(node, now)
        memory.expect_loads(node)  # the list may still hold what they evicted
        node.probe_backoff_us = 0
        self._plan(node, now + self._probing.every_us(self._idle(now)))
        return changed

    def ask_again(self, node: Node, now: Micros, out: list[Action]) -> None:
        """Probe a node at once if a load ended after its lists were requested.

        They may be of the runner before.
        """
        if max((replica.options_answered_us for replica in node.replicas.values()), default=0) > node.asked_us:
            self.ask(node, now, out)

    def lost(self, node: Node, why: str, certain: bool, now: Micros) -> bool:
        """Record a failed probe. Return True if the node is down now."""
        node.probing = False
        node.lost_why = why
        node.silences += 1
        if not certain and node.up and not self._probing.is_down(node.silences):
            self._plan(node, now + self._probing.retry_us)
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

    def probe_at(self, node: Node, when: Micros) -> None:
        """Probe a node next at this time; NEVER for not at all."""
        node.next_probe_us = when
        self.next_at = min(self.next_at, when)

    def _back_off(self, node: Node, now: Micros) -> None:
        node.probe_backoff_us = self._probing.pause_us(node.probe_backoff_us)
        self._plan(node, now + max(node.probe_backoff_us, self._probing.every_us(True) if self._idle(now) else 0))

    def _idle(self, now: Micros) -> bool:
        return now - self._last_submit > self._probing.idle_after_us

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
            if node.next_probe_us <= now and not node.asleep:
                self.ask(node, now, out)
                node.next_probe_us = now + self._probing.every_us(False)
                overdue += self._overdue(node, now)
            if not node.asleep:
                upcoming = min(upcoming, node.next_probe_us)
        self.next_at = upcoming
        return overdue

    def _overdue(self, node: Node, now: Micros) -> list[Attempt]:
        """Return the chunks of a node that have taken far longer than predicted."""
        return [
            attempt
            for replica in node.replicas.values()
            if replica.work.known
            for attempt in replica.attempts.values()
            if attempt.task.kind is EMBED
            and attempt.items
            and self._lateness.is_given_up(now - attempt.started_us, attempt.due_us - attempt.started_us)
        ]


def _known(node: Node) -> tuple[tuple[str, str, Any], ...]:
    """Return what is recorded of a node: the path of each list, its name in NodeFacts, and the value."""
    tags, ps = "/api/tags", "/api/ps"
    return ((tags, "models", node.models), (tags, "digests", node.digests), (ps, "loaded", node.loaded))
