"""Update the rates of a replica from the timings of an answer."""

from __future__ import annotations

from sollol.core.state.estimators import Rate
from sollol.core.state.replica import COLD, OUTLIER, RATE_MEMORY, SPEED_EVERY, Replica
from sollol.core.types import Micros, Timing


def measured_work(replica: Replica, now: Micros, cost: float, working_us: Micros) -> None:
    """Record an embedding, with the µs since the replica was last idle or done."""
    before = replica.work.read() or 0.0
    _place_changed(replica)
    replica.work.add(cost, working_us)
    replica.group.rate_changed(before, replica.work.read() or 0.0, now)
    replica.done_cost += cost


def measured_tokens(replica: Replica, timing: Timing, warm: float, elapsed_us: Micros) -> None:
    """Record an answer's own timings.

    Args:
        warm: Share of the prompt that the node need not have read again.
        elapsed_us: Time of the answer by our clock.
    """
    _place_changed(replica)
    if timing.prompt_us > 0 and timing.prompt_tokens > 0 and warm <= COLD:
        replica.prefill.add(timing.prompt_tokens, timing.prompt_us, OUTLIER)
    if timing.decode_us > 0 and timing.tokens > 0:
        replica.decode.add(timing.tokens, timing.decode_us, OUTLIER)
        if replica.decode.value and (replica.answers < SPEED_EVERY or not replica.answers % SPEED_EVERY):
            replica.node.speed.add(replica.decode.value / replica.group.typical().decode)
    besides = elapsed_us - timing.load_us - timing.prompt_us - timing.decode_us
    replica.overhead.add(float(besides) if besides > 0 else 0.0)
    replica.group.samples += 1


def _place_changed(replica: Replica) -> None:
    """Forget the rates of a model that runs elsewhere now: on the CPU, or on the GPU again."""
    slowness = replica.slowness()
    if slowness > 2 * replica.measured_slowness or 2 * slowness < replica.measured_slowness:
        replica.decode, replica.prefill, replica.work = Rate(RATE_MEMORY), Rate(RATE_MEMORY), Rate(RATE_MEMORY)
    replica.measured_slowness = slowness


def measured_load(replica: Replica, timing: Timing) -> None:
    """Record the time of a load."""
    size = replica.node.models.get(replica.model, 0)
    if size > 0:
        replica.node.load_time.add(size, timing.load_us)
