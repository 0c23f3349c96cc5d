"""All replicas of one model, and sums over them that are too slow to compute for each decision.

A decision compares a few replicas, not a thousand: the fastest free ones, the fastest busy ones (it may pay to wait for
one), and those that have read the beginning of this conversation or hold the model with these options.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from sollol.core.model_versions import chosen
from sollol.core.state.estimators import KINDS_MAX, Length, Rate
from sollol.core.state.model_settings import ModelSettings
from sollol.core.state.queue import WaitQueue
from sollol.core.types import EMBED, SECOND, Micros, PrefixHash, Task, TaskType

if TYPE_CHECKING:
    from sollol.core.state.replica import Replica

SHORTLIST: Final = 24  # replicas compared for one decision; all, if there are no more
HALF: Final = SHORTLIST // 2
MATCHING: Final = 4  # most replicas added because they hold the model with the task's options
MARKS_MAX: Final = 10_000
RANK_EVERY: Final = 16  # answers between two rankings, at least half the number of replicas
RANK_OFTEN: Final = 64  # first answers, after each of which they are

# Assumed before anything was measured anywhere; the first answers replace them.
TOKENS_OUT: Final = 128.0
BYTES_PER_TOKEN: Final = 4.0
PREFILL: Final = 200e-6  # tokens per microsecond
DECODE: Final = 20e-6
WORK: Final = 2_000e-6  # cost units per microsecond


class TypicalRates(NamedTuple):
    """Hold middle and best rates of the measured replicas, for those without measurements."""

    work: float = WORK
    best_work: float = WORK
    prefill: float = PREFILL
    best_prefill: float = PREFILL
    decode: float = DECODE
    best_decode: float = DECODE
    slowness: float = 1.0  # of the fastest place that was measured: 1 on a GPU, CPU_SLOWER on a CPU


class ModelReplicas:
    """Hold the replicas of one model, its queue, and the digest that embeddings use."""

    __slots__ = (
        "_all",
        "_app",
        "_by_options",
        "_counted",
        "_length",
        "_lengths",
        "_ranked",
        "_ranked_at",
        "_settings",
        "_token_cost",
        "_type",
        "_typical",
        "batches",
        "best_rate",
        "checked",
        "cold_wait_us",
        "digest",
        "full_until",
        "inflight_cost",
        "mixed",
        "model",
        "notice",
        "off_nominal",
        "prefix_hashes",
        "queue",
        "replicas",
        "rescan_after",
        "rescan_planned",
        "samples",
        "tasks",
        "tokens_per_cost",
        "total_rate",
        "with_capacity",
    )

    def __init__(self, model: str, settings: ModelSettings, queue: WaitQueue | None = None) -> None:
        self.model = model
        self.replicas: dict[str, Replica] = {}
        self.with_capacity: dict[str, Replica] = {}  # replicas with fewer requests in flight than their limit
        self.off_nominal: dict[str, Replica] = {}  # replicas that may not be nominal (`core.state.replica`)
        self.queue = WaitQueue() if queue is None else queue  # tasks that wait for this model
        self.total_rate = 0.0  # sum of the work rates of usable replicas, cost units per µs
        self.best_rate = 0.0
        self.inflight_cost = 0.0
        self._token_cost = Rate(600 * SECOND)  # cost units per token of a prompt
        self.tokens_per_cost = 1 / BYTES_PER_TOKEN  # and the reverse
        self.digest = settings.used.get(model, "")  # the version that embeddings use (`core.model_versions`)
        self.mixed = False  # nodes have others, too
        self.checked = 0  # use for which the digests were checked since the last change
        self.notice = ""  # the last one about different digests
        self.tasks = 0  # that are not settled
        self.samples = 0
        self.batches = 0  # that are open
        self.full_until: Micros = 0  # all slots were taken just now, and no trial was worth it
        self.rescan_after: Micros = 0  # the waiting tasks were compared in vain just before
        self.rescan_planned = False
        self.cold_wait_us: Micros = 0  # time that tasks have waited while a node was idle that would have to load
        self._settings = settings
        self._lengths: dict[tuple[str, TaskType], Length] = {}  # by application and type of task
        self._app, self._type = "", TaskType.CHAT  # of the last task; the next one is often like it
        self._length: Length | None = None
        self._counted = 0  # samples seen by the last recount, and by the last ranking
        self._ranked_at = -1
        self._ranked: list[Replica] = []
        self._typical = TypicalRates()
        self._all: list[Replica] = []
        self.prefix_hashes: dict[
            PrefixHash, Replica
        ] = {}  # beginning of a conversation -> the replica that read it last
        self._by_options: dict[str, dict[str, Replica]] = {}

    # --- replicas ---

    def put(self, replica: Replica) -> None:
        """Add a replica."""
        self.replicas[replica.key] = replica
        self._all = list(self.replicas.values())
        self.checked = 0
        replica.flag_off_nominal()
        if len(replica.attempts) < replica.limiter.limit:
            self.with_capacity[replica.key] = replica
        self._ranked_at = -1

    def drop(self, key: str) -> None:
        """Remove the replica of a node."""
        replica = self.replicas.pop(key, None)
        self._all = list(self.replicas.values())
        self.with_capacity.pop(key, None)
        self.checked = 0
        self.off_nominal.pop(key, None)
        if replica is not None:
            self._forget_options(replica)
        self._ranked_at = -1

    def usable(self, now: Micros) -> list[Replica]:
        """Return the replicas that take work, now or when a slot frees."""
        return [replica for replica in self.replicas.values() if replica.usable(now)]

    def digest_for(self, task: Task) -> str:
        """Return the only version of the model that may answer this task; "" for any."""
        if task.kind is not EMBED and not self._settings.one_digest:
            return ""
        if task.only is None:
            return self.digest
        replicas = [replica for key in task.only if (replica := self.replicas.get(key)) is not None and replica.node.up]
        has = not replicas or any(replica.digest in ("", self.digest) for replica in replicas)
        return self.digest if has or self.model in self._settings.pinned else chosen(replicas)

    def suits(self, replica: Replica, task: Task, digest: str) -> bool:
        """Check that this task may go to this replica.

        Args:
            digest: The version that the task needs; "" for any.
        """
        return replica.suits(task) and (not digest or replica.digest in ("", digest))

    def _forget_options(self, replica: Replica) -> None:
        replicas = self._by_options.get(replica.options)
        if replicas is not None:
            replicas.pop(replica.node.key, None)
            if not replicas:
                del self._by_options[replica.options]

    def options_changed(self, replica: Replica, options: str) -> None:
        """Record the runner options that a replica is loaded with."""
        self._forget_options(replica)
        if options:
            self._by_options.setdefault(options, {})[replica.node.key] = replica

    def shortlist(self, task: Task, tried: Collection[str], wide: bool, now: Micros) -> list[Replica]:
        """Return the usable replicas worth comparing, without those in `tried`.

        Args:
            wide: All of them, however many.
        """
        if self.off_nominal:
            self._review(now)
        digest = self.digest_for(task) if self.mixed else ""
        limited = task.only is not None or task.gpu or bool(digest)
        if not limited and not tried and not self.off_nominal and (wide or len(self._all) <= SHORTLIST):
            return self._all
        if limited:
            return [
                replica
                for replica in self.replicas.values()
                if replica.node.key not in tried and replica.usable(now) and self.suits(replica, task, digest)
            ]
        if wide or len(self.replicas) <= SHORTLIST:
            return [
                replica
                for replica in self.replicas.values()
                if (replica.attempts or replica.breaker.closed or replica.breaker.admits(now))
                and replica.node.up
                and (not tried or replica.node.key not in tried)
            ]
        self._rank()
        free = self._best_free(tried, now)
        worst = free[-1].rank if len(free) >= HALF else len(self._ranked)
        busy: list[Replica] = []
        for replica in self._ranked:
            if replica.rank >= worst:
                break
            if replica.node.key not in self.with_capacity and replica.node.key not in tried and replica.usable(now):
                busy.append(replica)
                if len(busy) == HALF:
                    break
        found = {replica.node.key: replica for replica in free + busy}
        known = [self.prefix_hashes.get(prefix_hash) for prefix_hash, _ in task.prefix]
        known += list(self._by_options.get(task.options, {}).values())[:MATCHING]
        for replica_or_none in known:
            if replica_or_none is not None and replica_or_none.node.key not in tried and replica_or_none.usable(now):
                found.setdefault(replica_or_none.node.key, replica_or_none)
        return list(found.values()) or [
            replica for replica in self.replicas.values() if replica.node.key not in tried and replica.usable(now)
        ]

    def _review(self, now: Micros) -> None:
        for key, replica in list(self.off_nominal.items()):
            if replica.is_nominal(now):
                replica.settle()
                del self.off_nominal[key]

    def _best_free(self, tried: Collection[str], now: Micros) -> list[Replica]:
        """Return the fastest replicas with a free slot, the fastest first."""
        few = len(self.with_capacity) * 4 < len(self.replicas)
        replicas = sorted(self.with_capacity.values(), key=_rank_of) if few else self._ranked
        free: list[Replica] = []
        for replica in replicas:
            if replica.key in self.with_capacity and replica.key not in tried and replica.free(now):
                free.append(replica)
                if len(free) == HALF:
                    break
        return free

    # --- typical values ---

    def typical(self) -> TypicalRates:
        """Return the typical rates of this model."""
        self._rank()
        return self._typical

    def _rank(self) -> None:
        every = max(RANK_EVERY if self.samples >= RANK_OFTEN else 1, len(self.replicas) // 2)
        if self._ranked_at >= 0 and self.samples - self._ranked_at < every:
            return
        self._ranked_at = self.samples
        replicas = list(self.replicas.values())
        self._typical = typical = TypicalRates(
            *_middle([replica.work.read() for replica in replicas], WORK),
            *_middle([replica.prefill.read() for replica in replicas], PREFILL),
            *_middle([replica.decode.read() for replica in replicas], DECODE),
            min([replica.measured_slowness for replica in replicas if replica.decode.value], default=1.0),
        )
        if len(replicas) > SHORTLIST:
            self._ranked = sorted(replicas, key=lambda replica: _usual_time(replica, typical))
            for rank, replica in enumerate(self._ranked):
                replica.rank = rank

    def expected_tokens(self, task: Task) -> float:
        """Predict the tokens of the answer to a task."""
        tokens = self.length(task).read() or TOKENS_OUT
        limit = task.tokens_out
        return tokens if limit is None or limit < 0 else min(tokens, float(limit))

    def length(self, task: Task) -> Length:
        """Return the estimator for answers to such tasks."""
        last = self._length
        if last is not None and task.type is self._type and task.app == self._app:
            return last
        kind = task.app, task.type
        found = self._lengths.get(kind)
        if found is None:
            if len(self._lengths) > KINDS_MAX:
                self._lengths.clear()
            found = self._lengths[kind] = self._settings.lengths.of(task.app, task.type, self.model)
        self._app, self._type, self._length = task.app, task.type, found
        return found

    def measured_prompt(self, cost: int, tokens: int) -> None:
        """Record the tokens of a prompt of `cost` units."""
        self._token_cost.add(cost, tokens)
        self.tokens_per_cost = 1 / (self._token_cost.value or BYTES_PER_TOKEN)

    # --- sums for batches ---

    def recount(self, now: Micros) -> None:
        """Sum the rates again, after a node came or went, and against rounding drift."""
        rates = [replica.work.read() or 0.0 for replica in self.usable(now)]
        self.total_rate = sum(rates)
        self.best_rate = max(rates, default=0.0)
        self._counted = self.samples
        self.checked = 0

    def rate_changed(self, before: float, after: float, now: Micros) -> None:
        """Update the sums after the rate of one replica has changed."""
        self.samples += 1
        if self.samples - self._counted >= 256:
            self.recount(now)
            return
        self.total_rate += after - before
        self.best_rate = max(self.best_rate, after)


def _middle(values: list[float | None], default: float) -> tuple[float, float]:
    known = sorted(value for value in values if value)
    return (known[len(known) // 2], known[-1]) if known else (default, default)


def _rank_of(replica: Replica) -> int:
    return replica.rank


def _usual_time(replica: Replica, typical: TypicalRates) -> float:
    """Return the µs of a usual task, for sorting. An untried replica counts as the best."""
    if not replica.answers and not replica.failed:
        return 0.0
    decode, work = replica.decode.read(), replica.work.read()
    if decode:
        return replica.startup_us() + TOKENS_OUT / decode + 2 * TOKENS_OUT / (replica.prefill.read() or typical.prefill)
    return replica.startup_us() + TOKENS_OUT * BYTES_PER_TOKEN / (work or typical.work)
