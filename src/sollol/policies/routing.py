"""Choose the replica where a task would finish first, in µs, from measurements.

    finish = wait for a slot + load or reload + prefill + decode + overhead        (chat, generate)
    finish = wait for a slot + load or reload + input / rate                       (embed)

Every term is a measured time. Busy nodes compete too, with the time until they are free and the time that tasks ahead
in the queue have reserved. So a task may wait for a fast node rather than take a slow one. If a node has just read the
beginning of a prompt, only the rest is counted there. A load that evicts a model in use counts twice: its users will
have to load it again.

A replica without measurements is predicted by the others of its model. A node that was never tried is assumed to be a
little faster than the best, so that each is tried once. The same holds for a node without an answer for STALE, unless
it was far slower then.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from sollol.core.eviction import displacement_us
from sollol.core.policy import EvictionPolicy
from sollol.core.prefix_cache import NOT_READ, PROMPTS_WARM, warm_cost
from sollol.core.state.replica import Replica, TypicalRates
from sollol.core.types import (
    EMBED,
    NEVER,
    SECOND,
    SHOWN,
    Decision,
    Micros,
    Prediction,
    PrefixHash,
    Task,
)
from sollol.policies.eviction import EvictionByUse

# Predictions within this factor are equal; one of them is drawn, so that several clients do not choose the same node.
ALIKE: Final = 1.01
KEPT: Final = 16  # a decision keeps the predictions of so many candidates; of more candidates it keeps the best
EAGER: Final = 1.05  # assumed speed of a node that was never tried, relative to the best
STALE: Final[Micros] = 300 * SECOND  # after the last answer, a rate is too old
FADES: Final[Micros] = 5 * SECOND  # in which the penalty of a replica that has only failed halves
# The rates of a replica with fewer than FEW answers that are UNLIKE times slower than usual are mixed with the usual
# ones: a single straggler should not leave a healthy node unused.
FEW: Final = 3
UNLIKE: Final = 8.0
SLOWED: Final = 2.0  # a model that moved to the CPU and is so many times slower there gets lower rates
STALE_PRIORITY: Final = 5  # requests of a higher priority do not try nodes with unknown rates
FORGIVEN: Final[Micros] = 30 * SECOND  # after which a replica that has only failed is tried as a new one
NOT_FAR: Final = 8.0  # a replica with old rates is tried again if it was at most so many times slower than the best
_REASONS: Final = ["", "only candidate", *(f"finishes first of {count}" for count in range(2, 100))]


class CompletionRouter:
    """Choose by predicted completion time.

    Args:
        alike: Finishing within this factor of the best is the same; the draw keeps several clients apart.
        eager: Speed assumed of an untried node, as a factor of the best.
        stale_us: Age of the last answer after which a node is tried again.
        stale_priority: Only requests up to this priority are used for that.
        eviction: The price of a load for the users of other models.
    """

    __slots__ = ("alike", "eager", "eviction", "stale_priority", "stale_us")
    wide = False  # `core.policy.Router` explains both
    by_finish = True

    def __init__(
        self,
        *,
        alike: float = ALIKE,
        eager: float = EAGER,
        stale_us: Micros = STALE,
        stale_priority: int = STALE_PRIORITY,
        eviction: EvictionPolicy | None = None,
    ) -> None:
        self.alike = alike
        self.eager = eager
        self.stale_us = stale_us
        self.stale_priority = stale_priority
        self.eviction: EvictionPolicy = eviction or EvictionByUse()

    def choose(
        self,
        task: Task,
        replicas: Sequence[Replica],
        reserved_us: Mapping[str, Micros],
        now: Micros,
        rng: random.Random,
    ) -> Decision:
        """Return the decision for a task."""
        if not isinstance(replicas, list):  # compiled, a list is read without calls
            replicas = list(replicas)
        predictions: list[Prediction] = []
        finishes = self._predict(task, replicas, reserved_us, now, predictions)
        scores = self._scores(task, replicas, finishes, now)
        chosen = _least(scores, self.alike, rng) if len(predictions) > 1 else 0
        best = predictions[chosen]
        finish = finishes[chosen] - best.displaces_us  # a load that others must repeat is no time of this task
        embed = task.kind is EMBED
        if len(predictions) > KEPT:
            order = sorted(range(len(predictions)), key=scores.__getitem__)[:SHOWN]
            predictions, scores = [predictions[i] for i in order], [scores[i] for i in order]
        return Decision(
            best.node,
            int(finish + 0.5),
            self._reason(replicas, chosen),
            0 if embed else int(finish - best.decode_us + 0.5),
            predictions,
            scores,
        )

    def _reason(self, replicas: Sequence[Replica], chosen: int) -> str:
        count = len(replicas)
        return _REASONS[count] if count < len(_REASONS) else f"finishes first of {count}"

    def _scores(self, task: Task, replicas: Sequence[Replica], finishes: list[float], now: Micros) -> list[float]:
        """Return the numbers to minimise; here the predicted finish."""
        return finishes

    def _predict(
        self,
        task: Task,
        replicas: list[Replica],
        reserved_us: Mapping[str, Micros],
        now: Micros,
        predictions: list[Prediction],
    ) -> list[float]:
        """Append a prediction for each replica. Return the µs until the task would finish on each.

        One loop without calls for nominal replicas with rates of their own, as nearly all are: it runs for every
        replica of every decision. `_TermsPredictor` handles the others.
        """
        group = replicas[0].group
        embed = task.kind is EMBED
        occupies_gpu = not embed or task.batch
        tokens = 0.0 if embed else group.expected_tokens(task)
        tokens_per_cost = group.tokens_per_cost
        options, cost = task.options, float(task.cost)
        shares = not (embed or task.exact_context)
        prefix_hashes = group.prefix_hashes
        known = [
            part for part in reversed(task.prefix) if part[0] in prefix_hashes
        ]  # some node has read it; longest first
        reserved = bool(reserved_us)
        predictor: _TermsPredictor | None = None
        finishes: list[float] = []
        since = NEVER if embed else now - self.stale_us
        for replica in replicas:
            wait = 0.0
            nominal, running = replica.nominal, len(replica.attempts)
            if running or not nominal or replica.node.active_models:
                over = running - replica.proven  # attempts beyond the proven slots
                soonest = replica.soonest_us
                # The usual case of a busy replica, without a call.
                if over == 0 and soonest >= now and nominal and replica.occupies_gpu:
                    wait = float(soonest - now)
                elif over >= 0 or not nominal or not replica.occupies_gpu:
                    wait = float(replica.wait_us(now, occupies_gpu))
            if reserved:
                wait += float(reserved_us.get(replica.key, 0))
            prefill_rate, decode_rate = replica.prefill.value, replica.decode.value
            if (
                nominal
                and replica.answers >= FEW
                and replica.last_end_us > since
                and prefill_rate
                and decode_rate
                and (replica.options == options or (shares and options in replica.shared))
            ):
                new = cost  # without the part that the node has just read
                for prefix_hash, length in known:
                    if replica.warm.get(prefix_hash, NOT_READ) > replica.prompts - PROMPTS_WARM:
                        new -= length
                        break
                prefill, decode = new * tokens_per_cost / prefill_rate, tokens / decode_rate
                overhead = replica.overhead.value or 0.0
                predictions.append(Prediction(replica.key, wait, prefill, decode, overhead))
                finishes.append(wait + prefill + decode + overhead)
                continue
            if predictor is None:
                predictor = _TermsPredictor(self, task, now, tokens, tokens_per_cost, known)
            prediction = predictor.predict(replica, wait)
            predictions.append(prediction)
            finishes.append(wait + prediction.after_wait_us())
        return finishes


def _least(scores: list[float], alike: float, rng: random.Random) -> int:
    """Return the place of the least score, drawn at random among those within a factor of it."""
    bound = min(scores) * alike
    equal = [place for place, score in enumerate(scores) if score <= bound]
    return equal[0] if len(equal) == 1 else equal[int(rng.random() * len(equal))]


class _TermsPredictor:
    """Predict a task on replicas where more than load and rates decides."""

    __slots__ = (
        "_eager",
        "_eviction",
        "_known",
        "_now",
        "_stale_priority",
        "_stale_us",
        "_task",
        "_tokens",
        "_tokens_per_cost",
        "_usual",
    )

    def __init__(
        self,
        router: CompletionRouter,
        task: Task,
        now: Micros,
        tokens: float,
        tokens_per_cost: float,
        known: list[tuple[PrefixHash, int]],
    ) -> None:
        self._eager = router.eager
        self._eviction = router.eviction
        self._stale_us = router.stale_us
        self._stale_priority = router.stale_priority
        self._task = task
        self._now = now
        self._tokens = tokens
        self._tokens_per_cost = tokens_per_cost
        self._known = known
        self._usual: TypicalRates | None = None  # looked up only for replicas without rates of their own

    def predict(self, replica: Replica, wait: float) -> Prediction:
        task, now = self._task, self._now
        load = displaces = 0.0
        if not replica.loaded_by_us or replica.options != task.options:
            load = float(replica.startup_for(task))
            if not load and replica.loaded_by_us:
                replica.share(task)
            elif load:
                displaces = float(displacement_us(replica, task.options, self._eviction, now))
        prefill = decode = embed = penalty = 0.0
        if task.kind is EMBED:
            embed = task.cost / self._work(replica)
        else:
            prefill_rate, decode_rate = self._rates(replica)
            new = task.cost - warm_cost(replica, self._known) if self._known else task.cost
            prefill = new * self._tokens_per_cost / prefill_rate
            decode = self._tokens / decode_rate
        # A node that fails at once must not seem fast. The penalty fades, so that the node is tried again.
        if replica.failed and not replica.answers and now - replica.last_end_us < FORGIVEN:
            penalty = (replica.latency.read() or 0.0) / (1 + (now - replica.last_end_us) / FADES)
        overhead = replica.overhead.value or 0.0
        return Prediction(replica.key, wait, prefill, decode, overhead, load, displaces, embed, penalty)

    def _typical(self, replica: Replica) -> TypicalRates:
        if self._usual is None:
            self._usual = replica.group.typical()
        return self._usual

    def _work(self, replica: Replica) -> float:
        work = replica.work.value
        if not work:  # no chunk yet, or only chunks that another node answered first
            usual = self._typical(replica)
            work = usual.work if replica.node.attempted else usual.best_work
            slowed = replica.slowness() / usual.slowness
        else:
            slowed = replica.slowness() / replica.measured_slowness
        return work / slowed if slowed > SLOWED else work

    def _forgiven(self, replica: Replica) -> bool:
        return self._now - replica.last_end_us >= FORGIVEN and self._task.priority <= self._stale_priority

    def _rates(self, replica: Replica) -> tuple[float, float]:
        """Return prefill and decode rates; where they are unknown or stale, what may be assumed."""
        node = replica.node
        # A node that has only failed counts as new after a while, because it may work again.
        fresh = not node.attempted or (replica.failed > 0 and not replica.answers and self._forgiven(replica))
        prefill_rate, decode_rate = replica.prefill.value, replica.decode.value
        stale = decode_rate is not None and self._now - replica.last_end_us > self._stale_us
        if stale and (decode_rate or 0.0) * NOT_FAR > self._typical(replica).best_decode:
            fresh, prefill_rate, decode_rate = self._task.priority <= self._stale_priority, None, None
        if replica.answers < FEW and prefill_rate and decode_rate:
            usual = self._typical(replica)
            own = replica.answers / FEW
            if decode_rate * UNLIKE < usual.decode:
                decode_rate = decode_rate**own * usual.decode ** (1 - own)
            if prefill_rate * UNLIKE < usual.prefill:
                prefill_rate = prefill_rate**own * usual.prefill ** (1 - own)
        slowed = replica.slowness() / replica.measured_slowness
        if slowed > SLOWED and prefill_rate and decode_rate:  # measured on the GPU, and now it runs on the CPU
            prefill_rate, decode_rate = prefill_rate / slowed, decode_rate / slowed
        if not prefill_rate or not decode_rate:
            usual = self._typical(replica)
            # The first estimate is the node's speed with its other models.
            speed = self._eager if fresh else node.speed.value or 1.0
            if node.loaded:  # the model is on the CPU, and the others were measured on a GPU
                speed /= max(1.0, replica.slowness() / usual.slowness)
            prefill_rate = prefill_rate or (usual.best_prefill if fresh else usual.prefill) * speed
            decode_rate = decode_rate or (usual.best_decode if fresh else usual.decode) * speed
        return prefill_rate, decode_rate
