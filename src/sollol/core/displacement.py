"""Reckon what others pay for a load: models that it puts out, and that somebody uses, have to be loaded again."""

from __future__ import annotations

import math
from typing import Final

from sollol.core.lane import Lane
from sollol.core.types import SECOND, Micros

PUT_OUT: Final = 3  # loads that follow from putting out a model in use: it comes back, and puts out the next one
KEPT: Final = 20  # the same where the model that is to be loaded is in memory elsewhere, or the other one nowhere else
FADES: Final[Micros] = 5 * SECOND  # in which a model that is not used any more counts by a third as much


def displacement_us(lane: Lane, options: str, at: Micros) -> Micros:
    """Return the time that others will pay for a load here: to get back what it puts out, if that is in use."""
    if lane.is_loaded:
        return lane.load_us() if lane.displaces(options, at) else 0
    node = lane.node
    loaded = node.sizes_loaded()
    used = node.used(at)
    size = node.models.get(lane.model, 0)
    cost = 0.0
    for name in sorted(loaded, key=node.last_use):  # Ollama puts out what was not used for longest
        risk = node.memory.risk(loaded, size)
        if not risk:
            break
        del loaded[name]
        lane_or_none = node.lanes.get(name)
        if lane_or_none is not None and name in used:
            cost += risk * loss_us(lane_or_none, lane, at)
        if risk < 1.0:
            break
    return round(cost)


def loss_us(victim: Lane, lane: Lane, at: Micros) -> float:
    """Return what the users of `victim` pay if `lane` is loaded in its place.

    They load it again, and that puts out the next one: nodes would trade their models for ever. So it counts by how
    much it is used, and most where it has no other place, or where `lane` has one."""
    alone, has_place = not _is_elsewhere(victim), _is_elsewhere(lane)
    used = 1.0 if victim.attempts else math.exp((victim.last_end_us - at) / FADES)
    loads = 1 + used * (KEPT if alone or has_place else PUT_OUT)
    if alone:
        loads += len(victim.attempts) + len(victim.market.line.waiting)
    return victim.load_us() * loads


def _is_elsewhere(lane: Lane) -> bool:
    """Check that another node has the model in memory."""
    return any(other is not lane and other.is_loaded and other.node.usable for other in lane.market.lanes.values())
