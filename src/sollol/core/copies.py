"""Second copies of single calls that are late: when one is sent, and what is learned of whether it pays."""

from __future__ import annotations

from typing import Final, NamedTuple

from sollol.core.attempt import Attempt
from sollol.core.estimate import Mean
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.policy import Hedger, Router
from sollol.core.types import EMBED, MILLISECOND, Micros, RoutingMode, Task, Timing
from sollol.core.value import replaced

HEDGE_AGAIN: Final[Micros] = 50 * MILLISECOND  # a late call for whose second copy there was no room
COPY_WEIGHT: Final = 0.1  # of the newest copy in the share of those that came first
COPY_FIRST: Final = 0.5  # and that share before anything is known of it
HANG_TWICE: Final = 0.2  # of the copies of calls that hang: those that hang, too
RESTART_TIMES: Final = 3  # the delay after which a copy is due: then a call that found no room for one begins anew
RESTARTS: Final = 2  # of one call
RESTART_SHARE: Final = 0.4  # of the copies that came first: else it is the calls that are long
NO_AHEAD: Final[dict[str, Micros]] = {}


class Late(NamedTuple):
    """A call whose second copy found no room."""

    opened: OpenTask
    attempt: Attempt
    hedger: Hedger


class Copies:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.late: dict[str, dict[int, Late]] = {}  # by model and attempt
        self._won: dict[tuple[str, bool], Mean] = {}  # by model, and whether streamed: see `_share`

    def may_have(self, opened: OpenTask) -> None:
        """Who decides on second copies of it; the budget for them grows with the calls that may have one."""
        task = opened.task
        wanted = task.mode is RoutingMode.FAST if task.hedge is None else task.hedge
        if wanted and task.kind is not EMBED:
            opened.hedger = self._ledger.hedger if wanted is True else wanted
            opened.hedger.deposit(task)

    def plan(self, opened: OpenTask, hedger: Hedger, attempt: Attempt, at: Micros) -> None:
        delay = hedger.after(opened.task, attempt.decision)
        if delay is not None:
            self._ledger.at(at + delay, lambda now: self._hedge(opened, attempt, hedger, now))

    def _hedge(self, opened: OpenTask, late: Attempt, hedger: Hedger, at: Micros) -> None:
        """An attempt is later than 19 of 20 are: send another copy, if a node is idle and the budget allows.

        At most two at once: if the second is late, too, the first may be given up and its node tried anew."""
        ledger, task = self._ledger, opened.task
        if opened.attempts.get(late.id) is not late or opened.begun:
            return
        ledger.concern = opened
        oldest = next(iter(opened.attempts.values()))
        second = len(opened.attempts) > 1
        if second and oldest is late:
            return
        if not second:
            if not self._try_copy(opened, late, hedger, at) and not self._restart(opened, late, hedger, at):
                self.late.setdefault(task.model, {})[late.id] = Late(opened, late, hedger)
                ledger.at(at + HEDGE_AGAIN, lambda now: self._hedge(opened, late, hedger, now))
            return
        # Late twice: by bad luck twice, or because the answer is long.
        share = self._share(task).value or 0.0
        luck = share * HANG_TWICE / (1 - share + share * HANG_TWICE)
        lanes, spared_us = [oldest.lane], oldest.lane.wait_us(at)
        takes_us = self._takes(task, lanes, at) - spared_us
        if luck * oldest.left_us(at) < takes_us or not hedger.withdraw():
            ledger.at(at + HEDGE_AGAIN, lambda now: self._hedge(opened, late, hedger, now))
            return
        self._share(task).add(0.0)
        ledger.abort(oldest, at)
        another = self.send(opened, late, lanes, "late", at)
        self.plan(opened, hedger, another, at)

    def _restart(self, opened: OpenTask, late: Attempt, hedger: Hedger, at: Micros) -> bool:
        """Send a very late call to its own node anew, if tasks wait and all other replicas are late as well.

        Calls that hang at the same time would otherwise stop all nodes. What was done for it is lost, so it must be
        far later than answers ever are."""
        task, lane = opened.task, late.lane
        others = [other for other in lane.market.lanes.values() if other is not lane and other.usable(at)]
        if (
            not others
            or not lane.market.line.waiting
            or lane.market.lanes.get(lane.key) is not lane
            or not lane.node.usable
        ):
            return False
        if not all(other.attempts and other.soonest_us < at for other in others):
            return False
        delay_us = hedger.after(task, late.decision)
        if delay_us is None or at - late.started_us < RESTART_TIMES * delay_us or opened.restarts >= RESTARTS:
            return False
        if (self._share(task).value or 0.0) < RESTART_SHARE or not lane.breaker.closed or not hedger.withdraw():
            return False
        opened.restarts += 1
        self._ledger.abort(late, at)
        another = self.send(opened, late, [lane], "late", at)
        self.plan(opened, hedger, another, at)
        return True

    def offer(self, market: Market, at: Micros) -> None:
        """An answer came, so a slot may be free: late calls may have it before those who wait for their first one."""
        calls = self.late.pop(market.model)
        for late in list(calls.values()):
            opened, attempt = late.opened, late.attempt
            self._ledger.concern = opened
            over = opened.attempts.get(attempt.id) is not attempt or opened.begun or len(opened.attempts) > 1
            if over or self._try_copy(opened, attempt, late.hedger, at):
                del calls[attempt.id]
        if calls:
            self.late[market.model] = calls

    def _try_copy(self, opened: OpenTask, late: Attempt, hedger: Hedger, at: Micros) -> bool:
        """Send a second copy, if another node has a free slot and it pays."""
        task, market = opened.task, late.lane.market
        tried = {*opened.tried, late.lane.node.key, *self._ledger.fleet.unable_for(task, at)}
        ready = (lane for lane in market.shortlist(task, tried, False, at) if lane.ready(at))
        # A copy that must load the model first comes late itself, and may put out what others use.
        lanes = [lane for lane in ready if not lane.startup_us(task.options)]
        if not lanes or not self._pays(opened, late, lanes, hedger, at) or not hedger.withdraw():
            return False
        another = self.send(opened, late, lanes, "late", at)
        self.plan(opened, hedger, another, at)
        return True

    def _pays(self, opened: OpenTask, late: Attempt, lanes: list[Lane], hedger: Hedger, at: Micros) -> bool:
        """Should a copy take less than it saves?

        It saves what the late attempt will still need, if it comes first. It takes its own time from those who wait for
        a node; if nobody does, from one who will come while it runs, which is as likely as nodes are busy."""
        task, market = opened.task, late.lane.market
        busy = 1.0
        if not market.line.waiting:
            if hedger is not self._ledger.hedger:
                return True  # whoever brings his own has decided
            busy -= sum(lane.ready(at) for lane in market.roomy.values()) / len(market.lanes)
        return (self._share(task).value or 0.0) * late.left_us(at) > busy * self._takes(task, lanes, at)

    def _takes(self, task: Task, lanes: list[Lane], at: Micros) -> Micros:
        """Until a copy would be heard."""
        decision = router_of(self._ledger, task).choose(task, lanes, NO_AHEAD, at, self._ledger.rng)
        return decision.heard_us(task.stream)

    def _share(self, task: Task) -> Mean:
        """Of such calls that take more than twice as long as expected: for how many a copy comes first."""
        kind = task.model, task.stream
        share = self._won.get(kind)
        if share is None:
            share = self._won[kind] = Mean(COPY_WEIGHT)
            share.add(COPY_FIRST)
        return share

    def send(self, opened: OpenTask, late: Attempt, lanes: list[Lane], what: str, at: Micros) -> Attempt:
        """Send the same to another node: the first to yield wins."""
        ledger, task = self._ledger, opened.task
        decision = router_of(self._ledger, task).choose(task, lanes, NO_AHEAD, at, ledger.rng)
        reason = f"another copy: {late.lane.node.key} is {what}; {decision.reason}"
        lane = late.lane.market.lanes[decision.node]
        return ledger.start(opened, lane, task.cost, replaced(decision, reason=reason), at)

    def learn_alone(self, attempt: Attempt, timing: Timing, usual: float, at: Micros) -> None:
        """If it was heard more than twice as late as expected: would a copy sent then have been heard first, at the
        usual pace? Not if it is the prompt or the answer that is long."""
        task, reads = attempt.task, attempt.lane.prefill.value
        if not reads or attempt.resumed or self._ledger.open[task.id].attempts:  # a copy under way tells by itself
            return
        late_us = 2 * attempt.heard_us()
        took_us, copy_us = at - attempt.started_us, timing.prompt_tokens / reads
        if task.stream:
            took_us = timing.load_us + timing.prompt_us
        else:
            copy_us += timing.tokens / usual
        if took_us > late_us:
            self._share(task).add(1.0 if late_us + copy_us < took_us else 0.0)

    def learn_race(self, winner: Attempt, loser: Attempt, at: Micros) -> None:
        """One of two copies came first."""
        first = winner if winner.id < loser.id else loser
        if first.left_us(at) > first.heard_us():
            self._share(first.task).add(0.0 if winner is first else 1.0)


def router_of(ledger: Ledger, task: Task) -> Router:
    return ledger.router if task.mode is None else ledger.policies.modes.get(task.mode, ledger.router)
