"""Serving batches: cutting chunks for free slots, taking their answers in, and what follows when one fails."""

from __future__ import annotations

from sollol.core import tail
from sollol.core.attempt import Attempt
from sollol.core.batch import Batch, Piece, joined
from sollol.core.blame import Blame
from sollol.core.digests import FOR_EMBED, review
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.messages import Accept, Refuse, Want
from sollol.core.policy import Again, BatchView
from sollol.core.ranges import Ranges
from sollol.core.types import OK, SECOND, TRANSIENT, Decision, How, Micros, Outcome, RoutingMode, Task
from sollol.core.value import replaced

PATIENCE: Micros = 10 * SECOND  # a batch outlives a restart of its only node
FEED_AHEAD: Micros = 2 * SECOND  # keep this much work waiting for a batch that is fed from an iterator
FEED_LEAST = 256
REFUSED_ALONE = 8  # single items refused before anything succeeded: the call is wrong, not the items
SPARED_TIMES = 20  # in mode `async`: a node so many times slower than the best one is not used in its stead
SAMPLE_AFTER = 3  # failures before anything succeeded: from then on items are taken from all over the batch
CALL_IS_WRONG = (400, 413, 422, 500)  # status of a refusal that may be about one item only


class Chunks:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.blame = Blame(ledger)

    # --- feeding ---

    def fed(self, opened: OpenTask, costs: list[int], closed: bool, at: Micros) -> None:
        assert opened.batch is not None
        had_pending = opened.batch.pending_count > 0
        opened.batch.feed(costs, closed)
        if not self._ended(opened, at) and not had_pending:
            self._enqueue(opened, at)

    def _enqueue(self, opened: OpenTask, at: Micros) -> None:
        line = self._ledger.line(opened.task.model)
        if opened.batch is not None and opened.batch.pending_count and opened.task.id not in line:
            self._ledger.enqueue(opened, self._ledger.market(opened.task.model, at), at, at)

    # --- serving ---

    def serve(self, opened: OpenTask, batch: Batch, market: Market, only: list[Lane] | None, at: Micros) -> None:
        """Cut chunks for free slots. `only`: these lanes alone can have changed."""
        width = opened.task.width
        if not self._has_begun(opened.task, batch, market, at):
            return
        if batch.closed and batch.pending_count <= 2 * len(market.lanes):
            only = None  # so little is left that it matters who else is idle
        limited = _is_limited(batch, market)
        if only is None or width:
            lanes = self._suitable(batch, market, at)
        elif limited:
            suitable = self._suitable(batch, market, at)
            lanes = [lane for lane in only if lane in suitable]
        else:
            lanes = [lane for lane in only if lane.usable(at)]
        if not lanes and (only is None or not self._suitable(batch, market, at)):
            self._no_lane(opened, batch, market, at)
            return
        batch.stuck_since = None
        per_lane = -(-width // len(lanes)) if width else 0
        fruitless: set[str] = set()
        cost_before = batch.pending_cost
        while batch.pending_count:
            free = [
                lane
                for lane in lanes
                if lane.node.key not in fruitless
                and (lane.free(at) or (width and len(lane.attempts) < per_lane and lane.usable(at)))
            ]
            if not free or (width and len(batch.live) >= width):
                break
            for lane in sorted(free, key=lambda lane: len(lane.attempts)):
                if width and len(batch.live) >= width:
                    break
                if not self._cut(opened, batch, market, lane, limited, at):
                    fruitless.add(lane.node.key)
        if batch.pending_count and not batch.live and only is not None:
            # Those that were asked leave it to others, and no event will come to ask these: ask them now.
            self.serve(opened, batch, market, None, at)
            return
        self._after_cutting(opened, batch, market, cost_before - batch.pending_cost, at)
        self._ended(opened, at)

    def _has_begun(self, task: Task, batch: Batch, market: Market, at: Micros) -> bool:
        """Bind a batch to one version of its model, once the nodes are known. False: they soon will be."""
        ledger = self._ledger
        if batch.digest is None and at < ledger.health.newcomers_until:
            settled_at = ledger.health.settles_at(at)
            if settled_at is not None:
                ledger.serve_at(task.model, settled_at)
                return False
        if market.checked < FOR_EMBED:
            review(ledger, market, FOR_EMBED)
        if batch.digest is None:
            batch.digest = market.digest_for(task) or None
        return True

    def _suitable(self, batch: Batch, market: Market, at: Micros) -> list[Lane]:
        """Return the usable lanes that this batch may go to."""
        lanes = market.usable(at)
        if self._ledger.fleet.unable:
            lanes = self._ledger.able(batch.task, lanes, at)
        if not _is_limited(batch, market):
            return lanes
        task, digest = batch.task, batch.digest or ""
        if task.only is not None or task.gpu or digest:
            lanes = [lane for lane in lanes if market.suits(lane, task, digest)]
        if task.mode is RoutingMode.RELIABLE:
            return _reliable(lanes)
        return _spared(lanes) if task.mode is RoutingMode.ASYNC else lanes

    def _cut(self, opened: OpenTask, batch: Batch, market: Market, lane: Lane, limited: bool, at: Micros) -> bool:
        if not batch.pending_count:
            return False
        if not lane.breaker.closed and self.blame.control(opened, batch, lane, at):
            return True  # a text that was answered before tells most surely whether the node works again
        total_rate, best_rate, count_of_lanes = market.total_rate, market.best_rate, len(market.lanes)
        if limited:
            suitable = self._suitable(batch, market, at)
            count_of_lanes = max(1, len(suitable))
            rates = [each.work.read() or 0.0 for each in suitable]
            total_rate, best_rate = sum(rates), max(rates, default=0.0)
        view = BatchView(
            pending_cost=batch.pending_cost,
            pending_count=batch.pending_count,
            inflight_cost=market.inflight_cost,
            closed=batch.closed,
            lane_rate=lane.work.read() or None,
            lane_backlog=lane.backlog(at),
            lane_startup_us=lane.startup_us(),
            slots=opened.task.width or lane.limiter.limit,
            total_rate=total_rate,
            best_rate=best_rate,
            lanes=count_of_lanes,
        )
        cost, count = self._ledger.policies.batcher.item_budget(view)
        if count == 0 and batch.live:  # the others do it sooner; if there are none, nobody else would
            return False

        def others() -> frozenset[str]:
            return frozenset(other.node.key for other in self._suitable(batch, market, at))

        longest = lane.list_length.now if lane.breaker.closed else 1
        sample = not batch.answered and batch.failures_in_a_row >= SAMPLE_AFTER
        cut = batch.cut(lane.node.key, max(cost, 1), max(count, 1), others, longest, sample)
        if cut is None:
            return False
        ranges, piece = cut
        if piece.suspect and not piece.ranges and self.blame.is_bad(batch, others(), piece, ranges.total()):
            assert piece.doubt.outcome is not None
            self._refuse(opened, batch, ranges, piece.doubt.outcome)
            return True
        attempt = self._start(opened, batch, lane, ranges, view.lane_backlog, at)
        attempt.tries, attempt.failed_on = piece.tries, piece.failed_on
        attempt.doubt, attempt.suspect = piece.doubt, piece.suspect
        attempt.rest = piece if piece.suspect and piece.ranges else None
        batch.begin(attempt, ranges)
        return True

    def _start(
        self,
        opened: OpenTask,
        batch: Batch,
        lane: Lane,
        ranges: Ranges,
        backlog: float,
        at: Micros,
        reason: str = "free slot",
    ) -> Attempt:
        cost = batch.cost_of(ranges)
        rate = lane.work.read() or lane.market.total_rate / max(1, len(lane.market.lanes))
        predicted = lane.startup_us() + round((backlog + cost) / rate) if rate else 5 * SECOND
        return self._ledger.start(opened, lane, cost, Decision(lane.node.key, predicted, reason), at, ranges)

    def _after_cutting(self, opened: OpenTask, batch: Batch, market: Market, taken: int, at: Micros) -> None:
        task = opened.task
        line = self._ledger.line(task.model)
        if taken and task.id in line:
            line.serve(task.id, at, taken * market.tokens_per_cost)
            self._enqueue(opened, at)
        if not batch.pending_count:
            line.remove(task.id)
        else:
            self._wake_for_lanes(market, at)
        if not batch.closed:
            want = max(FEED_LEAST, round(market.total_rate * FEED_AHEAD / batch.costs.mean))
            if batch.pending_count < want and batch.wanted_upto <= batch.costs.end:
                batch.wanted_upto = batch.costs.end + 1
                self._ledger.out.append(Want(task.id, 2 * want - batch.pending_count))

    def _wake_for_lanes(self, market: Market, at: Micros) -> None:
        """Work waits and no event may come: look again when the first breaker admits a trial."""
        if any(lane.attempts for lane in market.lanes.values()):
            return
        times = [lane.breaker.retry_at() for lane in market.lanes.values() if lane.node.usable]
        due = min((t for t in times if t is not None and t > at), default=None)
        if due is not None:
            self._ledger.serve_at(market.model, due)

    def _no_lane(self, opened: OpenTask, batch: Batch, market: Market, at: Micros) -> None:
        """No node can take any of this batch now: wait for one that may come, but not for ever."""
        if batch.stuck_since is None:
            batch.stuck_since = at
            opened.since = at
        if self._ledger.may_yet_come(opened, at):
            return
        lanes = [lane for lane in market.lanes.values() if market.suits(lane, opened.task, batch.digest or "")]
        hope = any(lane.node.succeeded or lane.node.usable for lane in lanes)
        if hope and at - batch.stuck_since < PATIENCE:
            self._ledger.serve_at(market.model, batch.stuck_since + PATIENCE)
            self._wake_for_lanes(market, at)
            return
        self._ledger.settle_no_node(opened, "no node can take the rest of the batch", at)

    # --- the tail ---

    def take_over(self, batch: Batch, market: Market, at: Micros) -> None:
        if batch.task.hedge is not False:
            tail.take_over(self, self._ledger, batch, self._suitable(batch, market, at), market, at)

    def start_takeover(self, victim: Attempt, lane: Lane, ranges: Ranges, at: Micros) -> None:
        """Let an idle lane try items that `victim` has under way (called by `core.tail`)."""
        opened = self._ledger.open[victim.task.id]
        assert opened.batch is not None
        reason = f"takes over from {victim.lane.node.key}"
        attempt = self._start(opened, opened.batch, lane, ranges, 0.0, at, reason)
        attempt.tries, attempt.failed_on = victim.tries, victim.failed_on
        attempt.doubt, attempt.suspect = victim.doubt, victim.suspect
        opened.batch.contest(attempt, victim, ranges)

    # --- answers ---

    def answered(self, opened: OpenTask, attempt: Attempt, at: Micros) -> None:
        batch = opened.batch
        assert batch is not None
        attempt.lane.single_faults = 0
        if attempt.control:
            return
        attempt.lane.list_length.succeeded(attempt.items.total())
        alone = attempt.suspect and attempt.rest is None and attempt.items.total() == 1
        fresh, idle = batch.accept(attempt)
        batch.good += 1
        batch.failures_in_a_row = 0
        if fresh:
            if batch.known_good is None:
                batch.known_good = fresh[0][0]
            self._ledger.out.append(Accept(opened.task.id, attempt.id, fresh))
        batch.release(attempt, suspect=True)
        if alone:
            batch.vanished += attempt.doubt.tries
            self.blame.vanished(attempt, at)
        for loser in idle:
            batch.drop(loser)
            batch.release(loser, suspect=True)
            self._overtaken(loser, at)
            self._ledger.abort(loser, at)
        batch.forget()
        if not self._ended(opened, at):
            self._enqueue(opened, attempt.started_us)

    def _overtaken(self, loser: Attempt, at: Micros) -> None:
        """Its items came from elsewhere. If it was overdue that tells of its node: it is slower than was thought."""
        if at > loser.due_us:
            loser.lane.work.add(0, at - max(loser.started_us, loser.lane.last_end_us))
            loser.lane.breaker.record(at, Outcome(How.TIMEOUT))
            self._ledger.health.ask(loser.lane.node, at, self._ledger.out)

    def failed(self, opened: OpenTask, attempt: Attempt, outcome: Outcome, at: Micros) -> None:
        batch = opened.batch
        assert batch is not None
        if attempt.control:
            self.blame.control_failed(attempt, outcome, at)
            return
        count = attempt.items.total()
        orphans = batch.drop(attempt)
        tested = outcome.how in (How.FAILED, How.REFUSED)
        if tested:
            batch.release(attempt, suspect=False)  # the fault is in the half that was tried
        elif attempt.rest is not None:  # nothing was learned: both halves again
            orphans = joined([*orphans.items(), *Ranges(attempt.rest.ranges).items()])
            batch.held -= attempt.rest.total()
            attempt.rest = None
        if outcome.how in TRANSIENT:
            opened.tried[attempt.lane.node.key] = outcome.message or outcome.how.value
        if self._is_hopeless(batch, attempt, outcome, at):
            self._ledger.abort_all(opened, at)
            if outcome.how in (How.REFUSED, How.UNSUITED):
                self._ledger.settle(opened, replaced(outcome, how=How.REFUSED))
            else:
                self._ledger.settle_no_node(opened, "nothing of the batch succeeded anywhere", at)
            return
        if tested:
            self.blame.failed(opened, batch, attempt, count, outcome, at)
            self.blame.share(batch, attempt, outcome, at)
        if orphans:
            self._put_back(opened, batch, attempt, orphans, outcome, at)
            self._enqueue(opened, attempt.started_us)
        elif batch.pending_count:
            self._enqueue(opened, attempt.started_us)
        self._ended(opened, at)

    def _is_hopeless(self, batch: Batch, attempt: Attempt, outcome: Outcome, at: Micros) -> bool:
        """Nothing ever succeeded and every failure looks alike: it is the call that is wrong, not an item or a node."""
        if outcome.how is How.FAILED:
            if not self.blame.is_hopeless(batch, attempt, PATIENCE, at):
                return False
            return all(lane.key in batch.failed_on for lane in self._suitable(batch, attempt.lane.market, at))
        if batch.answered:
            return False
        market = attempt.lane.market
        if outcome.how is How.REFUSED:
            batch.refused_alone += attempt.items.total() == 1
            batch.refused_on.add(attempt.lane.key)
            if outcome.status in CALL_IS_WRONG and batch.refused_alone < REFUSED_ALONE:
                return False
            others = {lane.key for lane in self._suitable(batch, market, at)}
            return len(batch.refused_on) > 1 or others <= batch.refused_on
        unsuited = outcome.how in (How.UNSUITED, How.LOCKED)
        return unsuited and not batch.live and not self._suitable(batch, market, at)

    def _put_back(
        self, opened: OpenTask, batch: Batch, attempt: Attempt, orphans: Ranges, outcome: Outcome, at: Micros
    ) -> None:
        node, count = attempt.lane.node.key, orphans.total()
        counts = outcome.how in (How.FAILED, How.REFUSED, How.TIMEOUT)
        tries = attempt.tries + counts
        avoided = counts or outcome.how in (How.UNSUITED, How.LOCKED)
        failed_on = attempt.failed_on | {node} if avoided else attempt.failed_on
        doubt = attempt.doubt
        if counts:
            doubt = doubt.and_failed(node, attempt.lane.last_good_us, attempt.items.total(), outcome, at)
        suspect = attempt.suspect
        if counts:
            again = self._ledger.policies.batcher.again(outcome, tries, count)
            if again is Again.REFUSE:
                self._refuse(opened, batch, orphans, outcome)
                return
            suspect = suspect or again is Again.SPLIT
        piece = Piece(orphans, tries, failed_on, alone=tries > 1, doubt=doubt, suspect=suspect)
        if counts and suspect and count == 1:
            others = frozenset(lane.node.key for lane in self._suitable(batch, attempt.lane.market, at))
            if self.blame.is_bad(batch, others, piece, count):
                self._refuse(opened, batch, orphans, outcome)
                return
            # Later more is known of how often good items fail, and of whether the node works.
            batch.put_back(piece, front=not batch.closed and not batch.pending_count)
            return
        batch.put_back(piece)

    def _refuse(self, opened: OpenTask, batch: Batch, items: Ranges, outcome: Outcome) -> None:
        batch.refused += items.total()
        self._ledger.out.append(Refuse(opened.task.id, items, outcome))

    def _ended(self, opened: OpenTask, at: Micros) -> bool:
        if opened.task.id in self._ledger.open and opened.batch is not None and opened.batch.done:
            self._ledger.abort_all(opened, at)  # a control
            self._ledger.settle(opened, Outcome(OK))
        return opened.task.id not in self._ledger.open


def _is_limited(batch: Batch, market: Market) -> bool:
    """Check whether there may be lanes that this batch must not go to."""
    task = batch.task
    return (
        task.only is not None
        or task.gpu
        or market.mixed
        or (batch.digest is not None and batch.digest != market.digest)
        or task.mode in (RoutingMode.RELIABLE, RoutingMode.ASYNC)
    )


def _reliable(lanes: list[Lane]) -> list[Lane]:
    """Return the lanes whose share of good answers, squared, is at least half that of the best."""
    shares = [1.0 if (share := lane.reliability.read()) is None else share for lane in lanes]
    least = max(shares, default=0.0) ** 2 / 2
    return [lane for lane, share in zip(lanes, shares, strict=True) if share**2 >= least]


def _spared(lanes: list[Lane]) -> list[Lane]:
    """Return the lanes without the fastest, which stays free for others, where the next is not far slower."""
    rates = sorted((lane.work.read() or 0.0 for lane in lanes), reverse=True)
    if len(rates) < 2 or not rates[1] or rates[0] > SPARED_TIMES * rates[1]:
        return lanes
    fastest = max(lanes, key=lambda lane: lane.work.read() or 0.0)
    return [lane for lane in lanes if lane is not fastest]
