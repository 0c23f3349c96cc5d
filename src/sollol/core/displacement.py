"""Reckon what others pay for a load: models that it puts out, and that somebody uses, have to be loaded again."""

from __future__ import annotations

from typing import Final

from sollol.core.lane import Lane
from sollol.core.types import Micros

PUT_OUT: Final = 3  # loads that follow from putting out a model in use: nodes would trade their models for ever


def displacement_us(lane: Lane, options: str, at: Micros) -> Micros:
    """Return the time that others will pay for a load here: to get back what it puts out, if that is in use."""
    if lane.is_loaded:
        return lane.load_us() if lane.displaces(options, at) else 0
    node = lane.node
    loaded = node.sizes_loaded()
    size = node.models.get(lane.model, 0)
    cost = 0.0
    for name in sorted(loaded, key=node.last_use):  # Ollama puts out what was not used for longest
        risk = node.memory.risk(loaded, size)
        if not risk:
            break
        del loaded[name]
        lane_or_none = node.lanes.get(name)
        if lane_or_none is not None and name in node.used(at):
            cost += risk * loss_us(lane_or_none)
        if risk < 1.0:
            break
    return round(cost)


def loss_us(lane: Lane) -> Micros:
    """Return what the users of this replica pay if it is put out.

    They load it again, and that puts out the next one: PUT_OUT loads. Where no other node has the model in memory,
    each task that runs or waits pays one more."""
    market = lane.market
    users = 0
    if not any(other is not lane and other.is_loaded and other.node.usable for other in market.lanes.values()):
        users = 1 + len(lane.attempts) + len(market.line.waiting)
    return lane.load_us() * (PUT_OUT + users)
