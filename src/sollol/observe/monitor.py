"""Watch a running engine once a second: work over time, events in words, and the evidence for findings."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from sollol.observe.cluster_events import ClusterEvent, EventDetector
from sollol.observe.findings import LOADS_WITHIN_S, WARNING, Evidence, ModelLoad, findings_of
from sollol.observe.metrics import LOADED_LEAST_S
from sollol.observe.overview import Overview, verdict
from sollol.observe.recorder import Recorder
from sollol.observe.request_record import RequestRecord
from sollol.observe.rows import Snapshot
from sollol.observe.series import ItemCounter, Series, quantile
from sollol.observe.snapshot import EngineState

EVERY_S: Final = 1.0
EVENTS_MOST: Final = 500
LOADS_MOST: Final = 1_000
MINUTES: Final = 5  # of failures and prompts that findings look at
ERRORS_MOST: Final = 50  # different texts in a minute
NOTICED: Final = "notice"
EVENTS_SHOWN: Final = 100
LATEST: Final = 3  # intervals in a frame: the newest is still growing, and a frame may be skipped
WATCHED_S: Final = 3.0  # after the last report, a display counts as open
PROBES_PER_S: Final = 20  # nodes probed a second while a display is open
VERDICT_INTERVALS: Final = 30  # whose first tokens predict the start of a new chat


class _Minute:
    """Count the requests of one minute."""

    __slots__ = ("errors", "finished", "number", "prompts")

    def __init__(self, number: int) -> None:
        self.number = number
        self.finished = 0
        self.errors: Counter[str] = Counter()
        self.prompts: dict[tuple[str, str], int] = {}


class Monitor:
    """Collect what displays and findings show over time. `tick` is called once a second.

    Args:
        recorder: The engine's records of finished requests.
        state: Return the engine's present state.
        clock: Return the seconds since 1970.
    """

    def __init__(
        self, recorder: Recorder, state: Callable[[], EngineState], clock: Callable[[], float] = time.time
    ) -> None:
        self.minutes = Series(2.0, 150)
        self.hour = Series(30.0, 120)
        self.events: deque[ClusterEvent] = deque(maxlen=EVENTS_MOST)
        self._recorder = recorder
        self._records = recorder.subscribe("monitor", sampled=False)
        self._state = state
        self._clock = clock
        self._detector = EventDetector()
        self._loads: deque[ModelLoad] = deque(maxlen=LOADS_MOST)
        self._past: deque[_Minute] = deque(maxlen=MINUTES)
        self._items = ItemCounter()
        self._noticed = 0
        self._listeners: list[Callable[[ClusterEvent], object]] = []
        self._reported = 0.0
        self._probed = 0.0
        for record in recorder.history.records():
            self._add(record)

    def tick(self) -> list[ClusterEvent]:
        """Take in the finished requests and the present state; return the new events."""
        state, at = self._state(), self._clock()
        for record in self._records.take():
            self._add(record)
        items: dict[str, float] = {}
        for (node, _), number in self._items.since(state.view).items():
            items[node] = items.get(node, 0.0) + number
        for series in (self.minutes, self.hour):
            series.sample(at, items, state.view.waiting(), len(state.view.attempts))
        found = self._detector.look(state.view, at)
        new = state.noticed - self._noticed
        self._noticed = state.noticed
        if new > 0:
            found += [ClusterEvent(at, NOTICED, WARNING, "", "", text) for text in list(state.notices)[-new:]]
        self.events.extend(found)
        for event in found:
            for listener in self._listeners:
                listener(event)
        return found

    def subscribe(self, listener: Callable[[ClusterEvent], object]) -> None:
        """Call `listener` with each new event."""
        self._listeners.append(listener)

    def wants_probes(self) -> bool:
        """Check that a display is open and all nodes are due for a probe. A dead node shows at once then."""
        at = self._clock()
        pause_s = max(EVERY_S, len(self._state().view.nodes) / PROBES_PER_S)
        if at - self._reported > WATCHED_S or at - self._probed < pause_s:
            return False
        self._probed = at
        return True

    def close(self) -> None:
        """Receive no more records."""
        self._recorder.unsubscribe(self._records)

    def evidence(self, snapshot: Snapshot) -> Evidence:
        """Return what the checks of `findings` read."""
        at = self._clock()
        errors: Counter[str] = Counter()
        prompts: dict[tuple[str, str], int] = {}
        recent = [minute for minute in self._past if minute.number > at // 60 - MINUTES]
        for minute in recent:
            errors.update(minute.errors)
            for replica, tokens in minute.prompts.items():
                prompts[replica] = max(prompts.get(replica, 0), tokens)
        loads = tuple(load for load in self._loads if load.at > at - LOADS_WITHIN_S)
        return Evidence(snapshot, at, loads, errors, sum(minute.finished for minute in recent), prompts)

    def report(
        self, snapshot: Snapshot, spans: Sequence[str] = (), applications: dict[str, Any] | None = None
    ) -> Overview:
        """Return the snapshot with a verdict, the findings, the newest events, and the work of the last intervals."""
        self._reported = self._clock()
        found = findings_of(self.evidence(snapshot))
        first_s = [s for interval in self.minutes.newest(VERDICT_INTERVALS) for s in interval.first_token_s]
        return Overview(
            **msgspec.structs.asdict(snapshot),
            verdict=verdict(snapshot, found, quantile(first_s, 0.5)),
            findings=found,
            events=list(self.events)[:-EVENTS_SHOWN:-1],
            latest=self.minutes.columns([node.host for node in snapshot.nodes], newest=LATEST),
            spans=list(spans),
            applications=applications,
        )

    def series(self, span: str, nodes: Iterable[str]) -> dict[str, Any]:
        """Return the work over the last five minutes ("5m") or the last hour ("1h"), as columns."""
        return (self.minutes if span == "5m" else self.hour).columns(nodes)

    def _add(self, record: RequestRecord) -> None:
        self.minutes.add(record)
        self.hour.add(record)
        number = int(record.at // 60)
        if not self._past or self._past[-1].number < number:
            self._past.append(_Minute(number))
        minute = self._past[-1]
        minute.finished += 1
        if not record.ok and record.outcome != "left":
            error = record.error[:200]
            minute.errors[error if error in minute.errors or len(minute.errors) < ERRORS_MOST else "other errors"] += 1
        if record.tokens_in and record.node:
            replica = (record.model, record.node)
            minute.prompts[replica] = max(minute.prompts.get(replica, 0), record.tokens_in)
        if record.load_s > LOADED_LEAST_S and record.node:
            self._loads.append(ModelLoad(record.at, record.node, record.model, record.options, record.app))
