"""Find out by a load whether a node runs a model on a GPU, for tasks that require one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sollol.core.model_loading import load
from sollol.core.state.replica import ModelReplicas
from sollol.core.state.scheduler_state import SchedulerState
from sollol.core.types import SECOND, Micros, Task

PROOF_EVERY: Final[Micros] = SECOND  # between two looks at such a load


def prove_gpu(state: SchedulerState, group: ModelReplicas, task: Task, excluded: Collection[str], now: Micros) -> bool:
    """Load the model on a node of which it is unknown. Return True while such a load goes on."""
    unknown = [
        replica
        for replica in group.replicas.values()
        if replica.key not in excluded
        and (task.only is None or replica.key in task.only)
        and replica.is_on_gpu() is None
        and not (replica.is_loaded and replica.loading_until <= now)  # its node does not report the place
        and replica.usable(now)
    ]
    if not unknown:
        return False
    if not any(replica.loading_until > now for replica in unknown):
        idle = [replica for replica in unknown if not replica.node.running]
        best = min(idle or unknown, key=lambda replica: replica.load_us())
        load(state, best, task.kind, task.options, now)
    state.bind_at(group.model, now + PROOF_EVERY)
    return True
