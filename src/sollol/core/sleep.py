"""Wake sleeping nodes when they are worth it. A sleeping node is not probed: that could wake it.

A node sleeps if it does not answer and can be woken. Its models are those that it had before. `policies.waking` decides
when a packet is sent; then the node is probed until it answers, or is given up and counts as asleep again.
"""

from __future__ import annotations

from typing import Final

from sollol.core.actions import Notice, Wake
from sollol.core.state.replica import Node
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import NEVER, SECOND, Micros, Task
from sollol.core.view import SchedulerView

PROBE_EVERY: Final[Micros] = 2 * SECOND  # while a node boots


class Sleep:
    """Follow the nodes that can be woken."""

    __slots__ = ("_state", "_view")

    def __init__(self, state: SchedulerState, view: SchedulerView) -> None:
        self._state = state
        self._view = view
        state.wake_for = self.wake_for

    def set_wakeable(self, node: Node, wakeable: bool, now: Micros) -> None:
        """Record whether a node can be woken; one that is down sleeps from then on, or is down again."""
        node.wakeable = wakeable
        if wakeable and node.up is False:
            self.falls_asleep(node, now)
        elif not wakeable and (node.asleep or node.waking_us):
            node.asleep, node.waking_us = False, 0
            self._state.health.probe_at(node, now)

    def falls_asleep(self, node: Node, now: Micros) -> None:
        """Stop probing a wakeable node that does not answer, unless it boots."""
        if not node.wakeable:
            return
        if node.waking_us and now - node.waking_us < self._state.policies.waking.give_up_us:
            self._state.health.probe_at(node, now + PROBE_EVERY)
            return
        if node.waking_us:
            node.wake_failed_us = now
            seconds = (now - node.waking_us) / SECOND
            self._state.out.append(Notice(f"{node.key} was woken and has not answered for {seconds:.0f} s."))
        node.asleep, node.waking_us = True, 0
        self._state.health.probe_at(node, NEVER)

    def awake(self, node: Node, now: Micros) -> None:
        """Record that a node answers."""
        if node.waking_us:
            node.boot.add(float(now - node.waking_us))
        node.asleep, node.waking_us, node.wake_failed_us = False, 0, -NEVER

    def wake(self, node: Node, why: str, now: Micros) -> None:
        """Send a packet to a sleeping node, and probe it until it answers."""
        if not node.asleep:
            return
        node.asleep, node.waking_us = False, now
        self._state.out.append(Wake(node.key))
        self._state.out.append(Notice(f"{node.key} is woken: {why}."))
        self._state.health.probe_at(node, now + PROBE_EVERY)

    def check(self, now: Micros) -> None:
        """Wake the nodes for which tasks are predicted to wait too long."""
        sleeping = [node for node in self._state.cluster.nodes.values() if node.asleep]
        if not sleeping:
            return
        policy = self._state.policies.waking
        for model in self._view.waited_for():
            wait_us = self._view.expected_wait_us(len(self._state.queue(model)), model, now)
            for node in sleeping:
                boot_us = round(node.boot.read() or policy.boot_us)
                if model in node.models and policy.wakes(wait_us, boot_us, now - node.wake_failed_us):
                    self.wake(node, f"{model} is waited for, for {wait_us / SECOND:.0f} s as predicted", now)

    def wake_for(self, task: Task, now: Micros) -> bool:
        """Wake a node for a task that no other can serve. Return True while one boots that can."""
        waits = False
        for node in self._state.cluster.nodes.values():
            if task.model not in node.models or (task.only is not None and node.key not in task.only):
                continue
            if node.asleep and self._state.policies.waking.wakes(NEVER, 0, now - node.wake_failed_us):
                self.wake(node, f"no other node can serve {task.model}", now)
            waits = waits or node.waking_us > 0
        if waits:
            self._state.bind_at(task.model, now + PROBE_EVERY)
        return waits
