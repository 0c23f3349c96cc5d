"""Learn from a good answer: how fast its replica is, how many calls it takes at once, and that it works."""

from __future__ import annotations

from typing import Final

from sollol.core.attempt import Attempt
from sollol.core.ledger import Ledger
from sollol.core.messages import Fault
from sollol.core.singles import Singles
from sollol.core.slots import SlotWatch
from sollol.core.types import EMBED, SECOND, Micros, Timing

WARM_LOAD: Final[Micros] = SECOND // 10  # Ollama reports 1 to 7 ms of loading for a warm model


class Credit:
    __slots__ = ("_ledger", "_singles", "_slots")

    def __init__(self, ledger: Ledger, singles: Singles, slots: SlotWatch) -> None:
        self._ledger = ledger
        self._singles = singles
        self._slots = slots

    def answered(self, attempt: Attempt, timing: Timing, busy_us: Micros, inflight: int, at: Micros) -> None:
        """Learn what can be learned: an answer is one although nothing can."""
        try:
            self._learn(attempt, timing, busy_us, inflight, at)
        except Exception as error:
            self._ledger.out.append(Fault(attempt.task.id, error))

    def _learn(self, attempt: Attempt, timing: Timing, busy_us: Micros, inflight: int, at: Micros) -> None:
        """A good answer: what it tells of rates and slots."""
        lane = attempt.lane
        loading = timing.load_us if timing.load_us > WARM_LOAD else 0
        working_us = busy_us - loading
        if working_us < 1:
            working_us = 1
        lane.node.succeeded += 1
        lane.last_good_us = at
        if lane.reliability.value == 1.0:
            lane.reliability.count += 1
        else:
            lane.reliability.add(1.0)
        lane.busy_answers = 0
        lane.latency.add(at - attempt.started_us)
        lane.good_latency.add(at - attempt.started_us)
        if self._ledger.fleet.unable:
            self._ledger.fleet.served(lane.node, attempt.task)
        if attempt.task.kind is EMBED:
            lane.measured_work(at, attempt.cost, working_us)
            lane.embedded += attempt.items.total()
            amount = attempt.cost
        else:
            self._singles.measured(attempt, timing, at)
            amount = float(timing.tokens + timing.prompt_tokens) or attempt.cost
        lane.answers += 1
        lane.loaded_by_us = True
        if loading:  # it may have put out another model
            lane.measured_load(timing)
            if not attempt.loads:
                lane.node.put_out(lane, attempt.idle_since_us)
            lane.node.loaded_after(lane.model)
            self._ledger.health.ask(lane.node, at, self._ledger.out)
        elif not self._slots.learn(attempt, timing, at):
            lane.sample(amount, working_us, inflight, False, bool(lane.market.line.waiting))
