"""A policy may take `ReplicaView` where the scheduler gives `Replica`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from sollol.core.policy import ReplicaView, Router
from sollol.core.state.replica import Replica
from sollol.core.types import Decision, Micros, Task


class First:
    """Choose the first replica."""

    wide = False
    by_finish = False

    def choose(
        self,
        task: Task,
        replicas: Sequence[ReplicaView],
        reserved_us: Mapping[str, Micros],
        now: Micros,
        rng: random.Random,
    ) -> Decision:
        """Return the first one."""
        return Decision(replicas[0].key, replicas[0].wait_us(now), "first")


def as_view(replica: Replica) -> ReplicaView:
    """Check that a replica has all that the view shows."""
    return replica


ROUTER: Router = First()
