"""All lanes of one model, and what would cost too much to add up for each decision.

A decision looks at a few lanes, not at a thousand: those with a free slot that are fastest, the fastest busy ones (it
may be better to wait for one), and those that have read the beginning of this conversation or hold the model with
these options. `ranked` is their order, made anew now and then.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from sollol.core.digests import chosen
from sollol.core.estimate import KINDS_MAX, Length, Rate
from sollol.core.queue import WaitingLine
from sollol.core.types import EMBED, SECOND, Mark, Micros, Task, TaskType

if TYPE_CHECKING:
    from sollol.core.fleet import Fleet
    from sollol.core.lane import Lane

SHORTLIST: Final = 24  # lanes looked at for one decision; all, if there are no more
HALF: Final = SHORTLIST // 2
MATCHING: Final = 4  # of those that hold the model with the options asked for
MARKS_MAX: Final = 10_000
RANK_EVERY: Final = 16  # answers after which the lanes are ranked anew, or half as many as there are lanes
RANK_OFTEN: Final = 64  # first answers, after each of which they are

# Assumed before anything was measured anywhere; the first answers replace them.
TOKENS_OUT: Final = 128.0
BYTES_PER_TOKEN: Final = 4.0
PREFILL: Final = 200e-6  # tokens per microsecond
DECODE: Final = 20e-6
WORK: Final = 2_000e-6  # cost units per microsecond


class Typical(NamedTuple):
    """Middle and best rates among the lanes that have been measured, for those that have not."""

    work: float = WORK
    best_work: float = WORK
    prefill: float = PREFILL
    best_prefill: float = PREFILL
    decode: float = DECODE
    best_decode: float = DECODE
    slowness: float = 1.0  # of the fastest place that was measured: 1 on a GPU, CPU_SLOWER on a CPU


class Market:
    def __init__(self, model: str, fleet: Fleet, line: WaitingLine | None = None) -> None:
        self.model = model
        self.lanes: dict[str, Lane] = {}
        self.roomy: dict[str, Lane] = {}  # lanes with fewer requests in flight than their limit
        self.unsteady: dict[str, Lane] = {}  # lanes about which something is out of the ordinary (`core.lane`)
        self.line = WaitingLine() if line is None else line  # those who wait for this model
        self.total_rate = 0.0  # known work rates of the usable lanes, cost units per microsecond
        self.best_rate = 0.0
        self.inflight_cost = 0.0
        self._token_cost = Rate(600 * SECOND)  # cost units per token of a prompt
        self.tokens_per_cost = 1 / BYTES_PER_TOKEN  # and the reverse
        self.digest = fleet.used.get(model, "")  # the version that embeddings use (`core.digests`)
        self.mixed = False  # nodes have others, too
        self.checked = 0  # what the digests were checked for, since the last change
        self.told = ""  # of them
        self.tasks = 0  # that are not settled
        self.samples = 0
        self.batches = 0  # that are open
        self.crowded_until: Micros = 0  # all slots were taken just now, and no trial was worth it
        self.quiet_until: Micros = 0  # the waiting tasks were asked in vain just now
        self.look_planned = False
        self.regret_us: Micros = 0  # time that tasks have waited while a node was idle that would have to load
        self._fleet = fleet
        self._lengths: dict[tuple[str, TaskType], Length] = {}  # by application and type of task
        self._app, self._type = "", TaskType.CHAT  # what was asked for last: the next task is often like it
        self._length: Length | None = None
        self._counted = 0  # samples seen by the last recount, and by the last ranking
        self._ranked_at = -1
        self._ranked: list[Lane] = []
        self._typical = Typical()
        self._all: list[Lane] = []
        self.marks: dict[Mark, Lane] = {}  # beginning of a conversation -> who has read it last
        self._by_options: dict[str, dict[str, Lane]] = {}

    # --- who is here ---

    def put(self, lane: Lane) -> None:
        self.lanes[lane.key] = lane
        self._all = list(self.lanes.values())
        self.checked = 0
        lane.unsettle()
        if len(lane.attempts) < lane.limiter.limit:
            self.roomy[lane.key] = lane
        self._ranked_at = -1

    def drop(self, key: str) -> None:
        lane = self.lanes.pop(key, None)
        self._all = list(self.lanes.values())
        self.roomy.pop(key, None)
        self.checked = 0
        self.unsteady.pop(key, None)
        if lane is not None:
            self._forget_options(lane)
        self._ranked_at = -1

    def usable(self, at: Micros) -> list[Lane]:
        return [lane for lane in self.lanes.values() if lane.usable(at)]

    def digest_for(self, task: Task) -> str:
        """Return the only version of the model that may answer this task; "" for any."""
        if task.kind is not EMBED and not self._fleet.one_digest:
            return ""
        if task.only is None:
            return self.digest
        lanes = [lane for key in task.only if (lane := self.lanes.get(key)) is not None and lane.node.up]
        has = not lanes or any(lane.digest in ("", self.digest) for lane in lanes)
        return self.digest if has or self.model in self._fleet.pinned else chosen(lanes)

    def suits(self, lane: Lane, task: Task, digest: str) -> bool:
        """Check that this task may go to this lane. `digest`: the version it needs, "" for any."""
        return lane.suits(task) and (not digest or lane.digest in ("", digest))

    def _forget_options(self, lane: Lane) -> None:
        lanes = self._by_options.get(lane.options)
        if lanes is not None:
            lanes.pop(lane.node.key, None)
            if not lanes:
                del self._by_options[lane.options]

    def options_changed(self, lane: Lane, options: str) -> None:
        self._forget_options(lane)
        if options:
            self._by_options.setdefault(options, {})[lane.node.key] = lane

    def shortlist(self, task: Task, tried: Collection[str], wide: bool, at: Micros) -> list[Lane]:
        """The lanes worth a look for this task: usable, and not among those that it has tried. `wide`: all of them."""
        if self.unsteady:
            self._review(at)
        digest = self.digest_for(task) if self.mixed else ""
        limited = task.only is not None or task.gpu or bool(digest)
        if not limited and not tried and not self.unsteady and (wide or len(self._all) <= SHORTLIST):
            return self._all
        if limited:
            return [
                lane
                for lane in self.lanes.values()
                if lane.node.key not in tried and lane.usable(at) and self.suits(lane, task, digest)
            ]
        if wide or len(self.lanes) <= SHORTLIST:
            return [
                lane
                for lane in self.lanes.values()
                if (lane.attempts or lane.breaker.closed or lane.breaker.admits(at))
                and lane.node.up
                and (not tried or lane.node.key not in tried)
            ]
        self._rank()
        free = self._best_free(tried, at)
        worst = free[-1].rank if len(free) >= HALF else len(self._ranked)
        busy: list[Lane] = []
        for lane in self._ranked:
            if lane.rank >= worst:
                break
            if lane.node.key not in self.roomy and lane.node.key not in tried and lane.usable(at):
                busy.append(lane)
                if len(busy) == HALF:
                    break
        found = {lane.node.key: lane for lane in free + busy}
        known = [self.marks.get(mark) for mark, _ in task.prefix]
        known += list(self._by_options.get(task.options, {}).values())[:MATCHING]
        for lane_or_none in known:
            if lane_or_none is not None and lane_or_none.node.key not in tried and lane_or_none.usable(at):
                found.setdefault(lane_or_none.node.key, lane_or_none)
        return list(found.values()) or [
            lane for lane in self.lanes.values() if lane.node.key not in tried and lane.usable(at)
        ]

    def _review(self, at: Micros) -> None:
        for key, lane in list(self.unsteady.items()):
            if lane.is_steady(at):
                lane.settle()
                del self.unsteady[key]

    def _best_free(self, tried: Collection[str], at: Micros) -> list[Lane]:
        """The fastest lanes with a free slot, the fastest first. Sought where there are fewer to look at."""
        few = len(self.roomy) * 4 < len(self.lanes)
        lanes = sorted(self.roomy.values(), key=_rank_of) if few else self._ranked
        free: list[Lane] = []
        for lane in lanes:
            if lane.key in self.roomy and lane.key not in tried and lane.free(at):
                free.append(lane)
                if len(free) == HALF:
                    break
        return free

    # --- what is usual here ---

    def typical(self) -> Typical:
        self._rank()
        return self._typical

    def _rank(self) -> None:
        every = max(RANK_EVERY if self.samples >= RANK_OFTEN else 1, len(self.lanes) // 2)
        if self._ranked_at >= 0 and self.samples - self._ranked_at < every:
            return
        self._ranked_at = self.samples
        lanes = list(self.lanes.values())
        self._typical = typical = Typical(
            *_middle([lane.work.read() for lane in lanes], WORK),
            *_middle([lane.prefill.read() for lane in lanes], PREFILL),
            *_middle([lane.decode.read() for lane in lanes], DECODE),
            min([lane.measured_slowness for lane in lanes if lane.decode.value], default=1.0),
        )
        if len(lanes) > SHORTLIST:
            self._ranked = sorted(lanes, key=lambda lane: _usual_time(lane, typical))
            for rank, lane in enumerate(self._ranked):
                lane.rank = rank

    def expected_tokens(self, task: Task) -> float:
        """How long the answer will be."""
        tokens = self.length(task).read() or TOKENS_OUT
        limit = task.tokens_out
        return tokens if limit is None or limit < 0 else min(tokens, float(limit))

    def length(self, task: Task) -> Length:
        """What is known of the answers to such tasks."""
        last = self._length
        if last is not None and task.type is self._type and task.app == self._app:
            return last
        kind = task.app, task.type
        found = self._lengths.get(kind)
        if found is None:
            if len(self._lengths) > KINDS_MAX:
                self._lengths.clear()
            found = self._lengths[kind] = self._fleet.lengths.of(task.app, task.type, self.model)
        self._app, self._type, self._length = task.app, task.type, found
        return found

    def measured_prompt(self, cost: int, tokens: int) -> None:
        """A prompt of `cost` units had so many tokens."""
        self._token_cost.add(cost, tokens)
        self.tokens_per_cost = 1 / (self._token_cost.value or BYTES_PER_TOKEN)

    # --- sums for batches ---

    def recount(self, at: Micros) -> None:
        """Sum the rates afresh: after a node came or went, and against the drift of many additions."""
        rates = [lane.work.read() or 0.0 for lane in self.usable(at)]
        self.total_rate = sum(rates)
        self.best_rate = max(rates, default=0.0)
        self._counted = self.samples
        self.checked = 0

    def rate_changed(self, before: float, after: float, at: Micros) -> None:
        self.samples += 1
        if self.samples - self._counted >= 256:
            self.recount(at)
            return
        self.total_rate += after - before
        self.best_rate = max(self.best_rate, after)


def _middle(values: list[float | None], default: float) -> tuple[float, float]:
    known = sorted(value for value in values if value)
    return (known[len(known) // 2], known[-1]) if known else (default, default)


def _rank_of(lane: Lane) -> int:
    return lane.rank


def _usual_time(lane: Lane, typical: Typical) -> float:
    """How long a usual task takes there: only the order counts. A lane that was never tried counts as the best."""
    if not lane.answers and not lane.failed:
        return 0.0
    decode, work = lane.decode.read(), lane.work.read()
    if decode:
        return lane.startup_us() + TOKENS_OUT / decode + 2 * TOKENS_OUT / (lane.prefill.read() or typical.prefill)
    return lane.startup_us() + TOKENS_OUT * BYTES_PER_TOKEN / (work or typical.work)
