"""What waiting tasks can be told: their place in line, and when they should start. Reads, and changes nothing."""

from __future__ import annotations

from sollol.core.ledger import Ledger
from sollol.core.types import SECOND, Micros


class Forecast:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def position(self, task: int, at: Micros) -> tuple[int, Micros] | None:
        """A waiting task's place in its line, from 1, and in how long it should start. None if it does not wait."""
        opened = self._ledger.open.get(task)
        line = self._ledger.lines.get(opened.task.model) if opened else None
        if opened is None or line is None or task not in line:
            return None
        place = line.first(len(line), at).index(task) + 1
        return place, self.wait_for(place, opened.task.model, at)

    def line_up(self, model: str, at: Micros) -> list[tuple[int, Micros]]:
        """The tasks that wait for a model in their order, each with the time in which it should start."""
        line = self._ledger.lines.get(model)
        if line is None:
            return []
        waiting = line.first(len(line), at)
        return [(task, self.wait_for(place, model, at)) for place, task in enumerate(waiting, 1)]

    def models_waited_for(self) -> list[str]:
        return [model for model, line in self._ledger.lines.items() if line]

    def wait_for(self, place: int, model: str, at: Micros) -> Micros:
        """Slots free at the rate at which the lanes answer; before any answered, what they are predicted to take."""
        market = self._ledger.fleet.markets.get(model)
        lanes = market.usable(at) if market else []
        if not lanes:
            return 0
        soonest = min(lane.wait_us(at) for lane in lanes)
        rate = sum(lane.proven / max(1.0, lane.latency.read() or SECOND) for lane in lanes)
        return soonest + round((place - 1) / rate)
