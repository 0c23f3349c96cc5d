"""Which node? The one where the task would finish first, in microseconds, from what was measured there.

    finish = wait for a slot + load (if cold) + input / rate in + expected output / rate out

No hand-set points: every term is a measured time. Busy nodes compete too, with the time until they are free and
what the tasks ahead in the line have claimed, so a task may rather wait for a fast node than take a slow one.
A lane without measurements is predicted by the others of its model; one that was never tried and has nothing under
way is taken for as fast as the best, so that each is explored once, neither avoided nor flooded.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from sollol.core.fleet import Lane
from sollol.core.types import SECOND, Candidate, Decision, Kind, Micros, Task, Term

TOKENS_OUT = 128.0  # expected answer before one was seen
BYTES_PER_TOKEN = 4.0
PREFILL = 200e-6  # tokens per microsecond assumed before anything was measured anywhere
DECODE = 20e-6
WORK = 2_000e-6  # cost units per microsecond, likewise
SHOWN = 8  # candidates kept in a decision


class CompletionRouter:
    """Predicted completion time."""

    __slots__ = ()

    def choose(
        self,
        task: Task,
        lanes: Sequence[Lane],
        ahead: Mapping[str, Micros],
        at: Micros,
        rng: random.Random,
    ) -> Decision:
        fleet = _Typical(lanes)
        candidates = [self._predict(task, lane, fleet, ahead.get(lane.node.key, 0), at) for lane in lanes]
        best = min(c.finish_us for c in candidates)
        # Within one per cent they are alike; the dice keep several clients from choosing the same one.
        alike = [c for c in candidates if c.finish_us <= best * 1.01]
        chosen = alike[0] if len(alike) == 1 else alike[rng.randrange(len(alike))]
        shown = candidates if len(candidates) <= SHOWN else sorted(candidates, key=lambda c: c.finish_us)[:SHOWN]
        reason = "only candidate" if len(candidates) == 1 else f"finishes first of {len(candidates)}"
        return Decision(chosen.node, chosen.finish_us, reason, tuple(shown))

    def _predict(self, task: Task, lane: Lane, fleet: _Typical, claimed: Micros, at: Micros) -> Candidate:
        terms = []
        wait = claimed + _until_free(lane, at)
        if wait:
            terms.append(Term("wait", wait))
        startup = lane.startup_us()
        if startup:
            terms.append(Term("load", startup))
        unexplored = not lane.node.attempted
        if task.kind is Kind.EMBED:
            rate = lane.work.read() or (fleet.best_work if unexplored else fleet.work)
            terms.append(Term("embed", round(task.cost / rate)))
        else:
            tokens = lane.tokens_out.read() or fleet.tokens_out
            if task.tokens_out is not None and task.tokens_out >= 0:
                tokens = min(tokens, task.tokens_out)
            prefill = lane.prefill.read() or (fleet.best_prefill if unexplored else fleet.prefill)
            decode = lane.decode.read() or (fleet.best_decode if unexplored else fleet.decode)
            terms.append(Term("prefill", round(task.cost / BYTES_PER_TOKEN / prefill)))
            terms.append(Term("decode", round(tokens / decode)))
        penalty = lane.latency.read() if lane.failed and not lane.answers else None
        if penalty:
            terms.append(Term("failures", round(penalty)))
        return Candidate(lane.node.key, sum(term.us for term in terms), tuple(terms))


def _until_free(lane: Lane, at: Micros) -> Micros:
    if len(lane.attempts) < lane.limiter.limit:
        return max(0, lane.paused_until - at)
    ends = sorted(attempt.expected_end(at) for attempt in lane.attempts.values())
    return max(0, ends[len(lane.attempts) - lane.limiter.limit] - at, lane.paused_until - at)


class _Typical:
    """Middle and best rates among the lanes that have been measured, for those that have not."""

    __slots__ = ("best_decode", "best_prefill", "best_work", "decode", "prefill", "tokens_out", "work")

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self.work, self.best_work = _middle([lane.work.read() for lane in lanes], WORK)
        self.prefill, self.best_prefill = _middle([lane.prefill.read() for lane in lanes], PREFILL)
        self.decode, self.best_decode = _middle([lane.decode.read() for lane in lanes], DECODE)
        self.tokens_out, _ = _middle([lane.tokens_out.read() for lane in lanes], TOKENS_OUT)


def _middle(values: Sequence[float | None], default: float) -> tuple[float, float]:
    known = sorted(value for value in values if value)
    return (known[len(known) // 2], known[-1]) if known else (default, default)


class RoundRobinRouter:
    """The next node in turn, whatever it is doing: a reference to measure others against."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def choose(
        self,
        task: Task,
        lanes: Sequence[Lane],
        ahead: Mapping[str, Micros],
        at: Micros,
        rng: random.Random,
    ) -> Decision:
        self._turn += 1
        lane = lanes[self._turn % len(lanes)]
        return Decision(lane.node.key, round(lane.latency.read() or SECOND), "round robin")
