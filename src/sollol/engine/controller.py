"""Keep the models where they are used: measure the demand, plan, try the plan on paper, carry it out.

It belongs to the engine's loop. All changes go through the scheduler as events with a reason, so that they stand in its
journal, and so that no model in use is unloaded. It also loads a model again that fell to the CPU of a node with a GPU.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from sollol.core.events import LoadRequested, Refresh, UnloadRequested
from sollol.core.runner_options import parse
from sollol.core.state.replica import Node, Replica
from sollol.core.types import SECOND, Kind, LoadedModel, canonical_model
from sollol.engine.engine import Engine
from sollol.observe.load_rows import is_being_loaded
from sollol.observe.replica_state import moment
from sollol.observe.request_record import RequestRecord
from sollol.policies.placement import GreedyPlacement, ModelNeed, NodeRoom, PlacementPlan, PlacementStep
from sollol.policies.placement_check import arrivals, try_placement

EVERY_S: Final = 30.0
REMEMBERED_S: Final = 900.0  # demand that counts
TRIED_S: Final = 900.0  # of demand, with which a plan is tried
TRIED_MOST: Final = 2_000  # requests of such a trial
LISTS_S: Final = 2.0  # longest wait for the lists of the nodes before a plan
LOOKS: Final = 100  # in this time
SERVICE_S: Final = 2.0  # of a request, where nothing was measured
REPAIR_EVERY_S: Final = 600.0
REPAIRS_MOST: Final = 3  # of one replica, until it was on the GPU again
KEEP_LEAST_S, KEEP_MOST_S = 300.0, 86_400.0
KEEP_TIMES: Final = 3.0  # usual pauses between two requests
FOREVER: Final = "-1s"  # as keep-alive
PINNED_S: Final = 10 * 365 * 86_400.0  # a model that stays longer is pinned
MEMORY_SHARE: Final = 0.9  # of the memory that an agent reports; the rest is for contexts and other programs
ACTIONS_KEPT: Final = 100


class _Use(NamedTuple):
    at: float
    model: str
    node: str
    service_s: float
    kind: str
    options: str


def no_agent(node: str) -> int | None:
    """Return None: nothing is reported of a node's memory."""
    return None


class StepRow(Struct):
    """Report a load or an unload, its reason, and the seconds of all requests that it gains."""

    do: Literal["load", "unload"]
    node: str
    model: str
    reason: str
    gain_s: float
    at: float | UnsetType = UNSET  # when it was done, in seconds since 1970


class ExpectedTimes(Struct):
    """Report the mean seconds of a request before and after a plan."""

    before: float
    after: float


class ControllerStatus(Struct):
    """Report the last plan, and the last actions; `not_carried_out` is why the plan was not, "" if it was."""

    dry_run: bool
    planned_at: float
    expected_s: ExpectedTimes | None
    steps: list[StepRow]
    not_carried_out: str
    actions: list[StepRow]


class Controller:
    """Plan the placement of models every few seconds.

    Args:
        engine: The engine of the pool.
        priority_models: Models of which one replica stays warm whatever the demand.
        least: Least number of replicas, by model.
        dry_run: Only plan; `status` shows what would be done.
        budgets: Most bytes of models by node.
        memory: Bytes of memory for models by node, where an agent reports them.
        clock: Return the seconds since 1970.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        priority_models: tuple[str, ...] = (),
        least: Mapping[str, int] | None = None,
        dry_run: bool = False,
        budgets: Callable[[str], int | None] = no_agent,
        memory: Callable[[str], int | None] = no_agent,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._least = {canonical_model(name): count for name, count in (least or {}).items()}
        for name in priority_models:
            self._least.setdefault(canonical_model(name), 1)
        self._dry_run = dry_run
        self._budgets = budgets
        self._memory = memory
        self._clock = clock
        self._policy = GreedyPlacement()
        self._records = engine.recorder.subscribe("controller", sampled=False)
        self._uses: deque[_Use] = deque()
        self._began = clock()
        self._listed_us = 0  # when the lists were requested
        self._repaired: dict[tuple[str, str], tuple[float, int]] = {}
        self._again: dict[tuple[str, str], tuple[Kind, str, str]] = {}  # unloaded for a repair, and to be loaded
        self._plan: PlacementPlan | None = None
        self._planned_at = 0.0
        self._verdict = ""
        self._actions: deque[StepRow] = deque(maxlen=ACTIONS_KEPT)

    async def tick(self) -> None:
        """Read the lists of the nodes, plan once, and carry the plan out."""
        await self._read_lists()
        now = self._clock()
        self._remember(now)
        self._repair(now)
        needs, rooms = self._needs(now), self._rooms(now)
        plan = self._policy.plan(needs, rooms)
        self._plan, self._planned_at, self._verdict = plan, now, self._judge(plan, needs, rooms)
        if plan.steps and not self._verdict:
            self._carry_out(plan, needs)

    def status(self) -> ControllerStatus:
        """Return the last plan, whether it is carried out, and the last actions with their reasons."""
        plan = self._plan
        return ControllerStatus(
            dry_run=self._dry_run,
            planned_at=self._planned_at,
            expected_s=None if plan is None else ExpectedTimes(plan.before_s, plan.after_s),
            steps=[] if plan is None else [_row(step) for step in plan.steps],
            not_carried_out=self._verdict or ("it is a dry run" if self._dry_run else ""),
            actions=list(self._actions),
        )

    def close(self) -> None:
        """Receive no more records."""
        self._engine.recorder.unsubscribe(self._records)

    async def _read_lists(self) -> None:
        """Wait for new lists of all nodes: other programs load models, too, and pin them."""
        await self._lists_answered()  # those that are outstanding may be older
        self._listed_us = self._engine.dispatcher.now()
        self._engine.dispatcher.feed(Refresh())
        await self._lists_answered()

    async def _lists_answered(self) -> None:
        for _ in range(LOOKS):
            if not any(node.probing for node in self._nodes()):
                return
            await asyncio.sleep(LISTS_S / LOOKS)

    # --- demand ---

    def _remember(self, now: float) -> None:
        for record in self._records.take():
            if record.ok and record.node:
                self._uses.append(_use_of(record))
        while self._uses and self._uses[0].at < now - REMEMBERED_S:
            self._uses.popleft()

    def _needs(self, now: float) -> list[ModelNeed]:
        counts = Counter(use.model for use in self._uses)
        for model in self._engine.scheduler.view().waited_for():
            counts[model] += 1
        span_s = min(max(now - self._began, EVERY_S), REMEMBERED_S)
        sizes: dict[str, int] = {}
        for node in self._nodes():
            for model, size in node.models.items():
                held = node.loaded.get(model)
                sizes[model] = max(sizes.get(model, 0), size, held.size if held is not None else 0)
        return [
            ModelNeed(model, size, counts[model] / span_s, self._least.get(model, 0))
            for model, size in sizes.items()
            if counts[model] or model in self._least
        ]

    def _nodes(self) -> list[Node]:
        return [node for node in self._engine.scheduler.view().nodes.values() if node.usable and not node.drained]

    # --- nodes ---

    def _rooms(self, now: float) -> list[NodeRoom]:
        service, now_us = self._service_s(), self._engine.dispatcher.now()
        rooms = []
        for node in self._nodes():
            held = {model: row.size or node.models.get(model, 0) for model, row in node.loaded.items()}
            pinned = {model for model, row in node.loaded.items() if _is_pinned(row, now)}
            busy = {model for model, replica in node.replicas.items() if replica.attempts or replica.is_waited_for()}
            refused = node.incapable.too_large(now_us)
            models = {model: size for model, size in node.models.items() if model not in refused}
            loading = {model for model, replica in node.replicas.items() if is_being_loaded(replica, now_us)}
            held |= {model: node.models.get(model, 0) for model in loading if model not in held}
            kept, room = pinned | loading | (busy & held.keys()), self._room(node, models, held, bool(pinned))
            if node.probing or node.asked_us < self._listed_us:  # its list is old: it stays as it is
                kept, room = set(held), sum(held.values())
            speed = node.speed.read() or 1.0
            rooms.append(
                NodeRoom(
                    node.key,
                    room,
                    {
                        model: service.get((node.key, model)) or service.get(("", model), SERVICE_S) / speed
                        for model in models
                    },
                    {model: node.load_time.predict(size) / SECOND for model, size in node.models.items()},
                    held,
                    frozenset(kept),
                    max(len(held), node.memory.most_models(room)),
                )
            )
        return rooms

    def _room(self, node: Node, models: Mapping[str, int], held: Mapping[str, int], has_pinned: bool) -> int:
        """Return the bytes for models that were seen to fit, and for one more where all did."""
        present = sum(held.values())
        known = max(node.memory.fitting_bytes, node.held_bytes, present)
        full, memory = node.memory.full_bytes, self._memory(node.key)
        if memory is not None:
            room = max(present, round(MEMORY_SHARE * memory))
        elif full is not None:
            room = max(present, min(known, full - 1))
        else:
            room = known if has_pinned else known + max(models.values(), default=0)
        budget = self._budgets(node.key)
        return room if budget is None else min(room, budget)

    def _service_s(self) -> dict[tuple[str, str], float]:
        """Return the middle seconds of a request by (node, model), and by ("", model) over all nodes."""
        seconds: dict[tuple[str, str], list[float]] = {}
        for use in self._uses:
            for key in ((use.node, use.model), ("", use.model)):
                seconds.setdefault(key, []).append(use.service_s)
        return {key: sorted(values)[len(values) // 2] for key, values in seconds.items()}

    # --- carrying out ---

    def _judge(self, plan: PlacementPlan, needs: list[ModelNeed], rooms: list[NodeRoom]) -> str:
        """Return why a plan is not worth its loads on paper; "" if it is."""
        if not plan.steps or any(need.least for need in needs):
            return ""
        rate = sum(need.per_s for need in needs)
        span_s = min(TRIED_S, TRIED_MOST / rate) if rate else TRIED_S
        requests = arrivals(needs, span_s, random.Random(1))
        before = {room.node: frozenset(room.held) for room in rooms}
        old, new = (try_placement(needs, rooms, warm, requests) for warm in (before, plan.warm))
        if requests and new.mean_s >= old.mean_s:
            return f"on paper a request takes {new.mean_s:.2f} s with it, and {old.mean_s:.2f} s without"
        return ""

    def _carry_out(self, plan: PlacementPlan, needs: list[ModelNeed]) -> None:
        loading: set[str] = set()
        per_s = {need.model: need.per_s for need in needs}
        for step in plan.steps:
            if self._dry_run or step.node in loading:
                continue  # a node loads one model at a time; the next plan has the others
            self._log(step)
            if step.load:
                loading.add(step.node)
                usual = *self._usual(step.model), ""
                kind, options, keep = self._again.pop((step.node, step.model), usual)
                keep = keep or keep_alive(per_s.get(step.model, 0.0))
                self._engine.dispatcher.feed(LoadRequested(step.node, step.model, kind, options, keep, step.reason))
            else:
                self._engine.dispatcher.feed(UnloadRequested(step.node, step.model, step.reason))

    def _usual(self, model: str) -> tuple[Kind, str]:
        """Return the kind and the runner options of most requests for a model, with the largest context of these."""
        uses = [use for use in self._uses if use.model == model]
        if not uses:
            return Kind.GENERATE, ""
        kind = Counter(use.kind for use in uses).most_common(1)[0][0]
        parsed = {options: parse(options) for options in {use.options for use in uses}}
        others = Counter(parsed[use.options][1:] for use in uses).most_common(1)[0][0]
        alike = sorted(options for options, each in parsed.items() if each[1:] == others)
        return Kind(kind), max(alike, key=lambda options: parsed[options].context)

    def _log(self, step: PlacementStep) -> None:
        self._actions.appendleft(_row(step, self._clock()))

    # --- repair ---

    def _load_again(self, now: float) -> None:
        """Load the models that a repair has unloaded, where their room was not taken meanwhile."""
        again, self._again = self._again, {}
        view = self._engine.scheduler.view()
        rooms = {room.node: room for room in self._rooms(now)} if again else {}
        for (key, model), (kind, options, keep) in again.items():
            room = rooms.get(key)
            if room is not None and sum(room.held.values()) + view.nodes[key].models.get(model, 0) <= room.room:
                why = "it was unloaded for a repair"
                self._engine.dispatcher.feed(LoadRequested(key, model, kind, options, keep, why))

    def _repair(self, now: float) -> None:
        """Unload idle models that fell to the CPU, and load them again at the next look."""
        self._load_again(now)
        for node in self._nodes():
            for model, replica in node.replicas.items():
                why = _fallen(node, replica)
                if not why:
                    if replica.is_on_gpu():
                        self._repaired.pop((node.key, model), None)
                    continue
                at, times = self._repaired.get((node.key, model), (-REPAIR_EVERY_S, 0))
                if replica.attempts or now - at < REPAIR_EVERY_S or times >= REPAIRS_MOST:
                    continue
                self._log(PlacementStep(False, node.key, model, why))
                if self._dry_run:
                    continue
                self._repaired[node.key, model] = now, times + 1
                keep = FOREVER if _is_pinned(node.loaded[model], now) else ""
                self._again[node.key, model] = self._usual(model)[0], replica.runner_options(), keep
                self._engine.dispatcher.feed(UnloadRequested(node.key, model, why))


def keep_alive(per_s: float) -> str:
    """Return the keep-alive for a model with this demand: some usual pauses between two requests."""
    seconds = KEEP_TIMES / per_s if per_s > 0 else KEEP_MOST_S
    return f"{round(min(max(seconds, KEEP_LEAST_S), KEEP_MOST_S))}s"


def _use_of(record: RequestRecord) -> _Use:
    node = record.node.partition(",")[0]
    service_s = max(0.001, record.actual_s - record.load_s)
    return _Use(record.at, record.model, node, service_s, record.kind, record.options)


def _fallen(node: Node, replica: Replica) -> str:
    """Return why a replica should be loaded again; "" if it runs where it can."""
    held = node.loaded.get(replica.model)
    if held is None:
        return ""
    if held.runners > 1:
        return f"{held.runners} versions of it are in memory at once, since its digest has changed"
    if not node.gpu_seen:
        return ""
    share = held.gpu_share
    if share is not None and share < 1.0 and held.size <= node.held_bytes:
        return f"{100 - round(100 * share)}% of it runs on the CPU, and a model of its size was on the GPU before"
    if replica.demoted_us:
        return "it became many times slower than before"
    return ""


def _is_pinned(held: LoadedModel, now: float) -> bool:
    return moment(held.expires_at, now) - now > PINNED_S


def _row(step: PlacementStep, at: float | UnsetType = UNSET) -> StepRow:
    return StepRow("load" if step.load else "unload", step.node, step.model, step.reason, step.gain_s, at)
