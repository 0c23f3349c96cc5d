"""Describe the state of each model on a node, and the source of this knowledge."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from sollol.core.state.replica import Node, Replica
from sollol.core.types import EMBED, SECOND, LoadedModel, Micros
from sollol.observe.load_rows import is_being_loaded
from sollol.observe.rows import ReplicaRow

STUCK_S: Final = 60.0  # after which a model that should have left the memory is stuck there
PS: Final = "/api/ps"
TIMINGS: Final = "timings"
LOADS: Final = "our loads"


def replica_states(node: Node, now: Micros, at: float) -> list[ReplicaRow]:
    """Return the models that are in memory, are being loaded, or cannot be, with state, source and reason.

    The states are "loading", "gpu", "part" (of it on the CPU), "cpu", "slow", "loaded" (the place is unknown),
    "stopping", "stuck", and "kept away" for one that the node is not sent.

    Args:
        node: The node.
        now: The present, on the scheduler's clock.
        at: The same in seconds since 1970.
    """
    found = []
    for model in sorted({*node.loaded, *node.replicas}):
        replica, held = node.replicas.get(model), node.loaded.get(model)
        state = _state(replica, held, now, at)
        if state is not None:
            rate = replica.decode.read() if replica is not None else None
            found.append(ReplicaRow(model, *state, tokens_per_s=None if rate is None else round(rate * SECOND, 1)))
    return found


def _state(replica: Replica | None, held: LoadedModel | None, now: Micros, at: float) -> tuple[str, str, str] | None:
    """Return the state of a model, the source of this knowledge, and the reason."""
    if replica is not None:
        if is_being_loaded(replica, now):
            hangs = replica.node.loads_barred_until > now
            return ("stuck", LOADS, replica.node.loads_barred_why) if hangs else ("loading", LOADS, "")
        if replica.demoted_us:
            before = replica.rate_before * SECOND
            if replica.demoted_kind is EMBED:
                return "slow", TIMINGS, f"it embedded {before / 1e3:.1f} kB/s before"
            return "slow", TIMINGS, f"it wrote {before:.1f} tokens/s before"
        if replica.is_barred(now):
            return "kept away", LOADS, replica.node.loads_barred_why or "it is larger than its owner's budget"
    if held is None:
        return None
    over_s = at - moment(held.expires_at, math.inf)
    if over_s > 0:
        return "stuck" if over_s > STUCK_S else "stopping", PS, f"it should have left {over_s:.0f} s ago"
    share = held.gpu_share
    if share is None:
        if replica is not None and (evidence := replica.gpu_evidence()).on_gpu is False:
            return "cpu", evidence.source, evidence.why
        return "loaded", PS, "the node does not report where it runs"
    return "gpu" if share == 1.0 else "part" if share else "cpu", PS, held.processor


def moment(text: str, otherwise: float) -> float:
    """Return a time of a node's answer in seconds since 1970; `otherwise` if it cannot be read."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return otherwise
