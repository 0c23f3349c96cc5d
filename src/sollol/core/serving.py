"""Binding waiting work to free slots: whose turn it is, and who may go when the first one rather waits."""

from __future__ import annotations

from typing import Final

from sollol.core.chunks import Chunks
from sollol.core.lane import Lane
from sollol.core.ledger import Ledger, OpenTask
from sollol.core.market import Market
from sollol.core.precedence import is_waited_for
from sollol.core.singles import Singles
from sollol.core.trials import reopen
from sollol.core.turns import TRIAL_AFTER
from sollol.core.types import MILLISECOND, SECOND, Key, Micros

LONG_WAIT: Final[Micros] = 10 * SECOND  # of a task, after which its replica may have more slots than were known
LOOKAHEAD: Final = 64  # waiting tasks considered for a free slot when the first ones rather wait for a busy node
QUIET: Final[Micros] = 10 * MILLISECOND  # until they are asked again: asking all of them may take milliseconds


class Serving:
    __slots__ = ("_chunks", "_ledger", "_singles")

    def __init__(self, ledger: Ledger, singles: Singles, chunks: Chunks) -> None:
        self._ledger = ledger
        self._singles = singles
        self._chunks = chunks

    def all(self, at: Micros) -> None:
        for market in [m for m in self._ledger.fleet.markets.values() if m.line.waiting]:
            self.market(market, at)

    def others_wait(self, freed: Lane) -> bool:
        """Check whether another model of the node is waited for."""
        for lane in freed.node.lanes.values():  # noqa: SIM110  compiled, a generator expression is slow
            if lane is not freed and lane.market.line.waiting:
                return True
        return False

    def node(self, freed: Lane, well: bool, at: Micros) -> None:
        """Serve all models of a node that has less to do; `Lane.has_turn` decides which one starts.

        `well`: nothing else about the freed replica has changed."""
        node = freed.node
        waited = [lane for lane in node.lanes.values() if lane is not freed and lane.market.line.waiting]
        for lane in [freed, *waited]:
            self.market(lane.market, at, [lane] if well or lane is not freed else None)
        if node.heavy_lanes < node.turns.at_once and node.usable:
            # The one whose turn it was has gone elsewhere: the node must not stand idle for it.
            node.turns.open = True
            for lane in [freed, *waited]:
                if lane.market.line.waiting:
                    self.market(lane.market, at, [lane])
            node.turns.open = False

    def unblock(self, model: str, at: Micros) -> None:
        """Look once a second for what answers that take long hide: more slots, and models that need not take turns."""
        market = self._ledger.fleet.markets.get(model)
        if market is None or not market.line.waiting:
            return
        for lane in list(market.lanes.values()):
            if len(lane.attempts) >= lane.limit:
                if at - market.line.head(at)[3] >= LONG_WAIT:
                    reopen(lane, at)
            elif not lane.heavy and is_waited_for(lane) and lane.node.heavy_lanes >= lane.node.turns.at_once:
                priority, _, _, arrived = market.line.head(at)
                running = max(a.task.priority for other in lane.node.lanes.values() for a in other.attempts.values())
                if at - arrived >= TRIAL_AFTER and priority >= running and lane.is_loaded:
                    lane.node.turns.try_beside(at)
        self.market(market, at)

    def model(self, model: str, at: Micros, freed: list[Lane] | None = None) -> None:
        market = self._ledger.fleet.markets.get(model)
        if market is not None:
            self.market(market, at, freed)

    def newcomer(self, opened: OpenTask, market: Market, at: Micros) -> None:
        """A single task has come, and some lane has room."""
        if market.line.peek(at) == opened.task.id:
            self.market(market, at)
        elif at < market.quiet_until:
            self._plan_look(market)  # those before it were asked just now
        else:
            self.market(market, at, [])

    def crowded(self, market: Market, at: Micros) -> None:
        """All slots are taken: let the next task find out whether there are more, if it would wait very long."""
        if at < market.crowded_until:
            return
        market.crowded_until = at + QUIET
        head = market.line.peek(at)
        assert head is not None
        opened = self._ledger.concern = self._ledger.open[head]
        if opened.batch is None and (lane := self._singles.tries(opened, market, at)) is not None:
            self.market(market, at, [lane])

    def market(self, market: Market, at: Micros, freed: list[Lane] | None = None) -> None:
        """Bind waiting work of a model to free slots. `freed`: only these lanes can have changed."""
        self._ledger.concern = None
        late, batches = self._singles.copies.late, self._ledger.batches.get(market.model)
        if late and market.model in late:
            self._singles.copies.offer(market, at)
        line = market.line
        while line.waiting:
            if not batches and not market.roomy and market.lanes:
                return  # every slot is taken: the next answer brings us back
            head = line.peek(at)
            assert head is not None
            ahead: dict[str, Micros] = {}
            if self._serve(head, market, ahead, freed, at):
                self._look_ahead(market, head, ahead, freed, at)
                break
        for batch in list(batches.values()) if batches else ():
            if batch.live and not batch.pending_count:
                self._ledger.concern = self._ledger.open.get(batch.task.id)
                self._chunks.take_over(batch, market, at)

    def _look_ahead(
        self, market: Market, head: Key, ahead: dict[str, Micros], freed: list[Lane] | None, at: Micros
    ) -> None:
        """The first one rather waits: those behind it may take what it leaves."""
        line = market.line
        if len(line.waiting) < 2 or not _any_free(market, at):
            return
        if at < market.quiet_until:
            self._plan_look(market)
            return
        market.look_planned = False
        market.quiet_until = at + QUIET
        for task in line.first(LOOKAHEAD, at):
            if task == head or task not in line.waiting:
                continue
            self._serve(task, market, ahead, freed, at)
            if not _any_free(market, at):
                return

    def _plan_look(self, market: Market) -> None:
        if not market.look_planned:
            market.look_planned = True
            self._ledger.serve_at(market.model, market.quiet_until)

    def _serve(self, task: Key, market: Market, ahead: dict[str, Micros], freed: list[Lane] | None, at: Micros) -> bool:
        """Bind what can be bound; True if the task still waits."""
        opened = self._ledger.concern = self._ledger.open[task]
        if opened.batch is None:
            return self._singles.serve(opened, market, ahead, freed, at)
        self._chunks.serve(opened, opened.batch, market, freed, at)
        return task in market.line.waiting


def _any_free(market: Market, at: Micros) -> bool:
    for lane in market.roomy.values():  # noqa: SIM110  compiled, a generator expression would ask all of them
        if lane.free(at, False):
            return True
    return False
